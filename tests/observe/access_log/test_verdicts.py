"""Formats and loggers that Envoy refuses are refused, those that it takes are taken: it is asked about all at once."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from meshlib import proto
from meshlib.errors import ResourceError
from meshlib.resources import operators
from tests.observe.access_log.envoy import file_log, verdicts
from tests.resources import test_decode_access_log
from tests.resources.building import api_listener, decoded

pytestmark = [pytest.mark.envoy, pytest.mark.timeout(60)]

NAMES = sorted(
    operators.PLAIN
    | operators.OPTIONAL
    | operators.OPTIONAL_WITH_LENGTH
    | operators.REQUIRED
    | operators.REQUIRED_WITHOUT_LENGTH
    | set(operators.ALIASES)
)
EXPRESSIONS = {"CEL", "TYPED_CEL", "COALESCE"}
"""What stands in their parentheses is a language of its own, which only Envoy reads."""

ARGUMENTS = (
    "", "x", "X-A", "a?b", "a?b?c", "?", "a b", "a:b", "a:b:us", "a:b:s", "WQ:ORIG", "NQ", "ORIG", "DECODED", "NUMBER",
    "SNI_FIRST:HOST", "CLUSTER:m:k", "k:PLAIN", "k:FIELD", "k:FIELD:f", "%Y", "%3n", "a)b", "\u00e9", ":path", "\n", ":",
)  # fmt: skip
LENGTHS = ("", ":5", ":0", ":", ":x", ":18446744073709551616")


def text_log(fmt: str) -> dict[str, Any]:
    return file_log("/dev/null", log_format={"text_format_source": {"inline_string": fmt}})


def refusal(log: dict[str, Any]) -> str | None:
    try:
        decoded(proto.LISTENER, api_listener(access_log=[log]))
    except ResourceError as error:
        return f"{error.path}: {error.reason}"
    return None


def assert_alike(logs: list[dict[str, Any]], shown: list[str]) -> None:
    different = [
        f"{text!r}\n  Envoy: {theirs}\n  here: {ours}"
        for text, theirs, ours in zip(shown, verdicts(logs), map(refusal, logs))
        if (theirs is None) is not (ours is None)
    ]
    assert not different, "\n".join(different)


def test_operators_with_all_kinds_of_arguments() -> None:
    formats = [f"%{name}%" for name in NAMES]
    formats += [
        f"%{name}({argument}){LENGTHS[(number + index) % len(LENGTHS)]}%"
        for number, name in enumerate(NAMES)
        if name not in EXPRESSIONS
        for index, argument in enumerate(ARGUMENTS[number % 5 :: 5])
    ]
    formats += [f"%{name}(x){length}%" for name in NAMES if name not in EXPRESSIONS for length in LENGTHS[:2]]
    assert_alike([text_log(each) for each in formats], formats)


def test_random_formats() -> None:
    formats: list[str] = []

    @seed(1)
    @settings(max_examples=300)
    @given(st.text(st.sampled_from("%%%()?:RESPEQP1a _\u00e9"), max_size=14))
    def collect(text: str) -> None:
        formats.append(text)

    @seed(2)
    @settings(max_examples=300)
    @given(
        st.lists(
            st.sampled_from([*(f"%{name}" for name in NAMES[::7]), "(x)", "(", ")", ":3", "%", "%%", "a"]),
            max_size=6,
        )
    )
    def assemble(parts: list[str]) -> None:
        text = "".join(parts)
        if not any(name in text for name in EXPRESSIONS):
            formats.append(text)

    collect()
    assemble()
    assert len(formats) > 400
    assert_alike([text_log(each) for each in formats], formats)


def test_loggers_and_filters() -> None:
    refused = [log for log, _ in test_decode_access_log.REFUSED]
    chosen = [
        row.args[0] if hasattr(row, "args") else row[0]
        for mark in test_decode_access_log.test_filters.pytestmark
        for row in mark.args[1]
    ]
    logs = [*refused, *({**file_log("/dev/null"), "filter": each} for each in chosen)]
    logs = [log for log in logs if "filter" not in log or log["filter"]]  # Envoy crashes on an empty one
    assert_alike(logs, [str(log) for log in logs])

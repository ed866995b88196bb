"""Single matchers. Every row of the tables was seen on Envoy 1.40.0 unless it says otherwise."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshlib.resources.matching import (
    FractionalPercent,
    HeaderMatch,
    Int64Range,
    QueryParameterMatch,
    StringKind,
)
from meshlib.resources.route import PathKind
from meshlib.routing.authority import ascii_lower
from meshlib.routing.matchers.fraction import compile_fraction
from meshlib.routing.matchers.grpc import is_grpc
from meshlib.routing.matchers.header import compile_header, compile_headers
from meshlib.routing.matchers.path import compile_path
from meshlib.routing.matchers.query import compile_queries, parse_query
from meshlib.routing.matchers.string import compile_string
from tests.routing.build import path_match, request, text


@pytest.mark.parametrize(
    ("kind", "value", "subject", "matches", "folded"),
    [
        (StringKind.EXACT, "aB", "aB", True, True),
        (StringKind.EXACT, "aB", "Ab", False, True),
        (StringKind.EXACT, "aB", "aBc", False, False),
        (StringKind.EXACT, "", "", True, True),
        (StringKind.EXACT, "\xc9", "\xe9", False, False),
        (StringKind.PREFIX, "aB", "aBc", True, True),
        (StringKind.PREFIX, "aB", "ABc", False, True),
        (StringKind.PREFIX, "aB", "xaB", False, False),
        (StringKind.SUFFIX, "aB", "xaB", True, True),
        (StringKind.SUFFIX, "aB", "xAB", False, True),
        (StringKind.CONTAINS, "aB", "xaBx", True, True),
        (StringKind.CONTAINS, "aB", "xabx", False, True),
    ],
)
def test_strings(kind: StringKind, value: str, subject: str, matches: bool, folded: bool) -> None:
    assert compile_string(text(value, kind))(subject) is matches
    assert compile_string(text(value, kind, ignore_case=True))(subject) is folded


def test_regular_expressions_match_the_whole_text() -> None:
    matches = compile_string(text("[0-9]+", StringKind.REGEX))
    assert matches("12")
    assert not matches("12a")


EXACT_1: dict[str, Any] = {"string": text("1")}

HEADER_CASES: list[tuple[dict[str, Any], list[tuple[list[str], bool]]]] = [
    (
        EXACT_1,
        [
            ([], False),
            (["1"], True),
            (["2"], False),
            (["1", "2"], True),
            (["2", "1"], True),
            (["1,2"], False),
        ],
    ),
    (
        {**EXACT_1, "invert": True},
        [
            ([], False),
            (["1"], False),
            (["2"], True),
            (["1", "2"], False),
            (["2", "1"], False),
            (["1,2"], True),
            (["2", "3"], True),
            ([""], True),
        ],
    ),
    ({**EXACT_1, "treat_missing_as_empty": True}, [([], False), (["1"], True)]),
    (
        {**EXACT_1, "treat_missing_as_empty": True, "invert": True},
        [([], True), (["1"], False), (["2"], True)],
    ),
    ({"string": text(""), "treat_missing_as_empty": True}, [([], True), ([""], True), (["1"], False)]),
    ({"string": text("")}, [([], False), ([""], True)]),
    ({}, [([], False), ([""], True), (["1"], True)]),
    ({"present": True}, [([], False), (["1"], True), (["1", "2"], True)]),
    ({"present": False}, [([], True), (["1"], False)]),
    ({"present": True, "invert": True}, [([], True), (["1"], False)]),
    ({"present": False, "invert": True}, [([], False), (["1"], True)]),
    ({"present": True, "treat_missing_as_empty": True}, [([], True), (["1"], True)]),
    ({"present": False, "treat_missing_as_empty": True}, [([], False), (["1"], False)]),
    (
        {"range": Int64Range(start=1, end=20)},
        [
            ([], False),
            (["15"], True),
            (["+15"], True),
            ([" 15"], True),
            (["15 "], True),
            (["15.0"], False),
            (["15a"], False),
            (["-1"], False),
            (["1"], True),
            (["20"], False),
            (["0x5"], False),
            (["\u0661\u0665"], False),
            (["19"], True),
            (["0019"], True),
            (["1_5"], False),
            (["99999999999999999999"], False),
            ([""], False),
            (["30", "15"], True),
        ],
    ),
    ({"range": Int64Range(start=1, end=20), "invert": True}, [([], False), (["15"], False), (["15a"], True)]),
    (
        {"range": Int64Range(start=-5, end=1)},
        [(["-5"], True), (["-6"], False), (["0"], True), (["1"], False)],
    ),
]


@pytest.mark.parametrize(
    ("options", "values", "expected"),
    [(options, values, expected) for options, rows in HEADER_CASES for values, expected in rows],
)
def test_headers(options: dict[str, Any], values: list[str], expected: bool) -> None:
    matches = compile_header(HeaderMatch(name="x", **options))
    message = request(headers=[("a", "1"), *(("x", value) for value in values)])
    assert matches(message) is expected


def test_pseudo_headers_are_headers() -> None:
    message = request("/p?q=1", authority="Host.example", method="PUT", scheme="https")
    for name, value in [
        (":path", "/p?q=1"),
        (":method", "PUT"),
        (":authority", "Host.example"),
        ("host", "Host.example"),
        (":scheme", "https"),
    ]:
        assert compile_header(HeaderMatch(name=name, string=text(value)))(message)
    assert not compile_header(HeaderMatch(name=":protocol"))(message)


def test_all_header_matchers_must_match() -> None:
    both = compile_headers([HeaderMatch(name="a"), HeaderMatch(name="b")])
    assert both is not None
    assert both(request(headers=[("a", ""), ("b", "")]))
    assert not both(request(headers=[("a", "")]))
    assert compile_headers([]) is None


@given(st.lists(st.sampled_from(["1", "2", "", "1,2"]), min_size=1), st.booleans())
def test_inverting_a_value_matcher_inverts_it_when_the_header_is_there(
    values: list[str], invert: bool
) -> None:
    message = request(headers=[("x", value) for value in values])
    plain = compile_header(HeaderMatch(name="x", string=text("1")))(message)
    assert compile_header(HeaderMatch(name="x", string=text("1"), invert=invert))(message) is (
        plain is not invert
    )


@pytest.mark.parametrize(
    ("path", "exact", "present"),
    [
        ("/?k=v", True, True),
        ("/?k=%76", False, True),
        ("/?k", False, True),
        ("/?k=", False, True),
        ("/?k=x&k=v", False, True),
        ("/?k=v&k=x", True, True),
        ("/?a=1&k=v", True, True),
        ("/?K=v", False, False),
        ("/?k=v=2", False, True),
        ("/??k=v", False, False),
        ("/?a;k=v", False, False),
        ("/?k=v?x", False, True),
        ("/?", False, False),
        ("/", False, False),
        ("/?&&k=v", True, True),
    ],
)
def test_query_parameters(path: str, exact: bool, present: bool) -> None:
    for parameter, expected in [
        (QueryParameterMatch(name="k", string=text("v")), exact),
        (QueryParameterMatch(name="k"), present),
        (QueryParameterMatch(name="k", present=False), not present),
    ]:
        matches = compile_queries([parameter])
        assert matches is not None
        assert matches(path) is expected


def test_all_query_matchers_must_match() -> None:
    both = compile_queries([QueryParameterMatch(name="a"), QueryParameterMatch(name="b")])
    assert both is not None
    assert both("/?b&a")
    assert not both("/?b")


@given(st.lists(st.tuples(st.sampled_from("abc"), st.text("xyz=?", max_size=3)), max_size=5))
def test_the_first_value_of_a_parameter_counts(pairs: list[tuple[str, str]]) -> None:
    parsed = parse_query("/p?" + "&".join(f"{name}={value}" for name, value in pairs))
    assert {name: value for name, value in parsed.items() if name} == dict(reversed(pairs))


PATH_CASES = [
    (PathKind.PREFIX, "/pre", "/prefix", True),
    (PathKind.PREFIX, "/pre", "/pre", True),
    (PathKind.PREFIX, "/pre", "//pre", False),
    (PathKind.PREFIX, "/pre", "/pr%65", False),
    (PathKind.PREFIX, "/pre", "/a/../pre", False),
    (PathKind.PREFIX, "", "/", True),
    (PathKind.PATH, "/exact", "/exact", True),
    (PathKind.PATH, "/exact", "/exact/", False),
    (PathKind.SAFE_REGEX, "/r/[0-9]+", "/r/12", True),
    (PathKind.SAFE_REGEX, "/r/[0-9]+", "/r/12/", False),
    (PathKind.PATH_SEPARATED_PREFIX, "/api/dev", "/api/dev", True),
    (PathKind.PATH_SEPARATED_PREFIX, "/api/dev", "/api/dev/", True),
    (PathKind.PATH_SEPARATED_PREFIX, "/api/dev", "/api/dev/x", True),
    (PathKind.PATH_SEPARATED_PREFIX, "/api/dev", "/api/developer", False),
    (PathKind.PATH_SEPARATED_PREFIX, "/api/dev", "/api/dev;x", False),
]


@pytest.mark.parametrize(("kind", "value", "path", "expected"), PATH_CASES)
def test_paths(kind: PathKind, value: str, path: str, expected: bool) -> None:
    test, argument = compile_path(path_match(kind, value))
    assert test(path, argument) is expected


@pytest.mark.parametrize(
    ("kind", "value", "path", "expected"), [c for c in PATH_CASES if c[0] is not PathKind.SAFE_REGEX]
)
def test_paths_in_any_letter_case(kind: PathKind, value: str, path: str, expected: bool) -> None:
    test, argument = compile_path(path_match(kind, value.upper(), case_sensitive=False))
    assert test(path, argument) is expected
    sensitive, argument = compile_path(path_match(kind, value.upper()))
    assert not sensitive(path, argument) or not value


@pytest.mark.parametrize(
    ("content_type", "expected"),
    [
        ("application/grpc", True),
        ("application/grpc+proto", True),
        ("application/grpc-web", False),
        ("application/grpc;x", False),
        ("Application/grpc", False),
        (None, False),
    ],
)
def test_grpc(content_type: str | None, expected: bool) -> None:
    headers = [] if content_type is None else [("content-type", content_type)]
    assert is_grpc(request(headers=headers)) is expected


@given(st.integers(0, 100), st.sampled_from([100, 10_000, 1_000_000]), st.integers(0, 2**64 - 1))
def test_fractions(numerator: int, denominator: int, number: int) -> None:
    matches = compile_fraction(FractionalPercent(numerator=numerator, denominator=denominator))
    assert matches(number) is (number % denominator < numerator)


@given(st.text())
def test_only_ascii_letters_are_folded(value: str) -> None:
    folded = ascii_lower(value)
    assert len(folded) == len(value)
    for before, after in zip(value, folded):
        assert after == (before.lower() if before.isascii() else before)

"""Access-log format strings; what is accepted and refused was asked of Envoy 1.40."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshlib.resources import operators
from meshlib.resources.format import Format, FormatError, Operator, parse


@pytest.mark.parametrize(
    ("text", "literal"),
    [
        ("", ""),
        ("plain", "plain"),
        ("%%", "%"),
        ("100%%", "100%"),
        ("x%%%%y", "x%%y"),
        ("a\u00e9", "a\u00e9"),
    ],
)
def test_literals(text: str, literal: str) -> None:
    assert parse(text).literal == literal
    assert parse(text).segments == ((literal,) if literal else ())


@pytest.mark.parametrize(
    ("text", "segments"),
    [
        ("%PROTOCOL%", (Operator(name="PROTOCOL"),)),
        ("%PROTOCOL()%", (Operator(name="PROTOCOL"),)),
        ("%REQ(X-A)%", (Operator(name="REQUEST_HEADER", argument="x-a"),)),
        (
            "%REQ(a?:path):5%",
            (Operator(name="REQUEST_HEADER", argument="a", alternative=":path", max_length=5),),
        ),
        ("%REQ(?a)%", (Operator(name="REQUEST_HEADER", alternative="a"),)),
        ("%RESP(b):0%", (Operator(name="RESPONSE_HEADER", argument="b", max_length=0),)),
        ("%START_TIME(%Y-%m-%d)%", (Operator(name="START_TIME", argument="%Y-%m-%d"),)),
        ("%ENVIRONMENT(HOME):3%", (Operator(name="ENVIRONMENT", argument="HOME", max_length=3),)),
        ("a%PROTOCOL%b%%c", ("a", Operator(name="PROTOCOL"), "b%c")),
        ("%HOSTNAME%%HOSTNAME%", (Operator(name="HOSTNAME"), Operator(name="HOSTNAME"))),
        ("%START_TIME(a)b)%", (Operator(name="START_TIME", argument="a)b"),)),
        ("%PATH(NQ:ORIG):3%", (Operator(name="PATH", argument="NQ:ORIG", max_length=3),)),
        ("%PATH(:)%", (Operator(name="PATH", argument=":"),)),
        ("%FILTER_STATE(a:FIELD:x:y)%", (Operator(name="FILTER_STATE", argument="a:FIELD:x:y"),)),
        ("%START_TIME(%EOn)%", (Operator(name="START_TIME", argument="%EOn"),)),
        ("%STREAM_INFO_REQ(A)%", (Operator(name="REQUEST_HEADER", argument="a"),)),
    ],
)
def test_operators(text: str, segments: tuple[str | Operator, ...]) -> None:
    assert parse(text).segments == segments
    assert parse(text).literal is None


@pytest.mark.parametrize(
    "text",
    [
        *("%", "100%", "a%b", "%%%", "%req(a)%", "%REQ(a", "%REQ(a)%%", "%REQ(a)b%", "%PROTOCOL%%", "%FOO%"),
        *("%REQ()%", "%REQ%", "%REQ(a?b?c)%", "%REQ(bad name)%", "%REQ(a?bad name)%", "%REQ(a):x%"),
        *("%REQ(a):5:6%", "%REQ(a):99999999999999999999%", "%PROTOCOL(x)%", "%PROTOCOL:3%", "%PROTOCOL():3%"),
        *("%START_TIME:3%", "%ENVIRONMENT()%", "%SECRET%", "%CEL(((%", "%REQUEST_HEADERS(x)%"),
        *("%FILTER_STATE%", "%FILTER_STATE(a:X)%", "%FILTER_STATE(a:FIELD)%", "%FILTER_STATE(a::b)%"),
        *("%GRPC_STATUS(X)%", "%GRPC_STATUS:3%", "%PATH(X)%", "%PATH(WQ:X)%", "%QUERY_PARAMS(:ORIG)%"),
        *("%COMMON_DURATION(a)%", "%COMMON_DURATION(a:b:s)%", "%COMMON_DURATION(a:b:us):3%"),
        *("%START_TIME(%n)%", "%EMIT_TIME(%_3n)%", "%START_TIME(\n)%", "%QUERY_PARAM(a\nb)%"),
        *("%REQ(a:b)%", "%RESP(:)%", "%TRAILER(a)b)%"),
        *("%METADATA%", "%METADATA(X:a)%", "%CLUSTER_METADATA(a):3%", "%REQUESTED_SERVER_NAME(X)%"),
    ],
)
def test_what_envoy_refuses(text: str) -> None:
    with pytest.raises(FormatError) as caught:
        parse(text)
    assert caught.value.reason


def test_the_names_of_its_operators() -> None:
    parsed = parse("%CEL(request.path)%-%TRACE_ID%-%PROTOCOL%-%TRACE_ID%")
    assert parsed.operators() == ("CEL", "TRACE_ID", "PROTOCOL")
    assert parse("100%%").operators() == ()


def test_every_evaluated_operator_is_known_and_of_one_kind() -> None:
    kinds = (
        operators.PLAIN,
        operators.OPTIONAL,
        operators.OPTIONAL_WITH_LENGTH,
        operators.REQUIRED,
        operators.REQUIRED_WITHOUT_LENGTH,
    )
    known = frozenset().union(*kinds)
    brought = set(operators.BY_FORMATTER.values())
    assert sum(map(len, kinds)) == len(known)
    assert known >= operators.LOGGED - brought > operators.EVALUATED


@given(st.text("%()?:REQP1a ", max_size=12) | st.text())
def test_any_text_parses_or_is_refused(text: str) -> None:
    try:
        parsed = parse(text)
    except FormatError:
        return
    assert isinstance(parsed, Format)
    assert (parsed.literal is None) == any(isinstance(segment, Operator) for segment in parsed.segments)


@given(st.text())
def test_escaping_gives_back_the_text(text: str) -> None:
    assert parse(text.replace("%", "%%")).literal == text

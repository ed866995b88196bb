from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshlib import proto
from meshlib.observe.access_log.facts import LogFacts
from meshlib.observe.access_log.formatter import (
    compile_fields,
    compile_line,
    compile_value,
    escape_json,
    escape_text,
)
from meshlib.observe.access_log.operators import OPERATORS
from meshlib.resources import operators
from meshlib.resources.access_log import NAMED_FORMATS, JsonFormat, TextFormat
from meshlib.resources.decode_access_log import decode_log_format
from meshlib.resources.format import parse
from meshlib.resources.reader import Reading
from tests.observe.access_log.made import MadeFacts

GRPC = ("content-type", "application/grpc")


def text(fmt: str, facts: LogFacts, *, omit: bool = False) -> str:
    brought = frozenset(operators.BY_FORMATTER.values())
    return compile_line(TextFormat(format=parse(fmt, brought), omit_empty=omit))(facts)


def json_format(value: dict[str, Any], *, omit: bool = False) -> JsonFormat:
    message = proto.from_dict(
        "envoy.config.core.v3.SubstitutionFormatString", {"json_format": value, "omit_empty_values": omit}
    )
    found = decode_log_format(Reading().root(message))
    assert isinstance(found, JsonFormat)
    return found


def test_every_operator_that_is_not_reported_is_evaluated() -> None:
    assert set(OPERATORS) == operators.LOGGED


@pytest.mark.parametrize(
    ("fmt", "facts", "expected"),
    [
        ("%BYTES_RECEIVED% %BYTES_SENT% %DURATION%", MadeFacts(), "3 11 12"),
        ("%RESPONSE_DURATION% %RESPONSE_TX_DURATION%", MadeFacts(), "5 7"),
        ("%RESPONSE_DURATION% %RESPONSE_TX_DURATION%", MadeFacts(first_byte=None), "- -"),
        ("%COMMON_DURATION(DS_RX_BEG:DS_TX_END)%", MadeFacts(), "12"),
        ("%COMMON_DURATION(DS_RX_BEG:US_RX_BEG:us)%", MadeFacts(), "5000"),
        ("%COMMON_DURATION(US_RX_BEG:DS_RX_BEG)%", MadeFacts(), "-"),
        ("%COMMON_DURATION(DS_RX_BEG:other)%", MadeFacts(), "-"),
        ("%START_TIME% %EMIT_TIME(%3f)%", MadeFacts(), "2026-11-21T09:38:24.389Z 401"),
        ("%UPSTREAM_HOST% %UPSTREAM_REMOTE_ADDRESS%", MadeFacts(connected=False), "10.0.0.1:80 -"),
        ("%UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% %UPSTREAM_REMOTE_PORT%", MadeFacts(), "10.0.0.1 80"),
        (
            "%UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% %UPSTREAM_REMOTE_PORT%",
            MadeFacts(endpoint="[::1]:80"),
            "::1 80",
        ),
        (
            "%UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% %UPSTREAM_REMOTE_PORT%",
            MadeFacts(endpoint="/run/x.sock"),
            "/run/x.sock -",
        ),
        (
            "%REQUEST_TX_DURATION% %UPSTREAM_CONNECTION_POOL_READY_DURATION% %ROUTE_RESOLUTION_COUNT% %BYTES_RETRANSMITTED%",
            MadeFacts(),
            "3 1 1 0",
        ),
        (
            "%REQUEST_TX_DURATION% %UPSTREAM_CONNECTION_POOL_READY_DURATION%",
            MadeFacts(all_sent_at=None, pool_ready=None),
            "- -",
        ),
        (
            "%REQUEST_HEADERS_BYTES% %RESPONSE_HEADERS_BYTES% %RESPONSE_TRAILERS_BYTES%",
            MadeFacts([("a", "\u00e9")], response_headers=[("b", "cd")], trailers=[("e", "f")]),
            "48 13 2",
        ),
        (
            "%REQUEST_HEADERS_BYTES%%RESPONSE_HEADERS_BYTES%%RESPONSE_TRAILERS_BYTES%",
            MadeFacts(rpc=True),
            "---",
        ),
        (
            "%VIRTUAL_CLUSTER_NAME% %FILTER_CHAIN_NAME%",
            MadeFacts(virtual_cluster="v", filter_chain="f"),
            "v f",
        ),
        ("%VIRTUAL_CLUSTER_NAME% %FILTER_CHAIN_NAME%", MadeFacts(), "- -"),
        ("%UPSTREAM_REMOTE_ADDRESS_ENDPOINT_ID%|%DOWNSTREAM_LOCAL_ADDRESS_ENDPOINT_ID%", MadeFacts(), "|-"),
        ("%UPSTREAM_HOST_NAME_WITHOUT_PORT%", MadeFacts(hostname="a.b:99"), "a.b"),
        ("%UPSTREAM_HOSTS_ATTEMPTED%", MadeFacts(attempted=(("a:1", "x"), ("b:2", "y"))), "a:1,b:2"),
        (
            "%UPSTREAM_HOSTS_ATTEMPTED_WITHOUT_PORT%|%UPSTREAM_HOST_NAMES_ATTEMPTED%",
            MadeFacts(attempted=(("a:1", "x"), ("b:2", "y"))),
            "a,b|x,y",
        ),
        ("%UPSTREAM_HOSTS_ATTEMPTED%", MadeFacts(attempted=()), "-"),
        ("%DOWNSTREAM_REMOTE_ADDRESS%|%DOWNSTREAM_PEER_URI_SAN%", MadeFacts(), "-|-"),
        (
            "%DOWNSTREAM_REMOTE_ADDRESS%|%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%|%DOWNSTREAM_DIRECT_REMOTE_PORT%",
            MadeFacts(remote="10.0.0.9:0", direct="10.0.0.8:5"),
            "10.0.0.9:0|10.0.0.9|5",
        ),
        ("%TRACE_ID% %SPAN_ID%", MadeFacts(trace=("ab" * 16, "cd" * 8)), f"{'ab' * 16} {'cd' * 8}"),
        ("%TRACE_ID%", MadeFacts(), "-"),
        ("%TRAILER(x)% %TRAILER(none?x):1%", MadeFacts(trailers=[("x", "yes")]), "yes y"),
        ("%REQ_WITHOUT_QUERY(:path)%|%REQ_WITHOUT_QUERY(none)%", MadeFacts(), "/p|-"),
        ("%UPSTREAM_TRANSPORT_FAILURE_REASON%", MadeFacts(failure="delayed a b"), "delayed_a_b"),
        (
            "%RESPONSE_CODE_DETAILS%|%RESPONSE_CODE_DETAILS(ALLOW_WHITESPACES)%",
            MadeFacts(details="a b"),
            "a_b|a b",
        ),
        ("%FILTER_STATE(k)%%DYNAMIC_METADATA(a:b)%%CONNECTION_TERMINATION_DETAILS%", MadeFacts(), "---"),
        ("%CUSTOM_FLAGS%|%ACCESS_LOG_TYPE%|%LISTENER_NAME%", MadeFacts(), "|DownstreamEnd|l"),
        ("%CEL(request.path)%", MadeFacts(), "-"),
        # Without gRPC there is no gRPC status; without a status the HTTP one stands for it.
        ("%GRPC_STATUS%", MadeFacts(grpc_status="0"), "-"),
        ("%GRPC_STATUS% %GRPC_STATUS_NUMBER%", MadeFacts([GRPC], grpc_status="0"), "OK 0"),
        ("%GRPC_STATUS(SNAKE_STRING)%", MadeFacts([GRPC], grpc_status="1"), "CANCELLED"),
        ("%GRPC_STATUS(CAMEL_STRING)%", MadeFacts([GRPC], grpc_status="4"), "DeadlineExceeded"),
        ("%GRPC_STATUS(NUMBER)%", MadeFacts([GRPC], grpc_status="16"), "16"),
        ("%GRPC_STATUS%", MadeFacts([GRPC], grpc_status="99"), "99"),
        ("%GRPC_STATUS%", MadeFacts([GRPC]), "Unknown"),
        ("%GRPC_STATUS%", MadeFacts([GRPC], status=503), "Unavailable"),
        ("%GRPC_STATUS%", MadeFacts([GRPC], status=0), "-"),
    ],
)
def test_operators(fmt: str, facts: MadeFacts, expected: str) -> None:
    assert text(fmt, facts) == expected


def test_missing_values() -> None:
    fmt = "%REQ(none)%|%DURATION%|%ROUTE_NAME%\n"
    assert text(fmt, MadeFacts(route_name=None)) == "-|12|-\n"
    assert text(fmt, MadeFacts(route_name=None), omit=True) == "|12|\n"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ('plain "quoted" \\', 'plain "quoted" \\'),
        ("tab\t", "tab\t"),
        ("a\nb\r\n\x00\x1b[31m\x7f", "a\\x0ab\\x0d\\x0a\\x00\\x1b[31m\\x7f"),
        ("\x85\u2028\u202e", "\\x85\\u2028\\u202e"),
        ("\u00e9\u4e16 \u00a0", "\u00e9\u4e16 \u00a0"),
        ("\udcff", "\udcff"),
    ],
)
def test_values_do_not_end_lines(value: str, shown: str) -> None:
    assert escape_text(value) == shown
    assert text("<%REQ(a)%>\n", MadeFacts([("a", value)])) == f"<{shown}>\n"


def test_a_format_may_have_lines_of_its_own() -> None:
    facts = MadeFacts([("a", "x\ny")], path="/p?b=%0Aforged")
    assert text("one\ttwo\n%REQ(a)%\n\n", facts) == "one\ttwo\nx\\x0ay\n\n"
    assert text("%QUERY_PARAM(b)%\n", facts) == "\\x0aforged\n"
    assert text("100%% no operator\n", facts) == "100% no operator\n"
    assert text("", facts) == ""


@given(st.text(), st.text())
def test_one_call_is_one_line_whatever_it_brings(first: str, second: str) -> None:
    facts = MadeFacts([("user-agent", first), ("x-request-id", second)], path="/" + first, details=second)
    for name in ("envoy", "istio"):
        line = compile_line(NAMED_FORMATS[name])(facts)
        assert line.count("\n") == 1
        assert line.endswith("\n")
        assert "\x1b" not in line
    line = compile_line(NAMED_FORMATS["json"])(facts)
    assert line.count("\n") == 1
    members = json.loads(line)
    assert members["response_code"] == 200
    if not any(0xD800 <= ord(each) < 0xE000 for each in first):
        assert members["user_agent"] == first


def test_formats_by_name() -> None:
    facts = MadeFacts([("user-agent", "me"), ("x-request-id", "id")])
    assert compile_line(NAMED_FORMATS["envoy"])(facts) == (
        '[2026-11-21T09:38:24.389Z] "GET /p?q=1 HTTP/1.1" 200 - 3 11 12 - "-" "me" "id" "svc" "10.0.0.1:80"\n'
    )
    assert compile_line(NAMED_FORMATS["istio"])(facts) == (
        '[2026-11-21T09:38:24.389Z] "GET /p?q=1 HTTP/1.1" 200 - via_upstream - "-" 3 11 12 - "-" "me" "id" "svc"'
        ' "10.0.0.1:80" c - - - - r\n'
    )
    assert json.loads(compile_line(NAMED_FORMATS["json"])(facts))["duration"] == 12


def test_no_named_format_shows_a_secret() -> None:
    headers = [("authorization", "Bearer s3cret"), ("cookie", "s3cret"), ("x-api-key", "s3cret")]
    for shown in NAMED_FORMATS.values():
        assert "s3cret" not in compile_line(shown)(MadeFacts(headers))


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ({}, "{}"),
        ({"a": "%DURATION%", "b": "<%DURATION%>"}, '{"a":12,"b":"<12>"}'),
        ({"b": "%REQ(none)%", "a": "<%REQ(none)%>"}, '{"a":"<->","b":null}'),
        ({"a": ["%PROTOCOL%", 1, None, {"c": True}]}, '{"a":["HTTP/1.1",1,null,{"c":true}]}'),
        ({"100%": "100%%", "%": "%REQ(a)%"}, '{"%":"x\\ny","100%":"100%"}'),
    ],
)
def test_json(value: dict[str, Any], line: str) -> None:
    assert compile_line(json_format(value))(MadeFacts([("a", "x\ny")])) == line + "\n"


def test_json_without_empty_members() -> None:
    value: dict[str, Any] = {
        "missing": "%REQ(none)%",
        "mixed": "<%REQ(none)%>",
        "empty": "",
        "object": {"a": {"b": "%REQ(none)%"}},
        "list": ["%REQ(none)%", None, 1, []],
        "null": None,
    }
    line = compile_line(json_format(value, omit=True))(MadeFacts())
    assert line == '{"empty":"","list":[1,[]],"mixed":"<>"}\n'
    assert compile_line(json_format({"a": None}, omit=True))(MadeFacts()) == "{}\n"


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        (0, "0"), (1, "1"), (-20, "-20"), (1.5, "1.5"), (100000, "1e+05"), (10000, "10000"), (1000000, "1e+06"),
        (1234567, "1234567"), (123456789012, "123456789012"), (0.001, "0.001"), (0.0001, "1e-04"), (1e-5, "1e-05"),
        (0.00012, "0.00012"), (1e100, "1e+100"), (-2.5e-7, "-2.5e-07"), (120000, "120000"),
    ],
)  # fmt: skip
def test_constants_are_written_as_short_as_possible(number: float, shown: str) -> None:
    assert compile_line(json_format({"n": number}))(MadeFacts()) == f'{{"n":{shown}}}\n'


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_constants_stay_what_they_are(number: float) -> None:
    line = compile_line(json_format({"n": number}))(MadeFacts())
    assert float(json.loads(line)["n"]) == number


@given(st.text(st.characters(exclude_categories=())))
def test_json_strings(value: str) -> None:
    if any(0xD800 <= ord(each) < 0xE000 and not 0xDC80 <= ord(each) < 0xDD00 for each in value):
        return
    shown = escape_json(value)
    shown.encode()  # UTF-8
    assert "\n" not in shown
    if not any(0xD800 <= ord(each) < 0xE000 for each in value):
        assert json.loads(shown) == value


def test_bytes_that_are_no_text_are_escaped_one_by_one() -> None:
    assert escape_json('\udcff"x\u00e9') == '"\\u00ff\\u0022x\\u00c3\\u00a9"'


def test_fields() -> None:
    value: dict[str, Any] = {
        "n": "%DURATION%",
        "t": "<%DURATION%>",
        "none": "%REQ(none)%",
        "o": {"a": ["%PROTOCOL%", 1.5, "x"]},
    }
    root = json_format(value).root
    expected = {"n": 12, "t": "<12>", "none": None, "o": {"a": ["HTTP/1.1", 1.5, "x"]}}
    assert compile_fields(root)(MadeFacts()) == expected
    del expected["none"]
    assert compile_fields(root, omit_empty=True)(MadeFacts()) == expected
    assert compile_value(root, text=True)(MadeFacts()) == {
        "n": "12",
        "t": "<12>",
        "none": "-",
        "o": {"a": ["HTTP/1.1", 1.5, "x"]},
    }

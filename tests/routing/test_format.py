from __future__ import annotations

import os
import time
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshlib.resources import format as formats
from meshlib.resources import operators
from meshlib.routing.format import OPERATORS, FormatContext, compile_format
from meshlib.routing.request import ResponseView
from meshlib.routing.start_time import compile_time
from tests.routing.build import request

MOMENT = 1795253904.389054
"""2026-11-21T09:38:24.389054Z"""


def evaluate(text: str, context: FormatContext, missing: str = "") -> str:
    return compile_format(formats.parse(text), OPERATORS, missing=missing)(context)


def full() -> FormatContext:
    return FormatContext(
        request("/p?q=1", [("a", "1"), ("a", "2"), ("long", "\xe9\xe9"), ("x-request-id", "id")]),
        response=ResponseView(503, [("b", "3")]),
        started=MOMENT,
        duration=0.0129,
        cluster="c",
        route_name="r",
        endpoint="10.0.0.1:80",
        attempts=2,
        flags="URX,UF",
        details="via_upstream",
        stream_id="other",
        body="text",
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain 100%%", "plain 100%"),
        ("%REQ(a)%", "1"),
        ("%REQUEST_HEADER(A)%", "1"),
        ("<%REQ(zz)%>", "<>"),
        ("%REQ(zz?a)%", "1"),
        ("%REQ(:path)% %REQ(:METHOD)% %REQ(:authority)% %REQ(:scheme)%", "/p?q=1 GET svc http"),
        ("%REQ(:path):2%", "/p"),
        ("%REQ(long):3% %REQ(long):4%", "\xe9\udcc3 \xe9\xe9"),
        ("%RESP(b)% %RESP(a)% %RESPONSE_CODE%", "3  503"),
        ("%PROTOCOL% %UPSTREAM_HOST% %UPSTREAM_REMOTE_ADDRESS%", "HTTP/1.1 10.0.0.1:80 10.0.0.1:80"),
        ("%UPSTREAM_CLUSTER%/%ROUTE_NAME%/%UPSTREAM_REQUEST_ATTEMPT_COUNT%", "c/r/2"),
        ("%RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS%", "URX,UF via_upstream"),
        ("%DURATION%", "12"),
        ("%START_TIME%", "2026-11-21T09:38:24.389Z"),
        ("%START_TIME(%s.%3f %E*S %E3f %f)%", "1795253904.389 24.389054 389 389054000"),
        ("%PATH% %PATH(NQ)% %PATH(WQ:PATH)% %PATH(NQ:PATH):2%|%PATH(WQ:ORIG)%", "/p?q=1 /p /p?q=1 /p|"),
        ("%QUERY_PARAM(q)%|%QUERY_PARAM(z)%|%QUERY_PARAMS%|%QUERY_PARAMS(DECODED)%", "1||q=1|q=1"),
        ("%RESPONSE_FLAGS_LONG%", "UpstreamRetryLimitExceeded,UpstreamConnectionFailure"),
        ("%UPSTREAM_CLUSTER_RAW%", "c"),
        ("100%% %REQ(a)%", "100% 1"),
        ("%STREAM_ID%", "id"),
        ("%LOCAL_REPLY_BODY%", "text"),
        ("%DOWNSTREAM_REMOTE_ADDRESS%", ""),
    ],
)
def test_operators(text: str, expected: str) -> None:
    assert evaluate(text, full()) == expected


def test_what_is_not_known_yet() -> None:
    context = FormatContext(request())
    text = "%RESPONSE_CODE%|%RESPONSE_FLAGS%|%RESPONSE_CODE_DETAILS%|%RESP(a)%|%UPSTREAM_HOST%|%UPSTREAM_CLUSTER%|%ROUTE_NAME%"
    assert evaluate(text, context) == "0|-|||||"
    assert evaluate(text, context, missing="-") == "0|-|-|-|-|-|-"


def test_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESHLIB_TEST_VALUE", "here")
    context = full()
    assert evaluate("%ENVIRONMENT(MESHLIB_TEST_VALUE)%", context) == "here"
    assert evaluate("%ENVIRONMENT(MESHLIB_TEST_ABSENT)%", context) == "-"
    assert evaluate("%HOSTNAME%", context) == os.uname().nodename


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("%Y/%m/%d %%", "2026/11/21 %"),
        ("%E*S", "24.389054"),
        ("%E0S", "24"),
        ("%1f", "3"),
        ("%E*f", "389054"),
    ],
)
def test_time_formats(text: str, expected: str) -> None:
    assert compile_time(text)(MOMENT) == expected
    assert compile_time("%E*S|%E*f|%E0f|%E2S", local=False)(5.0) == "05|0||05.00"


def test_what_is_not_evaluated_is_reported_by_the_decoder() -> None:
    assert set(OPERATORS) == operators.EVALUATED


def test_local_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Kolkata")
    time.tzset()
    try:
        assert compile_time("", local=True)(MOMENT) == "2026-11-21T15:08:24.389+0530"
        assert compile_time("%H %Ez %E*z", local=True)(MOMENT) == "15 +05:30 +05:30"
        assert compile_time("%H %Ez")(MOMENT) == "09 +00:00"
    finally:
        monkeypatch.undo()
        time.tzset()


@given(st.floats(0, 4e9), st.floats(0, 4e9))
def test_what_was_printed_before_changes_nothing(first: float, second: float) -> None:
    render = compile_time("")
    render(first)
    moment = datetime.fromtimestamp(round(second * 1_000_000) // 1000 / 1000, UTC)
    assert render(second) == f"{moment:%Y-%m-%dT%H:%M:%S}.{round(moment.microsecond / 1000):03d}Z"


@pytest.mark.parametrize(
    ("path", "value", "decoded"),
    [
        ("/a?b=%41%2b+x&b=2", "A++x", "b=A++x&b=2"),
        ("/a?b", "", "b"),
        ("/a?B=1&%62=3", "3", "B=1&b=3"),
        ("/a?b=%4", "%4", "b=%4"),
        ("/a?b=%4g1", "%4g1", "b=4g1"),
        ("/a?b=%%41", "%A", "b=A"),
        ("/a?b=%2541", "%41", "b=%41"),
        ("/a?b=%22%0a%c3%a9", '"\n\xe9', "b=%22%0a%c3%a9"),
        ("/a?b=%ff", "\udcff", "b=%ff"),
        ("/a?", None, ""),
        ("/a", None, None),
    ],
)
def test_queries_as_envoy_decodes_them(path: str, value: str | None, decoded: str | None) -> None:
    context = FormatContext(request(path))
    assert evaluate("%QUERY_PARAM(b)%", context, missing="-") == ("-" if value is None else value)
    assert evaluate("%QUERY_PARAMS(DECODED)%", context, missing="-") == ("-" if decoded is None else decoded)

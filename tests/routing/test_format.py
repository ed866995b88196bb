from __future__ import annotations

import os

import pytest

from meshlib.resources import format as formats
from meshlib.resources import operators
from meshlib.routing.format import EVALUATED, FormatContext, evaluate
from meshlib.routing.request import ResponseView
from meshlib.routing.start_time import format_time
from tests.routing.build import request

MOMENT = 1795253904.389054
"""2026-11-21T09:38:24.389054Z"""


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
        ("%STREAM_ID%", "id"),
        ("%LOCAL_REPLY_BODY%", "text"),
        ("%DOWNSTREAM_REMOTE_ADDRESS%", ""),
    ],
)
def test_operators(text: str, expected: str) -> None:
    assert evaluate(formats.parse(text), full()) == expected


def test_what_is_not_known_yet() -> None:
    context = FormatContext(request())
    text = "%RESPONSE_CODE%|%RESPONSE_FLAGS%|%RESPONSE_CODE_DETAILS%|%RESP(a)%|%UPSTREAM_HOST%|%UPSTREAM_CLUSTER%|%ROUTE_NAME%"
    assert evaluate(formats.parse(text), context) == "0|-|||||"
    assert evaluate(formats.parse(text), context, missing="-") == "0|-|-|-|-|-|-"


def test_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESHLIB_TEST_VALUE", "here")
    context = full()
    assert evaluate(formats.parse("%ENVIRONMENT(MESHLIB_TEST_VALUE)%"), context) == "here"
    assert evaluate(formats.parse("%ENVIRONMENT(MESHLIB_TEST_ABSENT)%"), context) == ""
    assert evaluate(formats.parse("%HOSTNAME%"), context) == os.uname().nodename


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
    assert format_time(text, MOMENT) == expected
    assert format_time("%E*S|%E*f", 5.0) == "05|0"


def test_what_is_not_evaluated_is_reported_by_the_decoder() -> None:
    assert EVALUATED == operators.EVALUATED

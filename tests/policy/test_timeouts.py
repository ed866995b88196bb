from __future__ import annotations

from math import inf
from random import Random
from typing import Any

import pytest

from meshlib.engine.options import CallOptions
from meshlib.policy.timeouts import effective, parse_grpc_timeout
from meshlib.resources.route import MaxStreamDuration, RetryPolicy
from meshlib.routing.compiled import ForwardPlan
from meshlib.routing.table import RouteTable
from tests.routing.build import cluster, config, host, request, route

ROUTE = "x-envoy-upstream-rq-timeout-ms"
PER_TRY = "x-envoy-upstream-rq-per-try-timeout-ms"


def plan_of(**action: Any) -> ForwardPlan:
    asked = request()
    found = RouteTable(config(host(route(cluster(**action))))).find(asked, Random(1))
    assert found is not None
    plan = found.forward(asked, Random(1))
    assert plan is not None
    return plan


TRIES = RetryPolicy(per_try_timeout=2.0)


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        ({}, (15.0, None, None)),
        ({"timeout": 0.0}, (None, None, None)),
        ({"timeout": 3.0, "retry_policy": TRIES}, (3.0, 2.0, None)),
        ({"timeout": 2.0, "retry_policy": TRIES}, (2.0, None, None)),
        ({"timeout": 1.0, "retry_policy": TRIES}, (1.0, None, None)),
        ({"timeout": 0.0, "retry_policy": TRIES}, (None, 2.0, None)),
        ({"max_stream_duration": MaxStreamDuration(max_stream_duration=5.0)}, (None, None, 5.0)),
        ({"max_stream_duration": MaxStreamDuration(max_stream_duration=0.0)}, (None, None, inf)),
        ({"max_stream_duration": MaxStreamDuration()}, (None, None, None)),
        ({"max_stream_duration": MaxStreamDuration(), "retry_policy": TRIES}, (None, 2.0, None)),
    ],
)
def test_what_is_configured(action: dict[str, Any], expected: tuple[float | None, ...]) -> None:
    plan = plan_of(**action)
    assert plan.timeouts == expected
    assert effective(plan, request(), None, trust=False) is plan.timeouts
    assert effective(plan, request(), None, trust=True) == expected
    assert effective(plan, request(), CallOptions(timeout=0.1), trust=False) == expected


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        ({ROUTE: "100"}, (0.1, None)),
        ({ROUTE: "0"}, (None, 2.0)),
        ({ROUTE: "x"}, (3.0, 2.0)),
        ({ROUTE: "-1"}, (3.0, 2.0)),
        ({PER_TRY: "500"}, (3.0, 0.5)),
        ({PER_TRY: "3000"}, (3.0, None)),
        ({PER_TRY: "0"}, (3.0, None)),
        ({ROUTE: "5000", PER_TRY: "3000"}, (5.0, 3.0)),
    ],
)
def test_trusted_headers_override(sent: dict[str, str], expected: tuple[float | None, float | None]) -> None:
    plan = plan_of(timeout=3.0, retry_policy=TRIES)
    asked = request(headers=list(sent.items()))
    assert effective(plan, asked, None, trust=True)[:2] == expected
    assert effective(plan, asked, None, trust=False)[:2] == (3.0, 2.0)


def test_a_trusted_timeout_counts_beside_max_stream_duration() -> None:
    plan = plan_of(max_stream_duration=MaxStreamDuration(max_stream_duration=5.0))
    assert effective(plan, request(headers=[(ROUTE, "100")]), None, trust=True) == (0.1, None, 5.0)


@pytest.mark.parametrize(("asked", "expected"), [(0.5, 0.5), (2.5, 2.5), (3.0, None), (9.0, None)])
def test_the_application_sets_the_per_try_timeout(asked: float, expected: float | None) -> None:
    plan = plan_of(timeout=3.0, retry_policy=TRIES)
    options = CallOptions(per_try_timeout=asked)
    assert effective(plan, request(headers=[(PER_TRY, "100")]), options, trust=True) == (3.0, expected, None)


@pytest.mark.parametrize(
    ("longest", "offset", "sent", "expected"),
    [
        (None, None, "1S", 9.0),
        (0.0, None, "1S", 1.0),
        (0.0, None, "99999999H", 99_999_999 * 3600.0),
        (0.5, None, "1S", 0.5),
        (5.0, None, "1S", 1.0),
        (5.0, None, "bad", 9.0),
        (5.0, None, None, 9.0),
        (5.0, 0.25, "1S", 0.75),
        (5.0, 1.0, "1S", 0.0),
        (5.0, 2.0, "1S", 0.0),
    ],
)
def test_the_callers_grpc_timeout(
    longest: float | None, offset: float | None, sent: str | None, expected: float
) -> None:
    stream = MaxStreamDuration(
        max_stream_duration=9.0, grpc_timeout_header_max=longest, grpc_timeout_header_offset=offset
    )
    asked = request(headers=[] if sent is None else [("grpc-timeout", sent)])
    assert effective(plan_of(max_stream_duration=stream), asked, None, trust=False) == (None, None, expected)


@pytest.mark.parametrize(
    ("longest", "offset", "sent", "expected"),
    [
        (0.3, None, "1000m", 0.3),
        (0.3, None, None, 0.3),
        (0.0, None, "400m", 0.4),
        (0.0, None, None, None),
        (1.0, 0.1, "400m", 0.3),
        (1.0, 0.5, "400m", 0.4),
        (0.2, 0.1, "400m", 0.2),
        (None, 0.1, "400m", 3.0),
    ],
)
def test_the_deprecated_max_grpc_timeout(
    longest: float | None, offset: float | None, sent: str | None, expected: float | None
) -> None:
    """As seen with Envoy 1.40."""
    plan = plan_of(timeout=3.0, max_grpc_timeout=longest, grpc_timeout_offset=offset)
    headers = [("content-type", "application/grpc")]
    if sent is not None:
        headers.append(("grpc-timeout", sent))
    found = effective(plan, request(headers=headers), None, trust=False)
    assert found.route == (None if expected is None else pytest.approx(expected))
    plain = effective(plan, request(headers=headers[1:]), None, trust=False)
    assert plain.route == 3.0, "only for gRPC requests"


def test_max_stream_duration_switches_max_grpc_timeout_off() -> None:
    plan = plan_of(max_grpc_timeout=0.2, max_stream_duration=MaxStreamDuration(max_stream_duration=5.0))
    headers = [("content-type", "application/grpc"), ("grpc-timeout", "400m")]
    assert effective(plan, request(headers=headers), None, trust=False) == (None, None, 5.0)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1H", 3600.0),
        ("2M", 120.0),
        ("3S", 3.0),
        ("200m", 0.2),
        ("5u", 5e-6),
        ("7n", 7e-9),
        ("0S", 0.0),
        ("12345678S", 12_345_678.0),
        ("123456789S", None),
        ("1s", None),
        ("S", None),
        ("-1S", None),
        ("1.5S", None),
        ("", None),
        ("\u0661S", None),
    ],
)
def test_grpc_timeout_grammar(text: str, seconds: float | None) -> None:
    assert parse_grpc_timeout(text) == (None if seconds is None else pytest.approx(seconds))

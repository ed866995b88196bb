"""The caller's deadline against what the route says about grpc-timeout. Seen on Envoy 1.40."""

from __future__ import annotations

from math import inf
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshlib.engine.rpc import grpc_timeout
from meshlib.policy.timeouts import parse_grpc_timeout
from meshlib.resources.route import MaxStreamDuration, RetryPolicy, RouteAction
from meshlib.routing.request import Headers, RequestView, values_by_name
from tests.engine.builders import cluster, forward, listener, route_config
from tests.engine.grpc_calls import rpc, status
from tests.engine.wire import FakeMesh

DEADLINE, DURATION = ("4", "Deadline Exceeded"), ("4", "downstream duration timeout")
ROUTE = ("14", "upstream request timeout")


def new(
    longest: float | None = None, offset: float | None = None, stream: float | None = None
) -> RouteAction:
    duration = MaxStreamDuration(
        max_stream_duration=stream, grpc_timeout_header_max=longest, grpc_timeout_header_offset=offset
    )
    return forward(max_stream_duration=duration)


def old(longest: float | None, offset: float | None = None, **fields: Any) -> RouteAction:
    return forward(max_grpc_timeout=longest, grpc_timeout_offset=offset, **fields)


@pytest.mark.parametrize(
    ("action", "listeners", "deadline", "after", "answer"),
    [
        (new(0.3), 0.0, 1.0, 0.3, DURATION),
        (new(1.0), 0.0, 0.3, 0.3, DEADLINE),
        (new(1.0, 0.1), 0.0, 0.4, 0.3, DURATION),
        (new(1.0, 0.5), 0.0, 0.4, 0.0, DURATION),
        (new(0.0), 0.0, 0.3, 0.3, DEADLINE),
        (new(0.3), 0.0, None, inf, None),
        (new(0.3), 0.5, None, 0.5, DURATION),
        (new(0.3, stream=0.6), 0.0, None, 0.6, DURATION),
        (new(stream=0.0), 0.3, None, inf, None),
        (new(), 0.3, None, 0.3, DURATION),
        (old(0.3), 0.0, 1.0, 0.3, ROUTE),
        (old(0.3, timeout=1.0), 0.0, None, 0.3, ROUTE),
        (old(0.0, timeout=0.2), 0.0, 0.4, 0.4, DEADLINE),
        (old(0.0, timeout=0.2), 0.0, None, inf, None),
        (old(1.0, 0.1), 0.0, 0.4, 0.3, ROUTE),
        (old(1.0, 0.5), 0.0, 0.4, 0.4, DEADLINE),
        (old(None, 0.1, timeout=0.3), 0.0, 0.4, 0.3, ROUTE),
        (forward(timeout=0.3), 0.0, 0.1, 0.1, DEADLINE),
        (forward(timeout=0.3), 0.0, 0.4, 0.3, ROUTE),
    ],
)
def test_which_timer_ends_the_call(
    action: RouteAction,
    listeners: float,
    deadline: float | None,
    after: float,
    answer: tuple[str, str] | None,
) -> None:
    listen = listener(route_config(action), max_stream_duration=listeners or None)
    mesh = FakeMesh(cluster(), listen=listen)
    began = mesh.clock.monotonic()
    call = mesh.call(rpc(), deadline=None if deadline is None else began + deadline)
    if answer is None:
        assert call.core.wake_at == after
        return
    while call.error is None:
        call.tick()
    assert mesh.clock.monotonic() - began == pytest.approx(after, abs=1e-6)
    assert status(call) == answer
    assert bool(call.starts) == (after > 0)
    assert mesh.held() == {}


def test_an_attempts_own_timeout_stays_below_it() -> None:
    action = old(0.5, retry_policy=RetryPolicy(retry_on=frozenset({"5xx"}), per_try_timeout=0.2))
    mesh = FakeMesh(cluster(), action=action)
    call = mesh.call(rpc(), deadline=mesh.clock.monotonic() + 1)
    assert call.tick() == pytest.approx(0.2)
    assert call.core.attempt_count == 1


def test_the_request_of_the_application_is_not_touched() -> None:
    view = rpc()
    given_headers = view.headers
    mesh = FakeMesh(cluster(), action=new(0.3))
    mesh.call(view, deadline=mesh.clock.monotonic() + 1)
    assert view.first("grpc-timeout") is not None
    assert given_headers == [("content-type", "application/grpc"), ("te", "trailers")]


class Known:
    """Headers that are made when they are needed, shared by many requests."""

    headers = [("content-type", "application/grpc"), ("te", "trailers")]  # noqa: RUF012 - shared on purpose

    def listed(self) -> Headers:
        return list(self.headers)

    def by_name(self) -> dict[str, list[str]]:
        return values_by_name(self.headers)


def test_headers_that_are_made_late() -> None:
    view = RequestView("POST", "http", "svc", "/s.S/M", Known(), "svc:80")
    assert view.first("te") == "trailers"
    mesh = FakeMesh(cluster(), action=new(0.3))
    call = mesh.call(view, deadline=mesh.clock.monotonic() + 1)
    assert call.tick() == pytest.approx(0.3)
    assert status(call) == DURATION
    assert len(Known.headers) == 2


@given(st.floats(0, 99_999_998))
def test_the_header_says_what_was_asked(seconds: float) -> None:
    text = grpc_timeout(seconds)
    parsed = parse_grpc_timeout(text)
    assert parsed is not None
    assert parsed >= seconds * (1 - 1e-9)
    assert parsed - seconds <= (1e-6 if seconds < 99 else 1e-3 if seconds < 99_999 else 1.0) * 1.01


def test_the_header_at_its_ends() -> None:
    assert grpc_timeout(-1) == "0u"
    assert grpc_timeout(1e12) == "99999999S"

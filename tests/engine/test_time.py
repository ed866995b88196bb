"""Per-try timeout, route timeout, stream durations, hedging: everything that the clock does to a call."""

from __future__ import annotations

from math import inf

import pytest

from meshlib.engine import events as ev
from meshlib.engine.options import CallOptions
from meshlib.errors import DeadlineExceeded
from meshlib.policy.failure import FailureKind
from meshlib.resources.route import MaxStreamDuration
from tests.engine.builders import (
    HEDGING,
    NO_BACK_OFF,
    cluster,
    forward,
    listener,
    outlier,
    retry,
    route_config,
    thresholds,
)
from tests.engine.wire import FakeMesh, request


def test_the_route_timeout_before_headers() -> None:
    mesh = FakeMesh(cluster(), action=forward(timeout=2.0))
    call = mesh.call()
    assert call.tick() == pytest.approx(2.0)
    assert isinstance(call.error, DeadlineExceeded)
    reply = call.error.local_reply
    assert reply is not None
    assert (reply.status, reply.body) == (504, b"upstream request timeout")
    assert (call.flags, call.details) == ("UT", "response_timeout")
    assert call.log[-2:] == ["CancelAttempt(1)", "Fail"]
    assert mesh.stat("upstream_rq_timeout") == 1
    assert mesh.held() == {}


def test_the_route_timeout_cuts_a_body() -> None:
    mesh = FakeMesh(cluster(), action=forward(timeout=2.0))
    call = mesh.call()
    mesh.clock.advance(1.5)
    call.answer(200, end=False)
    assert call.tick() == pytest.approx(0.5)
    assert isinstance(call.error, DeadlineExceeded)
    assert (call.flags, call.details) == ("UT", "response_timeout")
    assert call.log[-2:] == ["CancelAttempt(1)", "Fail"]
    assert mesh.stat("upstream_rq_timeout") == 1
    assert mesh.held() == {}


def test_no_timeout() -> None:
    call = FakeMesh(cluster(), action=forward(timeout=0.0)).call()
    assert call.core.wake_at == inf


def test_the_default_is_fifteen_seconds() -> None:
    assert FakeMesh(cluster()).call().tick() == pytest.approx(15.0)


def test_the_route_timeout_includes_retries_and_waits() -> None:
    mesh = FakeMesh(cluster(), action=forward(timeout=1.0, retry_policy=retry("5xx", times=100)))
    call = mesh.call()
    began = mesh.clock.monotonic()
    while call.error is None:
        if call.live:
            call.answer(503)
        else:
            call.tick()
    assert mesh.clock.monotonic() == pytest.approx(began + 1.0)
    assert call.flags == "UT"
    assert mesh.held() == {}


def test_the_route_timeout_starts_at_the_end_of_the_request() -> None:
    mesh = FakeMesh(cluster(), action=forward(timeout=2.0, retry_policy=retry("5xx", per_try_timeout=1.0)))
    call = mesh.call(complete=False)
    assert call.core.wake_at == inf
    mesh.clock.advance(60)
    call.handle(ev.RequestComplete())
    assert call.tick() == pytest.approx(1.0), "the per-try timeout starts there too"
    call.handle(ev.RequestComplete())
    call.after(1.0)
    assert call.flags == "UT"


def test_the_callers_deadline_starts_at_the_beginning() -> None:
    mesh = FakeMesh(cluster(), action=forward(timeout=2.0))
    call = mesh.call(complete=False, options=CallOptions(timeout=5.0))
    assert call.tick() == pytest.approx(5.0)
    assert call.flags == "UT"


def test_the_earliest_deadline_counts() -> None:
    mesh = FakeMesh(cluster(), action=forward(timeout=2.0))
    assert mesh.call(options=CallOptions(timeout=5.0)).tick() == pytest.approx(2.0)
    assert mesh.call(options=CallOptions(timeout=0.5)).tick() == pytest.approx(0.5)
    moment = mesh.clock.monotonic() + 0.25
    assert mesh.call(options=CallOptions(timeout=0.5, deadline=moment)).tick() == pytest.approx(0.25)


class TestPerTry:
    def test_it_is_retried_and_then_ends_the_call(self) -> None:
        mesh = FakeMesh(
            cluster(), action=forward(retry_policy=retry("5xx", per_try_timeout=0.2, back_off=NO_BACK_OFF))
        )
        call = mesh.call()
        assert call.tick() == pytest.approx(0.2)
        assert call.log[-1] == "CancelAttempt(1)"
        call.tick()
        assert call.tick() == pytest.approx(0.2)
        assert isinstance(call.error, DeadlineExceeded)
        assert call.error.local_reply is not None
        assert call.error.local_reply.body == b"upstream request timeout"
        assert (call.flags, call.details) == ("URX,UT", "upstream_per_try_timeout")
        assert mesh.stat("upstream_rq_per_try_timeout") == 2
        assert mesh.held() == {}

    def test_without_a_condition_for_it_the_call_ends(self) -> None:
        mesh = FakeMesh(cluster(), action=forward(retry_policy=retry("connect-failure", per_try_timeout=0.2)))
        call = mesh.call()
        call.tick()
        assert (call.flags, call.details) == ("UT", "upstream_per_try_timeout")

    def test_one_as_long_as_the_routes_is_ignored(self) -> None:
        mesh = FakeMesh(
            cluster(), action=forward(timeout=0.2, retry_policy=retry("5xx", per_try_timeout=0.2))
        )
        call = mesh.call()
        call.tick()
        assert call.details == "response_timeout"

    def test_it_ends_with_the_headers(self) -> None:
        mesh = FakeMesh(cluster(), action=forward(retry_policy=retry("5xx", per_try_timeout=0.2)))
        call = mesh.call()
        call.answer(200, end=False)
        call.after(5.0)
        assert call.error is None
        call.end()

    def test_it_does_not_run_while_the_attempt_connects(self) -> None:
        mesh = FakeMesh(cluster(), action=forward(retry_policy=retry("5xx", per_try_timeout=0.2)))
        mesh.slow = True
        call = mesh.call()
        call.after(5.0)
        call.connected()
        assert call.tick() == pytest.approx(0.2)

    def test_it_counts_against_the_endpoint(self) -> None:
        mesh = FakeMesh(
            cluster(outlier_detection=outlier()),
            action=forward(retry_policy=retry("5xx", per_try_timeout=0.2)),
        )
        mesh.call().tick()
        assert mesh.state().endpoints["10.0.0.1:80"].consecutive_5xx == 1


class TestStreamDurations:
    def test_the_routes_sets_no_flag(self) -> None:
        longest = MaxStreamDuration(max_stream_duration=0.5)
        mesh = FakeMesh(cluster(), action=forward(timeout=0.1, max_stream_duration=longest))
        call = mesh.call()
        assert call.tick() == pytest.approx(0.5), "its presence switches the route timeout off"
        assert call.error is not None
        assert call.error.local_reply is not None
        assert call.error.local_reply.status == 504
        assert call.error.local_reply.body == b"downstream duration timeout"
        assert (call.flags, call.details) == ("-", "max_duration_timeout")

    def test_for_grpc_it_is_deadline_exceeded(self) -> None:
        longest = MaxStreamDuration(max_stream_duration=0.5)
        mesh = FakeMesh(cluster(), action=forward(max_stream_duration=longest))
        call = mesh.call(request(method="POST", headers=[("content-type", "application/grpc")]))
        call.tick()
        assert call.error is not None
        assert call.error.local_reply is not None
        assert dict(call.error.local_reply.headers)["grpc-status"] == "4"

    def test_a_plain_route_timeout_is_unavailable_for_grpc(self) -> None:
        call = FakeMesh(cluster()).call(
            request(method="POST", headers=[("content-type", "application/grpc")])
        )
        call.tick()
        assert call.error is not None
        assert call.error.local_reply is not None
        assert dict(call.error.local_reply.headers)["grpc-status"] == "14"

    def test_the_listeners_holds_where_the_route_has_none(self) -> None:
        mesh = FakeMesh(
            cluster(), listen=listener(route_config(forward(timeout=0.0)), max_stream_duration=3.0)
        )
        assert mesh.call().tick() == pytest.approx(3.0)
        none = MaxStreamDuration(max_stream_duration=0.0)
        config = route_config(forward(max_stream_duration=none))
        mesh = FakeMesh(cluster(), listen=listener(config, max_stream_duration=3.0))
        assert mesh.call().core.wake_at == inf

    def test_the_clusters_ends_an_attempt(self) -> None:
        mesh = FakeMesh(
            cluster(max_stream_duration=0.5), action=forward(retry_policy=retry("5xx", back_off=NO_BACK_OFF))
        )
        call = mesh.call()
        assert call.tick() == pytest.approx(0.5)
        call.tick()
        assert call.tick() == pytest.approx(0.5)
        assert call.error is not None
        assert call.error.local_reply is not None
        assert call.error.local_reply.body == b"upstream max stream duration reached"
        assert (call.flags, call.details) == ("URX,UMSDR", "upstream_max_stream_duration_reached")
        assert mesh.held() == {}

    def test_the_clusters_does_not_haunt_an_attempt_that_is_over(self) -> None:
        mesh = FakeMesh(
            cluster(max_stream_duration=0.5), action=forward(retry_policy=retry("5xx", back_off=NO_BACK_OFF))
        )
        call = mesh.call()
        mesh.clock.advance(0.3)
        call.answer(503)
        call.after(0.3)
        assert call.error is None
        assert list(call.live) == [2]
        call.answer(200)
        assert call.status == 200

    def test_an_idle_stream(self) -> None:
        mesh = FakeMesh(
            cluster(), listen=listener(route_config(forward(timeout=0.0)), stream_idle_timeout=5.0)
        )
        call = mesh.call()
        mesh.clock.advance(3.0)
        call.answer(200, end=False)
        mesh.clock.advance(3.0)
        call.handle(ev.Timer())
        call.handle(ev.Message(1))
        call.after(4.9)
        assert call.error is None
        call.after(0.1)
        assert (call.flags, call.details) == ("SI", "stream_idle_timeout")
        assert mesh.held() == {}


HEDGED = forward(
    timeout=5.0,
    hedge_policy=HEDGING,
    retry_policy=retry("5xx", times=2, per_try_timeout=0.1),
)


class TestHedging:
    """Seen on Envoy: three requests 111 and 140 ms apart, an answer after 306 ms where without hedging there is a 504."""

    def test_a_timeout_starts_another_attempt_beside_the_first(self) -> None:
        mesh = FakeMesh(cluster(hosts=3), action=HEDGED)
        call = mesh.call()
        call.tick()
        assert call.log == ["Start(1)", "Connect(1)"]
        wait = call.tick()
        assert 0 <= wait <= 0.025, "after the usual back-off"
        assert list(call.live) == [1, 2]
        call.answer(200, attempt=1)
        assert call.status == 200
        assert call.log[-2:] == ["CancelAttempt(2)", "Accept(1)"]
        assert (call.flags, call.details) == ("-", "via_upstream")
        assert mesh.held() == {}
        assert [each.failure for each in call.core.info.attempts] == [None, "cancelled"]

    def test_the_first_good_answer_wins(self) -> None:
        mesh = FakeMesh(cluster(hosts=3), action=HEDGED)
        call = mesh.call()
        call.tick()
        call.tick()
        call.answer(503, attempt=1)
        assert call.status is None, "attempt 2 may still answer well"
        assert call.log[-1] == "CancelAttempt(1)"
        call.answer(200)
        assert call.status == 200

    def test_an_attempt_that_was_followed_is_not_retried_when_it_fails(self) -> None:
        mesh = FakeMesh(cluster(hosts=3), action=HEDGED)
        call = mesh.call()
        call.tick()
        call.tick()
        call.fail(attempt=1)
        assert mesh.stat("upstream_rq_retry") == 1
        call.fail()
        call.tick()
        assert mesh.stat("upstream_rq_retry") == 2
        call.answer(200)
        assert call.status == 200
        assert mesh.held() == {}

    def test_urx_may_stand_on_a_200(self) -> None:
        mesh = FakeMesh(cluster(hosts=3), action=HEDGED)
        call = mesh.call()
        call.after(1.0)
        assert sorted(call.live) == [1, 2, 3]
        assert call.flags == "URX"
        call.answer(200, attempt=2)
        assert (call.status, call.flags) == (200, "URX")
        assert mesh.held() == {}

    def test_an_answer_before_the_back_off_is_over_ends_it(self) -> None:
        mesh = FakeMesh(cluster(hosts=3), action=HEDGED)
        call = mesh.call()
        call.tick()
        call.answer(200, end=False)
        assert "a.retries" not in mesh.held()
        call.after(1.0)
        assert list(call.live) == [1], "no attempt starts after an answer"
        call.end()
        assert mesh.held() == {}

    def test_retry_on_does_not_matter(self) -> None:
        policy = retry("retriable-4xx", per_try_timeout=0.1)
        mesh = FakeMesh(cluster(hosts=2), action=forward(hedge_policy=HEDGING, retry_policy=policy))
        call = mesh.call()
        call.after(0.2)
        assert sorted(call.live) == [1, 2]
        call.cancel()
        assert mesh.held() == {}

    def test_the_route_timeout_ends_them_all(self) -> None:
        mesh = FakeMesh(cluster(hosts=3, outlier_detection=outlier(consecutive_5xx=50)), action=HEDGED)
        call = mesh.call()
        call.after(5.0)
        assert (call.flags, call.details) == ("URX,UT", "response_timeout")
        assert call.live == {}
        assert mesh.held() == {}
        counted = [endpoint.consecutive_5xx for endpoint in mesh.state().endpoints.values()]
        assert counted == [1, 1, 1], "an attempt that timed out is counted once"

    def test_no_permit_for_a_hedge_leaves_the_first_alive(self) -> None:
        mesh = FakeMesh(cluster(circuit_breakers=thresholds(max_retries=0)), action=HEDGED)
        call = mesh.call()
        call.after(0.5)
        assert list(call.live) == [1]
        call.answer(200)
        assert (call.status, call.flags) == (200, "UO")

    def test_no_endpoint_for_a_hedge_ends_the_call(self) -> None:
        mesh = FakeMesh(cluster(), action=HEDGED)
        call = mesh.call()
        call.tick()
        mesh.publish(cluster(hosts=0))
        call.tick()
        assert call.flags == "UH"
        assert call.log[-2:] == ["CancelAttempt(1)", "Fail"]
        assert call.live == {}
        assert mesh.held() == {}

    def test_overflow_of_a_hedge_leaves_the_first_alive(self) -> None:
        mesh = FakeMesh(cluster(circuit_breakers=thresholds(max_requests=1)), action=HEDGED)
        call = mesh.call()
        call.after(0.2)
        assert call.log[-1] == "CancelAttempt(2)"
        call.answer(200)
        assert call.status == 200
        assert mesh.held() == {}


def test_a_connect_failure_while_a_hedge_waits() -> None:
    mesh = FakeMesh(cluster(hosts=3), action=HEDGED)
    mesh.slow = True
    call = mesh.call()
    call.connected()
    call.tick()
    call.tick()
    call.fail(FailureKind.CONNECT_FAILED, attempt=2, sent=False)
    assert call.error is None
    call.answer(200, attempt=1)
    assert call.status == 200
    assert mesh.held() == {}


def test_a_timer_that_comes_too_early_changes_nothing() -> None:
    mesh = FakeMesh(cluster(), action=forward(timeout=2.0))
    call = mesh.call()
    mesh.clock.advance(1.9)
    call.handle(ev.Timer())
    assert call.error is None


def test_a_timer_that_became_pointless_sets_the_next_one() -> None:
    """Otherwise the transport would report it again and again without end."""
    mesh = FakeMesh(cluster(hosts=2), action=HEDGED)
    call = mesh.call()
    call.tick()
    call.tick()
    for _ in range(10):
        if call.core.wake_at > mesh.clock.monotonic():
            break
        call.handle(ev.Timer())
    assert call.core.wake_at > mesh.clock.monotonic()

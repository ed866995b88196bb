"""Limits and the pending queue, through the engine: who connects, who waits, who is refused, and what is given back."""

from __future__ import annotations

import gc

import pytest

from meshlib.engine.events import NeedConnection
from meshlib.errors import CircuitFull
from meshlib.policy.failure import FailureKind
from meshlib.resources.route import Priority
from tests.engine.builders import cluster, forward, retry, thresholds
from tests.engine.wire import FakeCall, FakeMesh, FakePool

OVERFLOW = b"upstream connect error or disconnect/reset before headers. reset reason: overflow"


def overflown(call: FakeCall) -> bool:
    if call.error is None:
        return False
    assert isinstance(call.error, CircuitFull)
    reply = call.error.local_reply
    assert reply is not None
    assert (reply.status, reply.body) == (503, OVERFLOW)
    assert ("x-envoy-overloaded", "true") in reply.headers
    assert (call.flags, call.details) == ("UO", "upstream_reset_before_response_started{overflow}")
    return True


def test_max_requests() -> None:
    """Seen on Envoy: max_requests 2, five at once: two answers and three times 503."""
    mesh = FakeMesh(cluster(circuit_breakers=thresholds(max_requests=2)))
    calls = [mesh.call() for _ in range(5)]
    assert [overflown(call) for call in calls] == [False, False, True, True, True]
    assert mesh.stat("upstream_rq_active_overflow") == 3
    for call in calls[:2]:
        call.answer(200)
    assert mesh.held() == {}
    assert not overflown(mesh.call())


def test_max_connections_and_pending() -> None:
    """Seen on Envoy: max_connections 1 and max_pending_requests 1, five at once: two answers and three times 503."""
    mesh = FakeMesh(cluster(circuit_breakers=thresholds(max_connections=1, max_pending_requests=1)))
    calls = [mesh.call() for _ in range(5)]
    assert [overflown(call) for call in calls] == [False, False, True, True, True]
    assert calls[1].log == ["Start(1)", "Park(1)"]
    assert mesh.stat("upstream_rq_pending_overflow") == 3
    calls[0].answer(200)
    calls[1].attend()
    calls[1].answer(200)
    assert calls[1].status == 200
    assert mesh.held() == {}
    assert mesh.state().default.connections == 1, "one connection served both"


@pytest.mark.parametrize("limit", ["max_requests", "max_pending_requests"])
def test_a_limit_of_zero_fails_the_first_request(limit: str) -> None:
    mesh = FakeMesh(cluster(circuit_breakers=thresholds(**{limit: 0})))
    assert overflown(mesh.call())
    assert mesh.held() == {}


def test_the_connection_that_it_was_given_is_used_up() -> None:
    mesh = FakeMesh(cluster())
    mesh.slow = True
    call = mesh.call()
    given = call.live[1].connection
    assert given is not None
    given.close()
    call.handle(NeedConnection(1, call.pool))
    assert call.log == ["Start(1)", "Connect(1)", "Connect(1)"]
    assert mesh.state().default.pending == 1
    call.connected()
    assert mesh.state().default.pending == 0
    call.answer(200)
    assert call.status == 200
    assert mesh.held() == {}


def test_priorities_do_not_touch_each_other() -> None:
    mesh = FakeMesh(cluster(circuit_breakers=thresholds(max_requests=1)))
    assert not overflown(mesh.call())
    assert overflown(mesh.call())
    high = FakeMesh(
        cluster(circuit_breakers=thresholds(max_requests=0)), action=forward(priority=Priority.HIGH)
    )
    assert not overflown(high.call())


def test_overflow_is_never_retried() -> None:
    mesh = FakeMesh(
        cluster(circuit_breakers=thresholds(max_requests=0)),
        action=forward(retry_policy=retry("5xx,reset", times=5)),
    )
    assert overflown(mesh.call())


def test_overflow_of_a_retry_says_so() -> None:
    mesh = FakeMesh(
        cluster(circuit_breakers=thresholds(max_requests=1)), action=forward(retry_policy=retry("5xx"))
    )
    call = mesh.call()
    call.answer(503)
    other = mesh.call()
    call.tick()
    assert call.error is not None
    assert call.error.local_reply is not None
    assert b"retried and the latest reset reason: overflow" in call.error.local_reply.body
    assert call.flags == "UO"
    other.answer(200)
    assert mesh.held() == {}


def one_connection() -> FakeMesh:
    return FakeMesh(cluster(circuit_breakers=thresholds(max_connections=1)), action=forward(timeout=1.0))


def test_first_come_first_served() -> None:
    mesh = one_connection()
    holder = mesh.call()
    waiting = [mesh.call() for _ in range(4)]
    for call in waiting:
        assert [each.woken for each in waiting if each is not call] == [False] * 3
        holder.answer(200)
        assert call.woken
        call.attend()
        assert call.log[-1] == "Connect(1)"
        holder = call
    holder.answer(200)
    assert [call.status for call in waiting] == [200] * 4
    assert mesh.held() == {}


def test_a_wake_up_without_a_reason_parks_again() -> None:
    mesh = one_connection()
    holder, waiting = mesh.call(), mesh.call()
    waiting.woken = True
    waiting.attend()
    assert waiting.log[-1] == "Park(1)"
    holder.answer(200)
    waiting.attend()
    waiting.answer(200)
    assert mesh.held() == {}


def test_a_closed_connection_lets_the_next_one_open_its_own() -> None:
    mesh = one_connection()
    holder, waiting = mesh.call(), mesh.call()
    holder.fail(FailureKind.TERMINATED)
    waiting.attend()
    assert waiting.log[-1] == "Connect(1)"
    assert mesh.state().default.connections == 1
    waiting.answer(200)
    assert waiting.status == 200
    mesh.pool.close_idle()
    assert mesh.state().default.connections == 0


def test_a_timeout_leaves_the_queue() -> None:
    mesh = one_connection()
    holder, patient, last = mesh.call(), mesh.call(), mesh.call()
    patient.after(1.0)
    assert patient.flags == "UT"
    assert len(mesh.state().endpoints["10.0.0.1:80"].waiters) == 1
    holder.answer(200)
    assert last.woken
    last.attend()
    last.answer(200)
    assert mesh.held() == {}


@pytest.mark.parametrize("closed", [False, True])
def test_served_and_cancelled_at_once(closed: bool) -> None:
    """The call was given a connection, or the right to open one, and ends before it hears of it: the next one gets it."""
    mesh = one_connection()
    holder, quitter, last = mesh.call(), mesh.call(), mesh.call()
    if closed:
        holder.fail()
    else:
        holder.answer(200)
    assert quitter.woken
    quitter.cancel()
    assert last.woken
    last.attend()
    last.answer(200)
    assert last.status == 200
    mesh.pool.close_idle()
    assert mesh.held() == {}
    assert mesh.state().default.connections == 0
    assert mesh.state().endpoints["10.0.0.1:80"].connections == 0


def test_another_owners_call_opens_a_connection_of_its_own() -> None:
    mesh = one_connection()
    holder = mesh.call()
    other = mesh.call(pool=FakePool())
    holder.answer(200)
    assert mesh.pool.idle[holder.starts[0].endpoint] == [], (
        "the connection was closed for the other owner's sake"
    )
    other.attend()
    other.answer(200)
    assert other.status == 200
    assert mesh.state().default.connections == 1


def test_a_dropped_call_leaves_the_queue_at_the_clusters_next_call() -> None:
    mesh = one_connection()
    holder = mesh.call()
    dropped = mesh.call()
    dropped.core = None
    dropped.live.clear()
    del dropped
    gc.collect()
    assert len(mesh.state().abandoned) == 1
    last = mesh.call()
    assert [waiter.wake for waiter in mesh.state().endpoints["10.0.0.1:80"].waiters] == [last.wake]
    holder.answer(200)
    last.attend()
    last.answer(200)
    assert mesh.held() == {}


def test_a_lowered_limit_holds_for_new_requests() -> None:
    mesh = FakeMesh(cluster())
    calls = [mesh.call() for _ in range(3)]
    mesh.publish(cluster(circuit_breakers=thresholds(max_requests=1)))
    assert overflown(mesh.call())
    for call in calls:
        call.answer(200)
    assert mesh.held() == {}
    assert not overflown(mesh.call())


def test_the_pending_permit_is_held_while_the_connection_opens() -> None:
    mesh = FakeMesh(cluster(circuit_breakers=thresholds(max_pending_requests=1)))
    mesh.slow = True
    first = mesh.call()
    assert mesh.held() == {"a.pending": 1}
    assert overflown(mesh.call())
    first.connected()
    assert "a.pending" not in mesh.held()
    first.answer(200)
    assert mesh.held() == {}

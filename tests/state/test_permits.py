"""Permits: limits, the queue of an endpoint, what finalizers leave behind, forks."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from meshlib.resources.cluster import CircuitBreakers, RetryBudget, Thresholds
from meshlib.resources.route import Priority
from meshlib.state import Admission, ClusterState, StateStore, Waiter
from meshlib.stats import Reading, Registry
from tests.state.support import cluster, counts, endpoint, sleeper, woken

POOL = object()


def test_the_priorities_have_limits_of_their_own() -> None:
    state = cluster(Thresholds(max_requests=2), Thresholds(max_requests=1))
    host = endpoint(state)
    high, default = state.permits(Priority.HIGH), state.permits(Priority.DEFAULT)
    assert state.take_request(host, high)
    assert not state.take_request(host, high)
    assert state.take_request(host, default)
    assert state.take_request(host, default)
    assert not state.take_request(host, default)
    assert host.active == 3
    state.return_request(host, high)
    assert state.take_request(host, high)


def test_retries_are_limited() -> None:
    state = cluster(Thresholds(max_retries=1))
    assert state.take_retry(state.default)
    assert not state.take_retry(state.default)
    state.return_retry(state.default)
    assert state.take_retry(state.default)


class TestRetryBudget:
    """Envoy: max(min_retry_concurrency, the percentage of active and pending requests), whatever max_retries says."""

    @pytest.mark.parametrize(
        ("percent", "least", "active", "retries"),
        [
            (0.0, 0, 10, 0),
            (0.0, 1, 10, 1),
            (20.0, 3, 0, 3),
            (20.0, 3, 19, 3),
            (20.0, 3, 25, 5),
            (50.0, 0, 1, 0),
            (50.0, 0, 5, 2),
            (100.0, 0, 1, 1),
            (33.3, 0, 10, 3),
        ],
    )
    def test_the_formula(self, percent: float, least: int, active: int, retries: int) -> None:
        budget = RetryBudget(budget_percent=percent, min_retry_concurrency=least)
        state = cluster(Thresholds(max_retries=0, retry_budget=budget))
        for _ in range(active):
            assert state.take_request(endpoint(state), state.default)
        taken = 0
        while state.take_retry(state.default):
            taken += 1
        assert taken == retries

    def test_pending_requests_count(self) -> None:
        budget = RetryBudget(budget_percent=50.0, min_retry_concurrency=0)
        state = cluster(Thresholds(retry_budget=budget))
        state.take_request(endpoint(state), state.default)
        assert not state.take_retry(state.default)
        state.admit(endpoint(state), state.default, sleeper())
        assert state.take_retry(state.default)

    def test_each_priority_has_its_own(self) -> None:
        none = RetryBudget(budget_percent=0.0, min_retry_concurrency=0)
        state = cluster(high=Thresholds(retry_budget=none))
        assert state.take_retry(state.default)
        assert not state.take_retry(state.high)

    def test_a_fork_keeps_it(self) -> None:
        state = cluster(Thresholds(retry_budget=RetryBudget(budget_percent=0.0, min_retry_concurrency=1)))
        state.take_retry(state.default)
        state.renew_lock()
        assert state.take_retry(state.default)
        assert not state.take_retry(state.default)


class TestGauges:
    def test_open_at_the_limit(self) -> None:
        registry = Registry()
        state = ClusterState("c", registry)
        state.limit(CircuitBreakers(default=Thresholds(max_requests=1), high=Thresholds(max_retries=1)))
        host = endpoint(state)
        state.take_request(host, state.default)
        state.take_retry(state.high)
        assert _readings(registry, "_open") == {"default.rq_open": 1, "high.rq_retry_open": 1}
        state.return_request(host, state.default)
        assert _readings(registry, "_open") == {"high.rq_retry_open": 1}
        state.renew_lock()
        assert _readings(registry, "_open") == {}, "in a child nothing is under way"

    def test_what_remains_where_it_is_asked_for(self) -> None:
        registry = Registry()
        state = ClusterState("c", registry)
        limits = Thresholds(
            max_connections=5, max_pending_requests=4, max_requests=3, max_retries=2, track_remaining=True
        )
        state.limit(CircuitBreakers(default=limits))
        state.take_request(endpoint(state), state.default)
        state.admit(endpoint(state), state.default, sleeper())
        state.take_retry(state.default)
        expected = {"default.remaining_cx": 4, "default.remaining_pending": 3}
        expected |= {"default.remaining_rq": 2, "default.remaining_retries": 1}
        assert _readings(registry, "remaining_") == expected
        state.limit(CircuitBreakers())
        assert _readings(registry, "remaining_") == {}, "no longer asked for"

    def test_a_push_looks_at_no_metric_of_another_cluster(self) -> None:
        """Or a push of thousands of clusters would take minutes."""

        class Unlisted(dict[str, Any]):
            def __iter__(self) -> Any:
                raise AssertionError("all metrics were looked at")

            items = keys = values = __iter__

        registry = Registry()
        registry.root.metrics = Unlisted()
        registry._scopes = Unlisted()
        state = ClusterState("c", registry)
        for track in (True, False):
            state.limit(CircuitBreakers(default=Thresholds(track_remaining=track)))

    def test_a_budget_leaves_no_number(self) -> None:
        registry = Registry()
        state = ClusterState("c", registry)
        limits = Thresholds(max_retries=7, track_remaining=True, retry_budget=RetryBudget())
        state.limit(CircuitBreakers(high=limits))
        assert "high.remaining_retries" not in _readings(registry, "remaining_")


def _readings(registry: Registry, part: str) -> dict[str, float]:
    """The circuit breakers' gauges with `part` in their names that are not 0."""
    prefix = "cluster.c.circuit_breakers."
    return {
        metric.name.removeprefix(prefix): metric.value
        for metric in registry
        if isinstance(metric, Reading) and part in metric.name and metric.value
    }


def test_no_pending_permit_fails_the_first_request() -> None:
    state = cluster(Thresholds(max_pending_requests=0))
    assert state.admit(endpoint(state), state.default, sleeper()) is Admission.OVERFLOW
    assert counts(state.default) == (0, 0, 0, 0)


def test_every_endpoint_may_have_one_connection() -> None:
    state = cluster(Thresholds(max_connections=1))
    first, second = endpoint(state, 1), endpoint(state, 2)
    assert state.admit(first, state.default, sleeper()) is Admission.CONNECT
    assert state.admit(second, state.default, sleeper()) is Admission.CONNECT
    assert state.admit(first, state.default, sleeper()) is Admission.WAIT
    assert state.default.connections == 2
    assert state.stats.upstream_cx_overflow.value == 2, "the second one is beyond the limit, too"


def test_a_free_connection_goes_to_the_head_of_the_queue() -> None:
    state = cluster(Thresholds(max_connections=1))
    host = endpoint(state)
    state.admit(host, state.default, sleeper(POOL))
    waiters = [sleeper(POOL) for _ in range(3)]
    for waiter in waiters:
        assert state.admit(host, state.default, waiter) is Admission.WAIT
    connection = object()
    for waiter in waiters:
        assert state.next_waiter(host, POOL, connection) is waiter
        assert waiter.served
        assert waiter.connection is connection
        assert woken(waiter) == 0, "waking is the pool's business: it happens outside the lock"
    assert state.next_waiter(host, POOL, connection) is None


def test_a_connection_is_not_handed_to_another_owner() -> None:
    state = cluster(Thresholds(max_connections=1))
    host = endpoint(state)
    state.admit(host, state.default, sleeper(POOL))
    state.admit(host, state.default, sleeper(object()))
    assert state.next_waiter(host, POOL, object()) is None
    assert len(host.waiters) == 1


def test_a_closed_connection_lets_the_head_open_one() -> None:
    state = cluster(Thresholds(max_connections=1))
    host = endpoint(state)
    state.admit(host, state.default, sleeper())
    head, next_one = sleeper(), sleeper()
    state.admit(host, state.default, head)
    state.admit(host, state.default, next_one)
    state.connection_closed(host, state.default)
    assert (head.served, woken(head), head.connection) == (True, 1, None)
    assert not next_one.served
    assert (host.connections, state.default.connections) == (1, 1)


def test_a_connection_opened_by_the_queue_counts_for_the_waiters_priority() -> None:
    state = cluster(Thresholds(max_connections=1), Thresholds(max_connections=1))
    host = endpoint(state)
    state.admit(host, state.default, sleeper())
    state.admit(host, state.high, sleeper())
    waiting = sleeper()
    assert state.admit(host, state.high, waiting) is Admission.WAIT
    state.connection_closed(host, state.default)
    assert woken(waiting) == 0, "HIGH is at its limit, and its other connection will come free"
    assert (state.default.connections, state.high.connections) == (0, 1)
    state.connection_closed(host, state.high)
    assert woken(waiting) == 1
    assert (state.default.connections, state.high.connections, host.connections) == (0, 1, 1)
    state.connection_closed(host, state.high)
    assert (state.default.connections, state.high.connections, host.connections) == (0, 0, 0)


def test_withdraw_tells_whether_it_was_in_time() -> None:
    state = cluster(Thresholds(max_connections=1))
    host = endpoint(state)
    state.admit(host, state.default, sleeper(POOL))
    early, late = sleeper(POOL), sleeper(POOL)
    state.admit(host, state.default, early)
    state.admit(host, state.default, late)
    assert state.withdraw(host, early)
    assert state.next_waiter(host, POOL, object()) is late
    assert not state.withdraw(host, late)


def test_a_lowered_limit_takes_nothing_away() -> None:
    state = cluster()
    host = endpoint(state)
    for _ in range(3):
        assert state.take_request(host, state.default)
    state.limit(CircuitBreakers(default=Thresholds(max_requests=1)))
    assert not state.take_request(host, state.default)
    for _ in range(3):
        state.return_request(host, state.default)
    assert state.take_request(host, state.default)
    assert counts(state.default) == (0, 0, 1, 0)


def test_what_finalizers_left_is_given_back_once() -> None:
    state = cluster()
    host = endpoint(state)
    state.take_request(host, state.default)
    state.abandoned.append(lambda: state.return_request(host, state.default))
    state.drain_abandoned()
    state.drain_abandoned()
    assert counts(state.default) == (0, 0, 0, 0)
    assert host.active == 0


def test_threads_that_drain_together_do_not_disturb_each_other() -> None:
    state = cluster()
    seen: list[int] = []
    state.abandoned.extend(partial(seen.append, number) for number in range(2_000))
    _together(4, state.drain_abandoned)
    assert sorted(seen) == list(range(2_000))


class TestAfterAFork:
    def test_the_child_starts_from_nothing_and_keeps_the_limits(self) -> None:
        state = cluster(Thresholds(max_requests=2, max_connections=1))
        host = endpoint(state)
        state.take_request(host, state.default)
        state.admit(host, state.default, sleeper())
        state.admit(host, state.default, sleeper())
        lock = state.lock
        with lock:  # held by a thread that does not exist in the child
            state.renew_lock()
            assert counts(state.default) == (0, 0, 0, 0)
            assert (host.active, host.connections, len(host.waiters)) == (0, 0, 0)
            assert state.take_request(host, state.default)
            assert state.take_request(host, state.default)
            assert not state.take_request(host, state.default)

    def test_what_the_parents_calls_return_there_counts_for_nothing(self) -> None:
        state = cluster()
        host = endpoint(state)
        parents = state.default
        state.take_request(host, parents)
        state.admit(host, parents, sleeper())
        state.take_retry(parents)
        state.renew_lock()
        state.take_request(host, state.default)
        state.return_request(host, parents)
        state.end_pending(parents)
        state.connection_closed(host, parents)
        state.return_retry(parents)
        assert counts(state.default) == (0, 0, 1, 0)
        assert (host.active, host.connections) == (1, 0)

    def test_a_call_that_goes_on_there_takes_and_returns_evenly(self) -> None:
        state = cluster()
        host = endpoint(state)
        parents = state.default
        state.renew_lock()
        assert state.take_request(host, parents)
        assert state.admit(host, parents, sleeper()) is Admission.CONNECT
        state.return_request(host, parents)
        state.connection_closed(host, parents)
        assert (host.active, host.connections) == (0, 0)


class TestDepartures:
    def test_an_endpoint_that_left_is_forgotten_when_nothing_uses_it(self) -> None:
        state = cluster()
        stays, goes, busy = endpoint(state, 1), endpoint(state, 2), endpoint(state, 3)
        state.take_request(busy, state.default)
        state.depart([stays, goes, busy], {stays.key})
        assert state.endpoints == {stays.key: stays, busy.key: busy}
        assert (stays.departed, goes.departed, busy.departed) == (False, True, True)
        state.return_request(busy, state.default)
        state.depart([stays, busy], {stays.key})
        assert state.endpoints == {stays.key: stays}

    def test_an_ejected_one_is_kept(self) -> None:
        state = cluster()
        host = endpoint(state)
        host.ejected = True
        state.depart([host], set())
        assert state.endpoints == {host.key: host}

    def test_one_that_comes_back_is_found_again(self) -> None:
        state = cluster()
        host = endpoint(state)
        state.admit(host, state.default, sleeper())
        state.depart([host], set())
        assert host.departed
        assert endpoint(state) is host
        assert not host.departed

    def test_one_that_waits_in_an_assignment_is_welcome_without_a_pick(self) -> None:
        state = cluster()
        host = endpoint(state)
        state.admit(host, state.default, sleeper())
        state.depart([host], set())
        state.depart([host], {host.key})
        assert not host.departed


def test_a_cluster_that_comes_back_finds_its_state() -> None:
    store = StateStore(Registry())
    assert store.cluster("a") is store.cluster("a")
    assert [state.name for state in store] == ["a"]


def test_clusters_that_left_long_ago_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshlib.state.store.DEPARTED", 2)
    registry = Registry()
    store = StateStore(registry)
    states = {name: store.cluster(name) for name in "abcde"}
    registry.labelled_counter("calls_total", (("cluster", "b"), ("x", "y"))).value = 1
    registry.labelled_counter("calls_total", (("cluster", "c"), ("x", "y"))).value = 1
    used = endpoint(states["a"])
    states["a"].take_request(used, states["a"].default)
    store.depart("ab", set("cde"))
    assert {state.name for state in store} == set("abcde")
    store.depart("cd", set("ae"))
    assert {state.name for state in store} == set("acde"), "b left first, a came back"
    assert not [metric.name for metric in registry if metric.name.startswith("cluster.b.")]
    assert [dict(labels)["cluster"] for labels, _ in registry.natives("calls_total")] == ["c"]
    assert store.cluster("b") is not states["b"]
    store.depart("ae", set())
    assert {state.name for state in store} == set("abe"), "a is in use"


def test_endpoints_are_made_once_whoever_asks() -> None:
    state = cluster()
    found: list[object] = []
    _together(4, lambda: found.append(state.endpoint("10.0.0.1:80", "10.0.0.1", 80)))
    assert len(set(map(id, found))) == 1


@pytest.mark.parametrize("limit", [1, 3])
def test_threads_never_exceed_a_limit(limit: int) -> None:
    state = cluster(Thresholds(max_requests=limit))
    host = endpoint(state)
    beyond: list[int] = []

    def call() -> None:
        for _ in range(3_000):
            if state.take_request(host, state.default):
                if state.default.requests > limit:
                    beyond.append(state.default.requests)
                state.return_request(host, state.default)

    _together(4, call)
    assert not beyond
    assert counts(state.default) == (0, 0, 0, 0)
    assert host.active == 0


def test_threads_hand_one_connection_around() -> None:
    """Many callers, one connection: nobody is forgotten, and at no time do two have it."""
    state = cluster(Thresholds(max_connections=1))
    host = endpoint(state)
    pool = object()
    idle: list[object] = []
    holders: list[int] = []
    failures: list[str] = []

    def release(connection: object) -> None:
        waiter = state.next_waiter(host, pool, connection)
        if waiter is not None:
            waiter.wake()
            return
        idle.append(connection)
        if host.waiters:  # somebody joined the queue in the meantime
            try:
                again = idle.pop()
            except IndexError:
                return
            release(again)

    def call() -> None:
        for _ in range(200):
            try:
                connection: object = idle.pop()
            except IndexError:
                event = threading.Event()
                waiter = Waiter(event.set, pool)
                admission = state.admit(host, state.default, waiter)
                if admission is Admission.CONNECT:
                    connection = object()
                else:
                    with contextlib.suppress(IndexError):
                        release(idle.pop())
                    if not event.wait(20):
                        failures.append("nobody woke a waiter")
                        return
                    assert waiter.connection is not None
                    connection = waiter.connection
                state.end_pending(state.default)
            holders.append(1)
            if len(holders) > 1:
                failures.append("two callers hold the connection")
            holders.pop()
            release(connection)

    _together(4, call)
    assert not failures
    assert counts(state.default) == (1, 0, 0, 0)


def _together(number: int, work: Callable[[], object]) -> None:
    threads = [threading.Thread(target=work) for _ in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

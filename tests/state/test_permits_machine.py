"""Permits, driven at random against a model: no count is ever negative or over its limit, and the queue is a queue."""

from __future__ import annotations

from math import floor

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from meshlib.resources.cluster import CircuitBreakers, RetryBudget, Thresholds
from meshlib.state import Admission, EndpointState, Permits, Waiter
from tests.state.support import cluster, counts, endpoint, sleeper, woken

HOSTS = 3
LIMITS = st.builds(
    Thresholds,
    max_connections=st.integers(0, 3),
    max_pending_requests=st.integers(0, 4),
    max_requests=st.integers(0, 3),
    max_retries=st.integers(0, 2),
    retry_budget=st.none()
    | st.builds(
        RetryBudget,
        budget_percent=st.sampled_from((0.0, 20.0, 50.0, 100.0)),
        min_retry_concurrency=st.integers(0, 2),
    ),
)


class PermitsMachine(RuleBasedStateMachine):
    @initialize(default=LIMITS, high=LIMITS)
    def start(self, default: Thresholds, high: Thresholds) -> None:
        self.state = cluster(default, high)
        self.hosts = [endpoint(self.state, number) for number in range(HOSTS)]
        self.owners = [object(), object()]
        self.requests: list[tuple[EndpointState, Permits]] = []
        self.retries: list[Permits] = []
        self.pending: list[Permits] = []
        self.connections: list[tuple[EndpointState, Permits]] = []
        self.queues: dict[EndpointState, list[tuple[Waiter, Permits]]] = {host: [] for host in self.hosts}

    def _permits(self, high: bool) -> Permits:
        return self.state.high if high else self.state.default

    @rule(host=st.integers(0, HOSTS - 1), high=st.booleans())
    def take_request(self, host: int, high: bool) -> None:
        permits = self._permits(high)
        held = permits.requests
        taken = self.state.take_request(self.hosts[host], permits)
        assert taken is (held < permits.max_requests)
        if taken:
            self.requests.append((self.hosts[host], permits))

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def return_request(self, data: st.DataObject) -> None:
        self.state.return_request(*self.requests.pop(data.draw(st.integers(0, len(self.requests) - 1))))

    @rule(high=st.booleans())
    def take_retry(self, high: bool) -> None:
        permits = self._permits(high)
        held, limits = permits.retries, permits.thresholds
        most = limits.max_retries
        if limits.retry_budget is not None:
            share = limits.retry_budget.budget_percent / 100 * (permits.requests + permits.pending)
            most = max(floor(share), limits.retry_budget.min_retry_concurrency)
        taken = self.state.take_retry(permits)
        assert taken is (held < most)
        if taken:
            self.retries.append(permits)

    @precondition(lambda self: self.retries)
    @rule()
    def return_retry(self) -> None:
        self.state.return_retry(self.retries.pop())

    @rule(host=st.integers(0, HOSTS - 1), high=st.booleans(), owner=st.integers(0, 1))
    def admit(self, host: int, high: bool, owner: int) -> None:
        where, permits = self.hosts[host], self._permits(high)
        waiter = sleeper(self.owners[owner])
        free = permits.connections < permits.max_connections or where.connections == 0
        full = permits.pending >= permits.max_pending
        admission = self.state.admit(where, permits, waiter)
        if full:
            assert admission is Admission.OVERFLOW
            return
        self.pending.append(permits)
        if free:
            assert admission is Admission.CONNECT
            self.connections.append((where, permits))
        else:
            assert admission is Admission.WAIT
            self.queues[where].append((waiter, permits))

    @precondition(lambda self: self.pending)
    @rule()
    def end_pending(self) -> None:
        self.state.end_pending(self.pending.pop())

    @precondition(lambda self: self.connections)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        where, permits = self.connections.pop(data.draw(st.integers(0, len(self.connections) - 1)))
        queue = self.queues[where]
        self.state.connection_closed(where, permits)
        if queue and queue[0][0].served:
            waiter, own = queue.pop(0)
            assert woken(waiter) == 1
            assert waiter.connection is None
            self.connections.append((where, own))
        assert not any(waiter.served for waiter, _ in queue), "only the head may be served"
        if queue:
            assert where.connections > 0, "who waits has a connection to wait for"

    @precondition(lambda self: self.connections)
    @rule(data=st.data(), owner=st.integers(0, 1))
    def hand_over(self, data: st.DataObject, owner: int) -> None:
        where, _ = data.draw(st.sampled_from(self.connections))
        queue = self.queues[where]
        expected = queue[0][0] if queue and queue[0][0].owner is self.owners[owner] else None
        connection = object()
        waiter = self.state.next_waiter(where, self.owners[owner], connection)
        assert waiter is expected
        if waiter is not None:
            assert waiter.connection is connection
            queue.pop(0)

    @rule(host=st.integers(0, HOSTS - 1), data=st.data())
    def withdraw(self, host: int, data: st.DataObject) -> None:
        queue = self.queues[self.hosts[host]]
        if queue:
            waiter, _ = queue.pop(data.draw(st.integers(0, len(queue) - 1)))
            assert self.state.withdraw(self.hosts[host], waiter)
            assert not self.state.withdraw(self.hosts[host], waiter)

    @rule(default=LIMITS, high=LIMITS)
    def push(self, default: Thresholds, high: Thresholds) -> None:
        self.state.limit(CircuitBreakers(default=default, high=high))

    @invariant()
    def counts_are_those_of_the_model(self) -> None:
        for permits in (self.state.default, self.state.high):
            assert counts(permits) == (
                sum(own is permits for _, own in self.connections),
                sum(own is permits for own in self.pending),
                sum(own is permits for _, own in self.requests),
                sum(own is permits for own in self.retries),
            )
        for host in self.hosts:
            assert host.active == sum(where is host for where, _ in self.requests)
            assert host.connections == sum(where is host for where, _ in self.connections)
            assert list(host.waiters) == [waiter for waiter, _ in self.queues[host]]

    def teardown(self) -> None:
        for host, permits in self.requests:
            self.state.return_request(host, permits)
        for permits in self.pending:
            self.state.end_pending(permits)
        for permits in self.retries:
            self.state.return_retry(permits)
        for host in self.hosts:
            host.waiters.clear()
        for host, permits in self.connections:
            self.state.connection_closed(host, permits)
        assert counts(self.state.default) == counts(self.state.high) == (0, 0, 0, 0)


PermitsMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40)
TestPermitsMachine = PermitsMachine.TestCase

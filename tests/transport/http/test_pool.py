"""The pool, with connections that only remember what was done to them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from meshlib.engine.actions import Start
from meshlib.policy.failure import FailureKind
from meshlib.resources.cluster import CircuitBreakers, Cluster, DiscoveryType, HttpProtocol, Thresholds
from meshlib.runtime.clock import FakeClock
from meshlib.state import Admission, ClusterState, EndpointState, Waiter, Way
from meshlib.stats import Registry
from meshlib.transport.http.pool import SWEEP_INTERVAL, Alarm, Pool, PooledConnection, Shelf


class Fake(PooledConnection):
    """healthy until somebody breaks it."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.broken = False
        self.disconnected = False
        self.renewed: tuple[int, float] | None = None
        self.settled = False
        self.withdrawn = False

    def healthy(self) -> bool:
        return not self.broken and self.expires > self.pool.monotonic()

    @property
    def trusted(self) -> bool:
        return not self.withdrawn

    def superseded(self) -> tuple[int, float] | None:
        return self.renewed

    def settle(self) -> None:
        self.settled = True

    def disconnect(self) -> None:
        self.disconnected = True

    def forget(self) -> None:
        self.disconnected = True


class Timer:
    """What a ManualPool is to do at `when`."""

    def __init__(self, when: float, task: Callable[[], None]) -> None:
        self.when, self.task = when, task
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class ManualPool(Pool):
    """A pool whose time is told, and whose successors are opened by the test.

    asked: the connections that had their moment and may have a successor. begun: those whose successor is under way.
    """

    def __init__(self, clock: FakeClock, *, allowed: bool = True) -> None:
        super().__init__(clock, self._asked)
        self.clock = clock
        self.allowed = allowed
        self.timers: list[Timer] = []
        self.asked: list[PooledConnection] = []
        self.begun: list[PooledConnection] = []

    def _asked(self, connection: PooledConnection) -> Start | None:
        self.asked.append(connection)
        if not self.allowed or not connection.state.connect_beside(connection.endpoint, connection.permits):
            return None
        return Start(
            0,
            connection.endpoint,
            cluster(),
            connection.state,
            connection.permits,
            connection.name,
            "",
            None,
            permitted=True,
        )

    def later(self, delay: float, task: Callable[[], None]) -> Alarm:
        self.timers.append(timer := Timer(self.monotonic() + delay, task))
        return timer

    def succeed(self, connection: PooledConnection, start: Start) -> None:
        self.begun.append(connection)

    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)
        for timer in [each for each in self.timers if each.when <= self.monotonic()]:
            self.timers.remove(timer)
            if not timer.cancelled:
                timer.task()


def cluster(**options: Any) -> Cluster:
    return Cluster(name="c", discovery=DiscoveryType.STATIC, **options)


class World:
    def __init__(self, **options: Any) -> None:
        self.clock = FakeClock()
        self.cluster = cluster(**options)
        self.state = ClusterState("c", Registry())
        self.state.configure(self.cluster)
        self.endpoint = self.state.endpoint("127.0.0.1:1", "127.0.0.1", 1)
        self.pool = ManualPool(self.clock)

    def connect(self, pool: Pool | None = None, endpoint: EndpointState | None = None) -> Fake:
        endpoint = endpoint or self.endpoint
        waiter = Waiter(lambda: None)
        assert self.state.admit(endpoint, self.state.default, waiter) is Admission.CONNECT
        self.state.end_pending(self.state.default)
        return self.made(pool, endpoint)

    def made(
        self, pool: Pool | None = None, endpoint: EndpointState | None = None, shelf: Shelf | None = None
    ) -> Fake:
        """A connection that is counted already."""
        endpoint = endpoint or self.endpoint
        start = Start(0, endpoint, self.cluster, self.state, self.state.default, "", "", None, permitted=True)
        return Fake(pool or self.pool, start, endpoint.way, shelf)

    def park(self, pool: Pool | None = None) -> tuple[Waiter, list[str]]:
        woken: list[str] = []
        waiter = Waiter(lambda: woken.append("woken"), pool or self.pool)
        assert self.state.admit(self.endpoint, self.state.default, waiter) is Admission.WAIT
        return waiter, woken

    @property
    def connections(self) -> int:
        return self.state.default.connections


def limited(count: int = 1) -> World:
    return World(circuit_breakers=CircuitBreakers(default=Thresholds(max_connections=count)))


# --- connections whose certificate was renewed -----------------------------------------------------------------------


class Renewed(World):
    """A connection that has served a call, before its certificate was renewed and after it, and is idle."""

    def __init__(self, *, allowed: bool = True, used: bool = True, **options: Any) -> None:
        super().__init__(**options)
        self.pool.allowed = allowed
        self.old = self.connect()
        self.old.served = 1
        self.pool.release(self.old)
        self.renew(2)
        if used:
            self.old.served = 2

    def renew(self, epoch: int) -> None:
        self.old.renewed = epoch, self.clock.time() + 40.0
        self.pool.exchange()

    def moment(self) -> None:
        self.pool.advance(10.0)

    def successor(self) -> Fake:
        """It is under way, and counted."""
        made = self.made()
        self.pool.coming.add(made)
        return made

    def idle(self) -> PooledConnection | None:
        """What the next call gets."""
        found = self.pool.pop_idle(self.endpoint, self.endpoint.way)
        if found is not None:
            self.pool.release(found)
        return found


def test_connections_of_a_renewed_certificate_are_exchanged_one_after_the_other() -> None:
    world = World()
    end = world.clock.time() + 40.0
    made = [world.connect() for _ in range(11)]
    for connection in made[:10]:
        connection.renewed = 2, end
    for connection in made:
        world.pool.release(connection)
    now = world.clock.monotonic()
    world.pool.exchange()
    assert sorted(int(timer.when - now) for timer in world.pool.timers) == list(range(10))
    world.pool.exchange()
    assert len(world.pool.timers) == 10, "a push in between draws no other moment"
    for second in range(1, 11):
        world.pool.advance(1.0)
        assert world.connections == 11 - second
    assert not made[10].closed
    assert world.pool.asked == [], "nobody has used them since"


def test_connections_whose_authority_is_withdrawn_take_no_new_call() -> None:
    """Also those that wait for their moment; the others are left alone."""
    world = World()
    made = [world.connect() for _ in range(4)]
    used, idle, waiting, other = made
    waiting.renewed = 2, world.clock.time() + 40.0
    for connection in (idle, waiting, other):
        world.pool.release(connection)
    world.pool.exchange()
    for connection in (used, idle, waiting):
        connection.withdrawn = True
    world.pool.exchange()
    world.pool.exchange()
    assert [connection.closed for connection in made] == [False, True, True, False]
    assert not used.healthy()
    assert other.healthy()
    world.pool.advance(10.0)
    assert world.pool.asked == []


def test_a_connection_expires_with_its_certificate() -> None:
    world = World()
    first, second = world.connect(), world.connect()
    wall = world.clock.time()
    world.pool.opened(first, wall + 100.0)
    world.pool.opened(second, float("inf"))
    assert (first.expires, second.expires) == (world.clock.monotonic() + 100.0, float("inf"))
    assert world.pool.timers == []


def test_a_connection_whose_certificate_was_renewed_during_its_handshake() -> None:
    world = World()
    connection = world.connect()
    connection.renewed = 2, world.clock.time() + 100.0
    world.pool.opened(connection, world.clock.time() + 100.0)
    (timer,) = world.pool.timers
    assert timer.when < world.clock.monotonic() + 25.0


def test_a_successor_takes_the_place_of_its_predecessor() -> None:
    world = Renewed()
    world.moment()
    assert world.pool.begun == [world.old]
    successor = world.successor()
    assert world.connections == 2
    assert world.idle() is world.old, "no call waits"
    world.pool.replace(world.old, successor)
    assert (world.old.closed, successor.settled) == (True, True)
    assert world.idle() is successor
    assert world.connections == 1
    assert not world.pool.coming


def test_what_runs_on_the_predecessor_goes_on() -> None:
    world = Renewed()
    world.moment()
    assert world.pool.pop_idle(world.endpoint, world.endpoint.way) is world.old
    successor = world.successor()
    world.pool.replace(world.old, successor)
    assert not world.old.closed
    assert not world.old.healthy()
    assert world.idle() is successor


def test_a_successor_is_not_opened_for_nobody() -> None:
    world = Renewed(used=False)
    world.moment()
    assert world.pool.asked == []
    assert world.old.closed


def test_a_successor_that_would_be_one_too_many() -> None:
    world = Renewed(circuit_breakers=CircuitBreakers(default=Thresholds(max_connections=1)))
    world.moment()
    assert world.pool.asked == [world.old]
    assert world.pool.begun == []
    assert (world.old.closed, world.connections) == (True, 0)


@pytest.mark.parametrize("kind", [FailureKind.CONNECT_FAILED, FailureKind.CONNECT_TIMEOUT])
def test_a_successor_that_can_not_be_opened(kind: FailureKind) -> None:
    """The predecessor goes on until the next renewal."""
    world = Renewed()
    world.moment()
    world.pool.given_up(world.successor(), kind)
    stats = world.state.stats
    assert stats.upstream_cx_connect_fail.value == 1
    assert stats.upstream_cx_connect_timeout.value == (kind is FailureKind.CONNECT_TIMEOUT)
    assert (world.idle(), world.connections) == (world.old, 1)
    world.renew(3)
    assert world.old.closed
    assert not world.pool.coming


def test_a_connection_that_is_more_than_one_rotation_old() -> None:
    """It does not wait for its moment, and has no successor."""
    world = Renewed()
    world.renew(3)
    assert world.old.closed
    (timer,) = world.pool.timers
    assert timer.cancelled
    assert world.pool.asked == []


def test_a_connection_in_use_that_is_more_than_one_rotation_old() -> None:
    """What runs on it goes on, nothing else begins, and its moment finds nothing to do."""
    world = Renewed()
    assert world.pool.pop_idle(world.endpoint, world.endpoint.way) is world.old
    world.renew(3)
    world.moment()
    assert world.pool.asked == []
    assert not world.old.closed
    world.pool.release(world.old)
    assert world.idle() is None
    assert world.old.closed


def test_a_connection_that_closes_before_its_moment() -> None:
    world = Renewed()
    world.old.close()
    (timer,) = world.pool.timers
    assert timer.cancelled


def test_successors_under_way_are_closed_with_the_idle_connections() -> None:
    world = Renewed()
    world.moment()
    successor = world.successor()
    world.pool.close_idle()
    assert (successor.disconnected, world.connections) == (True, 0)
    world.pool.replace(world.old, successor)
    assert world.idle() is None


# --- idle connections ------------------------------------------------------------------------------------------------


def test_last_in_first_out() -> None:
    world = World()
    first, second = world.connect(), world.connect()
    world.pool.release(first)
    world.pool.release(second)
    assert world.pool.pop_idle(world.endpoint, world.endpoint.way) is second
    assert world.pool.pop_idle(world.endpoint, world.endpoint.way) is first
    assert world.pool.pop_idle(world.endpoint, world.endpoint.way) is None


def test_a_dead_connection_is_closed_on_the_way() -> None:
    world = World()
    first, second = world.connect(), world.connect()
    world.pool.release(first)
    world.pool.release(second)
    second.broken = True
    assert world.pool.pop_idle(world.endpoint, world.endpoint.way) is first
    assert second.disconnected
    assert world.connections == 1


def test_expiry() -> None:
    world = World(idle_timeout=10.0)
    connection = world.connect()
    world.pool.release(connection)
    world.clock.advance(10.0)
    assert world.pool.pop_idle(world.endpoint, world.endpoint.way) is None
    assert (connection.disconnected, world.connections) == (True, 0)


def test_the_sweep_reaches_what_nobody_asks_for() -> None:
    world = World(idle_timeout=3.0)
    other = world.state.endpoint("127.0.0.1:2", "127.0.0.1", 2)
    old, leaving = world.connect(), world.connect(endpoint=other)
    world.pool.release(old)
    world.pool.release(leaving)
    other.departed = True
    world.clock.advance(SWEEP_INTERVAL)
    fresh = world.connect()
    world.pool.release(fresh)
    assert old.disconnected
    assert leaving.disconnected
    assert world.pool.idle_connections() == 1


def test_a_free_connection_goes_to_the_head_of_the_queue() -> None:
    world = limited()
    connection = world.connect()
    first, first_woken = world.park()
    second, second_woken = world.park()
    world.pool.release(connection)
    assert (first.connection, first_woken, second_woken) == (connection, ["woken"], [])
    world.pool.release(connection)
    assert (second.connection, second_woken) == (connection, ["woken"])
    world.pool.release(connection)
    assert world.pool.idle_connections() == 1


def test_a_queue_of_another_owner_gets_the_right_to_connect() -> None:
    world = limited()
    connection = world.connect()
    waiter, woken = world.park(ManualPool(world.clock))
    world.pool.release(connection)
    assert (waiter.connection, waiter.served, woken) == (None, True, ["woken"])
    assert connection.disconnected
    assert world.connections == 1


def test_a_call_that_parked_a_moment_too_late_is_rescued() -> None:
    world = limited()
    connection = world.connect()
    world.pool.release(connection)
    waiter, woken = world.park()
    world.pool.rescue(world.endpoint)
    assert (waiter.connection, woken) == (connection, ["woken"])


def test_another_owner_spares_an_idle_connection() -> None:
    world = limited()
    other = ManualPool(world.clock)
    connection = world.connect(other)
    other.release(connection)
    waiter, woken = world.park()
    other.spare(world.endpoint)
    assert (waiter.served, waiter.connection, woken) == (True, None, ["woken"])
    assert world.connections == 1


def test_after_a_fork_nothing_is_shared_and_nothing_is_counted() -> None:
    world = World()
    idle, busy = world.connect(), world.connect()
    world.pool.release(idle)
    world.pool.forget()
    assert (idle.disconnected, busy.disconnected) == (True, True)
    assert world.pool.idle_connections() == 0
    idle.close()
    assert world.connections == 2


def test_a_connection_that_was_made_in_another_way_is_used_no_more() -> None:
    world = World()
    busy, idle = world.connect(), world.connect()
    world.pool.release(idle)
    world.endpoint.way = Way(HttpProtocol.HTTP1)
    world.pool.release(busy)
    assert world.pool.pop_idle(world.endpoint, world.endpoint.way) is None
    assert (busy.disconnected, idle.disconnected, world.connections) == (True, True, 0)


def test_a_connection_that_was_made_in_another_way_is_not_handed_over() -> None:
    world = limited()
    connection = world.connect()
    waiter, woken = world.park()
    world.endpoint.way = Way(HttpProtocol.HTTP1)
    world.pool.release(connection)
    assert (waiter.connection, woken, world.connections) == (None, ["woken"], 1)
    assert connection.disconnected


def test_the_sweep_closes_what_was_made_in_another_way() -> None:
    world = World()
    connection = world.connect()
    world.pool.release(connection)
    world.endpoint.way = Way(HttpProtocol.HTTP1)
    world.pool.sweep(world.clock.monotonic())
    assert (connection.disconnected, world.pool.idle_connections()) == (True, 0)


def test_a_connection_with_a_name_serves_that_name_only() -> None:
    world = limited()
    world.endpoint.way = way = Way(HttpProtocol.HTTP1, named=True)
    connection = world.made(shelf=(world.endpoint, "a.example"))
    world.state.default.connections = world.endpoint.connections = 1
    world.pool.release(connection)
    assert world.pool.pop_idle(world.endpoint, way) is None
    assert world.pool.pop_idle((world.endpoint, "b.example"), way) is None
    assert world.pool.pop_idle((world.endpoint, "a.example"), way) is connection
    waiter, woken = world.park()
    world.pool.release(connection)
    assert (waiter.connection, woken, connection.disconnected) == (None, ["woken"], True)


def test_a_call_that_waits_gets_the_place_of_an_idle_connection_with_another_name() -> None:
    world = limited()
    world.endpoint.way = Way(HttpProtocol.HTTP1, named=True)
    connection = world.made(shelf=(world.endpoint, "a.example"))
    world.state.default.connections = world.endpoint.connections = 1
    world.pool.release(connection)
    waiter, woken = world.park()
    world.pool.rescue(world.endpoint)
    assert (waiter.served, woken, connection.disconnected) == (True, ["woken"], True)


class PoolMachine(RuleBasedStateMachine):
    """Calls come and go; no connection is lost, none is used twice, and nobody waits beside an idle one."""

    def __init__(self) -> None:
        super().__init__()
        self.world = limited(3)
        self.busy: list[Fake] = []
        self.parked: list[Waiter] = []

    @rule()
    def call(self) -> None:
        world = self.world
        connection = world.pool.pop_idle(world.endpoint, world.endpoint.way)
        if connection is None:
            waiter = Waiter(lambda: None, world.pool)
            admission = world.state.admit(world.endpoint, world.state.default, waiter)
            world.state.end_pending(world.state.default)
            if admission is Admission.WAIT:
                self.parked.append(waiter)
                world.pool.rescue(world.endpoint)
                return
            connection = world.made()
        assert isinstance(connection, Fake)
        assert connection.way is world.endpoint.way
        self.busy.append(connection)

    @rule()
    def rotate(self) -> None:
        self.world.endpoint.way = Way(HttpProtocol.HTTP1)

    @precondition(lambda self: self.busy)
    @rule(index=st.integers(0, 9), usable=st.booleans())
    def finish(self, index: int, usable: bool) -> None:
        connection = self.busy.pop(index % len(self.busy))
        if usable:
            self.world.pool.release(connection)
        else:
            connection.close()

    @rule()
    def peers_close_what_is_idle(self) -> None:
        for connections in self.world.pool._idle.values():
            for connection in connections:
                assert isinstance(connection, Fake)
                connection.broken = True

    @rule()
    def wake(self) -> None:
        """Whoever was served goes on."""
        for waiter in [waiter for waiter in self.parked if waiter.served]:
            self.parked.remove(waiter)
            connection = waiter.connection
            if connection is None:
                world = self.world
                connection = world.made()
            assert isinstance(connection, Fake)
            self.busy.append(connection)

    @invariant()
    def every_connection_is_counted_once(self) -> None:
        handed = [waiter for waiter in self.parked if waiter.served]
        idle = self.world.pool.idle_connections()
        assert self.world.connections == len(self.busy) + idle + len(handed)
        assert self.world.connections <= 3
        assert len(set(map(id, self.busy))) == len(self.busy)
        assert not any(connection.disconnected for connection in self.busy)

    @invariant()
    def nobody_waits_beside_an_idle_connection(self) -> None:
        healthy = any(
            not connection.broken
            for connections in self.world.pool._idle.values()
            for connection in connections
            if isinstance(connection, Fake)
        )
        assert not (self.world.endpoint.waiters and healthy)


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(max_examples=60, stateful_step_count=40)

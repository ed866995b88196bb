"""Inner channels without a server: who closes them, when, and on which thread."""

from __future__ import annotations

import dataclasses
import gc
import threading
from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from meshlib.balance.balancer import LoadBalancer
from meshlib.engine.actions import Start
from meshlib.engine.events import Failed, FailureKind
from meshlib.engine.program import ClusterProgram, Program
from meshlib.resources.cluster import CircuitBreakers, Cluster, DiscoveryType, HttpProtocol, Thresholds
from meshlib.resources.route import Priority
from meshlib.snapshot import Snapshot
from meshlib.state import Admission, StateStore, Waiter, Way
from meshlib.stats import Registry
from meshlib.transport.grpc import endpoints
from meshlib.transport.grpc.endpoint import (
    CONNECTING,
    IDLE,
    READY,
    TRANSIENT_FAILURE,
    InnerChannel,
    grpc_thread,
)
from meshlib.transport.grpc.endpoints import EndpointChannels

CLUSTER = Cluster(name="echo", discovery=DiscoveryType.STATIC, connect_timeout=1.0)
ONE_CONNECTION = CircuitBreakers(default=Thresholds(max_connections=1))


class FakeCore:
    """What is asked of C-core's channel."""

    def __init__(self) -> None:
        self.state = IDLE

    def check_connectivity_state(self, connect: bool) -> int:
        if connect and self.state == IDLE:
            self.state = CONNECTING
        return self.state


class FakeChannel:
    def __init__(self) -> None:
        self._channel = FakeCore()
        self.closed_on: threading.Thread | None = None
        self.gone = threading.Event()

    def close(self) -> None:
        assert not self.gone.is_set(), "closed twice"
        self.closed_on = threading.current_thread()
        self.gone.set()


class Home:
    """Inner channels of one endpoint, on a clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 100.0
        self.made: list[FakeChannel] = []
        self.state = StateStore(Registry()).cluster("echo")
        self.endpoint = self.state.endpoint("10.0.0.1:80", "10.0.0.1", 80)
        self.permits = self.state.permits(Priority.DEFAULT)
        balancer = LoadBalancer(CLUSTER, None, self.state, Random(1))
        cluster = ClusterProgram(CLUSTER, None, False, self.state, balancer, None, None, None)
        self.clusters = {"echo": cluster}
        self.program = Program(Snapshot(), {}, self.clusters, None)
        self.channels = EndpointChannels("echo:80", (), self._make, lambda: self.now, lambda: self.program)

    def _make(self, target: str, options: list[tuple[str, Any]]) -> FakeChannel:
        assert target == "ipv4:10.0.0.1:80"
        self.made.append(FakeChannel())
        return self.made[-1]

    def connect(self, authority: str = "echo:80") -> InnerChannel:
        """As an attempt does that the engine lets connect."""
        waiter = Waiter(lambda: None, self.channels)
        assert self.state.admit(self.endpoint, self.permits, waiter) is Admission.CONNECT
        self.state.end_pending(self.permits)
        start = Start(
            1, self.endpoint, CLUSTER, self.state, self.permits, authority, "/", None, permitted=True
        )
        return self.channels.connect(start)

    def ready(self) -> InnerChannel | None:
        return self.channels.ready(self.endpoint, "echo:80")

    def to(self, state: int, number: int = -1) -> None:
        self.made[number]._channel.state = state


@pytest.fixture
def home() -> Home:
    return Home()


def test_one_channel_and_one_counted_connection(home: Home) -> None:
    first, second = home.connect(), home.connect()
    assert first is second
    assert home.permits.connections == 1
    assert first.look() is None
    home.to(READY)
    assert first.look()
    home.channels.connected(first)
    home.channels.connected(second)
    assert home.ready() is first
    assert len(home.made) == 1


def test_another_authority_has_a_channel_of_its_own(home: Home) -> None:
    assert home.connect() is not home.connect("other")
    assert len(home.made) == 2


def test_a_failed_channel_is_replaced(home: Home) -> None:
    inner = home.connect()
    home.to(TRANSIENT_FAILURE)
    assert inner.look() is False
    home.channels.failed(inner)
    assert home.made[0].gone.is_set()
    assert home.permits.connections == 0
    assert home.connect() is not inner


def test_connect_timeout_is_shared(home: Home) -> None:
    inner = home.connect()
    home.now += 0.75
    assert home.connect() is inner
    assert inner.look() is None
    home.now += 0.25
    assert inner.look() is False
    assert inner.failure is not None
    assert inner.failure.value == "connection timeout"
    home.channels.failed(inner)
    assert not home.made[0].gone.is_set()  # the other call has not seen it
    home.channels.failed(inner)
    assert home.made[0].gone.is_set()


def test_a_lost_connection_is_given_back(home: Home) -> None:
    inner = home.connect()
    home.to(READY)
    assert inner.look()
    home.channels.connected(inner)
    home.to(IDLE)
    assert home.ready() is None
    assert home.permits.connections == 0
    assert not home.made[0].gone.is_set()
    assert home.connect() is inner


def test_a_channel_in_use_is_closed_after_its_calls(home: Home) -> None:
    inner = home.connect()
    home.to(READY)
    assert inner.look()
    home.channels.connected(inner)
    assert inner.enter()
    home.endpoint.departed = True
    home.channels.sweep()
    assert home.ready() is None
    assert not inner.enter()
    assert not home.made[0].gone.is_set()
    inner.leave()
    assert home.made[0].gone.is_set()


def test_a_thread_of_grpc_closes_no_channel(home: Home) -> None:
    """It would wait for events that it is to take itself."""
    inner = home.connect()
    home.to(TRANSIENT_FAILURE)
    assert inner.look() is False
    grpc_thread.here = True
    try:
        home.channels.failed(inner)
    finally:
        grpc_thread.here = False
    assert home.made[0].gone.wait(10)
    assert home.made[0].closed_on is not threading.current_thread()


def test_whoever_waits_in_the_queue_goes_on_when_the_connecting_call_leaves(home: Home) -> None:
    home.permits.max_connections = 1
    inner = home.connect()
    woken: list[bool] = []
    waiter = Waiter(lambda: woken.append(True), home.channels)
    assert home.state.admit(home.endpoint, home.permits, waiter) is Admission.WAIT
    home.channels.abandoned(inner)
    assert woken == [True]
    assert waiter.served
    assert waiter.connection is None


def test_everybody_in_the_queue_is_served_by_the_connection(home: Home) -> None:
    home.permits.max_connections = 1
    inner = home.connect()
    waiters = [Waiter(lambda: None, home.channels) for _ in range(3)]
    for waiter in waiters:
        assert home.state.admit(home.endpoint, home.permits, waiter) is Admission.WAIT
    home.to(READY)
    assert inner.look()
    home.channels.connected(inner)
    assert [waiter.connection for waiter in waiters] == [inner] * 3


def test_one_call_sees_it_ready_while_another_still_looks(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = home.connect()

    def meanwhile() -> float:
        home.to(READY)
        assert inner.look()
        return home.now

    monkeypatch.setattr(inner, "_monotonic", meanwhile)
    assert inner.look() is None
    assert inner.look()


def test_a_grpcio_that_does_not_tell_its_state(home: Home) -> None:
    """Then every channel counts as READY, and C-core connects by itself."""

    class Closed:
        def close(self) -> None:
            raise AssertionError

    channels, endpoint, state = home.channels, home.endpoint, home.state
    inner = InnerChannel(
        channels, endpoint, CLUSTER, state, "echo:80", Closed(), lambda: home.now, endpoint.way
    )
    assert inner.ready
    assert inner.look()


def test_a_channel_takes_so_many_requests(home: Home) -> None:
    inner = home.connect()
    inner.quota = 2
    home.to(READY)
    assert inner.look()
    home.channels.connected(inner)
    for _ in range(2):
        assert home.ready() is inner
        assert inner.enter()
    assert home.ready() is None
    assert not inner.enter()
    inner.leave()
    assert home.permits.connections == 1  # as long as calls run on it
    assert not home.made[0].gone.is_set()
    inner.leave()
    assert home.permits.connections == 0
    assert home.made[0].gone.is_set()


def test_a_used_up_channel_is_handed_to_nobody(home: Home) -> None:
    inner = home.connect()
    inner.quota = 1
    waiter = Waiter(lambda: None, home.channels)
    home.state.limit(ONE_CONNECTION)
    assert home.state.admit(home.endpoint, home.permits, waiter) is Admission.WAIT
    home.to(READY)
    assert inner.look()
    assert inner.enter()
    home.channels.connected(inner)
    served = [waiter.served]
    inner.leave()
    served.append(waiter.served)
    assert served == [False, True]  # it may open a connection
    assert waiter.connection is None


def test_a_channel_that_is_dropped_is_counted_out(home: Home) -> None:
    home.connect()
    assert home.permits.connections == 1
    del home.channels
    gc.collect()
    home.state.drain_abandoned()
    assert home.permits.connections == 0


def test_closing_is_for_ever(home: Home) -> None:
    home.connect()
    home.channels.close()
    home.channels.close()
    assert home.made[0].gone.is_set()
    assert home.permits.connections == 0
    with pytest.raises(ValueError, match="closed channel"):
        home.connect()
    assert home.permits.connections == 0


def test_a_forked_child_forgets_without_closing(home: Home) -> None:
    inner = home.connect()
    assert home.channels.drop() == [inner]
    assert home.ready() is None
    assert not home.made[0].gone.is_set()
    inner.connecting.pop()
    inner.dispose()
    inner.close()
    assert not home.made[0].gone.is_set()


def test_a_channel_whose_connection_was_lost_takes_no_more_calls(home: Home) -> None:
    """C-core says READY for some milliseconds more."""
    inner = home.connect()
    home.to(READY)
    assert inner.look()
    home.channels.connected(inner)
    home.channels.told(inner, Failed(1, FailureKind.REMOTE_RESET, True))
    assert home.ready() is inner
    home.channels.told(inner, Failed(1, FailureKind.TERMINATED, True))
    assert home.ready() is None
    assert home.permits.connections == 0


# --- a successor -------------------------------------------------------------------------------------------------------------


def _await(condition: Callable[[], bool]) -> None:
    pause = threading.Event()
    for _ in range(2000):
        if condition():
            return
        pause.wait(0.005)
    pytest.fail("it does not become true")


def _used(home: Home) -> InnerChannel:
    """A connection that is READY and has served a call."""
    inner = home.connect()
    home.to(READY)
    assert inner.look()
    home.channels.connected(inner)
    assert inner.enter()
    inner.leave()
    return inner


def test_calls_go_on_until_the_successor_is_ready(home: Home) -> None:
    inner = _used(home)
    assert inner.enter()
    home.channels.exchange(inner)
    assert home.made[1]._channel.state == CONNECTING
    assert home.ready() is inner
    assert home.permits.connections == 2
    home.to(READY)
    _await(lambda: home.ready() is not inner)
    successor = home.ready()
    assert successor is not None
    assert successor.channel is home.made[1]
    assert not inner.enter()
    assert not home.made[0].gone.is_set()  # a call is still under way
    inner.leave()
    assert home.made[0].gone.is_set()
    assert home.permits.connections == 1
    assert home.state.stats.upstream_cx_total.value == 2
    assert len(home.made) == 2


def test_the_successor_is_made_by_the_configuration_of_now(home: Home) -> None:
    inner = _used(home)
    changed = dataclasses.replace(CLUSTER, max_requests_per_connection=7)
    home.clusters["echo"].cluster = changed
    home.channels.exchange(inner)
    home.to(READY)
    _await(lambda: home.ready() is not inner)
    successor = home.ready()
    assert successor is not None
    assert successor.quota == 7


def test_one_that_no_call_has_used_has_no_successor(home: Home) -> None:
    inner = _used(home)
    home.channels.exchange(inner)
    home.to(READY)
    _await(lambda: home.ready() is not inner)
    successor = home.ready()
    assert successor is not None
    home.channels.exchange(successor)
    assert home.ready() is None
    assert home.made[1].gone.is_set()
    assert home.permits.connections == 0
    assert len(home.made) == 2


def test_without_a_permit_there_is_no_successor(home: Home) -> None:
    home.state.limit(ONE_CONNECTION)
    inner = _used(home)
    home.channels.exchange(inner)
    assert home.ready() is None
    assert home.made[0].gone.is_set()
    assert home.permits.connections == 0
    assert len(home.made) == 1


@pytest.mark.parametrize("gone", ["cluster", "another cluster", "endpoint"])
def test_what_has_left_has_no_successor(home: Home, gone: str) -> None:
    inner = _used(home)
    if gone == "cluster":
        home.clusters.clear()
    elif gone == "another cluster":
        home.clusters["echo"].state = StateStore(Registry()).cluster("echo")
    else:
        home.endpoint.departed = True
    home.channels.exchange(inner)
    assert home.ready() is None
    assert home.permits.connections == 0
    assert len(home.made) == 1


def test_what_is_reached_in_another_way_has_no_successor(home: Home) -> None:
    inner = _used(home)
    home.endpoint.way = Way(HttpProtocol.HTTP2)
    home.channels.exchange(inner)
    assert len(home.made) == 1
    assert home.permits.connections == 0


def test_one_that_is_retired_in_the_meantime_has_no_successor(home: Home) -> None:
    inner = _used(home)
    home.channels.wear_out(inner)
    home.channels.exchange(inner)
    assert len(home.made) == 1
    assert home.permits.connections == 0


def test_calls_go_on_when_the_successor_can_not_be_opened(home: Home) -> None:
    inner = _used(home)
    home.channels.exchange(inner)
    home.to(TRANSIENT_FAILURE)
    assert home.made[1].gone.wait(10)
    assert home.ready() is inner
    assert inner.enter()
    inner.leave()
    assert home.permits.connections == 1
    assert home.state.stats.upstream_cx_connect_fail.value == 1


def test_a_successor_that_is_not_opened_in_time(home: Home) -> None:
    inner = _used(home)
    home.channels.exchange(inner)
    home.now += 1.0
    assert home.made[1].gone.wait(10)
    assert home.ready() is inner
    assert home.state.stats.upstream_cx_connect_timeout.value == 1


def test_a_call_that_needs_a_connection_waits_for_the_successor(home: Home) -> None:
    inner = _used(home)
    home.channels.exchange(inner)
    home.channels.told(inner, Failed(1, FailureKind.TERMINATED, True))
    assert home.ready() is None
    successor = home.connect()
    assert successor.channel is home.made[1]
    assert home.permits.connections == 1  # the one that the engine has granted was given back
    home.to(READY)
    assert successor.look()
    home.channels.connected(successor)
    assert home.ready() is successor
    assert home.state.stats.upstream_cx_total.value == 2


def test_whoever_stands_in_the_queue_is_served_by_the_successor(home: Home) -> None:
    inner = _used(home)
    home.channels.exchange(inner)
    home.state.limit(ONE_CONNECTION)
    waiter = Waiter(lambda: None, home.channels)
    assert home.state.admit(home.endpoint, home.permits, waiter) is Admission.WAIT
    home.to(READY)
    _await(lambda: waiter.served)
    assert isinstance(waiter.connection, InnerChannel)
    assert waiter.connection.channel is home.made[1]


def test_a_successor_makes_room_for_calls_of_others(home: Home) -> None:
    inner = _used(home)
    home.channels.exchange(inner)
    assert inner.enter()
    home.channels.spare(home.endpoint)
    assert home.made[1].gone.is_set()
    assert home.ready() is inner
    assert home.permits.connections == 1
    inner.leave()


@pytest.mark.parametrize("end", ["close", "way", "departed"])
def test_the_end_of_both(home: Home, end: str) -> None:
    inner = _used(home)
    home.channels.exchange(inner)
    if end == "close":
        home.channels.close()
    else:
        home.endpoint.departed = end == "departed"
        home.endpoint.way = home.endpoint.way if end == "departed" else Way(HttpProtocol.HTTP2)
        home.channels.sweep()
    assert [made.gone.is_set() for made in home.made] == [True, True]
    assert home.permits.connections == 0
    assert home.ready() is None


def test_a_forked_child_forgets_both(home: Home) -> None:
    inner = _used(home)
    home.channels.exchange(inner)
    dropped = home.channels.drop()
    assert [each.channel for each in dropped] == home.made
    assert home.ready() is None
    assert not any(made.gone.is_set() for made in home.made)


def test_both_are_counted_out_when_they_are_dropped(home: Home) -> None:
    inner = _used(home)
    home.channels.exchange(inner)
    del home.channels, inner
    _await(lambda: gc.collect() >= 0 and len(home.state.abandoned) == 2)
    home.state.drain_abandoned()
    assert home.permits.connections == 0


# --- around a fork -------------------------------------------------------------------------------------------------------


def in_thread(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoints, "FORK_PATIENCE", 20.0)


@pytest.mark.usefixtures("patient")
def test_a_fork_waits_for_the_calls_of_other_threads(home: Home) -> None:
    inner = home.connect()
    home.to(READY)
    home.channels.connected(inner)
    assert inner.enter()
    pausing = in_thread(home.channels.pause)
    pausing.join(0.02)
    assert pausing.is_alive()
    inner.leave()
    pausing.join(10)
    assert not pausing.is_alive()
    home.channels.resume()


@pytest.mark.usefixtures("patient")
def test_a_call_waits_for_the_fork(home: Home) -> None:
    """Also a second one at the same time; what was closed for it is opened again afterwards."""
    inner = home.connect()
    home.to(READY)
    home.channels.connected(inner)
    for _ in range(2):
        home.channels.pause()
    home.channels.close_idle()
    entered: list[bool] = []
    connected: list[InnerChannel] = []
    threads = [
        in_thread(lambda: entered.append(inner.enter())),
        in_thread(lambda: connected.append(home.connect())),
    ]
    home.channels.resume()
    for thread in threads:
        thread.join(0.02)
        assert thread.is_alive()
    assert len(home.made) == 1
    home.channels.resume()
    for thread in threads:
        thread.join(10)
    assert entered == [False], "its channel was closed meanwhile"
    assert len(home.made) == 2
    assert connected[0] is not inner


def test_a_fork_does_not_wait_for_long(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoints, "FORK_PATIENCE", 0.01)
    inner = home.connect()
    home.to(READY)
    home.channels.connected(inner)
    assert inner.enter()
    home.channels.pause()
    home.channels.close_idle()
    assert not home.made[0].gone.is_set()
    home.channels.resume()
    assert inner.enter()
    inner.leave()
    inner.leave()


@pytest.mark.usefixtures("patient")
def test_the_gate_is_open_in_a_child(home: Home) -> None:
    home.channels.pause()
    home.channels.drop()
    assert home.channels.gate is None
    home.connect()
    home.channels.resume()

"""Inner channels without a server: who closes them, when, and on which thread."""

from __future__ import annotations

import gc
import threading
from typing import Any

import pytest

from meshlib.engine.actions import Start
from meshlib.engine.events import Failed, FailureKind
from meshlib.resources.cluster import CircuitBreakers, Cluster, DiscoveryType, Thresholds
from meshlib.resources.route import Priority
from meshlib.state import Admission, StateStore, Waiter
from meshlib.stats import Registry
from meshlib.transport.grpc.endpoint import (
    CONNECTING,
    IDLE,
    READY,
    TRANSIENT_FAILURE,
    EndpointChannels,
    InnerChannel,
    grpc_thread,
)

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
        self.channels = EndpointChannels("echo:80", (), self._make, lambda: self.now)

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

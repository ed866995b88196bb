"""The blocking connection: how long `round_trip` waits, in the kernel and beyond it."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from math import inf

import pytest

from meshlib.engine.actions import Start
from meshlib.resources.cluster import Cluster, DiscoveryType
from meshlib.runtime.clock import FakeClock
from meshlib.state import StateStore
from meshlib.stats import Registry
from meshlib.transport.http.h1 import H1Codec
from meshlib.transport.http.message import OutgoingRequest
from meshlib.transport.http.sync_connection import SyncConnection
from meshlib.transport.http.sync_pool import SyncPool

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
REQUEST = OutgoingRequest(b"GET", b"/", b"a", [])


class Opened:
    """A connection to a listening socket, and the other end of it."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            state = StateStore(Registry()).cluster("c")
            port = server.getsockname()[1]
            endpoint = state.endpoint("e", "127.0.0.1", port)
            cluster = Cluster(name="c", discovery=DiscoveryType.STATIC)
            start = Start(0, endpoint, cluster, state, state.default, "", "", None, permitted=True)
            self.connection = SyncConnection(SyncPool(FakeClock()), start, endpoint.way, H1Codec())
            self.connection.connect()
            self.peer, _ = server.accept()
        while self.connection.connecting:
            self.connection.advance(5.0)

    def receive_timeout(self) -> float:
        """SO_RCVTIMEO in seconds."""
        size = 16
        raw = self.connection._socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, size)
        seconds, micros = (int.from_bytes(raw[at : at + 8], "little") for at in (0, 8))
        return seconds + micros / 1e6


@pytest.fixture
def opened() -> Iterator[Opened]:
    made = Opened()
    yield made
    made.connection.close()
    made.peer.close()


class AnsweringPoll:
    """Stands for the poller: the peer answers when it is asked, or never."""

    def __init__(self, opened: Opened, answer: bytes) -> None:
        self.opened, self.answer = opened, answer
        self.waited: list[int] = []

    def poll(self, milliseconds: int) -> list[tuple[int, int]]:
        self.waited.append(milliseconds)
        if not self.answer:
            return []
        self.opened.peer.sendall(self.answer)
        return [(0, 1)]


def test_an_answer_that_is_there_is_taken(opened: Opened) -> None:
    opened.peer.sendall(ANSWER)
    opened.connection.round_trip(REQUEST, 8.0)
    assert opened.connection.codec.response.complete


def test_the_kernel_waits_only_for_a_moment(opened: Opened) -> None:
    """Python begins a `recv` again after each signal, so that a long one may never end."""
    assert 0.005 <= opened.receive_timeout() <= 0.02  # kernels round up to their own tick


@pytest.mark.parametrize(
    ("limit", "polled"), [(0.0625, 58), (0.005, 5), (0.0, 0), (-1.0, 0), (inf, 86_400_000)]
)
def test_what_is_left_of_the_limit_is_polled_for(
    opened: Opened, monkeypatch: pytest.MonkeyPatch, limit: float, polled: int
) -> None:
    poll = AnsweringPoll(opened, ANSWER)
    monkeypatch.setattr(opened.connection, "_poller", poll)
    opened.connection.round_trip(REQUEST, limit)
    assert opened.connection.codec.response.complete
    assert poll.waited == [polled]


def test_a_peer_that_says_nothing_is_given_up_after_the_limit(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    poll = AnsweringPoll(opened, b"")
    monkeypatch.setattr(opened.connection, "_poller", poll)
    with pytest.raises(TimeoutError):
        opened.connection.round_trip(REQUEST, 0.0625)
    assert poll.waited == [58]


def test_signals_do_not_make_a_limit_longer(opened: Opened) -> None:
    ticks = 0

    def tick(*_: object) -> None:
        nonlocal ticks
        ticks += 1
        assert ticks < 250, "the wait begins again with each signal"

    before = signal.signal(signal.SIGALRM, tick)
    signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
    try:
        with pytest.raises(TimeoutError):
            opened.connection.round_trip(REQUEST, 0.1)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

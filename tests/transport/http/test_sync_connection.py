"""The blocking connection: how long `round_trip` waits, in the kernel and beyond it."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from meshlib.resources.cluster import Cluster, DiscoveryType
from meshlib.state import StateStore
from meshlib.stats import Registry
from meshlib.transport.http.h1 import H1Codec
from meshlib.transport.http.message import OutgoingRequest
from meshlib.transport.http.pool import Pool
from meshlib.transport.http.sync_connection import SyncConnection

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
REQUEST = OutgoingRequest(b"GET", b"/", b"a", [])


class Opened:
    """A connection to a listening socket, and the other end of it."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            state = StateStore(Registry()).cluster("c")
            port = server.getsockname()[1]
            self.connection = SyncConnection(
                Pool(lambda: 0.0),
                state.endpoint("e", "127.0.0.1", port),
                Cluster(name="c", discovery=DiscoveryType.STATIC),
                state,
                state.default,
                H1Codec(),
            )
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
    assert opened.receive_timeout() == 6.0


@pytest.mark.parametrize(("limit", "armed"), [(7.0, 6.0), (12.0, 6.0), (5.9, 4.425), (13.0, 9.75)])
def test_only_a_quite_different_limit_sets_the_kernels_timeout(
    opened: Opened, limit: float, armed: float
) -> None:
    opened.peer.sendall(ANSWER)
    opened.connection.round_trip(REQUEST, 8.0)
    opened.peer.sendall(ANSWER)
    opened.connection.round_trip(REQUEST, limit)
    assert opened.receive_timeout() == pytest.approx(armed, abs=0.011)  # kernels round up to their own tick


def test_no_limit_is_a_limit_of_a_day(opened: Opened) -> None:
    opened.peer.sendall(ANSWER)
    opened.connection.round_trip(REQUEST, float("inf"))
    assert opened.receive_timeout() == 64_800.0


def test_what_is_left_of_the_limit_is_polled_for(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    poll = AnsweringPoll(opened, ANSWER)
    monkeypatch.setattr(opened.connection, "_poller", poll)
    opened.connection.round_trip(REQUEST, 0.0625)
    assert opened.connection.codec.response.complete
    assert poll.waited == [16]


def test_a_peer_that_says_nothing_is_given_up_after_the_limit(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    poll = AnsweringPoll(opened, b"")
    monkeypatch.setattr(opened.connection, "_poller", poll)
    with pytest.raises(TimeoutError):
        opened.connection.round_trip(REQUEST, 0.0625)
    assert poll.waited == [16]

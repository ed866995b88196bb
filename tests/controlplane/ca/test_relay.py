"""The relay in front of grpcio: bytes go both ways in order and in full, back-pressure, half-close, ends."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshlib.controlplane.ca import Caller
from meshlib.controlplane.ca.relay import Relay


class Behind:
    """The server behind the relay, one connection at a time."""

    def __init__(self, folder: Path) -> None:
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.settimeout(10)
        self._listener.bind(str(folder / "inner"))
        self._listener.listen()

    def accept(self) -> tuple[socket.socket, str]:
        connection, peer = self._listener.accept()
        connection.settimeout(10)
        return connection, f"unix:{peer}"

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def behind(tmp_path: Path) -> Iterator[Behind]:
    (tmp_path / "private").mkdir()
    made = Behind(tmp_path / "private")
    yield made
    made.close()


@pytest.fixture
def relay(behind: Behind, tmp_path: Path) -> Iterator[Relay]:
    made = Relay(tmp_path / "private" / "inner")
    made.listen(tmp_path / "outer", mode=0o600)
    made.start()
    yield made
    made.close()


def connect(folder: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(10)
    connection.connect(str(folder / "outer"))
    return connection


def read_all(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(65536), b""))


def test_the_caller_is_named_and_forgotten(relay: Relay, behind: Behind, tmp_path: Path) -> None:
    with connect(tmp_path) as outer:
        inner, peer = behind.accept()
        with inner:
            assert relay.caller(peer) == Caller(pid=os.getpid(), uid=os.getuid(), gid=os.getgid())
            assert [path.name for path in (tmp_path / "private").iterdir()] == ["inner"], "no name stays"
            outer.close()
            assert inner.recv(1) == b""
    with connect(tmp_path) as outer:  # the relay has one thread: it is past the first connection's end now
        inner, second = behind.accept()
        with inner:
            outer.sendall(b"x")
            assert inner.recv(1) == b"x"
            assert second != peer
            assert relay.caller(peer) is None
    assert relay.caller("unix:") is None
    assert relay.caller("ipv4:127.0.0.1:1") is None


def test_half_close_and_large_amounts_both_ways(relay: Relay, behind: Behind, tmp_path: Path) -> None:
    there, back = os.urandom(3_000_000), os.urandom(3_000_000)
    with connect(tmp_path) as outer:
        inner, _ = behind.accept()
        with inner:
            got: list[bytes] = []

            def send() -> None:
                outer.sendall(there)
                outer.shutdown(socket.SHUT_WR)

            sender = threading.Thread(target=send)
            sender.start()
            assert read_all(inner) == there
            sender.join()
            answer = threading.Thread(target=lambda: got.append(read_all(outer)))
            answer.start()
            inner.sendall(back)
            inner.close()
            answer.join()
            assert got == [back]


def test_a_side_that_does_not_read_stops_the_other(relay: Relay, behind: Behind, tmp_path: Path) -> None:
    with connect(tmp_path) as outer, connect(tmp_path) as other:
        inner, _ = behind.accept()
        second, _ = behind.accept()
        with inner, second:
            outer.settimeout(0.3)
            sent = 0
            with contextlib.suppress(TimeoutError):
                while sent < 100_000_000:
                    sent += outer.send(b"x" * 65536)
            assert sent < 10_000_000
            other.sendall(b"hello")
            assert second.recv(5) == b"hello", "others are served meanwhile"
            outer.shutdown(socket.SHUT_WR)
            assert len(read_all(inner)) == sent, "and nothing is lost"


def test_a_reset_ends_both_sides(relay: Relay, behind: Behind, tmp_path: Path) -> None:
    with connect(tmp_path) as outer:
        inner, _ = behind.accept()
        outer.sendall(b"unread")
        inner.close()
        assert outer.recv(1) == b""


def test_without_a_server_behind_the_caller_is_hung_up_on(
    relay: Relay, behind: Behind, tmp_path: Path
) -> None:
    behind.close()
    with connect(tmp_path) as outer:
        assert outer.recv(1) == b""


def test_the_end_closes_what_is_open(behind: Behind, tmp_path: Path) -> None:
    relay = Relay(tmp_path / "private" / "inner")
    relay.listen(tmp_path / "outer", mode=0o600)
    relay.start()
    with connect(tmp_path) as outer:
        inner, _ = behind.accept()
        with inner:
            relay.close()
            assert outer.recv(1) == inner.recv(1) == b""
    assert not (tmp_path / "outer").exists()

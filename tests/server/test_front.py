"""The front for servers that cannot tell TLS from plaintext: it looks at the first byte, and moves all of them."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshlib.server.front import BUFFER, Front, abstract_name, origin_of

HANDSHAKE = b"\x16"


class Backends:
    """Two listening sockets, and a front before them."""

    def __init__(self) -> None:
        self.tls, self.plaintext = _listening(), _listening()
        self.front = Front(
            socket.create_server(("127.0.0.1", 0)), tls=_name(self.tls), plaintext=_name(self.plaintext)
        )

    def caller(self) -> socket.socket:
        made = socket.create_connection(("127.0.0.1", self.front.port), timeout=10)
        made.settimeout(10)
        return made

    def close(self) -> None:
        self.front.close()
        self.tls.close()
        self.plaintext.close()


def _listening() -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    made.settimeout(10)
    made.bind(f"\0{abstract_name()}")
    made.listen()
    return made


def _name(listening: socket.socket) -> str:
    name = listening.getsockname()
    return (name.decode() if isinstance(name, bytes) else name).lstrip("\0")


@pytest.fixture
def backends() -> Iterator[Backends]:
    made = Backends()
    yield made
    made.close()


def accept(listening: socket.socket) -> tuple[socket.socket, str]:
    made, address = listening.accept()
    made.settimeout(10)
    return made, (address.decode() if isinstance(address, bytes) else address).lstrip("\0")


def everything(sock: socket.socket) -> bytes:
    parts = []
    while part := sock.recv(65536):
        parts.append(part)
    return b"".join(parts)


@pytest.mark.parametrize("first", [b"\x16", b"P", b"G", b"\x00", b"\xff"])
def test_the_first_byte_decides(backends: Backends, first: bytes) -> None:
    with backends.caller() as caller:
        caller.sendall(first + b"rest")
        inner, name = accept(backends.tls if first == HANDSHAKE else backends.plaintext)
        with inner:
            assert inner.recv(100) == first + b"rest"
            assert origin_of(name) == "127.0.0.1"
            inner.sendall(b"answer")
            assert caller.recv(100) == b"answer"
    wait_for(lambda: not origin_of(name))


def test_ends_of_streams_are_passed_on(backends: Backends) -> None:
    with backends.caller() as caller:
        caller.sendall(b"question")
        caller.shutdown(socket.SHUT_WR)
        inner, _ = accept(backends.plaintext)
        with inner:
            assert everything(inner) == b"question"
            inner.sendall(b"answer")
            inner.shutdown(socket.SHUT_WR)
            assert everything(caller) == b"answer"


def test_a_server_that_closes(backends: Backends) -> None:
    with backends.caller() as caller:
        caller.sendall(b"question")
        inner, _ = accept(backends.plaintext)
        inner.close()
        with contextlib.suppress(ConnectionResetError):
            assert everything(caller) == b""


@given(first=st.binary(min_size=1, max_size=20), sizes=st.lists(st.integers(0, 3 * BUFFER), max_size=6))
@settings(max_examples=15)
def test_bytes_arrive_as_they_are(first: bytes, sizes: list[int]) -> None:
    backends = Backends()
    sent = first + b"".join(bytes([65 + index]) * size for index, size in enumerate(sizes))
    received: list[bytes] = []
    try:
        with backends.caller() as caller:

            def echo() -> None:
                inner, _ = accept(backends.tls if first[:1] == HANDSHAKE else backends.plaintext)
                with inner:
                    while data := inner.recv(70_000):
                        inner.sendall(data)

            threads = [
                threading.Thread(target=echo),
                threading.Thread(target=lambda: received.append(everything(caller))),
            ]
            for thread in threads:
                thread.start()
            caller.sendall(sent)
            caller.shutdown(socket.SHUT_WR)
            for thread in threads:
                thread.join()
    finally:
        backends.close()
    assert received == [sent]


def test_a_side_that_does_not_read_holds_the_other_back(backends: Backends) -> None:
    with backends.caller() as caller:
        caller.sendall(b"x")
        inner, _ = accept(backends.plaintext)
        with inner:
            caller.setblocking(False)
            sent, idle = 1, 0
            while idle < 20 and sent < 64 * BUFFER:
                try:
                    sent += caller.send(b"x" * 65536)
                    idle = 0
                except BlockingIOError:
                    idle += 1
                    threading.Event().wait(0.01)
            assert sent < 64 * BUFFER
            caller.setblocking(True)
            caller.shutdown(socket.SHUT_WR)
            assert len(everything(inner)) == sent


def test_others_go_on_beside_one_that_says_nothing(backends: Backends) -> None:
    with backends.caller(), backends.caller() as caller:
        caller.sendall(b"x")
        inner, _ = accept(backends.plaintext)
        with inner:
            assert inner.recv(1) == b"x"


def test_a_caller_that_goes_before_it_speaks(backends: Backends) -> None:
    backends.caller().close()
    with backends.caller() as caller:
        caller.sendall(b"x")
        accept(backends.plaintext)[0].close()


def test_a_server_that_is_not_there(backends: Backends) -> None:
    backends.plaintext.close()
    with backends.caller() as caller:
        caller.sendall(b"x")
        with contextlib.suppress(ConnectionResetError):
            assert everything(caller) == b""


def test_closing_ends_connections_and_may_be_done_twice() -> None:
    backends = Backends()
    with backends.caller() as caller:
        caller.sendall(b"x")
        inner, name = accept(backends.plaintext)
        with inner:
            assert inner.recv(1) == b"x"
            backends.front.close()
            backends.front.close()
            assert origin_of(name) == ""
            with contextlib.suppress(ConnectionResetError):
                assert everything(inner) == b""
    backends.close()


def wait_for(condition: Callable[[], bool]) -> None:
    for _ in range(500):
        if condition():
            return
        threading.Event().wait(0.01)
    raise AssertionError("it has not happened in 5 s")

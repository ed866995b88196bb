"""The pump between two socket pairs: what goes in at one side comes out at the other, until an end, and then no longer."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import pytest

from meshlib.transport.grpc import tunnel_loop, tunnel_pump
from meshlib.transport.grpc.tunnel_loop import BUFFER, Loop, PortablePoller
from meshlib.transport.grpc.tunnel_pump import Pump
from tests.transport.grpc.secure.world import World

LIMIT = 10


class Pumped:
    """near: C-core's end. far: the endpoint's end, which speaks TLS. ended: what the pump has told."""

    def __init__(self, world: World, poller: Callable[[], Any], maximum: ssl.TLSVersion) -> None:
        self.loop = Loop("pump", poller)
        self.near, local = socket.socketpair()
        listener = socket.create_server(("127.0.0.1", 0))
        remote = socket.create_connection(listener.getsockname())
        plain = listener.accept()[0]
        listener.close()
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = _client(world).wrap_bio(incoming, outgoing)
        far: list[ssl.SSLSocket] = []
        context = world.context(maximum=maximum)
        accepting = threading.Thread(target=lambda: far.append(context.wrap_socket(plain, server_side=True)))
        accepting.start()
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                remote.sendall(outgoing.read())
                incoming.write(remote.recv(65536))
        remote.sendall(outgoing.read())
        accepting.join()
        self.far = far[0]
        self.over = threading.Event()
        self.ended: list[BaseException | None] = []
        self.local, self.remote = local, remote
        for sock in (local, remote):
            sock.setblocking(False)
        for end in (self.near, self.far):
            end.settimeout(LIMIT)
        self.pump = Pump(self.loop, local, remote, tls, incoming, outgoing, self._ended)
        self.loop.submit(self.pump.start)

    def _ended(self, error: BaseException | None) -> None:
        self.ended.append(error)
        self.over.set()

    def finished(self) -> None:
        """It has told of its end once, and has closed both sockets."""
        assert self.over.wait(LIMIT)
        done = threading.Event()
        while self.local.fileno() >= 0 or self.remote.fileno() >= 0:
            assert not done.wait(0.001)
        assert len(self.ended) == 1

    def close(self) -> None:
        self.near.close()
        self.far.close()


def _client(world: World) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.options &= ~getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)
    context.load_verify_locations(cadata=world.ca.pem.decode())
    context.set_alpn_protocols(["h2"])
    return context


@pytest.fixture(params=[select.epoll, PortablePoller], ids=["epoll", "portable"])
def poller(request: pytest.FixtureRequest) -> Callable[[], Any]:
    made: Callable[[], Any] = request.param
    return made


@pytest.fixture(params=[ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
def pumped(request: pytest.FixtureRequest, world: World, poller: Callable[[], Any]) -> Iterator[Pumped]:
    context_less = _WithoutCertificate(world)
    made = Pumped(context_less, poller, request.param)
    yield made
    made.close()
    made.finished()


class _WithoutCertificate(World):
    """A server that asks for no certificate: these tests are about bytes."""

    def __init__(self, world: World) -> None:
        self.ca, self.server, self.client = world.ca, world.server, world.client

    def context(self, **options: Any) -> ssl.SSLContext:
        return super().context(require=False, **options)


def _receive(sock: socket.socket, count: int) -> bytes:
    found = bytearray()
    while len(found) < count:
        piece = sock.recv(min(count - len(found), 1 << 16))
        if not piece:
            break
        found += piece
    return bytes(found)


@pytest.mark.parametrize("size", [1, 100, 16384, 16385, BUFFER - 1, BUFFER + 1, 3_000_000])
def test_both_ways(pumped: Pumped, size: int) -> None:
    up = bytes(number * 7 % 251 for number in range(min(size, 4096)))
    up = (up * (size // len(up) + 1))[:size]
    down = up[::-1]
    for source, sink, data in ((pumped.near, pumped.far, up), (pumped.far, pumped.near, down)):
        sender = threading.Thread(target=source.sendall, args=(data,))
        sender.start()
        assert _receive(sink, size) == data
        sender.join()


@pytest.mark.parametrize("seed", range(4))
def test_any_pieces_in_any_order(pumped: Pumped, seed: int) -> None:
    """In pieces of any size, with readers of any speed; then one side closes. (An SSLSocket is for one thread at a time.)"""
    random = Random(seed)
    sent: dict[str, bytes] = {}
    found: dict[str, bytes] = {}

    def send(sock: socket.socket, pieces: list[bytes]) -> None:
        for piece in pieces:
            sock.sendall(piece)

    def receive(name: str, sock: socket.socket, sizes: list[int]) -> None:
        data = bytearray()
        while len(data) < len(sent[name]):
            piece = sock.recv(sizes[len(data) % len(sizes)])
            if not piece:
                break
            data += piece
        found[name] = bytes(data)

    for name, source, sink in (("up", pumped.near, pumped.far), ("down", pumped.far, pumped.near)):
        pieces = [random.randbytes(random.choice((1, 50, 5_000, 300_000))) for _ in range(12)]
        sent[name] = b"".join(pieces)
        sizes = [random.choice((7, 1000, 100_000)) for _ in range(13)]
        threads = [
            threading.Thread(target=send, args=(source, pieces)),
            threading.Thread(target=receive, args=(name, sink, sizes)),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == sent
    random.choice((pumped.near, pumped.far)).close()
    pumped.close()
    pumped.finished()


def _fill(sock: socket.socket) -> int:
    """Write until nothing more is taken for a while."""
    sock.setblocking(False)
    taken = 0
    while select.select([], [sock], [], 0.2)[1]:
        try:
            taken += sock.send(bytes(1 << 16))
        except (BlockingIOError, ssl.SSLWantWriteError):
            continue
    sock.settimeout(LIMIT)
    return taken


def test_who_sends_faster_than_the_endpoint_reads_is_held_back(pumped: Pumped) -> None:
    taken = _fill(pumped.near)
    assert taken < 64 << 20
    assert _receive(pumped.far, taken) == bytes(taken)
    pumped.near.sendall(b"goes on")
    assert _receive(pumped.far, 7) == b"goes on"


def test_an_endpoint_that_sends_faster_than_we_read_is_held_back(pumped: Pumped) -> None:
    taken = _fill(pumped.far)
    assert taken < 64 << 20
    found = _receive(pumped.near, taken)
    assert found == bytes(taken)


def test_a_direction_that_is_held_back_does_not_hold_the_other(pumped: Pumped) -> None:
    taken = _fill(pumped.near)
    pumped.far.sendall(b"answer")
    assert _receive(pumped.near, 6) == b"answer"
    assert _receive(pumped.far, taken) == bytes(taken)


def test_the_local_side_ends_its_direction(pumped: Pumped) -> None:
    pumped.near.sendall(b"all")
    pumped.near.shutdown(socket.SHUT_WR)
    assert _receive(pumped.far, 10) == b"all"
    with contextlib.suppress(ssl.SSLError):
        pumped.far.sendall(b"answer")
        assert _receive(pumped.near, 6) == b"answer"


def test_the_local_side_closes(pumped: Pumped) -> None:
    pumped.near.sendall(b"last words")
    pumped.near.close()
    assert _receive(pumped.far, 20) == b"last words"
    assert pumped.far.recv(1) == b""
    pumped.far.close()
    pumped.finished()
    assert pumped.ended == [None]


def test_last_words_that_do_not_fit_are_sent_if_the_endpoint_takes_them(pumped: Pumped) -> None:
    taken = _fill(pumped.near)
    pumped.near.close()
    assert _receive(pumped.far, taken) == bytes(taken)


def test_an_endpoint_that_never_takes_them_is_not_waited_for(
    pumped: Pumped, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tunnel_pump, "FLUSH", 0.05)
    _fill(pumped.near)
    pumped.near.shutdown(socket.SHUT_RDWR)
    pumped.near.close()
    if pumped.loop._make is PortablePoller:
        pumped.far.close()  # there it is seen only when something is written
    pumped.finished()


def test_the_endpoint_closes(pumped: Pumped) -> None:
    pumped.far.sendall(b"goodbye")
    pumped.far.close()
    assert _receive(pumped.near, 20) == b"goodbye"
    assert pumped.over.wait(LIMIT)
    pumped.near.close()
    pumped.finished()
    assert pumped.ended == [None]


def test_the_endpoint_says_goodbye_in_tls(pumped: Pumped) -> None:
    pumped.far.sendall(b"goodbye")
    closer = threading.Thread(target=_unwrap, args=(pumped.far,))
    closer.start()
    assert _receive(pumped.near, 20) == b"goodbye"
    assert pumped.over.wait(LIMIT)
    pumped.near.close()
    closer.join()
    assert pumped.ended == [None]


def _unwrap(far: ssl.SSLSocket) -> None:
    with contextlib.suppress(OSError):
        far.unwrap()


def test_the_endpoint_resets(pumped: Pumped) -> None:
    pumped.far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    pumped.far.close()
    assert pumped.near.recv(1) == b""
    assert pumped.over.wait(LIMIT)


def test_what_arrived_before_the_end_is_delivered_though_it_does_not_fit(pumped: Pumped) -> None:
    taken = _fill(pumped.far)
    pumped.far.close()
    assert _receive(pumped.near, taken) == bytes(taken)
    assert pumped.near.recv(1) == b""


def test_broken_tls_ends_it(pumped: Pumped) -> None:
    with socket.socket(fileno=os.dup(pumped.far.fileno())) as plain:
        plain.sendall(b"\x17\x03\x03\x00\x20" + bytes(32))
        assert pumped.near.recv(1) == b""
        assert pumped.over.wait(LIMIT)
        assert isinstance(pumped.ended[0], ssl.SSLError)


def test_threads_end_when_there_is_nothing_to_do(pumped: Pumped) -> None:
    pumped.close()
    pumped.finished()
    name = pumped.loop.name
    wait = threading.Event()
    for _ in range(2000):
        if not any(thread.name == name for thread in threading.enumerate()):
            break
        wait.wait(0.005)
    else:
        pytest.fail("the thread lives on")
    done = threading.Event()
    pumped.loop.submit(done.set)
    assert done.wait(LIMIT)


def test_a_handler_that_fails_does_not_end_the_others() -> None:
    loop = Loop("handlers")
    near, ours = socket.socketpair()
    told: list[Exception] = []
    done = threading.Event()

    def broken(error: Exception) -> None:
        told.append(error)
        loop.forget(ours)
        ours.close()
        done.set()

    def fail(_mask: int) -> None:
        raise ArithmeticError

    ours.setblocking(False)
    loop.submit(lambda: loop.watch(ours, tunnel_loop.IN, fail, broken))
    near.sendall(b"x")
    assert done.wait(LIMIT)
    assert isinstance(told[0], ArithmeticError)
    again = threading.Event()
    loop.submit(again.set)
    assert again.wait(LIMIT)
    near.close()


def test_last_words_are_read_though_nothing_can_be_sent(pumped: Pumped) -> None:
    """The endpoint has spoken and reset the connection; C-core's bytes are the first to meet that."""
    met = threading.Event()

    def speak_and_reset() -> None:
        pumped.far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        pumped.far.sendall(b"last words")
        pumped.far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        pumped.far.close()
        pumped.near.sendall(b"late")
        pumped.pump._push()
        met.set()

    pumped.loop.submit(speak_and_reset)
    assert met.wait(LIMIT)
    assert _receive(pumped.near, 100) == b"last words"

"""Several attempts of one call at once: who wins, what becomes of the others, bodies, queues, cancellation.

The servers answer on command: an attempt is answered, or broken, when the test's story says so, not after a time. Only the
per-try timeout is real, and short.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import httpx
import pytest

import meshlib.httpx
from meshlib.engine import actions as act
from meshlib.engine import events as ev
from meshlib.resources.cluster import HttpProtocol
from meshlib.resources.route import BackOff, HedgePolicy, RetryPolicy
from meshlib.runtime.clock import FakeClock
from meshlib.transport.http.attempts import CallAttempts
from meshlib.transport.http.sync_bell import Bell
from tests.transport.http.drivers import AsyncDriver, Driver
from tests.transport.http.h2_server import H2Server
from tests.transport.http.support import OK, FakeMesh, info, mesh_for, read_request, response, serve

HEDGE = HedgePolicy(hedge_on_per_try_timeout=True)
LIMIT = 20.0
"""Seconds that a server waits for its cue; only a test that fails waits so long."""


def late(times: int = 1, on: str = "5xx", per_try: float = 0.03) -> RetryPolicy:
    return RetryPolicy(
        retry_on=frozenset({on}),
        num_retries=times,
        per_try_timeout=per_try,
        back_off=BackOff(base_interval=0.001, max_interval=0.001),
    )


def hedged(*ports: int, retry: RetryPolicy | None = None, **fields: Any) -> FakeMesh:
    return mesh_for(ports, retry=retry or late(), hedge=HEDGE, **fields)


class Cues:
    """Events by name, made when they are first mentioned."""

    def __init__(self) -> None:
        self._events: dict[str, threading.Event] = {}
        self._lock = threading.Lock()

    def __getitem__(self, name: str) -> threading.Event:
        with self._lock:
            return self._events.setdefault(name, threading.Event())

    def give(self, name: str) -> None:
        self[name].set()

    def wait(self, name: str) -> None:
        assert self[name].wait(LIMIT), f"nobody gave the cue {name!r}"


@contextlib.contextmanager
def when(condition: Callable[[], bool], then: Callable[[], None]) -> Iterator[None]:
    """Beside the block, as soon as the condition holds, do that once."""

    def watch() -> None:
        while not condition():
            os.sched_yield()
            assert not ended.is_set(), "it never came to that"
        then()

    ended = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        watcher = pool.submit(watch)
        yield
        if not watcher.done():
            ended.set()
        watcher.result(LIMIT)


def closed_by_peer(sock: socket.socket) -> bool:
    """Wait until the other side closes. False: it sent something."""
    try:
        return sock.recv(1) == b""
    except ConnectionError:
        return True


def test_the_second_wins_and_the_first_is_closed(driver: Driver) -> None:
    cues = Cues()

    def script(sock: socket.socket, number: int) -> None:
        while read_request(sock):
            if number == 0:
                assert closed_by_peer(sock), "nothing more goes to the loser"
                cues.give("loser closed")
                return
            sock.sendall(response(b"second"))

    with serve(script) as server:
        mesh = hedged(server.port)
        driver.open(mesh)
        answer = driver.get()
        assert answer.text == "second"
        assert (info(answer).flags, info(answer).details) == ("-", "via_upstream")
        assert [(each.status, each.failure) for each in info(answer).attempts] == [
            (None, "cancelled"),
            (200, None),
        ]
        cues.wait("loser closed")
        assert driver.idle() == 1
        assert mesh.permits() == (1, 0, 0, 0)
        assert driver.get().text == "second"
        assert server.accepted == 2, "the winner's connection is used again, the loser's is not"


def test_the_first_wins_late(driver: Driver) -> None:
    cues = Cues()

    def script(sock: socket.socket, number: int) -> None:
        assert read_request(sock)
        if number == 0:
            cues.wait("second asked")
            sock.sendall(response(b"first"))
        else:
            cues.give("second asked")
            assert closed_by_peer(sock)
            cues.give("loser closed")

    with serve(script) as server:
        mesh = hedged(server.port)
        driver.open(mesh)
        answer = driver.get()
        assert answer.text == "first"
        assert [each.failure for each in info(answer).attempts] == [None, "cancelled"]
        cues.wait("loser closed")
        assert mesh.permits()[1:] == (0, 0, 0)
        assert mesh.active() == 0


def test_the_winners_body_goes_on_while_the_loser_is_closed(driver: Driver) -> None:
    cues = Cues()

    def script(sock: socket.socket, number: int) -> None:
        assert read_request(sock)
        if number == 0:
            cues.wait("second asked")
            sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello")
            cues.wait("loser closed")
            sock.sendall(b"world")
        else:
            cues.give("second asked")
            assert closed_by_peer(sock)
            cues.give("loser closed")

    with serve(script) as server:
        mesh = hedged(server.port)
        driver.open(mesh)
        answer, body = driver.stream("/")
        assert body == b"helloworld"
        assert info(answer).details == "via_upstream"
        assert mesh.permits()[1:] == (0, 0, 0)


def test_a_bad_answer_waits_for_the_other(driver: Driver) -> None:
    cues = Cues()

    def script(sock: socket.socket, number: int) -> None:
        assert read_request(sock)
        if number == 0:
            cues.wait("second asked")
            sock.sendall(response(b"busy", "503 Service Unavailable"))
            assert closed_by_peer(sock)
        else:
            cues.give("second asked")
            cues.wait("first over")
            sock.sendall(response(b"second"))

    with serve(script) as server:
        mesh = hedged(server.port)
        driver.open(mesh)
        over = cues["second asked"]
        with when(lambda: over.is_set() and mesh.active() == 1, lambda: cues.give("first over")):
            answer = driver.get()
        assert answer.text == "second"
        assert [each.status for each in info(answer).attempts] == [503, 200]
        assert mesh.permits()[1:] == (0, 0, 0)


@pytest.mark.parametrize("breaks", [0, 1])
def test_one_that_breaks_leaves_the_other_alone(driver: Driver, breaks: int) -> None:
    cues = Cues()

    def script(sock: socket.socket, number: int) -> None:
        assert read_request(sock)
        if number == 1:
            cues.give("second asked")
        cues.wait("second asked")
        if number != breaks:
            cues.wait("broken")
            sock.sendall(response(b"survivor"))

    with serve(script) as server:
        mesh = hedged(server.port, retry=late(on="retriable-4xx"))
        driver.open(mesh)
        broken = lambda: cues["second asked"].is_set() and mesh.active() == 1  # noqa: E731
        with when(broken, lambda: cues.give("broken")):
            answer = driver.get()
        assert answer.text == "survivor"
        assert info(answer).attempts[breaks].failure == "connection termination"
        assert mesh.permits()[1:] == (0, 0, 0)


def test_all_that_break_end_the_call(driver: Driver) -> None:
    cues = Cues()

    def script(sock: socket.socket, number: int) -> None:
        assert read_request(sock)
        if number == 1:
            cues.give("second asked")
        cues.wait("second asked")

    with serve(script) as server:
        mesh = hedged(server.port)
        driver.open(mesh, local_reply="response")
        answer = driver.get()
        assert answer.status_code == 503
        assert info(answer).flags == "URX,UC"
        assert mesh.permits() == (0, 0, 0, 0)


def test_the_routes_timeout_ends_them_all(driver: Driver) -> None:
    cues, clock = Cues(), FakeClock()
    at_once = replace(late(), back_off=BackOff(base_interval=0.0, max_interval=0.0))

    def script(sock: socket.socket, number: int) -> None:
        assert read_request(sock)
        clock.advance(0.05 if number == 0 else 1.0)
        assert closed_by_peer(sock)
        cues.give(f"closed {number}")

    with serve(script) as server:
        mesh = hedged(server.port, retry=at_once, timeout=0.15, clock=clock)
        driver.open(mesh, local_reply="response")
        answer = driver.get()
        assert answer.status_code == 504
        assert (info(answer).flags, info(answer).details) == ("URX,UT", "response_timeout")
        for number in range(2):
            cues.wait(f"closed {number}")
        assert mesh.permits() == (0, 0, 0, 0)


def test_httpx_read_timeout_counts_from_the_last_byte_of_any(driver: Driver) -> None:
    def script(sock: socket.socket, _number: int) -> None:
        assert read_request(sock)
        assert closed_by_peer(sock)

    with serve(script) as server:
        mesh = hedged(server.port)
        driver.open(mesh, timeout=driver.lib.Timeout(None, read=0.15))
        with pytest.raises(driver.lib.ReadTimeout):
            driver.get()
        assert mesh.permits() == (0, 0, 0, 0)


# --- request bodies --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streamed", [False, True])
def test_both_get_the_whole_body(driver: Driver, streamed: bool) -> None:
    cues = Cues()
    bodies: list[bytes] = []

    def script(sock: socket.socket, number: int) -> None:
        bodies.append(read_request(sock).partition(b"\r\n\r\n")[2])
        if number == 1:
            sock.sendall(response(b"second"))
        else:
            assert closed_by_peer(sock)
            cues.give("loser closed")

    with serve(script) as server:
        driver.open(hedged(server.port))
        content = driver.body([b"hello ", b"world"]) if streamed else b"hello world"
        assert driver.request("POST", "/", content=content).text == "second"
        cues.wait("loser closed")
    expected = b"6\r\nhello \r\n5\r\nworld\r\n0\r\n\r\n" if streamed else b"hello world"
    assert bodies == [expected, expected]


@pytest.mark.parametrize("streamed", [False, True])
def test_a_slow_reader_gets_its_own_place_in_the_body(driver: Driver, streamed: bool) -> None:
    """The second attempt is in the middle of its body when the third one begins; the first one goes away meanwhile."""
    cues = Cues()
    pieces = [bytes([65 + number]) * 500_000 for number in range(12)]
    bodies: dict[int, bytes] = {}

    def script(sock: socket.socket, number: int) -> None:
        if number == 1:
            cues.wait("only the second is left")
        bodies[number] = read_request(sock).partition(b"\r\n\r\n")[2]
        if number == 0:
            cues.wait("third asked")
            sock.sendall(response(b"", "503 Service Unavailable"))
            assert closed_by_peer(sock)
        elif number == 2:
            cues.give("third asked")
            sock.sendall(response(b"", "503 Service Unavailable"))
            assert closed_by_peer(sock)
        else:
            sock.sendall(response(b"second"))

    with serve(script, receive_buffer=65536) as server:
        mesh = hedged(server.port, retry=late(times=2), buffer_limit=1 << 24, timeout=60.0)
        driver.open(mesh, timeout=None)
        content = driver.body(pieces) if streamed else b"".join(pieces)
        headers = {"content-length": str(sum(map(len, pieces)))}
        over = cues["third asked"]
        alone = lambda: over.is_set() and mesh.active() == 1  # noqa: E731
        with when(alone, lambda: cues.give("only the second is left")):
            answer = driver.request("POST", "/", content=content, headers=headers)
        assert answer.text == "second"
        assert info(answer).flags == "URX"
        assert mesh.permits()[1:] == (0, 0, 0)
    assert set(bodies) == {0, 1, 2}
    for body in bodies.values():
        assert body == b"".join(pieces)


# --- connections -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def blackhole() -> Iterator[int]:
    """A port where a connection never comes about: the queue of the listening socket is full."""
    with socket.socket() as listener, contextlib.ExitStack() as stack:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(3):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


@pytest.mark.parametrize("first", [0, 1])
def test_a_hedge_that_cannot_connect_is_given_up(driver: Driver, first: int) -> None:
    """In one of the two orders the request goes to the server first."""
    cues = Cues()

    def script(sock: socket.socket, _number: int) -> None:
        while read_request(sock):
            cues.wait("hedge failed")
            sock.sendall(OK)

    with serve(script) as server, blackhole() as nowhere:
        ports = (server.port, nowhere) if first == 0 else (nowhere, server.port)
        mesh = hedged(*ports, connect_timeout=0.5)
        stats = mesh.engine.store.cluster("backend").stats
        driver.open(mesh, timeout=None)
        failed = lambda: stats.upstream_cx_connect_timeout.value > 0  # noqa: E731
        with when(failed, lambda: cues.give("hedge failed")):
            answer = driver.get()
        assert answer.text == "hello"
        assert "connection timeout" in {each.failure for each in info(answer).attempts}
        assert mesh.permits()[1:] == (0, 0, 0)


def test_a_hedge_in_the_queue_takes_over_the_connection_of_one_that_breaks(driver: Driver) -> None:
    cues = Cues()

    def script(sock: socket.socket, number: int) -> None:
        while read_request(sock):
            if number == 0:
                cues.wait("parked")
                return
            sock.sendall(response(b"second"))

    with serve(script) as server:
        mesh = hedged(server.port, max_connections=1)
        driver.open(mesh)
        with when(lambda: mesh.permits()[1:3] == (1, 1), lambda: cues.give("parked")):
            answer = driver.get()
        assert answer.text == "second"
        assert mesh.permits() == (1, 0, 0, 0)


def test_a_hedge_leaves_the_queue_when_the_first_wins(driver: Driver) -> None:
    cues = Cues()

    def script(sock: socket.socket, _number: int) -> None:
        while read_request(sock):
            cues.wait("parked")
            sock.sendall(response(b"first"))

    with serve(script) as server:
        mesh = hedged(server.port, max_connections=1)
        driver.open(mesh)
        with when(lambda: mesh.permits()[1:3] == (1, 1), lambda: cues.give("parked")):
            assert driver.get().text == "first"
        assert mesh.permits() == (1, 0, 0, 0)
        assert driver.get().text == "first"
        assert server.accepted == 1


def test_another_threads_connection_wakes_a_hedge_in_the_queue() -> None:
    """Each endpoint may have one connection. The other thread's call holds the one that the hedge needs."""
    cues = Cues()

    def script(sock: socket.socket, _number: int) -> None:
        while request := read_request(sock):
            if request.startswith(b"GET /hold"):
                sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n")
                cues.give("held")
                cues.wait("let go")
                sock.sendall(b"held")
            elif not cues["first asked"].is_set():
                cues.give("first asked")
                assert closed_by_peer(sock)
                return
            else:
                sock.sendall(response(b"second"))

    with serve(script) as one, serve(script) as other:
        mesh = hedged(one.port, other.port, max_connections=1, retry=late())
        transport = meshlib.httpx.MeshTransport(mesh)
        with httpx.Client(transport=transport) as client, ThreadPoolExecutor(2) as pool:
            holder = pool.submit(client.get, "http://backend/hold", extensions={"timeout": {}})
            cues.wait("held")
            call = pool.submit(client.get, "http://backend/")
            cues.wait("first asked")
            while mesh.permits()[1] == 0:
                os.sched_yield()
            cues.give("let go")
            assert holder.result(LIMIT).status_code == 200
            assert call.result(LIMIT).text == "second"
        assert mesh.permits() == (0, 0, 0, 0)


@pytest.mark.parametrize("turns", range(0, 12, 2))
def test_cancelling_a_task_with_two_attempts_returns_everything(turns: int) -> None:
    cues = Cues()

    def script(sock: socket.socket, number: int) -> None:
        assert read_request(sock)
        cues.give(f"asked {number}")
        assert closed_by_peer(sock)
        cues.give(f"closed {number}")

    async def main(mesh: FakeMesh) -> None:
        transport = meshlib.httpx.AsyncMeshTransport(mesh)
        async with httpx.AsyncClient(transport=transport) as client:
            call = asyncio.ensure_future(client.post("http://backend/", content=pieces()))
            while not cues["asked 1"].is_set():
                await asyncio.sleep(0)
            for _ in range(turns):
                await asyncio.sleep(0)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            assert mesh.permits() == (0, 0, 0, 0)

    async def pieces() -> Any:
        yield b"a"
        yield b"b"

    with serve(script) as server:
        mesh = hedged(server.port)
        asyncio.run(main(mesh))
        for number in range(2):
            cues.wait(f"closed {number}")


class LateServer(H2Server):
    """The first stream with the path /late gets no answer."""

    late = True

    def _answer(self, connection: Any, stream: int, path: str, body: bytes, out: dict[int, bytes]) -> bool:
        if path == "/late" and self.late:
            self.late = False
            return False
        return super()._answer(connection, stream, path, body, out)


def test_over_http2_a_loser_costs_its_stream_or_a_blocking_calls_connection(driver: Driver) -> None:
    script = LateServer()
    with serve(script) as server:
        mesh = hedged(server.port, protocol=HttpProtocol.HTTP2)
        driver.open(mesh)
        answer = driver.get("/late")
        assert answer.text == "hello"
        assert info(answer).attempts[0].failure == "cancelled"
        assert driver.get("/").text == "hello"
        assert mesh.permits() == (1, 0, 0, 0)
        if isinstance(driver, AsyncDriver):
            assert (server.accepted, script.resets) == (1, 1)
        else:
            assert server.accepted == 2


# --- parts -----------------------------------------------------------------------------------------------------------


@pytest.mark.interpreted
def test_two_events_at_once_are_both_reported() -> None:
    """Two parked attempts may be served together, and both of their connections are there at once."""

    class Both(CallAttempts):
        __slots__ = ()

        def __init__(self) -> None:
            self._later = None
            self._answer = None

        def _connect(self, action: act.Connect) -> ev.Event | None:
            return ev.Connected(action.attempt)

    both = Both()
    first = both._carry_out([act.Connect(1), act.Connect(2), act.Connect(3)])
    assert isinstance(first, ev.Connected)
    assert both._later is not None
    numbers = [event.attempt for event in (first, *both._later) if isinstance(event, ev.Connected)]
    assert numbers == [1, 2, 3]


def test_a_bell_rings_once_and_never_after_its_end() -> None:
    with Bell() as bell:
        bell.set()
        bell.set()
        assert os.read(bell.fileno(), 1) == b""
    bell.set()

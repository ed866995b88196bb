"""A small HTTP/1.1 server on loopback that answers, or misbehaves, as a test tells it to.

    with Upstream([Reset(), Reply(status=503)]) as upstream:     # then Reply() for ever
        ...
        assert upstream.requests[0].method == "GET"

One thread runs one event loop for the server. Everything here may be used from any thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from typing import TypeAlias

import httptools

__all__ = ["Behaviour", "Close", "Drip", "Hang", "Reply", "Request", "Reset", "Upstream"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A response. delay: seconds before its first byte. headers: sent as they are, after content-length."""

    status: int = 200
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()
    delay: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Drip:
    """A response whose body comes one byte each ``interval`` seconds."""

    body: bytes
    interval: float
    status: int = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Reset:
    """The connection is reset (TCP RST). after: bytes that are sent before."""

    after: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Close:
    """The connection is closed in order (TCP FIN). after: bytes that are sent before."""

    after: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hang:
    """Nothing is ever answered; the connection stays open."""


Behaviour: TypeAlias = Reply | Drip | Reset | Close | Hang


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request that came. target: path and query as sent. headers: lower-case names, in order. connection: which of
    the server's connections it came on, counted from 0."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    connection: int

    def header(self, name: str) -> str | None:
        """The first value of a header (lower-case name); None without it."""
        return next((value for key, value in self.headers if key == name), None)


Script: TypeAlias = Iterable[Behaviour] | Callable[[Request], Behaviour]


class Upstream:
    """One server, listening from ``start()`` to ``stop()``; a restart takes the same port."""

    def __init__(
        self, script: Script = (), *, default: Behaviour | None = None, host: str = "127.0.0.1"
    ) -> None:
        """``script``: one behaviour for each request, in order of arrival, or a function of the request (called in the
        server's thread). ``default`` follows a script that has ended: ``Reply()``, an empty 200, if not given."""
        self.host = host
        self.port = 0
        self._choose = script if callable(script) else None
        self._script: Iterator[Behaviour] = iter(()) if callable(script) else iter(script)
        self._default = Reply() if default is None else default
        self._requests: list[Request] = []
        self._arrived = threading.Condition()
        self._connections: set[_Connection] = set()
        self._accepted = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    @property
    def address(self) -> str:
        """``host:port``; the port is known after start()."""
        return f"{self.host}:{self.port}"

    @property
    def requests(self) -> tuple[Request, ...]:
        """All requests that came whole, oldest first."""
        with self._arrived:
            return tuple(self._requests)

    @property
    def connections(self) -> int:
        """How many connections have been accepted."""
        return self._accepted

    def wait_for_requests(self, count: int, timeout: float = 10.0) -> tuple[Request, ...]:
        """Wait until so many requests have come.

        Raises:
            TimeoutError: fewer came within ``timeout`` seconds.
        """
        with self._arrived:
            if not self._arrived.wait_for(lambda: len(self._requests) >= count, timeout):
                raise TimeoutError(f"{len(self._requests)} of {count} requests within {timeout} s")
            return tuple(self._requests)

    def start(self) -> Upstream:
        """Listen. Returns itself.

        Raises:
            OSError: the port of an earlier start is taken now.
        """
        if self._thread is not None:
            return self
        listener = socket.create_server((self.host, self.port))
        self.port = listener.getsockname()[1]
        started = threading.Event()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._run(listener, started)), name="meshlib-upstream", daemon=True
        )
        self._thread.start()
        started.wait()
        return self

    def stop(self) -> None:
        """Close the port and every connection. May be called twice."""
        if self._thread is None or self._loop is None:
            return
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()
        self._thread = None

    def __enter__(self) -> Upstream:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    async def _run(self, listener: socket.socket, started: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        server = await self._loop.create_server(lambda: _Connection(self), sock=listener)
        started.set()
        await self._stopping.wait()
        server.close()
        for connection in tuple(self._connections):
            connection.abort()
            await connection.closed.wait()

    def _accept(self, connection: _Connection) -> int:
        self._connections.add(connection)
        self._accepted += 1
        return self._accepted - 1

    def _next(self, request: Request) -> Behaviour:
        with self._arrived:
            self._requests.append(request)
            self._arrived.notify_all()
            if self._choose is not None:
                return self._choose(request)
            return next(self._script, self._default)


class _Connection(asyncio.Protocol):
    """Requests of one connection, answered one after the other."""

    def __init__(self, owner: Upstream) -> None:
        self._owner = owner
        self._parser = httptools.HttpRequestParser(self)
        self._queue: asyncio.Queue[tuple[Request, bool]] = asyncio.Queue()
        self.closed = asyncio.Event()
        self._target = b""
        self._headers: list[tuple[str, str]] = []
        self._body = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._number = self._owner._accept(self)
        self._task = asyncio.get_running_loop().create_task(self._answer())

    def connection_lost(self, exc: Exception | None) -> None:
        self._task.cancel()
        self._owner._connections.discard(self)
        self.closed.set()

    def abort(self) -> None:
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._transport.abort()

    def on_message_begin(self) -> None:
        self._target = b""
        self._headers = []
        self._body = bytearray()

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.decode("latin-1").lower(), value.decode("latin-1")))

    def on_headers_complete(self) -> None:
        if ("expect", "100-continue") in self._headers:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        request = Request(
            method=self._parser.get_method().decode(),
            target=self._target.decode("latin-1"),
            headers=tuple(self._headers),
            body=bytes(self._body),
            connection=self._number,
        )
        self._queue.put_nowait((request, self._parser.should_keep_alive()))

    async def _answer(self) -> None:
        while True:
            request, keep_alive = await self._queue.get()
            await self._behave(request, self._owner._next(request))
            if not keep_alive:
                self._transport.close()

    async def _behave(self, request: Request, behaviour: Behaviour) -> None:
        match behaviour:
            case Reply():
                if behaviour.delay:
                    await asyncio.sleep(behaviour.delay)
                body = b"" if request.method == "HEAD" else behaviour.body
                length = len(behaviour.body)
                self._transport.write(_head(behaviour.status, length, behaviour.headers) + body)
            case Drip():
                self._transport.write(_head(behaviour.status, len(behaviour.body), ()))
                for byte in behaviour.body:
                    await asyncio.sleep(behaviour.interval)
                    self._transport.write(bytes([byte]))
            case Reset():
                self._transport.write(behaviour.after)
                self._reset()
            case Close():
                self._transport.write(behaviour.after)
                self._transport.close()
            case Hang():
                await asyncio.Event().wait()

    def _reset(self) -> None:
        connection = self._transport.get_extra_info("socket")
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()


def _head(status: int, length: int, headers: tuple[tuple[str, str], ...]) -> bytes:
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = "Unknown"
    lines = [f"HTTP/1.1 {status} {phrase}"]
    if status >= 200 and status not in {204, 304}:
        lines.append(f"content-length: {length}")
    lines += [f"{name}: {value}" for name, value in headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")

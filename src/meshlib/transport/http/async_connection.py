"""An asyncio connection to one endpoint that speaks HTTP/1.1: a bare Protocol, parsed as the bytes arrive.

Nothing is awaited here but the handshake. The call that uses the connection is told through its `listener` that something
happened (headers, body, an end) and looks at `codec.response` and `failure`.

Deadlines cost nothing in the common case: `watch` remembers the moment, and the timer of an earlier call, which fires no
later, arms itself again. Reading pauses while the application is slow (`HIGH_WATER` bytes are waiting), writing while the
peer is.
"""

from __future__ import annotations

import asyncio
import select
import socket
from collections.abc import Callable
from functools import partial
from math import inf
from typing import Protocol

from meshlib.engine.actions import Start
from meshlib.engine.events import FailureKind
from meshlib.state import Way
from meshlib.transport.http.address import socket_address
from meshlib.transport.http.failure import TransportFailure, connect_failure, terminated
from meshlib.transport.http.h1 import H1Codec
from meshlib.transport.http.message import OutgoingRequest, Response
from meshlib.transport.http.pool import Pool, Shelf
from meshlib.transport.http.socket_connection import SocketConnection

__all__ = ["HIGH_WATER", "AsyncConnection", "AsyncSocket"]

HIGH_WATER = 256 * 1024
LOW_WATER = 64 * 1024


class Outlet(Protocol):
    """What is asked of the event loop's transport."""

    def write(self, data: bytes, /) -> None: ...
    def is_closing(self) -> bool: ...
    def get_write_buffer_size(self) -> int: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def abort(self) -> None: ...


class AsyncSocket(SocketConnection, asyncio.Protocol):
    """The part that HTTP/1.1 and HTTP/2 share: opening, closing, writing with back-pressure.

    opened: the handshake is over. failure: why nothing can be sent or will arrive any more.
    """

    __slots__ = (
        "_connecting",
        "_drained",
        "failure",
        "loop",
        "opened",
        "transport",
    )

    def __init__(self, pool: Pool, start: Start, way: Way, shelf: Shelf) -> None:
        super().__init__(pool, start, way, shelf)
        self.loop = asyncio.get_running_loop()
        self.transport: Outlet | None = None
        self.failure: TransportFailure | None = None
        self.opened = False
        self._connecting: asyncio.Task[None] | None = None
        self._drained: asyncio.Future[None] | None = None

    def connect(self, limit: float, authority: str) -> asyncio.Task[None]:
        """Begin to connect, for at most `limit` seconds; `notify` is called when it is over.

        authority: what a request is for.
        """
        self._connecting = task = self.loop.create_task(self._connect(limit, authority))
        return task

    async def _connect(self, limit: float, authority: str) -> None:
        timer = self.loop.call_later(limit, self._give_up) if limit < inf else None
        try:
            await self._open(authority)
            self._ready_at = self.pool.monotonic()
            self.opened = True
        except TransportFailure as failure:
            self.failure = self.failure or failure
        except OSError as error:
            self.failure = self.failure or connect_failure(error)
        except asyncio.CancelledError:
            if self.failure is None:
                raise
        finally:
            if timer is not None:
                timer.cancel()
            self._connecting = None
            if not self.opened:
                self._shut()
        self.notify()

    async def _open(self, authority: str) -> None:
        """Raises OSError, TransportFailure."""
        self._begun = self.pool.monotonic()
        sock = self._socket
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await self.loop.sock_connect(sock, socket_address(self.endpoint)[1])
        self._opened_at = self.pool.monotonic()
        await self.loop.create_connection(lambda: self, sock=sock)

    def _give_up(self) -> None:
        if self._connecting is not None:
            self.failure = TransportFailure(FailureKind.CONNECT_TIMEOUT)
            self._connecting.cancel()

    def notify(self) -> None:
        """Something happened; tell whoever uses the connection."""
        raise NotImplementedError

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        if self.closed:
            transport.abort()

    def pause_writing(self) -> None:
        self._drained = self.loop.create_future()
        self.notify()

    def resume_writing(self) -> None:
        drained, self._drained = self._drained, None
        if drained is not None and not drained.done():
            drained.set_result(None)

    async def drain(self) -> None:
        """Wait until the peer has taken enough of what was written, or the connection has ended."""
        if self._drained is not None:
            await asyncio.shield(self._drained)

    @property
    def congested(self) -> bool:
        return self._drained is not None

    def disconnect(self) -> None:
        if self.loop.is_closed():
            self._socket.close()
            return
        if self._connecting is not None:
            self._connecting.cancel()
        else:
            self._shut()
        self.resume_writing()

    def _shut(self) -> None:
        if self.transport is not None:
            self.transport.abort()
        else:
            self._socket.close()

    def close(self) -> None:
        if self.loop.is_closed() or _running_in(self.loop):
            super().close()
        else:
            self.loop.call_soon_threadsafe(super().close)

    def drop(self) -> None:
        """Close from a finalizer: without a lock, perhaps in another thread."""
        if not self.closed:
            self.closed = True
            self.pool.members.discard(self)
            self.state.abandoned.append(partial(self.state.connection_closed, self.endpoint, self.permits))
            if self.loop.is_closed():
                self._socket.close()
            else:
                self.loop.call_soon_threadsafe(self.disconnect)

    def forget(self) -> None:
        self._socket.close()


class AsyncConnection(AsyncSocket):
    """One HTTP/1.1 connection, for one call at a time.

    sent: a byte of the current request has left. activity: counts arrivals, to see progress by.
    """

    __slots__ = (
        "_buffered",
        "_deadline",
        "_paused",
        "_poller",
        "_timer",
        "_uploading",
        "activity",
        "codec",
        "listener",
        "sent",
    )

    def __init__(self, pool: Pool, start: Start, way: Way, shelf: Shelf) -> None:
        super().__init__(pool, start, way, shelf)
        self.codec = H1Codec()
        self.listener: Callable[[], None] | None = None
        self.sent = False
        self.activity = 0
        self._uploading = False
        self._buffered = 0
        self._paused = False
        self._poller: select.poll | None = None
        self._deadline = inf
        self._timer: asyncio.TimerHandle | None = None

    @property
    def response(self) -> Response:
        return self.codec.response

    def begin(self, request: OutgoingRequest) -> None:
        """Send the request; a streamed body follows through send_body and end_body. Raises TransportFailure."""
        self.sent = False
        data = self.codec.start(request)
        self.served += 1
        if self.failure is not None or self.transport is None or self.transport.is_closing():
            raise self.failure or terminated()
        self._uploading = request.body is None
        self._buffered = 0
        self.sent = True
        self.transport.write(data)

    async def send_body(self, data: bytes) -> None:
        if self.transport is not None and self._uploading and self.failure is None:
            self.transport.write(self.codec.body(data))
            await self.drain()

    async def end_body(self) -> None:
        if self.transport is not None and self._uploading and self.failure is None:
            tail = self.codec.end_body()
            if tail:
                self.transport.write(tail)
            self._uploading = False

    def finished(self) -> bool:
        """The response is complete; whether the connection can serve another request."""
        transport = self.transport
        return (
            self.codec.reusable
            and self.failure is None
            and not self._uploading
            and not self.closed
            and transport is not None
            and not transport.get_write_buffer_size()
        )

    def give_back(self) -> None:
        """The call is over and the connection is as good as new."""
        self.listener = None
        self.pool.release(self)

    def watch(self, moment: float, now: float) -> None:
        """Notify at `moment` (of the engine's clock) at the latest, if the connection is then still in use."""
        self._deadline = moment
        timer = self._timer
        if moment == inf:
            return
        at = self.loop.time() + (moment - now)
        if timer is None or timer.when() > at:
            if timer is not None:
                timer.cancel()
            self._timer = self.loop.call_at(at, self._tick)

    def _tick(self) -> None:
        self._timer = None
        if self.listener is not None:
            self.listener()

    def consumed(self, count: int) -> None:
        """The application has taken what was there."""
        self._buffered = 0
        if self._paused and self.transport is not None:
            self._paused = False
            self.transport.resume_reading()

    def notify(self) -> None:
        if self.listener is not None:
            self.listener()

    # Called by the event loop.

    def data_received(self, data: bytes) -> None:
        listener = self.listener
        try:
            self.codec.feed(data)
        except TransportFailure as failure:
            self.failure = failure
        if listener is None:
            self.pool.discard(self)
            return
        self.activity += 1
        self._buffered += len(data)
        if self._buffered > HIGH_WATER and not self._paused and self.transport is not None:
            self._paused = True
            self.transport.pause_reading()
        listener()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self._paused = False
        if self.failure is None:
            self.failure = self._end(error)
        self.resume_writing()
        if self.listener is not None:
            self.listener()
        elif not self.closed:
            self.pool.discard(self)

    def _end(self, error: Exception | None) -> TransportFailure:
        if error is not None:
            return self.codec.abort()
        try:
            self.codec.end()
        except TransportFailure as failure:
            return failure
        return terminated()

    def healthy(self) -> bool:
        if self.failure is not None or self.closed:
            return False
        poller = self._poller
        if poller is None:
            poller = self._poller = select.poll()
            poller.register(self._socket, select.POLLIN)
        return not poller.poll(0)  # the loop may not have had its turn since the peer closed

    def disconnect(self) -> None:
        self.listener = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.codec.close()
        if self.failure is None:
            self.failure = terminated()
        super().disconnect()


def _running_in(loop: asyncio.AbstractEventLoop) -> bool:
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False

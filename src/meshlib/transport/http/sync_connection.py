"""A blocking connection to one endpoint, for one call at a time.

One `send` and one `recv` in the common case. While there is more to send, both directions are served: a response that
begins before the request is complete is read at once, so that neither side can block the other for ever.

Time limits are the caller's: `advance(limit)` waits at most that many seconds and raises TimeoutError. Sends never block.
`round_trip` waits in `recv` itself at first, which costs one system call and gives the interpreter away once, not twice: the
kernel ends it after SO_RCVTIMEO. That time is short, since Python begins such a `recv` again, with all of its time, after each
signal: a timer that ticks more often would make it wait for ever. All other waits poll, with a moment that stays.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
from functools import partial
from math import ceil
from typing import Protocol

from meshlib.engine.actions import Start
from meshlib.state import Way
from meshlib.transport.http.address import socket_address
from meshlib.transport.http.codec import Codec
from meshlib.transport.http.failure import TransportFailure, connect_failure, terminated
from meshlib.transport.http.message import OutgoingRequest
from meshlib.transport.http.pool import Pool, Shelf
from meshlib.transport.http.socket_connection import SocketConnection

__all__ = ["DONTWAIT", "RECEIVE", "BodySlices", "BodySource", "SyncConnection", "milliseconds"]

INLINE_BODY = 64 * 1024
"""Bodies up to this size go out together with the headers."""

SLICE = 256 * 1024
RECEIVE = 64 * 1024
DONTWAIT = socket.MSG_DONTWAIT


KERNEL_WAIT = 0.005
"""Seconds that a blocking `recv` waits at most; the kernel rounds them up to its tick."""

LONGEST = 86_400.0
"""Seconds: nothing waits longer than a day at a time."""

_RECEIVE_TIMEOUT = struct.pack("@ll", 0, int(KERNEL_WAIT * 1e6))


def milliseconds(limit: float) -> int:
    """For poll: rounded up, so that a deadline is never met early."""
    return ceil(min(limit, LONGEST) * 1000)


class BodySource(Protocol):
    """What gives the pieces of a request body; None at the end."""

    def next(self) -> bytes | None: ...


class BodySlices:
    """A large body that is already in memory, in pieces."""

    __slots__ = ("_rest",)

    def __init__(self, body: bytes) -> None:
        self._rest = memoryview(body)

    def next(self) -> bytes | None:
        piece, self._rest = self._rest[:SLICE], self._rest[SLICE:]
        return bytes(piece) or None


class SyncConnection(SocketConnection):
    """connecting: the TCP handshake is not over. sent: a byte of the current request has left."""

    __slots__ = (
        "_broken",
        "_pending",
        "_poller",
        "_source",
        "codec",
        "connecting",
        "sent",
    )

    def __init__(self, pool: Pool, start: Start, way: Way, codec: Codec, shelf: Shelf | None = None) -> None:
        super().__init__(pool, start, way, shelf)
        self.codec = codec
        self.sent = False
        self._pending: memoryview | None = None
        self._source: BodySource | None = None
        self._broken = False
        self._poller = select.poll()
        self.connecting = True

    def connect(self) -> None:
        """Begin to connect. Raises TransportFailure when that is refused at once."""
        self._begun = self.pool.monotonic()
        if self._socket.family != socket.AF_UNIX:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        code = self._socket.connect_ex(socket_address(self.endpoint)[1])
        if code not in (0, errno.EINPROGRESS):
            raise connect_failure(OSError(code, os.strerror(code)))
        self._poller.register(self._socket, select.POLLIN)
        if code == 0:
            self._opened()

    def begin(self, request: OutgoingRequest, source: BodySource | None) -> None:
        """Send the request, or as much of it as goes at once; `advance` does the rest. Raises TransportFailure."""
        body = request.body
        if body is not None and len(body) > INLINE_BODY:
            source = BodySlices(body)
        data = self.codec.start(request, inline=source is None)
        self.served += 1
        self.sent = self._broken = False
        self._source = source
        if self._pending is not None:
            self._pending = memoryview(bytes(self._pending) + data)
            return
        try:
            count = self._socket.send(data, DONTWAIT)
        except BlockingIOError:
            count = 0
        except OSError as error:
            raise terminated(error) from None
        self.sent = True
        if count < len(data):
            self._pending = memoryview(data)[count:]

    def round_trip(self, request: OutgoingRequest, limit: float) -> None:
        """Send the request and take what comes back first. Raises TransportFailure, or TimeoutError after `limit` seconds.

        A request that does not go out at once is left to `advance`.
        """
        self.begin(request, None)
        if self._pending is not None or self._source is not None:
            return
        if limit > KERNEL_WAIT:
            try:
                data = self._socket.recv(RECEIVE)
            except BlockingIOError:
                limit -= KERNEL_WAIT
            except OSError as error:
                raise self._reset() from error
            else:
                self._take(data)
                return
        self._await_bytes(limit)

    def _await_bytes(self, limit: float) -> None:
        if not self._poller.poll(milliseconds(max(limit, 0.0))):
            raise TimeoutError
        self._receive()

    def advance(self, limit: float) -> None:
        """Wait until something has arrived or could be sent. Raises TimeoutError or TransportFailure."""
        if self.connecting:
            self._finish_connecting(limit)
        elif self._pending is None and self._source is None:
            self._await_bytes(limit)
        else:
            self._exchange(limit)

    @property
    def sending(self) -> bool:
        """There is more of the request to send."""
        return self._pending is not None or self._source is not None

    def fileno(self) -> int:
        return self._socket.fileno()

    def interest(self) -> int:
        """The poll events that `advance` would wait for."""
        if self.connecting:
            return select.POLLOUT
        if self._pending is not None or (self._source is not None and not self.codec.blocked):
            return select.POLLIN | select.POLLOUT
        return select.POLLIN

    def _receive(self) -> None:
        try:
            data = self._socket.recv(RECEIVE, DONTWAIT)
        except BlockingIOError:
            return
        except OSError as error:
            raise self._reset() from error
        self._take(data)

    def _take(self, data: bytes) -> None:
        codec = self.codec
        if data:
            codec.feed(data)
        else:
            self._source = self._pending = None
            codec.end()
        if codec.outgoing:
            self._queue(codec.take_outgoing())

    def _reset(self) -> TransportFailure:
        self._source = self._pending = None
        return self.codec.abort()

    def _queue(self, data: bytes) -> None:
        """Send what the protocol itself has to say, as far as it goes."""
        if data and not self._broken:
            self._pending = memoryview(data if self._pending is None else bytes(self._pending) + data)
            self._send_pending(self._pending)

    def _exchange(self, limit: float) -> None:
        if self._pending is None and self._source is not None and not self.codec.blocked:
            self._fill(self._source)
            if not self.sending:
                return
        self._poller.modify(self._socket, self.interest() if self._pending else select.POLLIN)
        try:
            ready = self._poller.poll(milliseconds(limit))
        finally:
            self._poller.modify(self._socket, select.POLLIN)
        if not ready:
            raise TimeoutError
        events = ready[0][1]
        if events & (select.POLLIN | select.POLLHUP | select.POLLERR):
            self._receive()
        elif self._pending is not None:
            self._send_pending(self._pending)

    def _fill(self, source: BodySource) -> None:
        """Take the next piece of the body; what the application's iterator raises passes through."""
        data = source.next()
        if data is None:
            self._source = None
            out = self.codec.end_body()
        else:
            out = self.codec.body(data)
        if out:
            self._pending = memoryview(out)

    def _send_pending(self, pending: memoryview) -> None:
        try:
            count = self._socket.send(pending[:SLICE], DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            # The peer reads no more. Its answer may be on the way all the same.
            self._broken = True
            self._source = self._pending = None
            return
        self._pending = pending[count:] if count < len(pending) else None

    def _finish_connecting(self, limit: float) -> None:
        self._poller.modify(self._socket, select.POLLOUT)
        if not self._poller.poll(milliseconds(limit)):
            raise TimeoutError
        self._poller.modify(self._socket, select.POLLIN)
        code = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise connect_failure(OSError(code, os.strerror(code)))
        self._opened()

    def _opened(self) -> None:
        self.connecting = False
        self._ready_at = self.pool.monotonic()
        self._opened_at = self._opened_at or self._ready_at
        self._socket.setblocking(True)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _RECEIVE_TIMEOUT)

    def healthy(self) -> bool:
        if not self._poller.poll(0):
            return True
        if not self.codec.survives_input:
            return False
        try:
            self._receive()
        except TransportFailure:
            return False
        return self.codec.reusable

    def disconnect(self) -> None:
        self.codec.close()
        self._source = self._pending = None
        self._socket.close()

    def give_back(self) -> None:
        """The call needs it no more: to the pool if it is as good as new, else it is closed."""
        if self.codec.reusable and self._pending is None and self._source is None and not self._broken:
            self.pool.release(self)
        else:
            self.close()

    def drop(self) -> None:
        """Close without a lock: the cluster hears of it from the next call."""
        if not self.closed:
            self.closed = True
            self.pool.members.discard(self)
            self.disconnect()
            self.state.abandoned.append(partial(self.state.connection_closed, self.endpoint, self.permits))

    def forget(self) -> None:
        self.codec.close()
        self._socket.close()

"""An asyncio connection to one endpoint that speaks HTTP/2, shared by as many calls as the peer allows.

Each call has a `H2Lane`, which looks to it like an HTTP/1.1 connection of its own. A lane may be taken while the connection
still opens, so that a burst of calls opens one connection and not one each.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from math import inf

from meshlib.engine.actions import Start
from meshlib.state import Way
from meshlib.transport.http.async_connection import AsyncSocket
from meshlib.transport.http.description import Description
from meshlib.transport.http.failure import TransportFailure, terminated
from meshlib.transport.http.h2 import INITIAL_CREDIT, H2Codec, H2Stream
from meshlib.transport.http.message import OutgoingRequest, Response
from meshlib.transport.http.pool import Pool, Shelf

__all__ = ["AsyncH2Connection", "H2Lane"]

_NOTHING = Response()


class AsyncH2Connection(AsyncSocket):
    """lanes: the calls that use it, those included whose stream is not open yet."""

    __slots__ = ("_by_stream", "codec", "lanes", "on_free")

    def __init__(
        self,
        pool: Pool,
        start: Start,
        way: Way,
        shelf: Shelf,
        on_free: Callable[[AsyncH2Connection], None],
    ) -> None:
        super().__init__(pool, start, way, shelf)
        self.codec = H2Codec()
        self.lanes: set[H2Lane] = set()
        self.on_free = on_free
        self._by_stream: dict[H2Stream, H2Lane] = {}

    @property
    def credit(self) -> int:
        """How many more calls it takes."""
        if self.failure is not None or self.closed:
            return 0
        waiting = len(self.lanes) - len(self._by_stream)
        credit = (self.codec.credit if self.opened else INITIAL_CREDIT) - waiting
        return int(min(credit, self.max_requests - self.served - waiting))

    def open_stream(self, lane: H2Lane, request: OutgoingRequest) -> H2Stream:
        if self.failure is not None or self.transport is None or self.transport.is_closing():
            raise self.failure or terminated()
        self.served += 1
        stream = self.codec.open(request)
        self._by_stream[stream] = lane
        self.flush()
        return stream

    def lane_done(self, lane: H2Lane, stream: H2Stream | None) -> None:
        self.lanes.discard(lane)
        if stream is not None:
            self._by_stream.pop(stream, None)
            self.codec.cancel(stream)
            self.flush()
        self.on_free(self)

    def flush(self) -> None:
        """Send what the codec has to say."""
        data = self.codec.take_outgoing()
        if data and self.transport is not None and not self.transport.is_closing():
            self.transport.write(data)

    def notify(self) -> None:
        for lane in list(self.lanes):
            lane.notify()
        if self.failure is not None:
            self.on_free(self)

    def data_received(self, data: bytes) -> None:
        touched = self.codec.feed(data)
        self.flush()
        for stream in touched:
            lane = self._by_stream.get(stream)
            if lane is not None:
                lane.notify()
        if not self.codec.usable:
            self.on_free(self)

    def connection_lost(self, error: Exception | None) -> None:
        if self.failure is None:
            self.failure = terminated()
        self.codec.end()
        self.resume_writing()
        self.notify()

    def healthy(self) -> bool:
        return self.credit > 0

    def disconnect(self) -> None:
        if self.failure is None:
            self.failure = terminated()
        super().disconnect()


class H2Lane:
    """One call's share of a connection. sent: the request has begun to leave. activity: counts what happened to it."""

    __slots__ = ("_connection", "_over", "_room", "_stream", "_timer", "activity", "listener", "sent")

    def __init__(self, connection: AsyncH2Connection) -> None:
        self._connection = connection
        self._stream: H2Stream | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._over = False
        self._room: asyncio.Future[None] | None = None
        self.listener: Callable[[], None] | None = None
        self.sent = False
        self.activity = 0
        connection.lanes.add(self)

    @property
    def opened(self) -> bool:
        return self._connection.opened

    @property
    def way(self) -> Way:
        return self._connection.way

    @property
    def response(self) -> Response:
        return _NOTHING if self._stream is None else self._stream.response

    @property
    def failure(self) -> TransportFailure | None:
        stream = self._stream
        if stream is None:
            return self._connection.failure
        failed = stream.response.failed
        return failed if isinstance(failed, TransportFailure) else None

    @property
    def congested(self) -> bool:
        return self._connection.congested or (self._stream is not None and self._stream.blocked)

    def connect(self, limit: float, authority: str) -> None:
        self._connection.connect(limit, authority)

    def describe(self) -> Description:
        return self._connection.describe()

    def begin(self, request: OutgoingRequest) -> None:
        self._stream = self._connection.open_stream(self, request)
        self.sent = True

    async def send_body(self, data: bytes) -> None:
        stream = self._stream
        if stream is None or self._over:
            return
        stream.send(data)
        self._connection.flush()
        while stream.blocked and stream.response.failed is None:
            self.notify()
            self._room = self._connection.loop.create_future()
            await self._room
        await self._connection.drain()

    async def end_body(self) -> None:
        if self._stream is not None and not self._over:
            self._stream.finish()
            self._connection.flush()

    def finished(self) -> bool:
        stream = self._stream
        return stream is not None and stream.response.complete and stream.sent_all

    def give_back(self) -> None:
        self.close()

    def close(self) -> None:
        """The call is over. A stream that is not complete is reset. Idempotent."""
        if not self._over:
            self._over = True
            self.listener = None
            self.notify()
            if self._timer is not None:
                self._timer.cancel()
            self._connection.lane_done(self, self._stream)

    def drop(self) -> None:
        loop = self._connection.loop
        if not loop.is_closed():
            loop.call_soon_threadsafe(self.close)

    def watch(self, moment: float, now: float) -> None:
        timer = self._timer
        if moment == inf:
            return
        loop = self._connection.loop
        at = loop.time() + (moment - now)
        if timer is None or timer.when() > at:
            if timer is not None:
                timer.cancel()
            self._timer = loop.call_at(at, self._tick)

    def _tick(self) -> None:
        self._timer = None
        if self.listener is not None:
            self.listener()

    def consumed(self, count: int) -> None:
        if self._stream is not None:
            self._stream.consumed(count)
            self._connection.flush()

    def notify(self) -> None:
        self.activity += 1
        room, self._room = self._room, None
        if room is not None and not room.done():
            room.set_result(None)
        if self.listener is not None:
            self.listener()

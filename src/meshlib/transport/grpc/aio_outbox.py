"""The request messages of a streaming call: what attempts have sent, and what another one would have to send again.

Until an attempt is accepted its messages are kept; when they are more than the route's buffer limit, the call can't be tried
again and they are let go. In the common case there is one attempt and it has everything: `direct`, a message goes straight to
its inner call. An attempt that comes later, or beside another, has a task that sends what was kept and then whatever
comes (`_pump`), until it is the only one and has everything too.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from meshlib.transport.grpc.aio_inner import sender

if TYPE_CHECKING:
    from meshlib.transport.grpc.aio_stream import StreamDriver

__all__ = ["LOST", "Outbox", "Sending"]

LOST = (grpc.aio.BaseError, grpc.RpcError, asyncio.InvalidStateError)
"""What using an inner call raises that is over: how it ended, its done callback tells."""


class Sending:
    """The request as far as one attempt has sent it. sent: how many messages. pump: its task, None for the direct one."""

    __slots__ = ("_inner", "_send", "pump", "sent")

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self._send: Callable[[bytes], Awaitable[None]] | None = None
        self.sent = 0
        self.pump: asyncio.Task[None] | None = None

    async def send(self, message: bytes) -> None:
        """Raises one of LOST when the attempt is over."""
        if self._send is None:
            await self._inner.wait_for_connection()
            self._send = sender(self._inner)
        await self._send(message)

    async def done_writing(self) -> None:
        with contextlib.suppress(*LOST):
            await self._inner.wait_for_connection()
            await self._inner.done_writing()


class Outbox:
    """closed: the application has sent its last message. overflowed: the call can't be tried again."""

    __slots__ = (
        "_count",
        "_direct",
        "_driver",
        "_first",
        "_kept",
        "_live",
        "_moved",
        "_size",
        "closed",
        "overflowed",
    )

    def __init__(self, driver: StreamDriver) -> None:
        self._driver = driver
        self._live: list[Sending] = []
        self._direct: Sending | None = None
        self._kept: list[bytes] = []
        self._first = 0
        self._count = 0
        self._size = 0
        self._moved: list[asyncio.Future[None]] = []
        self.closed = False
        self.overflowed = False

    def replayable(self) -> bool:
        return not self.overflowed

    async def put(self, message: bytes) -> bool:
        """Send one message; returns when an attempt has taken it. False: the call ended meanwhile."""
        direct = self._direct
        number = self._count
        self._count = number + 1
        if direct is None or self._driver.accepted is None:
            self._keep(message)
        else:
            self._first = self._count
        if direct is not None:
            direct.sent = self._count
            self._driver.sends(number, message)
            self._trim()
            try:
                await direct.send(message)
            except LOST:
                while direct in self._live:
                    await self._change()
            else:
                return True
        return await self._taken(number)

    async def close(self) -> None:
        """The last message has been put. Idempotent."""
        if self.closed:
            return
        self.closed = True
        direct = self._direct
        self._driver.request_complete()
        self._move()
        if direct is not None:
            await direct.done_writing()

    async def _taken(self, number: int) -> bool:
        self._move()
        while not any(sending.sent > number for sending in self._live):
            if self._driver.over:
                return False
            await self._change()
        return True

    # --- what is kept ------------------------------------------------------------------------------------------------

    def _keep(self, message: bytes) -> None:
        self._kept.append(message)
        self._size += len(message)
        self._check_limit()

    def _check_limit(self) -> None:
        call = self._driver.call
        if not self.overflowed and call.route is not None and self._size > call.buffer_limit:
            self.overflowed = True

    def _trim(self) -> None:
        """Let go of messages that nobody will need again."""
        if not self._kept or not self._live or not (self.overflowed or self._driver.accepted is not None):
            return
        count = min(sending.sent for sending in self._live) - self._first
        if count > 0:
            self._size -= sum(map(len, self._kept[:count]))
            del self._kept[:count]
            self._first += count

    # --- attempts ----------------------------------------------------------------------------------------------------

    def attach(self, inner: Any) -> Sending:
        """An attempt begins. The only one, which has nothing to catch up with, is written to directly."""
        sending = Sending(inner)
        self._check_limit()
        alone = not self._live
        self._live.append(sending)
        if alone and not self._count and not self.closed:
            self._direct = sending
        else:
            direct, self._direct = self._direct, None
            if direct is not None:
                self._start(direct)
            self._start(sending)
        return sending

    def detach(self, sending: Sending) -> None:
        """The attempt is over."""
        if sending in self._live:
            self._live.remove(sending)
        if sending is self._direct:
            self._direct = None
        if sending.pump is not None:
            sending.pump.cancel()
        self._move()

    def _start(self, sending: Sending) -> None:
        sending.pump = self._driver.home.loop.create_task(self._pump(sending))

    async def _pump(self, sending: Sending) -> None:
        """Send what was kept, and what comes, to one attempt."""
        with contextlib.suppress(*LOST):
            while True:
                while sending.sent < self._count:
                    message = self._kept[sending.sent - self._first]
                    self._driver.sends(sending.sent, message)
                    await sending.send(message)
                    sending.sent += 1
                    self._trim()
                    self._move()
                if self.closed:
                    await sending.done_writing()
                    return
                if self._live == [sending]:
                    sending.pump = None
                    self._direct = sending
                    return
                await self._change()

    def _move(self) -> None:
        """Something has changed: whoever waits looks again."""
        moved, self._moved = self._moved, []
        for waiter in moved:
            if not waiter.done():
                waiter.set_result(None)

    over = _move

    def _change(self) -> asyncio.Future[None]:
        waiter = self._driver.home.loop.create_future()
        self._moved.append(waiter)
        return waiter

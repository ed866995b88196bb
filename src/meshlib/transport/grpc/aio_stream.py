"""The driver of a call with a streamed request or response, or both.

An attempt is accepted when its response has begun: with initial metadata, or with the first message. Each attempt has a task
that waits for that (`_watch`) and reads the first message; the application's reads go on from there, straight to the inner
call. Empty initial metadata may be a response or the beginning of an answer that has only trailers, which grpc.aio does not
tell apart: it counts as a response when no status has followed within a `Grace`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from meshlib.engine.events import Begin, Headers, Message, RequestComplete
from meshlib.transport.grpc.aio_attempt import Attempt, Stage
from meshlib.transport.grpc.aio_driver import BEGIN, Driver
from meshlib.transport.grpc.aio_endpoint import Lane
from meshlib.transport.grpc.aio_home import Home
from meshlib.transport.grpc.aio_inner import is_ok, message_of, receiver
from meshlib.transport.grpc.aio_outbox import LOST, Outbox, Sending
from meshlib.transport.grpc.aio_outcome import outcome_of
from meshlib.transport.grpc.metadata import LazyHeaders

if TYPE_CHECKING:
    from meshlib.transport.grpc.aio_channel import Method

logger = logging.getLogger("meshlib.transport")

__all__ = ["EOF", "Grace", "StreamAttempt", "StreamDriver"]

GRACE = 0.05
"""Seconds after empty initial metadata until it is taken for the beginning of a response.

A server that answers before it has read the whole request sends its trailers, then a reset, with which C-core knows the status.
"""

LATE = 0.002
"""Seconds that the loop may come late to its timers and still count as one that has had time to look for a status."""

TURNS = 10
"""How often it is waited anew for a loop that comes late."""

EOF = grpc.aio.EOF
NOTHING: Any = object()
_BEGIN_STREAMED = Begin(complete=False)
_COMPLETE = RequestComplete()


class Grace:
    """Runs the task after GRACE seconds of a loop that had time for what came meanwhile: one that comes late has not looked."""

    __slots__ = ("_due", "_handle", "_loop", "_task", "_turns")

    def __init__(self, loop: asyncio.AbstractEventLoop, task: Callable[[], None]) -> None:
        self._loop = loop
        self._task = task
        self._turns = TURNS
        self._wait()

    def cancel(self) -> None:
        self._handle.cancel()

    def _wait(self) -> None:
        self._due = self._loop.time() + GRACE
        self._handle: asyncio.Handle = self._loop.call_at(self._due, self._over)

    def _over(self) -> None:
        self._turns -= 1
        if self._turns and self._loop.time() - self._due > LATE:
            self._wait()
        else:
            self._task()


class StreamAttempt(Attempt):
    """sending: its request messages, None where there is one. receive: reads its response, None for one message.

    committed: the engine has been told that the response began. watch: the task that waits for that. first: the message that it
    read ahead.
    """

    def __init__(self, driver: Driver, number: int, path: str, lane: Lane) -> None:
        super().__init__(driver, number, path, lane)
        self.answered = False
        self.committed = False
        self.first: Any = NOTHING
        self.receive: Callable[[], Awaitable[Any]] | None = None
        self.sending: Sending | None = None
        self.watch: asyncio.Task[None] | None = None


class StreamDriver(Driver):
    """arity: as grpc names it. request: the serialized message where there is only one. moved_at: when the application last
    read or wrote a message (monotonic seconds).
    """

    def __init__(
        self,
        home: Home,
        method: Method,
        metadata: Any,
        timeout: float | None,
        wait_for_ready: bool | None,
        options: dict[str, Any],
    ) -> None:
        self.arity = arity = method.arity
        self.one_response = arity == "stream_unary"
        self.moved_at = 0.0
        self._reading: StreamAttempt | None = None
        self.request: bytes | None = None
        self._source: asyncio.Task[None] | None = None
        self.outbox = outbox = Outbox(self) if arity.startswith("stream") else None
        super().__init__(
            home,
            method,
            metadata,
            timeout,
            wait_for_ready,
            options,
            None if outbox is None else outbox.replayable,
        )

    def begin(self) -> None:
        self.run(BEGIN if self.outbox is None else _BEGIN_STREAMED)

    def ended(self, attempt: Attempt) -> None:
        if self.call.observed and self.one_response and is_ok(attempt.inner):
            self.received, self.received_bytes = 1, len(message_of(attempt.inner) or b"")
        super().ended(attempt)

    def request_complete(self) -> None:
        if not self.over:
            self.run(_COMPLETE)

    # --- attempts ----------------------------------------------------------------------------------------------------

    def _new_attempt(self, number: int, path: str, lane: Lane) -> StreamAttempt:
        return StreamAttempt(self, number, path, lane)

    def _begin(self, attempt: Attempt, metadata: Any) -> Any:
        assert isinstance(attempt, StreamAttempt)
        multicallable = attempt.lane.multicallable(self.arity, attempt.path)
        timeout = self.time_left()
        if self.outbox is None:
            self.sent, self.sent_bytes = 1, len(self.request or b"")
            inner = multicallable(self.request, timeout=timeout, metadata=metadata, **self.options)
        else:
            inner = multicallable(None, timeout=timeout, metadata=metadata, **self.options)
        attempt.inner = inner
        if self.arity.endswith("stream"):
            attempt.receive = receiver(inner)
        attempt.watch = self.home.loop.create_task(self._watch(attempt))
        if self.outbox is not None:
            attempt.sending = self.outbox.attach(inner)
        return inner

    async def _watch(self, attempt: StreamAttempt) -> None:
        """Until the response of the attempt has begun."""
        grace = None
        try:
            metadata = await attempt.inner.initial_metadata()
            if attempt.inner.done():
                return
            if metadata:
                self._commit(attempt)
            else:
                grace = Grace(self.home.loop, partial(self._commit, attempt))
            if attempt.receive is not None:
                message = await attempt.receive()
                if message is not EOF:
                    attempt.answered = True
                    attempt.first = message
                    self._commit(attempt)
                    if attempt is self.accepted:
                        self._took(message)  # the status may come before the application does
        except (grpc.RpcError, asyncio.CancelledError):
            return  # the done callback of the inner call says how it ended
        finally:
            if grace is not None and (attempt.receive is not None or attempt.driver is None):
                grace.cancel()

    def _commit(self, attempt: StreamAttempt) -> None:
        if attempt.driver is not None and not attempt.committed:
            attempt.committed = True
            self.run(Headers(attempt.number, 200, LazyHeaders(attempt.response_headers), end=False))

    def detach(self, attempt: Attempt) -> None:
        super().detach(attempt)
        if self.outbox is not None:
            assert isinstance(attempt, StreamAttempt)
            if attempt.sending is not None:
                self.outbox.detach(attempt.sending)

    def due(self) -> None:
        if self.moved_at and not self.over:
            accepted = self.accepted
            if accepted is not None:
                self.call.handle(Message(accepted.number), self.moved_at)
        super().due()

    def _finish(self, error: BaseException | None) -> None:
        super()._finish(error)
        if self._source is not None:
            self._source.cancel()
        if self.outbox is not None:
            self.outbox.over()

    async def wait_connected(self) -> None:
        """Until an attempt is on its way, or the call is over."""
        while not self.over:
            sent = [attempt for attempt in self._attempts if attempt.stage is Stage.SENT]
            if not sent:
                await self._next()
                continue
            try:
                await sent[-1].inner.wait_for_connection()
            except LOST:
                continue  # the call is over, or has no attempt now
            return

    # --- the request -------------------------------------------------------------------------------------------------

    async def write(self, message: bytes) -> bool:
        """False: the call ended before an attempt took the message."""
        assert self.outbox is not None
        self.moved_at = self.home.monotonic()
        try:
            return await self.outbox.put(message)
        except asyncio.CancelledError:
            self.give_up()
            raise

    def sends(self, number: int, message: bytes) -> None:
        """An attempt sends this message, from 0, of the request; maybe not the first one that does."""
        if number == self.sent:
            self.sent += 1
            self.sent_bytes += len(message)

    async def done_writing(self) -> None:
        assert self.outbox is not None
        try:
            await self.outbox.close()
        except asyncio.CancelledError:
            self.give_up()
            raise

    def consume(self, source: AsyncIterable[Any] | Iterable[Any], serialize: Any) -> None:
        """Send what the application's iterator gives."""
        self._source = self.home.loop.create_task(self._consume(source, serialize))

    async def _consume(self, source: AsyncIterable[Any] | Iterable[Any], serialize: Any) -> None:
        write = self.write
        try:
            if isinstance(source, AsyncIterable):
                async for message in source:
                    if self.over or not await write(serialize(message)):
                        return
            else:
                for message in source:
                    if self.over or not await write(serialize(message)):
                        return
            await self.done_writing()
        except asyncio.CancelledError:
            self.give_up()
        except Exception:  # as grpc.aio: an iterator that raises cancels its call
            logger.debug("the request iterator of a call raised", exc_info=True)
            self.give_up()

    # --- the response ------------------------------------------------------------------------------------------------

    async def read(self) -> Any:
        """The next message, serialized; EOF at the end of a response that went well. Raises how it ended otherwise."""
        attempt = self._reading
        if attempt is None:
            attempt = await self._open()
            if attempt.first is not NOTHING:
                first, attempt.first = attempt.first, NOTHING
                return first
        assert attempt.receive is not None
        try:
            message = await attempt.receive()
            if message is EOF:
                await self.wait_over()
        except asyncio.CancelledError:
            self.give_up()
            raise
        if message is EOF:
            self._raise_failure()
        else:
            self.moved_at = self.home.monotonic()
            self._took(message)
        return message

    def _took(self, message: bytes) -> None:
        self.received += 1
        self.received_bytes += len(message)

    async def _open(self) -> StreamAttempt:
        """Until an attempt is accepted and its first message has been read ahead."""
        try:
            await self.wait_settled()
        except asyncio.CancelledError:
            self.give_up()
            raise
        attempt = self.accepted
        if attempt is None:
            self._raise_failure()
        assert isinstance(attempt, StreamAttempt) and attempt.watch is not None
        await attempt.watch
        self._reading = attempt
        return attempt

    def _raise_failure(self) -> None:
        failure = outcome_of(self).failure()
        if failure is not None:
            raise failure

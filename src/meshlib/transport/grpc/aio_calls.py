"""The call objects of asyncio: grpc.aio's own surface over a driver.

They may be awaited and asked as often as one likes. An application that lets go of a stream gives it up, as with grpc.aio; a
unary call goes on without it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Generator
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from meshlib.engine.call import CallInfo
from meshlib.runtime.logs import failed
from meshlib.transport.grpc.aio_driver import Driver
from meshlib.transport.grpc.aio_lean import LeanCall
from meshlib.transport.grpc.aio_outcome import initial_metadata, outcome_of
from meshlib.transport.grpc.aio_stream import EOF, StreamDriver
from meshlib.transport.grpc.aio_unary import UnaryDriver

if TYPE_CHECKING:
    from meshlib.observe.decision import Decision

__all__ = ["StreamStreamCall", "StreamUnaryCall", "UnaryStreamCall", "UnaryUnaryCall"]

STYLE = "The iterator and read/write APIs may not be mixed on a single RPC."
FINISHED = "RPC already finished."
HALF_CLOSED = 'RPC is half closed after calling "done_writing".'

logger = logging.getLogger("meshlib.transport")

Deserializer = Callable[[bytes], Any]


def deserialized(message: bytes, deserializer: Deserializer | None) -> Any:
    """As grpc.aio has it: a message that cannot be read is logged and becomes None."""
    if deserializer is None:
        return message
    try:
        return deserializer(message)
    except Exception:  # noqa: BLE001 - the application's
        failed(logger, "a message of a gRPC call can't be deserialized")
        return None


class _Call:
    """What all call objects have."""

    _driver: Driver
    _deserializer: Deserializer | None

    def __init__(self, driver: Driver, deserializer: Deserializer | None) -> None:
        self._driver = driver
        self._deserializer = deserializer

    @property
    def meshlib(self) -> CallInfo:
        """What the mesh did with the call: cluster, route, attempts, flags."""
        return self._driver.info

    @property
    def decision(self) -> Decision | None:
        """Why the call went where it went, with every attempt."""
        return self.meshlib.decision

    def cancel(self) -> bool:
        return self._driver.give_up()

    def cancelled(self) -> bool:
        return self._driver.over and outcome_of(self._driver).code is grpc.StatusCode.CANCELLED

    def done(self) -> bool:
        return self._driver.over

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self._driver.when_over(partial(callback, self))

    def time_remaining(self) -> float | None:
        return self._driver.time_left()

    async def initial_metadata(self) -> Any:
        return await initial_metadata(self._driver)

    async def trailing_metadata(self) -> Any:
        await self._driver.wait_over()
        return outcome_of(self._driver).trailing

    async def code(self) -> grpc.StatusCode:
        await self._driver.wait_over()
        return outcome_of(self._driver).code

    async def details(self) -> str:
        await self._driver.wait_over()
        return outcome_of(self._driver).details

    async def debug_error_string(self) -> str | None:
        await self._driver.wait_over()
        return outcome_of(self._driver).debug

    def _raise_failure(self) -> None:
        """Of a call that is over."""
        failure = outcome_of(self._driver).failure()
        if failure is not None:
            raise failure

    def __repr__(self) -> str:
        if not self._driver.over:
            return f"<{type(self).__name__} {self._driver.info!r}>"
        outcome = outcome_of(self._driver)
        return f"<{type(self).__name__} of RPC that terminated with {outcome.code}: {outcome.details!r}>"


_MISSING: Any = object()


class _OneResponse(_Call):
    """A call that gives one message."""

    _response = _MISSING

    def __await__(self) -> Generator[Any, None, Any]:
        driver = self._driver
        inner = driver.direct
        if type(inner) is LeanCall:
            try:
                yield from inner.future.__await__()
            except asyncio.CancelledError:
                driver.give_up()
                raise
        elif inner is not None:
            yield from self._await_inner(inner)
        if not driver.over:
            try:
                yield from driver.wait_over().__await__()
            except asyncio.CancelledError:
                driver.give_up()
                raise
        accepted = driver.accepted
        if accepted is None or driver.error is not None or type(accepted.inner) is not LeanCall:
            self._raise_failure()
            assert accepted is not None
        elif not accepted.inner.ok:
            self._raise_failure()
        if self._response is _MISSING:
            message = yield from accepted.inner.__await__()
            self._response = deserialized(message, self._deserializer)
        return self._response

    def _await_inner(self, inner: Any) -> Generator[Any, None, None]:
        """Until a call of grpc.aio is over, whatever becomes of it."""
        task = asyncio.current_task()
        cancelling = task.cancelling() if task is not None else 0
        try:
            yield from inner.__await__()
        except grpc.RpcError:
            return  # the driver knows
        except asyncio.CancelledError:
            if not self._driver.over and task is not None and task.cancelling() > cancelling:
                self._driver.give_up()
                raise


class _Grip:
    """The application holds the stream: by its call object or by an iterator over its messages."""

    __slots__ = ("_driver",)

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    def __del__(self) -> None:
        if not self._driver.over:
            self._driver.abandon()


async def _messages(
    driver: StreamDriver, deserializer: Deserializer | None, _grip: _Grip
) -> AsyncIterator[Any]:
    read = driver.read
    if deserializer is None:
        while (message := await read()) is not EOF:
            yield message
    else:
        while (message := await read()) is not EOF:
            yield deserialized(message, deserializer)


class _ManyResponses(_Call):
    """A call that gives messages, to an iterator or to `read`, not to both."""

    _driver: StreamDriver

    def __init__(self, driver: StreamDriver, deserializer: Deserializer | None) -> None:
        super().__init__(driver, deserializer)
        self._iterator: AsyncIterator[Any] | None = None
        self._reads = False
        self._grip = _Grip(driver)

    def __aiter__(self) -> AsyncIterator[Any]:
        if self._reads:
            raise grpc.aio.UsageError(STYLE)
        if self._iterator is None:
            self._iterator = _messages(self._driver, self._deserializer, self._grip)
        return self._iterator

    async def read(self) -> Any:
        """The next message; `grpc.aio.EOF` at the end."""
        if self._iterator is not None:
            raise grpc.aio.UsageError(STYLE)
        self._reads = True
        message = await self._driver.read()
        return message if message is EOF else deserialized(message, self._deserializer)


class _ManyRequests(_Call):
    """A call that is given messages, by an iterator or by `write`, not by both."""

    _driver: StreamDriver

    def feed(self, requests: Any, serialize: Callable[[Any], bytes]) -> None:
        self._iterated = requests is not None
        self._serialize = serialize
        if requests is not None:
            self._driver.consume(requests, serialize)

    @property
    def _done_writing_flag(self) -> bool:
        """grpc.aio's interceptors look at it."""
        assert self._driver.outbox is not None
        return self._driver.outbox.closed

    async def write(self, request: Any) -> None:
        """Returns when the message is on its way.

        Raises asyncio.InvalidStateError: the call is over, or `done_writing` was called; AioRpcError: it ended meanwhile.
        """
        if self._iterated:
            raise grpc.aio.UsageError(STYLE)
        if self._driver.over:
            raise asyncio.InvalidStateError(FINISHED)
        if self._done_writing_flag:
            raise asyncio.InvalidStateError(HALF_CLOSED)
        if not await self._driver.write(self._serialize(request)):
            self._raise_failure()
            raise asyncio.InvalidStateError(FINISHED)

    async def done_writing(self) -> None:
        """The request is complete. Idempotent."""
        if self._iterated:
            raise grpc.aio.UsageError(STYLE)
        if not self._driver.over:
            await self._driver.done_writing()


class UnaryUnaryCall(UnaryDriver, _OneResponse, grpc.aio.UnaryUnaryCall):  # type: ignore[misc]
    """One message each way. It is its own driver: one object less for each call."""

    def __await__(self) -> Generator[Any, None, Any]:
        inner = self.direct
        if type(inner) is LeanCall and self._response is _MISSING:
            try:
                yield from inner.future
            except asyncio.CancelledError:
                self.give_up()
                raise
            accepted, message = self.accepted, inner.message
            if (
                message is None
                or self.error is not None
                or accepted is None
                or accepted.inner is not inner
                or not self.over
            ):
                return (yield from super().__await__())
            deserializer = self._deserializer
            self._response = message if deserializer is None else deserialized(message, deserializer)
            return self._response
        return (yield from super().__await__())

    @property
    def _driver(self) -> Driver:  # type: ignore[override]
        return self

    async def wait_for_connection(self) -> None:
        await self._driver.wait_over()
        self._raise_failure()


class _StreamCall(_Call):
    _driver: StreamDriver

    async def wait_for_connection(self) -> None:
        """Until an attempt is connected. Raises AioRpcError when none could be."""
        await self._driver.wait_connected()
        if self._driver.over:
            self._raise_failure()


class UnaryStreamCall(_ManyResponses, _StreamCall, grpc.aio.UnaryStreamCall):  # type: ignore[misc]
    """One message there, many back."""


class StreamUnaryCall(_OneResponse, _ManyRequests, _StreamCall, grpc.aio.StreamUnaryCall):  # type: ignore[misc]
    """Many messages there, one back."""


class StreamStreamCall(_ManyResponses, _ManyRequests, _StreamCall, grpc.aio.StreamStreamCall):  # type: ignore[misc]
    """Many messages both ways."""

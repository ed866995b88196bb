"""One attempt of a unary call, straight on C-core's objects, with less of grpc.aio's bookkeeping around it.

grpc.aio makes a task for each call, a set of weak references to its calls, and a Metadata object whether there is any or not. An
attempt needs none of that. `LeanCall` starts the coroutine of C-core's call itself (`_AioCall.unary_unary`, which waits for one
future) and goes on with it when that future is done, in the same turn of the loop as whoever awaits the future. It answers the
questions that grpc.aio's own call object answers.

Those objects are grpcio's own business: where they are not what they have been in grpcio 1.75 to 1.85, `lean_call` gives None
before anything is sent, and the attempt is a call of grpc.aio.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from typing import Any

import grpc
import grpc.aio

from meshlib.routing.request import Headers
from meshlib.runtime.clock import SystemClock
from meshlib.transport.grpc.aio_inner import result_of
from meshlib.transport.grpc.errors import CODES
from meshlib.transport.grpc.metadata import trailers_of

try:
    from grpc._cython import cygrpc

    _context: Callable[[], Any] = cygrpc.build_census_context
except (ImportError, AttributeError):  # pragma: no cover - another grpcio
    _context = dict

__all__ = ["LeanCall", "lean_call"]

CUT = "Locally cancelled by application!"

_wall = SystemClock.time  # C-core takes deadlines in seconds since the epoch
_usable: bool | None = None  # None: no call has been made yet


class LeanCall:
    """future: done when the call has ended or was cancelled. message: the response, None when it has another status than OK.

    core: C-core's own call.
    """

    __slots__ = ("_ended", "_steps", "core", "future", "message")

    def __init__(
        self,
        core: Any,
        request: bytes,
        metadata: tuple[Any, ...],
        ended: Callable[[Any], None] | None = None,
    ) -> None:
        """ended: as for `add_done_callback`. Raises what C-core raises for a request that it does not take."""
        self.core = core
        self._ended = ended
        self.message: bytes | None = None
        self._steps = steps = core.unary_unary(request, metadata, _context())
        self.future: asyncio.Future[Any] = steps.send(None)
        self.future._asyncio_future_blocking = (
            False  # as a task does with the future that it is given to wait for
        )
        if ended is not None:
            self.future.add_done_callback(self._go_on)

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """Called once, when the call has ended. Only one, and right after the call was made."""
        self._ended = callback
        self.future.add_done_callback(self._go_on)

    def _go_on(self, future: asyncio.Future[Any]) -> None:
        ended, self._ended = self._ended, None
        if ended is None:  # cancelled by us
            self._steps.close()
            return
        if future.cancelled():  # whoever awaited it was cancelled
            self.core.cancel(CUT)
            self._steps.close()
        else:
            try:
                self._steps.send(None)
            except StopIteration as stop:
                self.message = stop.value
            except grpc.aio.BaseError as error:
                self.core.set_internal_error(str(error))
        ended(self)

    def cancel(self) -> bool:
        if self._ended is None:
            return False
        self._ended = None
        self.core.cancel(CUT)  # whereupon C-core ends the operations, and so the future
        return True

    def __await__(self) -> Generator[Any, None, bytes | None]:
        if not self.future.done():
            yield from self.future.__await__()
        return self.message

    def trailers(self) -> Headers:
        """Of a call that went well, with its status."""
        return trailers_of(lambda: self._status().trailing_metadata())

    @property
    def ok(self) -> bool:
        """Of a call that has ended."""
        return self.core.is_ok()  # type: ignore[no-any-return]

    def _status(self) -> Any:
        return result_of(self.core.status())

    async def code(self) -> grpc.StatusCode:
        return CODES[self._status().code()]

    async def details(self) -> str:
        return self._status().details() or ""

    async def debug_error_string(self) -> str | None:
        text: str | None = self._status().debug_error_string()
        return text

    async def initial_metadata(self) -> Any:
        return grpc.aio.Metadata(*(await self.core.initial_metadata() or ()))

    async def trailing_metadata(self) -> Any:
        return grpc.aio.Metadata(*(self._status().trailing_metadata() or ()))


def lean_call(
    channel: Any,
    method: bytes,
    request: bytes,
    time_left: float | None,
    metadata: Any,
    ended: Callable[[Any], None] | None = None,
) -> LeanCall | None:
    """Start a call on a channel of grpc.aio; None: nothing was sent, this grpcio's objects are others. ended: its done callback.

    Raises grpc.aio.BaseError and TypeError for what C-core does not take: metadata, or a channel that is closed.
    """
    global _usable
    if _usable is False:
        return None
    try:
        core = channel._channel.call(
            method, None if time_left is None else _wall() + time_left, None, None, 0
        )
        if _usable is None:
            core.unary_unary, core.is_ok, core.status, core.set_internal_error  # noqa: B018 - they must be there
            _usable = True
    except (AttributeError, TypeError):  # pragma: no cover - another grpcio
        _usable = False
        return None
    if metadata is None:
        return LeanCall(core, request, (), ended)
    return LeanCall(core, request, tuple((key, value) for key, value in metadata), ended)

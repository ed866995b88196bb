"""The call objects of futures and streams: what grpcio's rendezvous objects are, over a `Flight`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

import grpc

from meshlib.engine.call import CallInfo
from meshlib.runtime.logs import failed
from meshlib.runtime.timers import timers
from meshlib.transport.grpc.metadata import Metadata
from meshlib.transport.grpc.sync_flight import Flight

if TYPE_CHECKING:
    from meshlib.observe.decision import Decision

__all__ = ["MeshRpc", "MeshStream"]

logger = logging.getLogger("meshlib.transport")


class MeshRpc(grpc.Call, grpc.Future):  # type: ignore[misc]
    """A call under way, or over: grpc.Call and grpc.Future. meshlib: what the mesh did with it.

    One that is dropped before its end is cancelled.
    """

    def __init__(self, flight: Flight) -> None:
        self._flight = flight
        self.meshlib: CallInfo = flight.info
        timers().ready()

    @property
    def decision(self) -> Decision | None:
        """Why the call went where it went, with every attempt."""
        return self.meshlib.decision

    def __del__(self) -> None:
        flight = getattr(self, "_flight", None)
        if flight is not None:
            flight.drop()

    def outcome(self) -> Any:
        """The response, waited for. Raises the error, also CANCELLED as what it is."""
        flight = self._flight
        flight.await_over()
        if flight.error is not None:
            raise flight.error
        return flight.response

    # --- grpc.Call ---------------------------------------------------------------------------------------------------

    def initial_metadata(self) -> Metadata:
        return self._flight.initial_metadata()

    def trailing_metadata(self) -> Metadata:
        flight = self._flight
        flight.await_over()
        if flight.error is not None:
            return flight.error.trailing_metadata()
        return flight.ended.trailing if flight.ended is not None else ()

    def code(self) -> grpc.StatusCode:
        flight = self._flight
        flight.await_over()
        return grpc.StatusCode.OK if flight.error is None else flight.error.code()

    def details(self) -> str:
        flight = self._flight
        flight.await_over()
        if flight.error is not None:
            return flight.error._details
        return flight.ended.details if flight.ended is not None else ""

    def debug_error_string(self) -> str | None:
        flight = self._flight
        flight.await_over()
        if flight.error is not None:
            return flight.error.debug_error_string()
        return flight.ended.debug if flight.ended is not None else None

    def is_active(self) -> bool:
        return not self._flight.over

    def time_remaining(self) -> float | None:
        """Seconds until the caller's deadline, None without one."""
        return self._flight.time_remaining()

    def cancel(self) -> bool:
        return self._flight.cancel()

    def add_callback(self, callback: Callable[[], None]) -> bool:
        return self._flight.add_callback(_guarded(callback))

    # --- grpc.Future -------------------------------------------------------------------------------------------------

    def cancelled(self) -> bool:
        return self._flight.cancelled

    def running(self) -> bool:
        return not self._flight.over

    def done(self) -> bool:
        return self._flight.over

    def _await(self, timeout: float | None) -> None:
        if not self._flight.await_over(timeout):
            raise grpc.FutureTimeoutError
        if self._flight.cancelled:
            raise grpc.FutureCancelledError

    def result(self, timeout: float | None = None) -> Any:
        """Raises FutureTimeoutError, FutureCancelledError, or the call's error."""
        self._await(timeout)
        return self.outcome()

    def exception(self, timeout: float | None = None) -> BaseException | None:
        self._await(timeout)
        return self._flight.error

    def traceback(self, timeout: float | None = None) -> TracebackType | None:
        self._await(timeout)
        if self._flight.error is None:
            return None
        try:
            raise self._flight.error
        except grpc.RpcError:
            return sys.exc_info()[2]

    def add_done_callback(self, fn: Callable[[Any], None]) -> None:
        if not self._flight.add_callback(_guarded(lambda: fn(self))):
            fn(self)

    def __repr__(self) -> str:
        flight = self._flight
        state = "active" if not flight.over else "OK" if flight.error is None else flight.error.code().name
        return f"<{type(self).__name__} {state} {self.meshlib!r}>"


class MeshStream(MeshRpc):
    """A response stream: iterate over its messages. Each is taken from the inner call by the thread that asks for it."""

    def __init__(self, flight: Flight) -> None:
        super().__init__(flight)
        self._rpc: Any = None
        self._monotonic = flight.monotonic

    def __iter__(self) -> MeshStream:
        return self

    def __next__(self) -> Any:
        rpc = self._rpc
        if rpc is None:
            first = self._flight.first()
            if first is None:
                return self._end()
            self._rpc = first[0].rpc
            return first[1]
        try:
            message = next(rpc)
        except (StopIteration, grpc.RpcError):
            return self._end()
        self._flight.active_at = self._monotonic()
        return message

    def next(self) -> Any:
        return self.__next__()

    def _end(self) -> Any:
        flight = self._flight
        flight.await_over()
        if flight.error is not None:
            raise flight.error
        raise StopIteration

    def result(self, timeout: float | None = None) -> Any:
        """Of a stream: itself, once it is over."""
        self._await(timeout)
        if self._flight.error is not None:
            raise self._flight.error
        return self


def _guarded(callback: Callable[[], None]) -> Callable[[], None]:
    """An error in it is logged: the thread that runs it is not the application's."""

    def run() -> None:
        try:
            callback()
        except Exception:  # noqa: BLE001 - the application's, on a thread of ours
            failed(logger, "a callback of a gRPC call failed")

    return run

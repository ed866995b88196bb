"""What blocking unary calls give back beside the response."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

import grpc

from meshlib.engine.call import CallInfo
from meshlib.transport.grpc.metadata import Metadata
from meshlib.transport.grpc.over import OverCall

if TYPE_CHECKING:
    from meshlib.observe.decision import Decision

__all__ = ["SucceededCall", "Waker"]


class Waker:
    """What a blocking call waits on while it has no connection. `wake` may be called from any thread.

    The event is made when somebody waits: most calls never do. forward: who is woken instead, once the call is handed over.
    """

    woken = False
    forward: Callable[[], None] | None = None
    _event: threading.Event | None = None

    def wake(self) -> None:
        self.woken = True
        if self.forward is not None:
            self.forward()
            return
        event = self._event
        if event is not None:
            event.set()

    def wait(self, limit: float) -> None:
        """Until it is woken, at most `limit` seconds. May return early."""
        if self._event is None:
            self._event = threading.Event()  # a wake-up from now on sets it
            if self.woken:
                return
        self._event.wait(min(limit, threading.TIMEOUT_MAX))

    def take(self) -> bool:
        """Whether it was woken since the last time."""
        if not self.woken:
            return False
        self.woken = False
        if self._event is not None:
            self._event.clear()
            if self.woken:  # in between
                self._event.set()
        return True


class SucceededCall(OverCall):
    """The call object of `with_call`: over, and OK. meshlib: what the mesh did with it."""

    __slots__ = ("_initial", "_inner", "meshlib")

    def __init__(self, inner: Any, info: CallInfo, initial: Metadata | None) -> None:
        """initial: the initial metadata after the route's edits; None: as it came."""
        self._inner = inner
        self._initial = initial
        self.meshlib = info

    @property
    def decision(self) -> Decision | None:
        """Why the call went where it went, with every attempt."""
        return self.meshlib.decision

    def initial_metadata(self) -> Metadata:
        return self._inner.initial_metadata() if self._initial is None else self._initial

    def trailing_metadata(self) -> Metadata:
        return self._inner.trailing_metadata()  # type: ignore[no-any-return]

    def code(self) -> grpc.StatusCode:
        return self._inner.code()

    def details(self) -> str:
        return self._inner.details()  # type: ignore[no-any-return]

    def debug_error_string(self) -> str:
        return self._inner.debug_error_string()  # type: ignore[no-any-return]

    def result(self, timeout: float | None = None) -> Any:
        return self._inner.result(timeout)

    def exception(self, timeout: float | None = None) -> None:
        return None

    def traceback(self, timeout: float | None = None) -> TracebackType | None:
        return None

    def add_done_callback(self, fn: Callable[[Any], None]) -> None:
        fn(self)

    def __repr__(self) -> str:
        return f"<SucceededCall {self.meshlib!r}>"

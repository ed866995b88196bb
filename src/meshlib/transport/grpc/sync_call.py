"""What blocking unary calls give back beside the response."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

import grpc

from meshlib.engine.call import CallInfo
from meshlib.transport.grpc.metadata import Metadata
from meshlib.transport.grpc.over import OverCall

if TYPE_CHECKING:
    from meshlib.observe.decision import Decision

__all__ = ["SucceededCall"]


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

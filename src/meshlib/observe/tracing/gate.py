"""What every call passes before tracing: whether there is anything to do for it.

Without an SDK, and without a context that could go on with the request, there is not. That is most calls of most processes, so
they are let past here, by what is compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from opentelemetry import context as contexts
from opentelemetry import trace

if TYPE_CHECKING:
    from meshlib.engine.call import Call
    from meshlib.observe.tracing.observer import TracingObserver

__all__ = ["Gate"]


def _current_context() -> Callable[[], Any]:
    """What gives the context that the application is in: OpenTelemetry's own function is two calls longer."""
    variable = getattr(getattr(contexts, "_RUNTIME_CONTEXT", None), "_current_context", None)
    return variable.get if isinstance(variable, ContextVar) else contexts.get_current


class Gate:
    """An observer of calls that tells those to the one behind it which concern it."""

    def __init__(self, behind: TracingObserver) -> None:
        self._current = _current_context()
        self._trace: Any = trace
        self._behind = behind
        self._silent = False

    def begun(self, call: Call, now: float) -> None:
        if self._silent and not self._current() and getattr(self._trace, "_TRACER_PROVIDER", self) is None:
            return
        self._behind.begun(call, now)
        self._silent = self._behind.silent

    def routed(self, call: Call, now: float) -> None:
        if call.notes is not None:
            self._behind.routed(call, now)

"""What goes on with a request: the context, in the headers that the globally configured propagator writes.

With the propagators that OpenTelemetry has by default (W3C trace context and baggage) the headers are written here, which costs
a fifth; any others are asked. A request on which the application has set such a header itself stays as it is.
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

from opentelemetry import baggage, propagate, trace
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.context import Context
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.trace import NonRecordingSpan, SpanContext
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

if TYPE_CHECKING:
    from opentelemetry.propagators.textmap import TextMapPropagator

    from meshlib.observe.tracing.spans import Recording
    from meshlib.routing.request import RequestView

__all__ = ["Headers", "Propagation"]

Headers = tuple[tuple[str, str], ...]

_NOT_ZERO = 1 << 64 | 1
"""Neither a trace's identifier nor a span's is zero."""

_BAGGAGE = W3CBaggagePropagator()
_BAGGAGE_KEY: str = getattr(baggage, "_BAGGAGE_KEY", "")


class Propagation:
    """Follows the global propagator, also when another one is set later."""

    __slots__ = ("_fields", "_propagator", "_w3c")

    def __init__(self) -> None:
        self._propagator: TextMapPropagator | None = None
        self._fields: tuple[str, ...] = ()
        self._w3c = False

    def _current(self) -> TextMapPropagator:
        propagator = propagate.get_global_textmap()
        if propagator is not self._propagator:
            self._fields = tuple(sorted({name.lower() for name in propagator.fields} - {"baggage"}))
            self._w3c = _is_default(propagator)
            self._propagator = propagator
        return propagator

    def set_by_application(self, request: RequestView) -> bool:
        """Whether the application sends a trace context by itself."""
        self._current()
        if self._w3c:
            return request.has("traceparent")
        return any(request.has(name) for name in self._fields)

    def headers(self, request: RequestView, context: Context, span: Recording) -> Headers:
        """What to send in this context with this span in it."""
        propagator = self._current()
        if self._w3c:
            parent = _traceparent(span.context)
            return (*parent, *_baggage(request, context)) if _BAGGAGE_KEY in context else parent
        return _injected(propagator, request, trace.set_span_in_context(span.span, context))

    def passed(self, request: RequestView, context: Context, above: SpanContext | None) -> Headers:
        """The context as it is. above: the span in it, if it is a valid one."""
        propagator = self._current()
        if self._w3c:
            parent = () if above is None else _traceparent(above)
            return (*parent, *_baggage(request, context)) if _BAGGAGE_KEY in context else parent
        return _injected(propagator, request, context)

    def unsampled(self, request: RequestView, context: Context, random: Random) -> Headers:
        """The same for a trace that begins with this call and is not recorded, so that nobody behind records a piece of it."""
        propagator = self._current()
        drawn = random.getrandbits(192) | _NOT_ZERO
        if self._w3c:
            digits = f"{drawn:048x}"
            parent = ("traceparent", f"00-{digits[:32]}-{digits[32:]}-00")
            return (parent, *_baggage(request, context)) if _BAGGAGE_KEY in context else (parent,)
        span = NonRecordingSpan(SpanContext(drawn >> 64, drawn & (1 << 64) - 1, is_remote=False))
        return _injected(propagator, request, trace.set_span_in_context(span, context))


def _injected(propagator: TextMapPropagator, request: RequestView, context: Context) -> Headers:
    carrier: dict[str, str] = {}
    propagator.inject(carrier, context)
    return tuple((name.lower(), value) for name, value in carrier.items() if not request.has(name.lower()))


def _is_default(propagator: TextMapPropagator) -> bool:
    if type(propagator) is not CompositePropagator:
        return False
    kinds = [type(member) for member in getattr(propagator, "_propagators", ())]
    return bool(_BAGGAGE_KEY) and kinds == [TraceContextTextMapPropagator, W3CBaggagePropagator]


def _traceparent(context: SpanContext) -> Headers:
    parent = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
    state = context.trace_state
    if not state:
        return (("traceparent", parent),)
    return (("traceparent", parent), ("tracestate", state.to_header()))


def _baggage(request: RequestView, context: Context) -> Headers:
    if not baggage.get_all(context) or request.has("baggage"):
        return ()
    carrier: dict[str, str] = {}
    _BAGGAGE.inject(carrier, context)
    return tuple(carrier.items())

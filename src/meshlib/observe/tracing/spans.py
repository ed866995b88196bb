"""Spans as the observer makes them: at once and through the API, or late and straight to the processors of an SDK.

A span of OpenTelemetry's SDK is made for code that may do anything to it at any time: a lock, attributes that are checked one
by one, two copies at the end. Ours belong to nobody but us: a name, a context and a dict until they are over. So where the
tracer is the SDK's own, and nobody wants to see spans begin or limits their attributes, the sampler is asked, the identifiers
are drawn, and one finished span goes to the processors (`SdkSpans`). Everywhere else it is the API (`ApiSpans`). Either way the
same spans come out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import (
    NonRecordingSpan,
    NoOpTracer,
    NoOpTracerProvider,
    ProxyTracerProvider,
    SpanContext,
    SpanKind,
    Status,
    TraceFlags,
    Tracer,
    TracerProvider,
)

__all__ = ["ApiSpans", "Recording", "SdkSpans", "Spans", "spans_of"]

Attributes = dict[str, Any]

UNSET = Status()


class Recording:
    """A span that will be exported. attributes: may be changed until it ends. start: nanoseconds since 1970."""

    __slots__ = ("attributes", "context", "inner", "kind", "name", "parent", "start", "status")

    def __init__(
        self,
        name: str,
        kind: SpanKind,
        context: SpanContext,
        parent: SpanContext | None,
        start: int,
        attributes: Attributes,
        inner: Any = None,
    ) -> None:
        self.name = name
        self.kind = kind
        self.context = context
        self.parent = parent
        self.start = start
        self.attributes = attributes
        self.status = UNSET
        self.inner = inner

    @property
    def span(self) -> trace.Span:
        """For a context."""
        if self.inner is not None:
            return self.inner  # type: ignore[no-any-return]
        return NonRecordingSpan(self.context)


class Spans(Protocol):
    """Where spans come from and go to."""

    def drops(self, above: SpanContext | None) -> bool:
        """Whether it is known without asking that no span below this one is recorded; None: one that begins a trace."""

    def root(
        self, name: str, kind: SpanKind, parent: Context, start: int, attributes: Attributes
    ) -> Recording | None:
        """A span in this context; None: it is not recorded."""

    def child(
        self, name: str, kind: SpanKind, of: Recording, start: int, attributes: Attributes
    ) -> Recording | None:
        """A span below one of ours."""

    def end(self, span: Recording, end: int) -> None:
        """end: nanoseconds since 1970."""


class ApiSpans:
    """By the API alone, whatever is behind it."""

    __slots__ = ("_tracer",)

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def drops(self, above: SpanContext | None) -> bool:
        return False

    def root(
        self, name: str, kind: SpanKind, parent: Context, start: int, attributes: Attributes
    ) -> Recording | None:
        inner = self._tracer.start_span(name, parent, kind, attributes, start_time=start)
        if not inner.is_recording():
            return None
        return Recording(name, kind, inner.get_span_context(), None, start, {}, inner)

    def child(
        self, name: str, kind: SpanKind, of: Recording, start: int, attributes: Attributes
    ) -> Recording | None:
        return self.root(name, kind, trace.set_span_in_context(of.inner, Context()), start, attributes)

    def end(self, span: Recording, end: int) -> None:
        inner = span.inner
        if span.attributes:
            inner.set_attributes(span.attributes)
        if span.status is not UNSET:
            inner.set_status(span.status)
        inner.end(end)


class SdkSpans:
    """Straight to the processors of the SDK's tracer. A child is sampled as its parent was."""

    __slots__ = ("_drops", "_ids", "_processor", "_random", "_readable", "_resource", "_sampler", "_scope")

    def __init__(self, tracer: Any) -> None:
        from opentelemetry.sdk.trace import ReadableSpan

        self._readable = ReadableSpan
        self._ids = tracer.id_generator
        self._sampler = tracer.sampler
        self._drops = _known_drops(tracer.sampler)
        self._processor = tracer.span_processor
        self._resource = tracer.resource
        self._scope = tracer._instrumentation_scope
        self._random = 0
        drawn_at_random = getattr(self._ids, "is_trace_id_random", None)
        if drawn_at_random is not None and drawn_at_random():
            self._random = int(getattr(TraceFlags, "RANDOM_TRACE_ID", 0))

    def drops(self, above: SpanContext | None) -> bool:
        return self._drops[0 if above is None else _relation(above)]

    def root(
        self, name: str, kind: SpanKind, parent: Context, start: int, attributes: Attributes
    ) -> Recording | None:
        above: SpanContext | None = trace.get_current_span(parent).get_span_context()
        if above is None or not above.is_valid:
            above = None
        if above is None:
            trace_id, random = self._ids.generate_trace_id(), self._random
        else:
            trace_id, random = above.trace_id, above.trace_flags & 2
        result = self._sampler.should_sample(parent, trace_id, name, kind, attributes, ())
        decision = result.decision
        if not decision.is_recording():
            return None
        flags = TraceFlags((TraceFlags.SAMPLED if decision.is_sampled() else 0) | random)
        context = SpanContext(trace_id, self._ids.generate_span_id(), False, flags, result.trace_state)
        if result.attributes is not attributes and result.attributes:
            attributes.update(result.attributes)
        return Recording(name, kind, context, above, start, attributes)

    def child(
        self, name: str, kind: SpanKind, of: Recording, start: int, attributes: Attributes
    ) -> Recording | None:
        above = of.context
        context = SpanContext(
            above.trace_id, self._ids.generate_span_id(), False, above.trace_flags, above.trace_state
        )
        return Recording(name, kind, context, above, start, attributes)

    def end(self, span: Recording, end: int) -> None:
        self._processor.on_end(
            self._readable(
                name=span.name,
                context=span.context,
                parent=span.parent,
                resource=self._resource,
                attributes=span.attributes,
                kind=span.kind,
                status=span.status,
                start_time=span.start,
                end_time=end,
                instrumentation_scope=self._scope,
            )
        )


def _relation(above: SpanContext) -> int:
    """By whether the parent is sampled, and whether it is of another process; 0 is no parent."""
    return 1 + above.trace_flags.sampled + 2 * above.is_remote


def _known_drops(sampler: Any) -> tuple[bool, ...]:
    """For each relation to a parent: whether this sampler is known to say no. It need not be asked then."""
    from opentelemetry.sdk.trace.sampling import Decision, ParentBased, StaticSampler

    if type(sampler) is StaticSampler:
        return (getattr(sampler, "_decision", None) is Decision.DROP,) * 5
    if type(sampler) is not ParentBased:
        return (False,) * 5
    names = (
        "root",
        "local_parent_not_sampled",
        "local_parent_sampled",
        "remote_parent_not_sampled",
        "remote_parent_sampled",
    )
    return tuple(_known_drops(getattr(sampler, f"_{name}", None))[index] for index, name in enumerate(names))


def spans_of(provider: TracerProvider, name: str, version: str, schema: str) -> Spans | None:
    """The cheapest way that gives the same spans; None: there is no SDK, or it is switched off: nothing is ever recorded."""
    if isinstance(provider, NoOpTracerProvider | ProxyTracerProvider):
        return None
    tracer: Any = provider.get_tracer(name, version, schema_url=schema)
    enabled = getattr(tracer, "_is_enabled", None)
    if isinstance(tracer, NoOpTracer) or (enabled is not None and not enabled()):
        return None
    return SdkSpans(tracer) if _plain(tracer) else ApiSpans(tracer)


def _plain(tracer: Any) -> bool:
    """Whether this is the SDK's own tracer, whose processors look at spans when they end, without limits to attributes."""
    kind = type(tracer)
    if f"{kind.__module__}.{kind.__qualname__}" != "opentelemetry.sdk.trace.Tracer":
        return False
    from opentelemetry.sdk.trace import SynchronousMultiSpanProcessor
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor

    try:
        processor, limits = tracer.span_processor, tracer._span_limits
        members: tuple[Any, ...] = processor._span_processors
        known: Mapping[str, Any] = vars(limits)
        counted = type(tracer._tracer_metrics).__name__ != "NoOpTracerMetrics"
        tracer.sampler, tracer.resource, tracer.id_generator, tracer._instrumentation_scope  # noqa: B018
    except AttributeError:  # pragma: no cover - another release of the SDK
        return False
    unlimited = (
        known.get("max_span_attribute_length") is None and (known.get("max_span_attributes") or 128) >= 64
    )
    return (
        not counted
        and unlimited
        and bool(members)
        and type(processor) is SynchronousMultiSpanProcessor
        and all(type(member) in (BatchSpanProcessor, SimpleSpanProcessor) for member in members)
    )

"""Calls of the engine with an OpenTelemetry SDK that keeps its spans in memory."""

from __future__ import annotations

from typing import Any

from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import Sampler

from meshlib.observe.tracing import TracingObserver
from meshlib.observe.tracing.gate import Gate
from tests.engine.wire import FakeCall, FakeMesh

__all__ = ["Traced", "parent_of", "sent", "tree"]


class Traced:
    """A mesh whose calls are traced. straight: finished spans go to the processors as they do with the SDK's own ones."""

    def __init__(
        self,
        mesh: FakeMesh,
        *,
        sampler: Sampler | None = None,
        straight: bool = True,
        trusted: bool = False,
        packs: bool = False,
    ) -> None:
        self.exporter = InMemorySpanExporter()
        limits = None if straight else SpanLimits(max_span_attribute_length=4000)
        self.provider = TracerProvider(sampler=sampler, span_limits=limits, shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.mesh = mesh
        mesh.engine.observe(Gate(TracingObserver(provider=self.provider, trusted=trusted, packs=packs)))

    def spans(self) -> list[ReadableSpan]:
        """In the order in which they ended; they are forgotten."""
        spans = list(self.exporter.get_finished_spans())
        self.exporter.clear()
        return spans

    def call(self, *arguments: Any, **named: Any) -> FakeCall:
        return self.mesh.call(*arguments, **named)


def parent_of(span: ReadableSpan) -> int | None:
    return None if span.parent is None else span.parent.span_id


def sent(call: FakeCall, attempt: int = -1) -> dict[str, str]:
    """What the attempt carries beyond the application's headers. No header stands twice."""
    pairs = list(call.starts[attempt].extra)
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


def tree(spans: list[ReadableSpan]) -> dict[str, Any]:
    """Names below names; every span hangs below one of the others, but for one."""
    known = {span.context.span_id: span for span in spans if span.context is not None}
    roots = [span for span in spans if parent_of(span) not in known]
    assert len(roots) == 1, [span.name for span in roots]
    assert len({span.context.trace_id for span in spans if span.context is not None}) == 1

    def below(span: ReadableSpan) -> dict[str, Any]:
        assert span.context is not None
        mine = [each for each in spans if parent_of(each) == span.context.span_id]
        return {f"{each.name} {index}": below(each) for index, each in enumerate(sorted(mine, key=_start))}

    return {roots[0].name: below(roots[0])}


def _start(span: ReadableSpan) -> int:
    return span.start_time or 0

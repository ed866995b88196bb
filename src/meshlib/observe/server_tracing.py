"""Spans of the requests that servers of this process answer, and the context that the application finds itself in.

What the caller sent (trace context and baggage, by the globally configured propagator) is the current context of OpenTelemetry
while the application runs, with a span of kind SERVER in it: `trace.get_current_span()` is that span, and the calls that the
application makes hang below it. Without an SDK in the process there are no spans, and the context goes on all the same.

OpenTelemetry's own instrumentation of a server, where it stands around `meshlib.server`'s middleware, has made such a span
already: one that is of kind SERVER, was begun in this process, and has the caller's span as its parent. Then it stays the only
one. The other way round, that instrumentation sees ours, and makes one of kind INTERNAL.

Who decides about recording: the SDK's sampler, and, for a trace that begins here, Envoy's decision before it, where the
HttpConnectionManager of the server's Listener has a `tracing` block.
"""

from __future__ import annotations

from functools import partial
from random import Random
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from opentelemetry import context as contexts
from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.propagators.textmap import Getter, TextMapPropagator
from opentelemetry.trace import (
    NonRecordingSpan,
    NoOpTracerProvider,
    ProxyTracerProvider,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    Tracer,
    TracerProvider,
)

import meshlib
from meshlib.engine.observer import InboundCall, InboundObserver
from meshlib.observe.tracing.attributes import GRPC_CODES, METHODS, SCHEMA, redacted, server_of
from meshlib.observe.tracing.chance import OwnRandom
from meshlib.observe.tracing.sampling import Reason, wanted
from meshlib.observe.tracing.tags import custom_tags
from meshlib.routing.request import RequestView, values_by_name

if TYPE_CHECKING:
    from meshlib.engine.call import Call

__all__ = ["ServerTracingObserver"]

Attributes = dict[str, Any]
Carrier = dict[str, list[str]]

_FAULTS = frozenset(("UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"))
"""Statuses of gRPC that are the server's fault (semantic conventions for gRPC); the others are its callers'."""


class ServerTracingObserver(InboundObserver):
    """provider: whose spans; None: the global one, also when it is set after the first request. random: for Envoy's decision."""

    def __init__(self, *, provider: TracerProvider | None = None, random: Random | None = None) -> None:
        self._own = provider
        self._provider: TracerProvider | None = None
        self._tracer: Tracer | None = None
        self._random = random or OwnRandom()
        self._propagator: TextMapPropagator | None = None
        self._fields: frozenset[str] = frozenset()

    def inbound_begun(self, record: InboundCall) -> None:
        current = contexts.get_current()
        context = self._extracted(record, current)
        if _is_served(current, context):
            return
        span = self._span(record, context)
        if span is not None:
            context = trace.set_span_in_context(span, context)
            record.context[self] = span
        if context is not current:
            record.undo.append(partial(contexts.detach, contexts.attach(context)))

    def inbound_over(self, record: InboundCall) -> None:
        span: Span | None = record.context.get(self)
        if span is None:
            return
        start = round(record.epoch * 1e9)
        if span.is_recording():
            _finish(span, record)
        span.end(start + round((record.ended - record.started) * 1e9))

    def _extracted(self, record: InboundCall, current: Context) -> Context:
        """With what the caller sent; a request without any of the propagator's headers costs no more than a look."""
        propagator = propagate.get_global_textmap()
        if propagator is not self._propagator:
            self._fields = frozenset(map(str.lower, propagator.fields))
            self._propagator = propagator
        fields = self._fields
        if fields and fields.isdisjoint([name for name, _ in record.headers]):
            return current
        return propagator.extract(values_by_name(list(record.headers)), current, _GETTER)

    def _span(self, record: InboundCall, context: Context) -> Span | None:
        """None: without an SDK."""
        provider = self._own or trace.get_tracer_provider()
        if provider is not self._provider:
            nobody = isinstance(provider, NoOpTracerProvider | ProxyTracerProvider)
            self._tracer = (
                None
                if nobody
                else provider.get_tracer("meshlib.server", meshlib.__version__, schema_url=SCHEMA)
            )
            self._provider = provider
        if self._tracer is None:
            return None
        if not trace.get_current_span(context).get_span_context().is_valid and not self._is_wanted(record):
            random = self._random
            return NonRecordingSpan(
                SpanContext(random.getrandbits(128) or 1, random.getrandbits(64) or 1, is_remote=False)
            )
        return self._tracer.start_span(
            _name(record), context, SpanKind.SERVER, _arrived(record), start_time=round(record.epoch * 1e9)
        )

    def _is_wanted(self, record: InboundCall) -> bool:
        """Envoy's part of the decision about a trace that begins here."""
        tracing = None if record.manager is None else record.manager.tracing
        if tracing is None:
            return True
        view = RequestView(record.method, record.scheme, record.authority, record.path, list(record.headers))
        reason = wanted(tracing, None, view, self._random, trusted=False, forced=record.forced)
        return reason is not Reason.NONE


def _is_served(current: Context, context: Context) -> bool:
    """Whether there is a span of this request already. context: with what the caller sent."""
    span = trace.get_current_span(current)
    mine = span.get_span_context()
    if not mine.is_valid or mine.is_remote:
        return False
    caller = trace.get_current_span(context).get_span_context()
    if not span.is_recording():
        return caller.trace_id == mine.trace_id
    if getattr(span, "kind", None) is not SpanKind.SERVER:
        return False
    parent = getattr(span, "parent", None)
    return caller == mine or (parent is not None and parent.span_id == caller.span_id)


# --- attributes ------------------------------------------------------------------------------------------------------


def _name(record: InboundCall) -> str:
    if _is_rpc(record):
        return record.path[1:] or "grpc"
    return record.method if record.method in METHODS else "HTTP"


def _is_rpc(record: InboundCall) -> bool:
    kind = record.first("content-type") or ""
    return kind == "application/grpc" or kind.startswith("application/grpc+")


def _arrived(record: InboundCall) -> Attributes:
    """Known at the beginning: samplers see these."""
    attributes: Attributes
    if _is_rpc(record):
        attributes = {"rpc.system.name": "grpc", "rpc.method": record.path[1:]}
    else:
        known = record.method in METHODS
        path, _, query = redacted(record.path).partition("?")
        if record.manager is not None and record.manager.tracing is not None:
            path = path[: record.manager.tracing.max_path_tag_length]
        attributes = {
            "http.request.method": record.method if known else "_OTHER",
            "url.scheme": record.scheme,
            "url.path": path,
        }
        if not known:
            attributes["http.request.method_original"] = record.method
        if query:
            attributes["url.query"] = query
        if agent := record.first("user-agent"):
            attributes["user_agent.original"] = agent
    if record.authority:
        attributes["server.address"], port = server_of(record.authority)
        if port is not None:
            attributes["server.port"] = port
    if record.client:
        attributes["client.address"] = record.client
    if record.remote:
        attributes["network.peer.address"], port = server_of(record.remote)
        if port is not None:
            attributes["network.peer.port"] = port
    if "/" in record.protocol:
        attributes["network.protocol.version"] = record.protocol.partition("/")[2]
    return attributes


def _finish(span: Span, record: InboundCall) -> None:
    """What is known when it is over, with Envoy's tags."""
    attributes: Attributes = {
        "component": "proxy",
        "response_flags": ",".join(record.flags) or "-",
        "request_size": str(record.bytes_received),
        "response_size": str(record.bytes_sent),
        "meshlib.details": record.details,
    }
    identity = record.first("x-request-id")
    if identity is not None:
        attributes["guid:x-request-id"] = identity
    if record.peer is not None:
        attributes["meshlib.peer"] = record.peer
    if record.manager is not None and record.manager.tracing is not None:
        asked = cast("Call", SimpleNamespace(request=record, route=None))
        attributes.update(custom_tags(record.manager.tracing, None, asked))
    failed: str | None = None
    if _is_rpc(record) and record.grpc_status is not None:
        failed = _rpc_outcome(record.grpc_status, attributes)
    else:
        if record.operation and not _is_rpc(record):
            attributes["http.route"] = record.operation
            span.update_name(f"{_name(record)} {record.operation}")
        if record.status:
            attributes["http.response.status_code"] = record.status
            failed = str(record.status) if record.status >= 500 else None
    error = record.error
    if error is not None:
        kind = type(error)
        failed = (
            kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
        )
        span.record_exception(error)
    if failed is not None:
        attributes["error.type"] = failed
        span.set_status(Status(StatusCode.ERROR, None if error is None else str(error)))
    span.set_attributes(attributes)


def _rpc_outcome(number: str, attributes: Attributes) -> str | None:
    """The name of the status, where that is the server's fault."""
    code = GRPC_CODES[int(number)] if number.isdecimal() and int(number) < len(GRPC_CODES) else number
    attributes["rpc.response.status_code"] = code
    return code if code in _FAULTS else None


# --- what the caller sent ----------------------------------------------------------------------------------------------


class _Headers(Getter[Carrier]):
    def get(self, carrier: Carrier, key: str) -> list[str] | None:
        values = carrier.get(key.lower())
        if values is None or len(values) == 1:
            return values
        parts = [part.strip() for part in values[0].split(",")]
        return values[:1] if parts == values[1:] else values  # WSGI: joined, and each part again

    def keys(self, carrier: Carrier) -> list[str]:
        return list(carrier)


_GETTER = _Headers()

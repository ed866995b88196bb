"""The observer that makes spans of calls and hands the context on.

A call has a span of kind INTERNAL, each of its attempts one of kind CLIENT below it, whose context travels with the request, so
that what the endpoint does hangs below the attempt that reached it. Spans of attempts are made only where that of the call is
recorded. Where nothing is recorded, the context that the application is in goes on as it is; a trace that would begin here and
is not recorded is announced as such (sampled: no), so that nobody behind records a piece of it.

Who decides: the SDK's sampler. Where the HttpConnectionManager has a `tracing` block, Envoy's decision (`sampling`) comes before
it for calls that begin a trace: both must want it. A call inside a trace follows that trace.

The span begins with the call but is made when its route is known, since the route names it and may decide about it.
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Any

from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import SpanKind, TracerProvider

import meshlib
from meshlib.engine.context import INBOUND
from meshlib.engine.observer import CallObserver, Observers
from meshlib.observe.recent import CallTrace, Place
from meshlib.observe.tracing.attributes import (
    SCHEMA,
    asked,
    attempt_attributes,
    attempt_ended,
    call_attributes,
    call_ended,
    name_of,
)
from meshlib.observe.tracing.chance import OwnRandom
from meshlib.observe.tracing.propagation import Propagation
from meshlib.observe.tracing.sampling import Reason, decided, packed
from meshlib.observe.tracing.spans import Recording, Spans, spans_of
from meshlib.observe.tracing.tags import custom_tags

if TYPE_CHECKING:
    from meshlib.engine.attempt import Attempt
    from meshlib.engine.call import Call
    from meshlib.resources.tracing import RouteTracing, Tracing

__all__ = ["TracingObserver"]

_SUPPRESSED = getattr(contexts, "_SUPPRESS_INSTRUMENTATION_KEY", "suppress_instrumentation")
"""Set around an exporter's own requests, which are not to be traced."""

_UNSEEN = object()

_FORCED = contexts.create_key("meshlib-forced")
"""In a context: the request that is being answered asked for a trace."""


class _Trace:
    """What is kept of a call that is recorded. common: attributes of all its spans. context: that of the application. carried: it
    sends a context by itself."""

    __slots__ = ("carried", "common", "context", "span", "within")

    def __init__(
        self, span: Recording, within: Spans, common: dict[str, Any], context: Context, carried: bool
    ) -> None:
        self.common = common
        self.span = span
        self.within = within
        self.context = context
        self.carried = carried


class TracingObserver(CallObserver):
    """provider: whose spans; None: the global one, also when it is set after the first call. trusted: the application's
    x-envoy-force-trace counts. packs: Envoy's decision is written into x-request-id. random: for identifiers and decisions.

    `call.notes` has the application's context until the call is routed.
    """

    def __init__(
        self,
        *,
        provider: TracerProvider | None = None,
        trusted: bool = False,
        packs: bool = False,
        random: Random | None = None,
    ) -> None:
        self._own = provider
        self._provider: object = _UNSEEN
        self._spans: Spans | None = None
        self._trusted = trusted
        self._packs = packs
        self._random = random or OwnRandom()
        self._propagation = Propagation()
        self._recorded = _RecordedCalls(self._propagation)
        self._observers: tuple[Observers | None, Observers] = (None, Observers())

    def _recorder(self) -> Spans | None:
        """Asking for the global provider looks into the environment while there is none; its variable says whether it changed."""
        provider = self._own or getattr(trace, "_TRACER_PROVIDER", None)
        if provider is not self._provider:
            self._provider = provider
            self._spans = spans_of(
                provider or trace.get_tracer_provider(), "meshlib", meshlib.__version__, SCHEMA
            )
        return self._spans

    @property
    def silent(self) -> bool:
        """No spans are made. True until the first call asks."""
        return self._spans is None

    # --- the call ----------------------------------------------------------------------------------------------------

    def begun(self, call: Call, now: float) -> None:
        context = contexts.get_current()
        if not context:
            if self._recorder() is None:
                return
        elif context.get(_SUPPRESSED):
            return
        inbound = INBOUND.get()
        if inbound is not None and inbound.forced:
            context = contexts.set_value(_FORCED, True, context)
        if call.notes is None:
            call.notes = {}
        call.notes[self] = context

    def routed(self, call: Call, now: float) -> None:
        notes = call.notes
        context: Context | None = None if notes is None else notes.pop(self, None)
        if context is None or notes is None:
            return
        request, spans = call.request, self._recorder()
        above = trace.get_current_span(context).get_span_context() if context else None
        if above is not None and not above.is_valid:
            above = None
        carried = self._propagation.set_by_application(request)
        wanted_here = spans is not None and not call.passthrough and not spans.drops(above)
        if wanted_here and (above is not None or self._configured(call, context)):
            assert spans is not None
            common = asked(call, rpc=call.is_rpc)
            span = self._start(spans, call, context, common)
            if span is not None:
                notes[self._recorded] = _Trace(span, spans, common, context, carried)
                self._follow(call)
                return
        if carried:
            return
        if above is not None or spans is None:
            call.headers_to_add += self._propagation.passed(request, context, above)
        else:
            call.headers_to_add += self._propagation.unsampled(request, context, self._random)

    def _configured(self, call: Call, context: Context) -> bool:
        """Envoy's part of the decision about a trace that begins here."""
        listener = call.listener
        tracing = None if listener is None else listener.listener.http.tracing
        if tracing is None:
            return True
        route = None if call.route is None else call.route.resource.tracing
        forced = bool(context.get(_FORCED))
        reason, written = decided(
            tracing, route, call.request, self._random, trusted=self._trusted, forced=forced
        )
        identity = call.request.first("x-request-id") if written and self._packs else None
        if identity is not None:
            call.request.replace("x-request-id", packed(identity, reason))
        return reason is not Reason.NONE

    def _start(self, spans: Spans, call: Call, context: Context, common: dict[str, Any]) -> Recording | None:
        attributes = call_attributes(call, common)
        name = name_of(call.request, call.route, rpc=call.is_rpc)
        return spans.root(name, SpanKind.INTERNAL, context, round(call.epoch * 1e9), attributes)

    def _follow(self, call: Call) -> None:
        """Have it told of the attempts and the end of this call, which is of no interest where nothing is recorded."""
        told = call.told
        before, after = self._observers
        if told is not before and told is not None:
            after = told.plus(self._recorded)
            self._observers = (told, after)
        call.also_tell(after)

    def identify(self, call: Call) -> CallTrace | None:
        """Where its spans stand; None: it is not recorded. In `over`, whoever is told first."""
        recorded = self._recorded
        kept: _Trace | None = None if call.notes is None else call.notes.get(recorded)
        if kept is None:
            return None
        span = kept.span
        context, above = span.context, span.parent
        if above is None and span.inner is not None:
            above = getattr(span.inner, "parent", None)
        attempts = [
            None if attempt.notes is None else attempt.notes.get(recorded) for attempt in call.attempts
        ]
        return CallTrace(
            Place(context.trace_id, context.span_id, 0 if above is None else above.span_id),
            tuple([0 if each is None else each.context.span_id for each in attempts]),
        )


class _RecordedCalls(CallObserver):
    """Calls that have a span. `call.notes` has their `_Trace`."""

    def __init__(self, propagation: Propagation) -> None:
        self._propagation = propagation

    def over(self, call: Call, now: float) -> None:
        kept: _Trace | None = None if call.notes is None else call.notes.get(self)
        if kept is None:
            return
        span, spans = kept.span, kept.within
        attributes = span.attributes
        status = call_ended(call, attributes, rpc=call.is_rpc)
        listener = call.listener
        tracing: Tracing | None = None if listener is None else listener.listener.http.tracing
        if tracing is not None:
            _configured_tags(tracing, call, attributes)
        if status is not None:
            span.status = status
        spans.end(span, _moment(span, call, now))

    # --- its attempts --------------------------------------------------------------------------------------------------

    def attempt_begun(self, call: Call, attempt: Attempt, now: float) -> None:
        kept: _Trace | None = None if call.notes is None else call.notes.get(self)
        if kept is None:
            return
        rpc, above = call.is_rpc, kept.span
        attributes = attempt_attributes(call, attempt, kept.common, rpc=rpc)
        name = name_of(call.request, None, rpc=rpc)
        span = kept.within.child(name, SpanKind.CLIENT, above, _moment(above, call, now), attributes)
        if span is not None:
            if attempt.notes is None:
                attempt.notes = {}
            attempt.notes[self] = span
        if not kept.carried:
            sent = above if span is None else span
            attempt.headers_to_add += self._propagation.headers(call.request, kept.context, sent)

    def attempt_over(self, call: Call, attempt: Attempt, now: float) -> None:
        notes = attempt.notes
        span: Recording | None = None if notes is None else notes.get(self)
        if span is None or call.notes is None:
            return
        kept: _Trace = call.notes[self]
        status = attempt_ended(call, attempt, span.attributes, rpc=call.is_rpc)
        if status is not None:
            span.status = status
        kept.within.end(span, _moment(kept.span, call, now))


def _moment(span: Recording, call: Call, now: float) -> int:
    """Nanoseconds since 1970 of a moment of the call, by the clock reading that its span began with."""
    return span.start + round((now - call.started) * 1e9)


def _configured_tags(tracing: Tracing, call: Call, attributes: dict[str, Any]) -> None:
    route: RouteTracing | None = None if call.route is None else call.route.resource.tracing
    attributes.update(custom_tags(tracing, route, call))

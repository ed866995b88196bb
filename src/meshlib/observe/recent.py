"""The last calls and the last requests that were served, for whoever asks what has just happened.

Of each there are two rings, in which the newest takes the place of the oldest. A busy process makes 256 calls in half a second,
and what went wrong a minute ago is what people ask for; so those that failed, were tried again or took long have a ring of
their own beside the one of all.

What is kept is light: names and numbers, no header, no body, and nothing that holds endpoints (`decision.Facts`).
"""

from __future__ import annotations

from collections import deque
from itertools import count
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar

from meshlib.engine.observer import CallObserver, InboundObserver
from meshlib.observe.decision import Facts

if TYPE_CHECKING:
    from meshlib.engine.call import Call
    from meshlib.engine.observer import InboundCall

__all__ = [
    "SLOW",
    "CallTrace",
    "Place",
    "RecentCalls",
    "RecentRequests",
    "RequestFacts",
    "Rings",
    "TraceSource",
]

SLOW = 1.0
"""Seconds from which on a call or a request is remembered longer."""

Entry = TypeVar("Entry", bound=tuple[Any, ...])


class Place(NamedTuple):
    """Where a span stands: of which trace it is, which it is itself, and below which it hangs. span, parent: 0 for none."""

    trace: int
    span: int
    parent: int


class CallTrace(NamedTuple):
    """A recorded call. attempts: span identifiers in their order, 0 for one without."""

    place: Place
    attempts: tuple[int, ...]


class TraceSource(Protocol):
    """Who knows the spans of calls: `tracing.TracingObserver`."""

    def identify(self, call: Call) -> CallTrace | None:
        """None: it is not recorded. Valid in `over`."""


class Rings(Generic[Entry]):
    """The last `size` entries, and the last `size` of those that are remarkable. An entry begins with its number.

    Thread safe: one append of a deque each.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._all: deque[Entry] = deque(maxlen=size)
        self._remarkable: deque[Entry] = deque(maxlen=size)

    def add(self, entry: Entry, remarkable: bool) -> None:
        self._all.append(entry)
        if remarkable:
            self._remarkable.append(entry)

    def newest(self, limit: int | None = None) -> list[Entry]:
        """The newest first, each once: at most `limit` of all, and as many of the remarkable ones."""
        found: dict[int, Entry] = {}
        for ring in (self._all, self._remarkable):
            listed = _listed(ring)
            for entry in listed if limit is None else listed[len(listed) - min(limit, len(listed)) :]:
                found[entry[0]] = entry
        return [found[number] for number in sorted(found, reverse=True)]

    def find(self, number: int) -> Entry | None:
        """None: it is not kept any longer, or has not happened."""
        for ring in (self._all, self._remarkable):
            for entry in _listed(ring):
                if entry[0] == number:
                    return entry
        return None


def _listed(ring: deque[Entry]) -> list[Entry]:
    while True:
        try:
            return list(ring)
        except RuntimeError:  # something ended while the list was being made
            continue


class RecentCalls(CallObserver):
    """The facts of the last calls, each with its number: 1, 2, ... in the order in which they ended.

    size: of each ring. tracing: who knows their spans, None: nobody. Remembered longer: a call with a response flag, a status
    from 500 on, a gRPC status that is not 0, more than one attempt, or `SLOW` seconds.
    """

    def __init__(self, size: int, tracing: TraceSource | None = None) -> None:
        self.size = size
        self._identify = None if tracing is None else tracing.identify
        self._rings: Rings[tuple[int, tuple[Any, ...], CallTrace | None]] = Rings(size)
        self._next = count(1).__next__

    def over(self, call: Call, now: float) -> None:
        facts = call.facts(now)
        identify = self._identify
        entry = (self._next(), facts, None if identify is None else identify(call))
        self._rings.add(
            entry,
            bool(facts[_FLAGS])
            or facts[_STATUS] >= 500
            or facts[_GRPC_STATUS] not in _FINE
            or len(facts[_ATTEMPTS]) > 1
            or now - facts[0] >= SLOW,
        )

    def newest(self, limit: int | None = None) -> list[tuple[int, Facts, CallTrace | None]]:
        """Number, facts, and the trace where it is recorded; the newest first: at most `limit` of all, and as many of those that
        are remembered longer."""
        return [(number, Facts._make(facts), trace) for number, facts, trace in self._rings.newest(limit)]

    def find(self, number: int) -> Facts | None:
        """None: it is not kept any longer, or has not happened."""
        entry = self._rings.find(number)
        return None if entry is None else Facts._make(entry[1])


_FLAGS = Facts._fields.index("flags")
_STATUS = Facts._fields.index("status")
_GRPC_STATUS = Facts._fields.index("grpc_status")
_ATTEMPTS = Facts._fields.index("attempts")
_FINE = (None, "0")


class RequestFacts(NamedTuple):
    """A request that this process has served. number: 1, 2, ... in the order in which they ended. started, duration: seconds,
    since 1970 and in all. path: with the query. operation: the framework's route, or empty. peer: the caller's principal, None
    without. place: of its span, None when it is not recorded. The rest is as on the `InboundCall`."""

    number: int
    started: float
    duration: float
    method: str
    authority: str
    path: str
    operation: str
    status: int
    grpc_status: str | None
    flags: tuple[str, ...]
    details: str
    peer: str | None
    place: Place | None


class RecentRequests(InboundObserver):
    """The last requests that this process has served; remembered longer as calls are. Subscribed after who makes their spans.

    traced: whether to look for these.
    """

    def __init__(self, size: int, *, traced: bool = True) -> None:
        self._rings: Rings[RequestFacts] = Rings(size)
        self._next = count(1).__next__
        self._traced = traced

    def inbound_begun(self, record: InboundCall) -> None:
        if self._traced:
            place = _current_place()
            if place is not None:
                record.context[self] = place

    def inbound_over(self, record: InboundCall) -> None:
        duration = record.ended - record.started
        facts = RequestFacts(
            self._next(),
            record.epoch,
            duration,
            record.method,
            record.authority,
            record.path,
            record.operation,
            record.status,
            record.grpc_status,
            record.flags,
            record.details,
            record.peer,
            record.context.get(self),
        )
        remarkable = (
            bool(record.flags)
            or record.status >= 500
            or record.grpc_status not in _FINE
            or duration >= SLOW
            or record.error is not None
        )
        self._rings.add(facts, remarkable)

    def newest(self, limit: int | None = None) -> list[RequestFacts]:
        """The newest first: at most `limit` of all, and as many of those that are remembered longer."""
        return self._rings.newest(limit)


def _current_place() -> Place | None:
    """Of the span that the request is answered in. Without an SDK in this process: below the caller's, if that is recorded."""
    from opentelemetry import trace

    span = trace.get_current_span()
    context = span.get_span_context()
    if not context.is_valid:
        return None
    if context.is_remote:
        return Place(context.trace_id, 0, context.span_id) if context.trace_flags.sampled else None
    if not span.is_recording():
        return None
    parent = getattr(span, "parent", None)
    return Place(context.trace_id, context.span_id, 0 if parent is None else parent.span_id)

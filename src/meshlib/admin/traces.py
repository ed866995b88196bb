"""Traces for the page: what the processes of this user remember of one request, put together.

Each process tells of the requests that it served, of the calls that it made, and of their attempts, as far as they were
recorded by OpenTelemetry: an attempt's span identifier goes out with it, so the request that it becomes elsewhere names it as
its parent. An application may have spans of its own between a request and the calls that it makes for it; nobody here knows
them, so such a call hangs below the request of the same process during which it was made.

A trace: id, at (seconds since 1970), duration (milliseconds), name, service and failed of its first span, services (in the
order in which they took part), errors (spans that failed), size (spans in all), spans (at most `MOST_SPANS`), each with its
depth, a parent before its children:

    kind                request, call or attempt
    trace, id, parent   identifiers in hexadecimal; id and parent may be null
    service, process    who tells of it; process: its name in the process directory
    name                of a request and a call: method and path; of an attempt: its endpoint
    at, duration        as above
    status, grpc_status, flags, failed
    note                a request: its caller's principal; a call: its cluster; an attempt: why it failed; else null
    number              of a call: what `/mesh/call.json` wants; else null
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from meshlib.admin.calls import epoch_of
from meshlib.admin.redaction import safe_path
from meshlib.observe.decision import AttemptFacts, Facts

if TYPE_CHECKING:
    from meshlib.mesh import Mesh
    from meshlib.observe.recent import CallTrace, RequestFacts
    from meshlib.runtime.clock import Clock

__all__ = ["MOST_SPANS", "MOST_TRACES", "spans_of", "trace_of", "traces_of"]

MOST_TRACES = 50
MOST_SPANS = 200

_SLACK = 0.002
"""Seconds by which a call may seem to outlast the request that it was made for: two clocks are read for both."""

Span = dict[str, Any]


def spans_of(mesh: Mesh, process: str, service: str) -> dict[str, Any]:
    """What one process tells: `service`, `process`, `remembered` and `recorded` (how many calls and requests), `spans`."""
    calls = () if mesh.recent is None else mesh.recent.newest()
    requests = () if mesh.served is None else mesh.served.newest()
    own = {"service": service, "process": process}
    spans: list[Span] = []
    recorded = 0
    for number, facts, trace in calls:
        if trace is not None:
            recorded += 1
            spans += (own | span for span in _of_call(number, facts, trace, mesh.clock))
    for request in requests:
        if request.place is not None:
            recorded += 1
            spans.append(own | _of_request(request))
    return own | {"remembered": len(calls) + len(requests), "recorded": recorded, "spans": spans}


def traces_of(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """`traces` of what several processes tell, the newest first, at most `MOST_TRACES`; `processes`: service, process, remembered
    and recorded of each."""
    listed = list(parts)
    found = [_trace(spans) for spans in _by_trace(listed).values()]
    found.sort(key=lambda trace: -trace["at"])
    names = ("service", "process", "remembered", "recorded")
    return {
        "traces": found[:MOST_TRACES],
        "processes": [{name: part[name] for name in names} for part in listed],
    }


def trace_of(parts: Iterable[Mapping[str, Any]], trace: str) -> dict[str, Any] | None:
    """The one with this identifier; None: nobody remembers anything of it."""
    spans = _by_trace(parts).get(trace)
    return None if spans is None else _trace(spans)


# --- what one process knows --------------------------------------------------------------------------------------------


def _of_call(number: int, facts: Facts, trace: CallTrace, clock: Clock) -> Iterator[Span]:
    began = epoch_of(facts, clock)
    place = trace.place
    over_at = facts.started if facts.over_at is None else facts.over_at
    identity = f"{place.trace:032x}"
    yield {
        "kind": "call",
        "trace": identity,
        "id": _hexadecimal(place.span),
        "parent": _hexadecimal(place.parent),
        "name": f"{facts.method} {facts.authority}{safe_path(facts.path)}",
        "at": began,
        "duration": (over_at - facts.started) * 1000,
        "status": facts.status,
        "grpc_status": facts.grpc_status,
        "flags": ",".join(facts.flags) or "-",
        "failed": _failed(facts.status, facts.grpc_status),
        "note": facts.cluster or None,
        "number": number,
    }
    for attempt, span in zip(map(AttemptFacts._make, facts.attempts), trace.attempts, strict=False):
        end = over_at if attempt.over_at is None else attempt.over_at
        status = attempt.status or 0
        yield {
            "kind": "attempt",
            "trace": identity,
            "id": _hexadecimal(span),
            "parent": _hexadecimal(place.span),
            "name": attempt.endpoint,
            "at": began + attempt.started - facts.started,
            "duration": (end - attempt.started) * 1000,
            "status": status,
            "grpc_status": None,
            "flags": "-",
            "failed": attempt.failure is not None or _failed(status, None),
            "note": attempt.failure,
            "number": None,
        }


def _of_request(request: RequestFacts) -> Span:
    place = request.place
    assert place is not None
    return {
        "kind": "request",
        "trace": f"{place.trace:032x}",
        "id": _hexadecimal(place.span),
        "parent": _hexadecimal(place.parent),
        "name": f"{request.method} {safe_path(request.path)}",
        "at": request.started,
        "duration": request.duration * 1000,
        "status": request.status,
        "grpc_status": request.grpc_status,
        "flags": ",".join(request.flags) or "-",
        "failed": _failed(request.status, request.grpc_status),
        "note": request.peer,
        "number": None,
    }


def _hexadecimal(span: int) -> str | None:
    return f"{span:016x}" if span else None


def _failed(status: int, grpc_status: str | None) -> bool:
    return status >= 500 or status == 0 or grpc_status not in (None, "0")


# --- what all of them make ---------------------------------------------------------------------------------------------


def _by_trace(parts: Iterable[Mapping[str, Any]]) -> dict[str, list[Span]]:
    found: dict[str, list[Span]] = {}
    for part in parts:
        for span in part["spans"]:
            found.setdefault(span["trace"], []).append(span)
    return found


def _trace(spans: list[Span]) -> dict[str, Any]:
    ordered = list(_tree(spans))
    first = ordered[0]
    began = min(span["at"] for span in ordered)
    end = max(span["at"] + span["duration"] / 1000 for span in ordered)
    return {
        "id": first["trace"],
        "at": round(began, 6),
        "duration": round((end - began) * 1000, 3),
        "name": first["name"],
        "service": first["service"],
        "failed": first["failed"],
        "services": list(dict.fromkeys(span["service"] for span in ordered)),
        "errors": sum(span["failed"] for span in ordered),
        "size": len(ordered),
        "spans": [_rounded(span) for span in ordered[:MOST_SPANS]],
    }


def _rounded(span: Span) -> Span:
    return span | {"at": round(span["at"], 6), "duration": round(span["duration"], 3)}


def _tree(spans: list[Span]) -> Iterator[Span]:
    """Each span with its depth: a parent, then what hangs below it in the order of time. Each once, whatever identifiers say."""
    known = {span["id"]: index for index, span in enumerate(spans) if span["id"] is not None}
    below: dict[int | None, list[int]] = {}
    for index, span in enumerate(spans):
        parent = known.get(span["parent"])
        if parent is None and span["kind"] == "call":
            parent = _during(span, spans)
        below.setdefault(parent, []).append(index)
    for children in below.values():
        children.sort(key=lambda index: spans[index]["at"], reverse=True)
    told: set[int] = set()
    waiting = [(index, 0) for index in below.get(None, [])]
    rest = iter(range(len(spans)))  # what hangs below itself is reached by nothing else
    while len(told) < len(spans):
        index, depth = waiting.pop() if waiting else (next(rest), 0)
        if index not in told:
            told.add(index)
            yield spans[index] | {"depth": depth}
            waiting += ((child, depth + 1) for child in below.get(index, []))


def _during(call: Span, spans: list[Span]) -> int | None:
    """The request of the same process that was being answered when this call was made: of several, the latest."""
    found: tuple[float, int] | None = None
    end = call["at"] + call["duration"] / 1000
    for index, span in enumerate(spans):
        if span["kind"] != "request" or span["process"] != call["process"]:
            continue
        lasts_longer = span["at"] + span["duration"] / 1000 + _SLACK >= end
        if span["at"] <= call["at"] + _SLACK and lasts_longer and (found is None or span["at"] > found[0]):
            found = span["at"], index
    return None if found is None else found[1]

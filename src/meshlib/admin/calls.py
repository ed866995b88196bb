"""Calls as JSON: the recent ones, and those that `/tap` follows."""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from meshlib.admin.redaction import safe_path
from meshlib.engine.observer import CallObserver
from meshlib.observe.decision import Facts, counted_attempt, decide, facts_of, route_of
from meshlib.routing.request import RequestView
from meshlib.runtime.clock import epoch_offset

if TYPE_CHECKING:
    from meshlib.engine.call import Call
    from meshlib.engine.engine import Engine
    from meshlib.observe.recent import CallTrace, RequestFacts
    from meshlib.runtime.clock import Clock

__all__ = ["Tap", "TapFilter", "call_json", "decision_json", "epoch_of", "request_json"]

_MOST_WAITING = 1000
"""Calls that a tap keeps for a reader who is slow; more are left out, and counted."""


def epoch_of(facts: Facts, clock: Clock) -> float:
    """When the call began, seconds since 1970."""
    return facts.started + epoch_offset(clock)


def call_json(number: int, facts: Facts, clock: Clock, trace: CallTrace | None = None) -> dict[str, Any]:
    """A line of a list of calls. at: seconds since 1970; duration: milliseconds; trace: its identifier, None when it was not
    recorded."""
    attempt = counted_attempt(facts)
    over_at = facts.over_at
    return {
        "number": number,
        "at": round(epoch_of(facts, clock), 3),
        "method": facts.method,
        "authority": facts.authority,
        "path": safe_path(facts.path),
        "status": facts.status,
        "grpc_status": facts.grpc_status,
        "flags": ",".join(facts.flags) or "-",
        "details": facts.details,
        "duration": None if over_at is None else round((over_at - facts.started) * 1000, 3),
        "cluster": facts.cluster,
        "route": route_of(facts),
        "virtual_host": facts.virtual_host,
        "endpoint": None if attempt is None else attempt.endpoint,
        "secure": attempt is not None and attempt.secure,
        "attempts": len(facts.attempts),
        "trace": None if trace is None else f"{trace.place.trace:032x}",
        "span": None if trace is None else f"{trace.place.span:016x}",
    }


def request_json(facts: RequestFacts) -> dict[str, Any]:
    """A line of a list of requests that were served; as `call_json`. peer: the caller's principal."""
    place = facts.place
    return {
        "number": facts.number,
        "at": round(facts.started, 3),
        "method": facts.method,
        "authority": facts.authority,
        "path": safe_path(facts.path),
        "operation": facts.operation,
        "status": facts.status,
        "grpc_status": facts.grpc_status,
        "flags": ",".join(facts.flags) or "-",
        "details": facts.details,
        "duration": round(facts.duration * 1000, 3),
        "peer": facts.peer,
        "trace": None if place is None else f"{place.trace:032x}",
        "span": None if place is None or not place.span else f"{place.span:016x}",
        "parent": None if place is None or not place.parent else f"{place.parent:016x}",
    }


def decision_json(facts: Facts, clock: Clock) -> dict[str, Any]:
    """All that is known of a call, without what may be secret in its path."""
    found = decide(facts, epoch_of(facts, clock)).to_dict()
    for name in ("path", "path_sent"):
        if found[name] is not None:
            found[name] = safe_path(found[name])
    return found


class TapFilter:
    """Which calls to follow; all that is given has to fit.

    cluster, route: names. status: `503`, `5xx`. flag: one of Envoy's response flags, `any` for at least one. min_duration:
    milliseconds. header: `name` or `name: value` of the request.

    Raises:
        ValueError: a part is malformed.
    """

    def __init__(self, query: Mapping[str, str]) -> None:
        unknown = query.keys() - {"cluster", "route", "status", "flag", "min_duration", "header"}
        if unknown:
            raise ValueError(f"unknown filter {min(unknown)!r}")
        self._cluster = query.get("cluster")
        self._route = query.get("route")
        self._status = _statuses(query.get("status"))
        self._flag = query.get("flag")
        self._least = float(query.get("min_duration", "0")) / 1000
        self._header: tuple[str, str | None] | None = None
        header = query.get("header")
        if header is not None:
            name, colon, value = header.partition(":")
            if not name.strip():
                raise ValueError("header must be like 'name' or 'name: value'")
            self._header = (name.strip().lower(), value.strip() if colon else None)

    def matches(self, facts: Facts, request: RequestView) -> bool:
        """Whether a call that is over is one of them."""
        if self._cluster is not None and facts.cluster != self._cluster:
            return False
        route = facts.route
        if self._route is not None and (
            route is None or self._route not in (route.name, str(facts.route_index))
        ):
            return False
        if self._status is not None and facts.status not in self._status:
            return False
        if self._flag is not None and not (facts.flags if self._flag == "any" else self._flag in facts.flags):
            return False
        if (facts.over_at or facts.started) - facts.started < self._least:
            return False
        if self._header is None:
            return True
        name, value = self._header
        values = [content for key, content in request.headers if key == name]
        return bool(values) if value is None else value in values


def _statuses(text: str | None) -> range | None:
    if text is None:
        return None
    if len(text) == 3 and text[1:].lower() == "xx" and text[0].isdigit():
        return range(int(text[0]) * 100, int(text[0]) * 100 + 100)
    if text.isascii() and text.isdigit() and len(text) <= 3:
        return range(int(text), int(text) + 1)
    raise ValueError(f"status {text!r} is not like 503 or 5xx")


class Tap(CallObserver):
    """The body of `/tap`: one JSON line for each call that ends from now on and fits. See `http.Live`."""

    def __init__(self, engine: Engine, chosen: TapFilter) -> None:
        self._engine = engine
        self._chosen = chosen
        self._waiting: deque[Facts] = deque()
        self._arrived = threading.Event()
        self._left_out = 0
        self._number = 0
        self._closed = False
        engine.observe(self)

    def over(self, call: Call, now: float) -> None:
        facts = facts_of(call, now)
        if self._closed or not self._chosen.matches(facts, call.request):
            return
        if len(self._waiting) >= _MOST_WAITING:
            self._left_out += 1
            return
        self._waiting.append(facts)
        self._arrived.set()

    def take(self) -> bytes | None:
        """What has ended since the last time; None when the Mesh, or this, is closed."""
        self._arrived.clear()
        lines: list[dict[str, Any]] = []
        clock = self._engine.clock
        while self._waiting:
            self._number += 1
            facts = self._waiting.popleft()
            lines.append(call_json(self._number, facts, clock) | {"decision": decision_json(facts, clock)})
        left_out, self._left_out = self._left_out, 0
        if left_out:
            lines.append({"left_out": left_out})
        if not lines and (self._closed or self._engine.closed):
            return None
        return b"".join(json.dumps(line, separators=(",", ":")).encode() + b"\n" for line in lines)

    def wait(self, seconds: float) -> None:
        self._arrived.wait(seconds)

    def close(self) -> None:
        self._closed = True
        self._engine.unobserve(self)
        self._arrived.set()

"""What is counted of each call: Istio's standard metrics, and the golden signals of routes and clusters.

The engine counts by itself what Envoy counts (attempts, connections, retries, limits). Here a call is counted as a whole, when
it is over. All metrics that a call counts into are found at once, by one look into a dictionary with what tells calls apart
(route and cluster, who answered, status, flags); what takes longer, such as putting twenty-five labels together, happens once
for each of its keys. A new Program empties the dictionary, so that it keeps nothing of an old configuration alive.

Traffic and errors: `meshlib_route_requests_total` by outcome; latency: `meshlib_route_duration_milliseconds`; saturation:
`meshlib_saturation` (share of each limit of a cluster that has been called) and `meshlib_event_loop_lag_seconds`.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Callable
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from meshlib.engine.observer import CallObserver, InboundCall, InboundObserver
from meshlib.observe.istio import Destination, Series, destination_of, labels
from meshlib.observe.lag import LoopLag
from meshlib.observe.workload import UNKNOWN, Workload, namespace_of, of_endpoint
from meshlib.resources.cluster import Cluster
from meshlib.resources.route import Priority
from meshlib.state import ClusterState
from meshlib.stats import ENVOY_BOUNDS, Counter, Histogram, Labels, Registry

if TYPE_CHECKING:
    from meshlib.engine.call import Call
    from meshlib.engine.engine import Engine

__all__ = ["SERIES", "MetricsObserver"]

logger = logging.getLogger("meshlib.observe")

SERIES = 4000
"""So many sets of labels at most; calls beyond are counted with `overflow` in the place of whom they are about."""

OVERFLOW = "overflow"

LINES = 2 * SERIES
"""So many keys are remembered, more than the labels that they lead to."""

_CODES = frozenset((None, *map(str, range(17))))
"""What may stand in grpc-status; a server may send anything."""

_SERVER_ERRORS = frozenset(("2", "4", "12", "13", "14", "15"))
"""gRPC's codes that are the server's fault, or the way's: UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, ..."""

_LIMITS = (
    ("connections", "connections", "max_connections"),
    ("pending", "pending", "max_pending"),
    ("requests", "requests", "max_requests"),
    ("retries", "retries", "retry_limit"),
)


class _Line:
    """Everything that calls with one key count into: metrics, and the buckets of the histograms among them."""

    __slots__ = (
        "bytes_received",
        "bytes_sent",
        "duration",
        "durations",
        "received",
        "requests",
        "route_duration",
        "route_durations",
        "route_requests",
        "sent",
        "series",
    )

    def __init__(self, series: Series, route_requests: Counter, route_duration: Histogram) -> None:
        self.series = series
        self.requests = series.requests
        self.duration, self.durations = series.duration, series.duration.buckets
        self.bytes_sent, self.sent = series.bytes_out, series.bytes_out.buckets
        self.bytes_received, self.received = series.bytes_in, series.bytes_in.buckets
        self.route_requests = route_requests
        self.route_duration, self.route_durations = route_duration, route_duration.buckets


class MetricsObserver(CallObserver, InboundObserver):
    """own: who this process is. series: how many sets of labels there may be. changed: called at the first call after `idle` was
    set, see `meshlib.observe.group`."""

    def __init__(self, engine: Engine, registry: Registry, own: Workload, *, series: int = SERIES) -> None:
        self._engine = engine
        self._registry = registry
        self._own = own
        self._series = series
        self._said = False
        self._lines: dict[Any, _Line] = {}
        self._inbound: dict[Any, Series] = {}
        self._program: object = None
        self._lag = LoopLag(engine.clock.monotonic)
        self.idle = False
        self.changed: Callable[[], None] | None = None
        registry.labelled(()).reading("meshlib_event_loop_lag_seconds", lambda: self._lag.value)

    def over(self, call: Call, now: float) -> None:
        """Written for speed: each call of each transport comes here."""
        if call.passthrough:
            return
        program = self._engine.program
        if program is not self._program:
            self._lines = {}
            self._program = program
        attempts, accepted, reply = call.attempts, call.accepted, call.reply
        status = 0 if reply is None else reply.status
        attempt = None
        if accepted is not None:
            attempt = attempts[accepted - 1]
            status = attempt.status or 0
        elif attempts:
            attempt = attempts[-1]
        rpc = call.request.channel_id is not None
        grpc_status = None
        if rpc:
            grpc_status = call.grpc_status
            if grpc_status not in _CODES:
                grpc_status = UNKNOWN
        key: Any
        if attempt is None:
            key = (call.plan or call.route, status, call.flags, grpc_status, rpc)
        else:
            endpoint = attempt.endpoint
            key = (call.plan, endpoint.workload, endpoint.way, status, call.flags, grpc_status, rpc)
        line = self._lines.get(key)
        if line is None:
            if len(self._lines) >= LINES:
                self._lines = {}
            line = self._lines[key] = self._bind(call, status, grpc_status)
        milliseconds = (now - call.started) * 1000.0
        sent, received = call.bytes_sent, call.bytes_received
        at = bisect_left(ENVOY_BOUNDS, milliseconds)
        line.requests.value += 1
        line.route_requests.value += 1
        line.durations[at] += 1
        line.duration.total += milliseconds
        line.route_durations[at] += 1
        line.route_duration.total += milliseconds
        if sent:
            line.sent[bisect_left(ENVOY_BOUNDS, sent)] += 1
            line.bytes_sent.total += sent
        else:
            line.sent[0] += 1
        if received:
            line.received[bisect_left(ENVOY_BOUNDS, received)] += 1
            line.bytes_received.total += received
        else:
            line.received[0] += 1
        if rpc:
            line.series.count_messages(call.messages_sent, call.messages_received)
        if now >= self._lag.due:
            self._lag.sample(now)
        if self.idle:
            self._wake()

    def inbound_over(self, record: InboundCall) -> None:
        rpc = record.grpc_status is not None or (record.first("content-type") or "").startswith(
            "application/grpc"
        )
        grpc_status = record.grpc_status if record.grpc_status in _CODES else UNKNOWN
        key = (record.peer, record.own, record.status, record.flags, grpc_status, rpc)
        series = self._inbound.get(key)
        if series is None:
            if len(self._inbound) >= LINES:
                self._inbound = {}
            series = self._inbound[key] = self._bind_inbound(record, grpc_status, rpc=rpc)
        duration = (record.ended - record.started) * 1000.0
        series.count(duration, record.bytes_received, record.bytes_sent)
        if rpc:
            series.count_messages(record.messages_received, record.messages_sent)
        if self.idle:
            self._wake()

    def _wake(self) -> None:
        self.idle = False
        if self.changed is not None:
            self.changed()

    # --- binding: once for each key ----------------------------------------------------------------------------------

    def _bind(self, call: Call, status: int, grpc_status: str | None) -> _Line:
        self._lag.find_asyncio()
        plan, attempt = call.plan, call.counted
        name = "" if plan is None else plan.cluster
        if attempt is not None:
            cluster: Cluster | None = attempt.cluster.cluster
            endpoint = attempt.endpoint
            self._watch(attempt.cluster.state, Priority.DEFAULT if plan is None else plan.priority)
            own, peer = getattr(endpoint.way.security, "principals", ("", ""))
            destination = of_endpoint(endpoint.workload)
        else:
            known = self._engine.program.clusters.get(name)
            cluster = None if known is None else known.cluster
            own = peer = ""
            destination = Workload()
        made = self._within_limits(
            labels(
                reporter="source",
                source=self._own,
                source_principal=own,
                destination=destination,
                destination_principal=peer,
                service=destination_of(cluster, name),
                protocol="grpc" if call.is_rpc else "http",
                status=status,
                grpc_status=grpc_status,
                flags=call.flags,
                security=UNKNOWN,
            )
        )
        place = self._within_limits(_route(call, name))
        outcome = ("outcome", _outcome(status, grpc_status))
        return _Line(
            Series(self._registry, made, rpc=call.is_rpc),
            self._registry.labelled_counter("meshlib_route_requests_total", (*place, outcome)),
            self._registry.labelled_histogram("meshlib_route_duration_milliseconds", place, ENVOY_BOUNDS),
        )

    def _bind_inbound(self, record: InboundCall, grpc_status: str | None, *, rpc: bool) -> Series:
        own, peer = self._own, record.peer or ""
        host = own.canonical_service
        made = labels(
            reporter="destination",
            source=Workload(namespace=namespace_of(peer)),
            source_principal=peer,
            destination=own,
            destination_principal=record.own or "",
            service=Destination(
                f"{host}.{own.domain}" if own.domain and host != UNKNOWN else host, host, own.namespace
            ),
            protocol="grpc" if rpc else "http",
            status=record.status,
            grpc_status=grpc_status,
            flags=record.flags,
            security="mutual_tls" if peer else "none",
        )
        return Series(self._registry, self._within_limits(made), rpc=rpc)

    def _within_limits(self, made: Labels) -> Labels:
        """The labels, or those that calls share for which there is no room left."""
        if self._registry.labelled_sets < self._series or self._registry.knows(made):
            return made
        if not self._said:
            self._said = True
            logger.warning(
                "metrics have reached %d sets of labels; others are counted as %r", self._series, OVERFLOW
            )
        return tuple((name, value if name in _BOUNDED else OVERFLOW) for name, value in made)

    def _watch(self, state: ClusterState, priority: Priority) -> None:
        """Show from now on how much of the limits of a cluster is in use."""
        for resource, held, most in _LIMITS:
            shown = (("cluster", state.name), ("priority", priority.name.lower()), ("resource", resource))
            self._registry.labelled(shown).reading("meshlib_saturation", _share(state, priority, held, most))


_BOUNDED = frozenset(
    ("reporter", "request_protocol", "response_code", "grpc_response_status", "connection_security_policy")
)
"""Labels whose values no caller and no configuration can multiply."""


def _route(call: Call, cluster: str) -> Labels:
    route = call.route
    if route is None:
        return (("cluster", cluster), ("route", ""), ("route_config", ""), ("virtual_host", ""))
    return (
        ("cluster", cluster),
        ("route", route.resource.name or str(route.index)),
        ("route_config", route.config.name),
        ("virtual_host", route.virtual_host.name),
    )


def _outcome(status: int, grpc_status: str | None) -> str:
    if status == 0:
        return "cancelled"
    return "error" if status >= 500 or grpc_status in _SERVER_ERRORS else "success"


def _share(state: ClusterState, priority: Priority, held: str, most: str) -> Callable[[], float]:
    used, limit = attrgetter(held), attrgetter(most)

    def share() -> float:
        permits = state.permits(priority)
        allowed = limit(permits)
        return float(min(1.0, used(permits) / allowed)) if allowed else 1.0

    return share

"""What is counted of each call: Istio's standard metrics, and the golden signals of routes and clusters.

The engine counts by itself what Envoy counts (attempts, connections, retries, limits). Here a call is counted as a whole, when
it is over. All metrics that a call counts into are found at once, by one look into a dictionary with what tells calls apart
(route and cluster, who answered, status, flags); what takes longer, such as putting twenty-five labels together, happens once
for each of its keys. A new Program empties the dictionary, so that it keeps nothing of an old configuration alive.
What a call measured is put down, and added up for many calls at once, or when somebody reads.

Traffic and errors: `meshlib_route_requests_total` by outcome; latency: `meshlib_route_duration_milliseconds`; saturation:
`meshlib_saturation` (share of each limit of a cluster that has been called) and `meshlib_event_loop_lag_seconds`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from meshlib.engine.observer import InboundCall, InboundObserver
from meshlib.observe.istio import Destination, Series, destination_of, labels
from meshlib.observe.lag import LoopLag
from meshlib.observe.tally import Line, Tally
from meshlib.observe.workload import UNKNOWN, Workload, namespace_of, of_endpoint
from meshlib.resources.cluster import Cluster
from meshlib.resources.route import Priority
from meshlib.state import ClusterState
from meshlib.stats import ENVOY_BOUNDS, Labels, Registry

if TYPE_CHECKING:
    from meshlib.engine.call import Call
    from meshlib.engine.engine import Engine

__all__ = ["SERIES", "MetricsObserver"]

logger = logging.getLogger("meshlib.observe")

SERIES = 4000
"""So many sets of labels at most; calls beyond are counted with `overflow` in the place of whom they are about."""

OVERFLOW = "overflow"

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


class MetricsObserver(InboundObserver):
    """own: who this process is. series: how many sets of labels there may be. tally: observes outgoing calls."""

    def __init__(self, engine: Engine, registry: Registry, own: Workload, *, series: int = SERIES) -> None:
        self._engine = engine
        self._registry = registry
        self._own = own
        self._series = series
        self._said = False
        self._inbound: dict[Any, Series] = {}
        self._lag = LoopLag(engine.clock.monotonic)
        self.tally = Tally(engine, self._lag, self._bind)
        registry.before_reading(self.tally.settle)
        registry.labelled(()).reading("meshlib_event_loop_lag_seconds", lambda: self._lag.value)

    def inbound_over(self, record: InboundCall) -> None:
        rpc = record.grpc_status is not None or (record.first("content-type") or "").startswith(
            "application/grpc"
        )
        grpc_status = record.grpc_status if record.grpc_status in _CODES else UNKNOWN
        key = (record.peer, record.own, record.status, record.flags, grpc_status, rpc)
        series = self._inbound.get(key)
        if series is None:
            if len(self._inbound) >= 2 * SERIES:
                self._inbound = {}
            series = self._inbound[key] = self._bind_inbound(record, grpc_status, rpc=rpc)
        duration = (record.ended - record.started) * 1000.0
        series.count(duration, record.bytes_received, record.bytes_sent)
        if rpc:
            series.count_messages(record.messages_received, record.messages_sent)
        if self.tally.idle:
            self.tally.wake()

    # --- binding: once for each key ----------------------------------------------------------------------------------

    def _bind(self, call: Call) -> Line:
        status, grpc_status = call.status, call.grpc_status if call.is_rpc else None
        if grpc_status not in _CODES:
            grpc_status = UNKNOWN
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
        series = Series(self._registry, made, rpc=call.is_rpc)
        requests = self._registry.labelled_counter("meshlib_route_requests_total", (*place, outcome))
        duration = self._registry.labelled_histogram(
            "meshlib_route_duration_milliseconds", place, ENVOY_BOUNDS
        )
        return Line(
            (series.requests, requests),
            (series.duration, duration),
            series.bytes_out,
            series.bytes_in,
            series.messages_out,
            series.messages_in,
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

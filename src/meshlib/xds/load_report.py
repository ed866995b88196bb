"""What a process tells its control plane about the load that it causes: the messages of LRS, without I/O.

The control plane says which clusters it wants to hear of and how often; each report holds what has changed since the one before.
Totals come from whoever counts (`Loads`); what was reported is remembered here, so that nobody has to set counters back while
calls are made. Sources: "load_stats" of Envoy's API (envoy.service.load_stats.v3); Envoy's LoadStatsReporter; gRFC A27.

    event                                what follows
    -----------------------------------  ---------------------------------------------------------------------------------
    the stream opens                     a request with the node; nothing is reported before the control plane has answered
    an answer                            what it names is counted from now on, but what was counted already; the interval begins
    the same answer again                nothing
    the interval is over                 a report: every cluster that is wanted, also without load
    the stream ends                      the load goes on being counted; the next stream reports it
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import timedelta

from meshlib import proto
from meshlib.errors import ControlPlaneError
from meshlib.resources.endpoint import Locality
from meshlib.xds.bootstrap import Node
from meshlib.xds.messages import describe_node

__all__ = ["LEAST_INTERVAL", "ClusterLoad", "EndpointLoad", "LoadReports", "Loads", "no_load"]

REQUEST = "envoy.service.load_stats.v3.LoadStatsRequest"
RESPONSE = "envoy.service.load_stats.v3.LoadStatsResponse"
SENDS_ALL = "envoy.lrs.supports_send_all_clusters"

LEAST_INTERVAL = 1.0
"""Seconds; what a control plane asks for beyond that is not heard, as in gRPC."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointLoad:
    """Totals of the requests to one endpoint; in_progress is the number of this moment."""

    address: str
    port: int
    locality: Locality
    priority: int
    issued: int
    succeeded: int
    failed: int
    in_progress: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterLoad:
    """endpoints: those that had a request. dropped: the total of requests that a limit refused. service_name: of EDS."""

    name: str
    service_name: str
    endpoints: Sequence[EndpointLoad]
    dropped: int


Loads = Callable[[Collection[str] | None], Sequence[ClusterLoad]]
"""The load of the clusters of these names, those that may be told; None: of all."""


def no_load(_names: Collection[str] | None) -> Sequence[ClusterLoad]:
    """For who does not count."""
    return ()


_Place = tuple[str, int]
_Counts = tuple[int, int, int]
_NONE: _Counts = (0, 0, 0)


@dataclass(slots=True)
class _Told:
    """What was reported of a cluster up to a moment."""

    until: float
    dropped: int
    endpoints: dict[_Place, _Counts]


class LoadReports:
    """See the module's text. interval: seconds between two reports, None before the control plane has said that."""

    def __init__(self, node: Node, loads: Loads) -> None:
        self._node = node
        self._loads = loads
        self._names: tuple[str, ...] | None = ()
        self._by_endpoint = False
        self._told: dict[str, _Told] = {}
        self._until = 0.0
        self.interval: float | None = None

    def connected(self) -> bytes:
        """The first request of a stream."""
        self.interval = None
        request = proto.message(REQUEST)()
        request.node.CopyFrom(describe_node(self._node, SENDS_ALL))
        encoded: bytes = request.SerializeToString()
        return encoded

    def answered(self, data: bytes, now: float) -> bool:
        """Take an answer. False when it says what was known already.

        Raises:
            ControlPlaneError: the bytes are not an answer.
        """
        try:
            response = proto.parse(RESPONSE, data)
        except proto.DecodeError:
            raise ControlPlaneError("the control plane sent bytes that are not a LoadStatsResponse") from None
        names = None if response.send_all_clusters else tuple(response.clusters)
        interval = max(response.load_reporting_interval.ToTimedelta().total_seconds(), LEAST_INTERVAL)
        by_endpoint = response.report_endpoint_granularity
        if (names, interval, by_endpoint) == (self._names, self.interval, self._by_endpoint):
            return False
        known, self._told = self._told, {}
        for load in self._loads(names):
            self._told[load.name] = known.get(load.name) or self._beginning(load, now)
        self._names, self.interval, self._by_endpoint = names, interval, by_endpoint
        self._until = now
        return True

    def _beginning(self, load: ClusterLoad, now: float) -> _Told:
        """From where a cluster is reported: all of it when it appeared after it had been asked for, else from now on."""
        if self._names is None or load.name in self._names:
            return _Told(self._until, 0, {})
        return _told(load, now)

    def report(self, now: float) -> bytes:
        """What has happened since the last report."""
        request = proto.message(REQUEST)()
        known, self._told = self._told, {}
        for load in self._loads(self._names):
            before = known.get(load.name) or _Told(self._until, 0, {})
            self._told[load.name] = told = _told(load, now)
            self._describe(request.cluster_stats.add(), load, before, told)
        self._until = now
        encoded: bytes = request.SerializeToString()
        return encoded

    def _describe(self, stats: proto.Message, load: ClusterLoad, before: _Told, told: _Told) -> None:
        stats.cluster_name = load.name
        stats.cluster_service_name = load.service_name
        stats.total_dropped_requests = told.dropped - before.dropped
        stats.load_report_interval.FromTimedelta(timedelta(seconds=max(told.until - before.until, 0.0)))
        places: defaultdict[tuple[Locality, int], list[tuple[EndpointLoad, _Counts]]] = defaultdict(list)
        for endpoint in load.endpoints:
            changed = _less(_counts(endpoint), before.endpoints.get(_place(endpoint), _NONE))
            if any(changed) or endpoint.in_progress:
                places[endpoint.locality, endpoint.priority].append((endpoint, changed))
        for (locality, priority), found in places.items():
            part = stats.upstream_locality_stats.add(priority=priority)
            part.locality.region, part.locality.zone = locality.region, locality.zone
            part.locality.sub_zone = locality.sub_zone
            for endpoint, changed in found:
                _add(part, endpoint, changed)
                if self._by_endpoint:
                    own = part.upstream_endpoint_stats.add()
                    _address(own.address, endpoint)
                    _add(own, endpoint, changed)


def _add(stats: proto.Message, endpoint: EndpointLoad, changed: _Counts) -> None:
    """To the numbers of an endpoint, or of a locality, which have the same names."""
    issued, succeeded, failed = changed
    stats.total_issued_requests += issued
    stats.total_successful_requests += succeeded
    stats.total_error_requests += failed
    stats.total_requests_in_progress += endpoint.in_progress


def _address(address: proto.Message, endpoint: EndpointLoad) -> None:
    if endpoint.address.startswith(("/", "@")):
        address.pipe.path = endpoint.address
    else:
        address.socket_address.address = endpoint.address
        address.socket_address.port_value = endpoint.port


def _told(load: ClusterLoad, now: float) -> _Told:
    return _Told(now, load.dropped, {_place(each): _counts(each) for each in load.endpoints})


def _place(endpoint: EndpointLoad) -> _Place:
    return endpoint.address, endpoint.port


def _counts(endpoint: EndpointLoad) -> _Counts:
    return endpoint.issued, endpoint.succeeded, endpoint.failed


def _less(now: _Counts, before: _Counts) -> _Counts:
    return now[0] - before[0], now[1] - before[1], now[2] - before[2]

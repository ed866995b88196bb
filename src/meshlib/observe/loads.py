"""Counts the load of each endpoint for load reports (LRS). Nothing is counted before a control plane has asked for it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING

from meshlib.balance.membership import find
from meshlib.engine.loop import GRPC_SOUND
from meshlib.engine.observer import CallObserver
from meshlib.resources.endpoint import ClusterLoadAssignment, Locality
from meshlib.routing.matchers.grpc import is_grpc
from meshlib.xds.load_report import ClusterLoad, EndpointLoad

if TYPE_CHECKING:
    from meshlib.engine.attempt import Attempt
    from meshlib.engine.call import Call
    from meshlib.engine.engine import Engine
    from meshlib.engine.program import ClusterProgram
    from meshlib.state import EndpointState

__all__ = ["LoadCounter"]


class _Counts:
    __slots__ = ("failed", "issued", "succeeded")

    def __init__(self) -> None:
        self.issued = 0
        self.succeeded = 0
        self.failed = 0


class LoadCounter(CallObserver):
    """`read` is a `meshlib.xds.load_report.Loads`, and begins to count at its first use.

    An attempt counts as issued when its endpoint has been picked (Envoy: when it is on a connection). It has failed when its
    connection or its stream did, with a status of 5xx, and in gRPC without a status or with one that stands for a 5xx, as in
    Envoy. An attempt that the caller gave up, or that another one won against, has neither failed nor succeeded.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._counts: dict[str, dict[EndpointState, _Counts]] = {}

    def read(self, names: Collection[str] | None) -> Sequence[ClusterLoad]:
        """The clusters of these names (None: all) that ask for load reports. On the thread that publishes."""
        self._engine.observe(self)
        clusters = self._engine.program.clusters
        wanted = clusters if names is None else [name for name in names if name in clusters]
        found = [self._load(clusters[name]) for name in wanted if clusters[name].cluster.load_reporting]
        for name in self._counts.keys() - clusters.keys():
            del self._counts[name]
        return found

    def attempt_begun(self, call: Call, attempt: Attempt, now: float) -> None:
        counts = self._of(attempt)
        if counts is not None:
            counts.issued += 1

    def attempt_over(self, call: Call, attempt: Attempt, now: float) -> None:
        counts = self._of(attempt)
        if counts is None:
            return
        verdict = _verdict(call, attempt)
        if verdict:
            counts.succeeded += 1
        elif verdict is False:
            counts.failed += 1

    def _of(self, attempt: Attempt) -> _Counts | None:
        cluster = attempt.cluster.cluster
        if not cluster.load_reporting:
            return None
        endpoints = self._counts.get(cluster.name)
        if endpoints is None:
            endpoints = self._counts.setdefault(cluster.name, {})
        counts = endpoints.get(attempt.endpoint)
        return endpoints.setdefault(attempt.endpoint, _Counts()) if counts is None else counts

    def _load(self, program: ClusterProgram) -> ClusterLoad:
        cluster, stats = program.cluster, program.state.stats
        counts = self._counts.get(cluster.name, {})
        return ClusterLoad(
            name=cluster.name,
            service_name=cluster.eds_service_name,
            endpoints=list(_endpoints(counts.copy(), program.assignment)),
            dropped=stats.upstream_rq_pending_overflow.value + stats.upstream_rq_active_overflow.value,
        )


def _endpoints(
    counts: dict[EndpointState, _Counts], assignment: ClusterLoadAssignment | None
) -> Iterator[EndpointLoad]:
    """Each where it stands in the assignment; one that has left stands in no locality."""
    left = dict(counts)
    for place in () if assignment is None else assignment.localities:
        for _, endpoint in find(place.endpoints, tuple(left)):
            found = left.pop(endpoint, None)  # an address may stand there twice
            if found is not None:
                yield _told(endpoint, found, place.locality, place.priority)
    for endpoint, found in left.items():
        yield _told(endpoint, found, Locality(), 0)


def _told(endpoint: EndpointState, counts: _Counts, locality: Locality, priority: int) -> EndpointLoad:
    return EndpointLoad(
        address=endpoint.address,
        port=endpoint.port,
        locality=locality,
        priority=priority,
        issued=counts.issued,
        succeeded=counts.succeeded,
        failed=counts.failed,
        in_progress=endpoint.active,
    )


def _verdict(call: Call, attempt: Attempt) -> bool | None:
    """None: nobody knows how it would have ended."""
    if attempt.number == call.accepted:
        if attempt.status is None or attempt.status >= 500:
            return False
        if not is_grpc(call.request):
            return True
        status = call.grpc_status
        return status is not None and status in GRPC_SOUND
    if attempt.failure is not None:
        return None if attempt.failure == "cancelled" else False
    return attempt.status is not None and attempt.status < 500 and not is_grpc(call.request)

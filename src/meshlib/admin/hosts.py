"""The endpoints of a cluster as they are right now: what configuration says of each, and what calls have found out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from meshlib.engine.program import ClusterProgram
from meshlib.resources.endpoint import Health, Locality
from meshlib.resources.tls import select_tls
from meshlib.state import EndpointState

__all__ = ["Ejection", "Host", "ejected_of", "ejection_of", "hosts_of", "mtls_of", "summary_of"]


class Ejection(NamedTuple):
    """reason: of outlier detection, in Envoy's words. at, until: monotonic seconds; until is when the endpoint may be taken back
    at the earliest, which the first call after that does. times: how often in a row, which makes it longer.
    """

    reason: str
    at: float
    until: float
    times: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """address: `ip:port`. health: as configured. ejection: None when outlier detection has not ejected it. active: requests under
    way; connections: open ones; waiting: calls that wait for one of them. failures: 5xx in a row. tls: a connection to it is made
    with TLS.
    """

    address: str
    hostname: str
    priority: int
    locality: Locality
    weight: int
    health: Health
    ejection: Ejection | None = None
    active: int = 0
    connections: int = 0
    waiting: int = 0
    failures: int = 0
    tls: bool = False

    @property
    def health_flags(self) -> str:
        """As Envoy's /clusters has them."""
        flags = ""
        if self.ejection is not None:
            flags += "/failed_outlier_check"
        if self.health is not Health.HEALTHY:
            flags += _FLAGS[self.health]
        return flags or "healthy"

    @property
    def usable(self) -> bool:
        """It gets traffic, but in panic."""
        return self.ejection is None and self.health in (Health.HEALTHY, Health.DEGRADED)


_FLAGS = {
    Health.UNHEALTHY: "/failed_eds_health",
    Health.DEGRADED: "/degraded_eds_health",
    Health.DRAINING: "/eds_status_draining",
}


def hosts_of(cluster: ClusterProgram, start: int = 0, limit: int | None = None) -> Iterator[Host]:
    """In the order of the assignment. limit: at most so many, from number `start` on; the others cost nothing."""
    assignment = cluster.assignment
    if assignment is None:
        return
    known = cluster.state.endpoints
    stop = None if limit is None else start + limit
    position = 0
    for locality in assignment.localities:
        size = len(locality.endpoints)
        first, last = max(start - position, 0), size if stop is None else min(stop - position, size)
        position += size
        for index in range(first, last):
            endpoint = locality.endpoints[index]
            state = known.get(endpoint.key)
            found = Host(
                address=endpoint.key,
                hostname=endpoint.hostname,
                priority=locality.priority,
                locality=locality.locality,
                weight=endpoint.weight,
                health=endpoint.health,
                tls=select_tls(cluster.cluster, endpoint.transport_socket_metadata) is not None,
            )
            yield found if state is None else _living(found, state, cluster)


def _living(host: Host, state: EndpointState, cluster: ClusterProgram) -> Host:
    ejection = ejection_of(state, cluster)
    return replace(
        host,
        ejection=ejection,
        active=state.active,
        connections=state.connections,
        waiting=len(state.waiters),
        failures=state.consecutive_5xx,
    )


def summary_of(cluster: ClusterProgram) -> dict[str, int]:
    """Counts without a look at each endpoint, of which there may be 100,000."""
    localities = () if cluster.assignment is None else cluster.assignment.localities
    total = sum(len(locality.endpoints) for locality in localities)
    unhealthy = sum(len(locality.unhealthy) for locality in localities)
    degraded = sum(len(locality.degraded) for locality in localities)
    ejected = len(ejected_of(cluster))
    return {
        "total": total,
        "healthy": max(total - unhealthy - degraded - ejected, 0),
        "degraded": degraded,
        "unhealthy": unhealthy,
        "ejected": ejected,
    }


def ejected_of(cluster: ClusterProgram) -> list[EndpointState]:
    if cluster.outlier is None:
        return []
    return [each for each in list(cluster.state.endpoints.values()) if each.ejected and not each.departed]


def ejection_of(state: EndpointState, cluster: ClusterProgram) -> Ejection | None:
    """None: it is not ejected."""
    detection = cluster.cluster.outlier_detection
    if detection is None or not state.ejected:
        return None
    longest = max(detection.max_ejection_time, detection.base_ejection_time)
    length = min(detection.base_ejection_time * state.ejection_multiplier, longest) + state.ejection_jitter
    return Ejection("consecutive_5xx", state.ejected_at, state.ejected_at + length, state.ejection_multiplier)


def mtls_of(cluster: ClusterProgram) -> tuple[bool, bool]:
    """Whether the cluster asks for TLS, and whether this process shows a certificate of its own then."""
    matches = cluster.cluster.transport_socket_matches
    configs = [
        tls.common for tls in (cluster.cluster.tls, *(match.tls for match in matches)) if tls is not None
    ]
    shows = any(
        bool(common.certificates or common.certificate_secrets or common.certificate_provider)
        for common in configs
    )
    return bool(configs), shows

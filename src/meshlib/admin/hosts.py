"""The endpoints of a cluster as they are right now: what configuration says of each, and what calls have found out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from meshlib.engine.program import ClusterProgram
from meshlib.resources.endpoint import Health, Locality
from meshlib.resources.tls import select_tls
from meshlib.state import EndpointState

__all__ = ["Host", "hosts_of", "mtls_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """address: `ip:port`. health: as configured. ejected_for: why outlier detection has ejected it, None when it has not;
    ejected_at, back_at: monotonic seconds, of the ejection and of when it may be taken back at the earliest. active: requests
    under way; connections: open ones; waiting: calls that wait for one of them. failures: 5xx in a row. tls: a connection to it
    is made with TLS.
    """

    address: str
    hostname: str
    priority: int
    locality: Locality
    weight: int
    health: Health
    ejected_for: str | None = None
    ejected_at: float = 0.0
    back_at: float = 0.0
    ejections: int = 0
    active: int = 0
    connections: int = 0
    waiting: int = 0
    failures: int = 0
    tls: bool = False

    @property
    def health_flags(self) -> str:
        """As Envoy's /clusters has them."""
        flags = ""
        if self.ejected_for is not None:
            flags += "/failed_outlier_check"
        if self.health is not Health.HEALTHY:
            flags += _FLAGS[self.health]
        return flags or "healthy"

    @property
    def usable(self) -> bool:
        """It gets traffic, but in panic."""
        return self.ejected_for is None and self.health in (Health.HEALTHY, Health.DEGRADED)


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
    detection = cluster.cluster.outlier_detection
    ejected = state.ejected and detection is not None
    length = 0.0
    if detection is not None:
        longest = max(detection.max_ejection_time, detection.base_ejection_time)
        length = (
            min(detection.base_ejection_time * state.ejection_multiplier, longest) + state.ejection_jitter
        )
    return Host(
        address=host.address,
        hostname=host.hostname,
        priority=host.priority,
        locality=host.locality,
        weight=host.weight,
        health=host.health,
        ejected_for="consecutive_5xx" if ejected else None,
        ejected_at=state.ejected_at,
        back_at=state.ejected_at + length,
        ejections=state.ejection_multiplier,
        active=state.active,
        connections=state.connections,
        waiting=len(state.waiters),
        failures=state.consecutive_5xx,
        tls=host.tls,
    )


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

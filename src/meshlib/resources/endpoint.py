"""ClusterLoadAssignment (config.endpoint.v3), made so that 100,000 endpoints cost nothing until they are picked.

What decides where traffic goes (health, weight, priority) is read when the resource is decoded, for all endpoints at once and
into flat sequences. An `Endpoint` object is made the first time that somebody asks for it by index.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from meshlib.resources.metadata import NO_METADATA, Scalar

__all__ = ["OUT", "ClusterLoadAssignment", "Endpoint", "Health", "Locality", "LocalityEndpoints"]


class Health(Enum):
    """health_status from EDS as Envoy reads it: UNKNOWN is healthy, TIMEOUT is unhealthy.

    DRAINING is unhealthy too, and is not counted among the hosts of which a part must be healthy.
    """

    HEALTHY = 0
    DEGRADED = 1
    UNHEALTHY = 2
    DRAINING = 3


OUT = frozenset((Health.UNHEALTHY, Health.DRAINING))
"""Endpoints with one of these get no traffic but in panic."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One endpoint. address is an IP address (a hostname only in the load assignment of a DNS cluster; the path for a Unix
    socket, with port 0, `@` and a name for an abstract one); weight >= 1.

    hostname: for auto_host_rewrite; empty when not given. hash_key: what the policies that balance by hash know it by
    (metadata `envoy.lb`, key `hash_key`); empty when not given. transport_socket_metadata: what `tls.select_tls` looks at, that
    of the locality included; the shared `NO_METADATA` when there is none. workload: who it is, for metrics (metadata `istio`,
    key `workload`: name, namespace, canonical service, revision and cluster between semicolons); empty when not given.
    """

    address: str
    port: int
    weight: int = 1
    health: Health = Health.HEALTHY
    hostname: str = ""
    hash_key: str = ""
    transport_socket_metadata: Mapping[str, Scalar] = field(default_factory=lambda: NO_METADATA, hash=False)
    workload: str = ""

    @property
    def key(self) -> str:
        """`ip:port` (`[ip]:port` for IPv6), the identity of the endpoint within its cluster."""
        if not self.port and self.address.startswith(("/", "@")):
            return self.address
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Locality:
    region: str = ""
    zone: str = ""
    sub_zone: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalityEndpoints:
    """The endpoints of one locality at one priority.

    endpoints: materialised on access, `endpoints[i]` is an Endpoint. unhealthy, degraded: ascending indexes into endpoints,
    all others are healthy. draining: those of the unhealthy ones that are not counted. weights: one for each
    endpoint, None when all are equal. weight: the locality's, None when not given. has_metadata: whether an endpoint may have
    transport_socket_metadata or a workload.
    """

    locality: Locality = Locality()
    priority: int = 0
    weight: int | None = None
    endpoints: Sequence[Endpoint]
    unhealthy: Sequence[int] = ()
    degraded: Sequence[int] = ()
    draining: Sequence[int] = ()
    weights: Sequence[int] | None = None
    has_metadata: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterLoadAssignment:
    """config.endpoint.v3.ClusterLoadAssignment. Priorities are 0 .. N without a gap.

    overprovisioning_factor: percent, default 140. drop_overloads: EDS drop categories are collected in `unsupported`.
    """

    cluster_name: str
    localities: tuple[LocalityEndpoints, ...] = ()
    overprovisioning_factor: int = 140
    weighted_priority_health: bool = False

    @property
    def size(self) -> int:
        return sum(len(locality.endpoints) for locality in self.localities)

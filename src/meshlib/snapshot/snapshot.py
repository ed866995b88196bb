"""The configuration at one moment. Immutable; a new one shares everything that did not change with the one before."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import Any, Protocol

from meshlib import proto
from meshlib.errors import ConfigError, ResourceError
from meshlib.resources.cluster import Cluster, DiscoveryType
from meshlib.resources.endpoint import ClusterLoadAssignment
from meshlib.resources.inbound import InboundListener
from meshlib.resources.listener import Listener
from meshlib.resources.route import RouteConfiguration
from meshlib.resources.secret import Secret
from meshlib.resources.tls import AdsSource, SecretRef

__all__ = ["Accepted", "Kind", "Ref", "Resource", "Snapshot", "from_resources", "kind_of", "name_of"]

Resource = Listener | InboundListener | RouteConfiguration | Cluster | ClusterLoadAssignment | Secret


class Kind(Enum):
    """The types of the graph, parents first. The value is the type URL."""

    LISTENER = proto.LISTENER
    ROUTE = proto.ROUTE
    CLUSTER = proto.CLUSTER
    ENDPOINT = proto.ENDPOINT
    SECRET = proto.SECRET

    @property
    def short(self) -> str:
        """Envoy's name of the discovery service: `lds`, `rds`, `cds`, `eds`, `sds`."""
        return _SHORT[self]


_SHORT = {
    Kind.LISTENER: "lds",
    Kind.ROUTE: "rds",
    Kind.CLUSTER: "cds",
    Kind.ENDPOINT: "eds",
    Kind.SECRET: "sds",
}

Ref = tuple[Kind, str]
"""A resource by type and name."""


class Accepted(Protocol):
    """A resource that was decoded: `meshlib.resources.Decoded`."""

    @property
    def resource(self) -> Any: ...

    @property
    def unsupported(self) -> tuple[str, ...]: ...

    @property
    def warnings(self) -> tuple[str, ...]: ...


def _empty() -> Mapping[Any, Any]:
    return MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Every resource that is in force.

    listeners, routes, clusters, secrets: by name. inbound: the Listeners that only a server can use, by name; see
    `inbound_listener`. endpoints: ClusterLoadAssignments of EDS by resource name. resolved: those of DNS clusters by cluster
    name. An object that did not change is the same object in the next snapshot, so `is` tells.
    external_secrets: those that come from elsewhere than this stream or these files. missing_secrets: of those, the ones that
    have not come in time, or were refused when they first came. See `secret`.
    absent: known not to exist. errors: the latest version was rejected; the last good one, if any, is still in its mapping.
    unsupported: what was reported and not applied; each entry begins with the path of the field.
    versions: `version_info` last accepted, by type.
    awaited: asked for, no answer yet. complete: from files, so that what is not there does not exist.
    generation: grows by one with each snapshot of a Mesh.
    """

    generation: int = 0
    listeners: Mapping[str, Listener] = field(default_factory=_empty)
    routes: Mapping[str, RouteConfiguration] = field(default_factory=_empty)
    clusters: Mapping[str, Cluster] = field(default_factory=_empty)
    endpoints: Mapping[str, ClusterLoadAssignment] = field(default_factory=_empty)
    resolved: Mapping[str, ClusterLoadAssignment] = field(default_factory=_empty)
    secrets: Mapping[str, Secret] = field(default_factory=_empty)
    inbound: Mapping[str, InboundListener] = field(default_factory=_empty)
    external_secrets: Mapping[SecretRef, Secret] = field(default_factory=_empty)
    missing_secrets: AbstractSet[SecretRef] = frozenset()
    absent: AbstractSet[Ref] = frozenset()
    errors: Mapping[Ref, ResourceError] = field(default_factory=_empty)
    unsupported: Mapping[Ref, tuple[str, ...]] = field(default_factory=_empty)
    versions: Mapping[Kind, str] = field(default_factory=_empty)
    awaited: AbstractSet[Ref] = frozenset()
    complete: bool = False

    def listener(self, name: str) -> Listener | None:
        """The Listener of this name; from files, the only Listener when none has the name."""
        found = self.listeners.get(name)
        if found is None and self.complete and len(self.listeners) == 1:
            return next(iter(self.listeners.values()))
        return found

    def inbound_listener(self, name: str) -> InboundListener | None:
        """What the Listener of this name says to a server; from files, the only one that a server can use."""
        found = self.inbound.get(name)
        listener = self.listeners.get(name)
        if found is None and listener is not None:
            found = listener.inbound
        if found is None and self.complete and len(self.inbound) == 1:
            return next(iter(self.inbound.values()))
        return found

    def route_config(self, listener: Listener) -> RouteConfiguration | None:
        """The Listener's inline RouteConfiguration, or the one that it names."""
        http = listener.http
        if http.route_config is not None or http.route_config_name is None:
            return http.route_config
        return self.routes.get(http.route_config_name)

    def assignment(self, cluster: Cluster) -> ClusterLoadAssignment | None:
        """The cluster's endpoints, wherever they come from; None while none are known."""
        if cluster.discovery is DiscoveryType.EDS:
            return self.endpoints.get(cluster.eds_service_name)
        if cluster.discovery is DiscoveryType.STATIC:
            return cluster.load_assignment
        return self.resolved.get(cluster.name)

    def pending(self, kind: Kind, name: str) -> bool:
        """Neither the resource nor a verdict on it is known: ask for it and wait, rather than fail."""
        ref = (kind, name)
        return not (
            self.complete
            or name in self._of(kind)
            or ref in self.absent
            or self.errors.get(ref) is not None
            or (kind is Kind.LISTENER and name in self.inbound)
        )

    def pending_endpoints(self, cluster: Cluster) -> bool:
        """The cluster is known, its endpoints are not yet (`assignment` is None)."""
        if cluster.discovery is DiscoveryType.EDS:
            return self.pending(Kind.ENDPOINT, cluster.eds_service_name)
        return cluster.discovery is not DiscoveryType.STATIC and cluster.name not in self.resolved

    def secret(self, ref: SecretRef) -> Secret | None:
        """The secret, wherever it comes from; None while it has not come."""
        if isinstance(ref.source, AdsSource):
            return self.secrets.get(ref.name)
        return self.external_secrets.get(ref)

    def pending_secret(self, ref: SecretRef) -> bool:
        """Neither the secret nor a verdict on it is known."""
        if isinstance(ref.source, AdsSource):
            return self.pending(Kind.SECRET, ref.name)
        return ref not in self.external_secrets and ref not in self.missing_secrets

    def lacks_secret(self, ref: SecretRef) -> bool:
        """The secret has not come, and nobody expects it any longer."""
        return self.secret(ref) is None and not self.pending_secret(ref)

    def pending_secrets(self, cluster: Cluster) -> bool:
        """The cluster can't be connected to before a secret has come, and it may still come."""
        return any(self.pending_secret(ref) for ref in cluster.secrets)

    def error(self, kind: Kind, name: str) -> ResourceError | None:
        """Why the latest version of the resource was rejected."""
        return self.errors.get((kind, name))

    def with_resolved(self, cluster: str, assignment: ClusterLoadAssignment) -> Snapshot:
        """The next snapshot, with these endpoints for a DNS cluster."""
        resolved = {**self.resolved, cluster: assignment}
        return dataclasses.replace(self, generation=self.generation + 1, resolved=resolved)

    def with_secret(self, ref: SecretRef, secret: Secret | None) -> Snapshot:
        """The next snapshot, with this secret; None: it is missing."""
        external, missing = dict(self.external_secrets), set(self.missing_secrets)
        missing.discard(ref)
        if secret is not None:
            external[ref] = secret
        elif ref not in external:
            missing.add(ref)
        return dataclasses.replace(
            self,
            generation=self.generation + 1,
            external_secrets=external,
            missing_secrets=frozenset(missing),
        )

    def _of(self, kind: Kind) -> Mapping[str, Any]:
        found: Mapping[str, Any] = getattr(self, _MAPPINGS[kind])
        return found


_MAPPINGS = {
    Kind.LISTENER: "listeners",
    Kind.ROUTE: "routes",
    Kind.CLUSTER: "clusters",
    Kind.ENDPOINT: "endpoints",
    Kind.SECRET: "secrets",
}

_KIND_OF: dict[type, Kind] = {
    Listener: Kind.LISTENER,
    InboundListener: Kind.LISTENER,
    RouteConfiguration: Kind.ROUTE,
    Cluster: Kind.CLUSTER,
    ClusterLoadAssignment: Kind.ENDPOINT,
    Secret: Kind.SECRET,
}


def kind_of(resource: Resource) -> Kind:
    return _KIND_OF[type(resource)]


def name_of(resource: Resource) -> str:
    return resource.cluster_name if isinstance(resource, ClusterLoadAssignment) else resource.name


def from_resources(accepted: Iterable[Accepted]) -> Snapshot:
    """The snapshot of a whole configuration from files: what is not in it does not exist, and nothing is awaited.

    Raises:
        ConfigError: two resources of one type have the same name.
    """
    found: dict[Kind, dict[str, Any]] = {kind: {} for kind in Kind}
    inbound: dict[str, InboundListener] = {}
    unsupported: dict[Ref, tuple[str, ...]] = {}
    for item in accepted:
        kind, name = kind_of(item.resource), name_of(item.resource)
        if name in found[kind] or (kind is Kind.LISTENER and name in inbound):
            raise ConfigError(f"{type(item.resource).__name__} {name!r} is defined twice; remove one of them")
        if isinstance(item.resource, InboundListener):
            inbound[name] = item.resource
        else:
            found[kind][name] = item.resource
        if item.unsupported:
            unsupported[kind, name] = item.unsupported
    return Snapshot(
        generation=1,
        listeners=found[Kind.LISTENER],
        routes=found[Kind.ROUTE],
        clusters=found[Kind.CLUSTER],
        endpoints=found[Kind.ENDPOINT],
        secrets=found[Kind.SECRET],
        inbound=inbound,
        unsupported=unsupported,
        complete=True,
    )

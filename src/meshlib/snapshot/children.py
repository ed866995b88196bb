"""What each resource refers to, and so wants."""

from __future__ import annotations

from meshlib.resources.cluster import Cluster, DiscoveryType
from meshlib.resources.inbound import InboundListener
from meshlib.resources.listener import HttpConnectionManager, Listener
from meshlib.resources.route import RouteConfiguration
from meshlib.resources.tls import AdsSource, SecretRef, ServerSource
from meshlib.snapshot.snapshot import Kind, Ref, Resource

__all__ = ["children_of"]


def children_of(resource: Resource) -> frozenset[Ref]:
    """By type and name."""
    if isinstance(resource, Listener):
        return frozenset(_of_manager(resource.http))
    if isinstance(resource, InboundListener):
        routes = {ref for chain in resource.chains for ref in _inbound_routes(chain.http)}
        return frozenset(routes | _secrets(resource.secrets))
    if isinstance(resource, RouteConfiguration):
        return frozenset((Kind.CLUSTER, name) for name in resource.cluster_names)
    if not isinstance(resource, Cluster):
        return frozenset()
    found = _secrets(resource.secrets)
    if resource.discovery is DiscoveryType.EDS:
        found.add((Kind.ENDPOINT, resource.eds_service_name))
    return frozenset(found)


def _of_manager(http: HttpConnectionManager) -> frozenset[Ref]:
    if http.route_config is not None:
        return children_of(http.route_config)
    return frozenset({(Kind.ROUTE, http.route_config_name)}) if http.route_config_name else frozenset()


def _inbound_routes(http: HttpConnectionManager) -> set[Ref]:
    """A server needs the routes for what they say about its filters; it calls no cluster."""
    if http.route_config is not None or not http.route_config_name:
        return set()
    return {(Kind.ROUTE, http.route_config_name)}


def _secrets(refs: tuple[SecretRef, ...]) -> set[Ref]:
    """Those that come over the same stream, and the clusters by which SDS servers are reached."""
    found: set[Ref] = {(Kind.SECRET, ref.name) for ref in refs if isinstance(ref.source, AdsSource)}
    servers = (ref.source for ref in refs if isinstance(ref.source, ServerSource))
    return found | {(Kind.CLUSTER, server.cluster) for server in servers if server.cluster}

"""Small resources, and a stand-in for meshlib.resources.Decoded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from meshlib.resources.cluster import Cluster, DiscoveryType
from meshlib.resources.endpoint import ClusterLoadAssignment, Endpoint, LocalityEndpoints
from meshlib.resources.listener import HttpConnectionManager, HttpFilter, Listener, RouterConfig
from meshlib.resources.route import (
    PathKind,
    PathMatch,
    Route,
    RouteAction,
    RouteConfiguration,
    RouteMatch,
    VirtualHost,
)

__all__ = ["Item", "assignment", "cluster", "dns_cluster", "inline_listener", "listener", "routes"]

ROUTER = HttpFilter(name="router", type_url="", config=RouterConfig())


@dataclass(frozen=True, slots=True)
class Item:
    resource: Any
    unsupported: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def listener(name: str, route_config: str) -> Listener:
    return Listener(
        name=name, http=HttpConnectionManager(route_config_name=route_config, http_filters=(ROUTER,))
    )


def inline_listener(name: str, *clusters: str) -> Listener:
    http = HttpConnectionManager(route_config=routes(name, *clusters), http_filters=(ROUTER,))
    return Listener(name=name, http=http)


def routes(name: str, *clusters: str) -> RouteConfiguration:
    match = RouteMatch(path=PathMatch(kind=PathKind.PREFIX, value="/"))
    host = VirtualHost(
        name="all",
        domains=("*",),
        routes=tuple(Route(match=match, action=RouteAction(cluster=cluster)) for cluster in clusters),
    )
    return RouteConfiguration(name=name, virtual_hosts=(host,))


def cluster(name: str, service: str = "") -> Cluster:
    return Cluster(name=name, discovery=DiscoveryType.EDS, eds_service_name=service or name)


def dns_cluster(name: str, *hosts: str, logical: bool = False, rate: float = 5.0) -> Cluster:
    kind = DiscoveryType.LOGICAL_DNS if logical else DiscoveryType.STRICT_DNS
    return Cluster(name=name, discovery=kind, load_assignment=assignment(name, *hosts), dns_refresh_rate=rate)


def assignment(name: str, *hosts: str) -> ClusterLoadAssignment:
    endpoints = tuple(Endpoint(address=host, port=80) for host in hosts)
    return ClusterLoadAssignment(cluster_name=name, localities=(LocalityEndpoints(endpoints=endpoints),))

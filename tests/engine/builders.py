"""Small resources for the engine's tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from meshlib.resources.cluster import CircuitBreakers, Cluster, DiscoveryType, OutlierDetection, Thresholds
from meshlib.resources.endpoint import ClusterLoadAssignment, Endpoint, LocalityEndpoints
from meshlib.resources.listener import HttpConnectionManager, HttpFilter, Listener, RouterConfig
from meshlib.resources.route import (
    Action,
    BackOff,
    HedgePolicy,
    PathKind,
    PathMatch,
    RetryPolicy,
    Route,
    RouteAction,
    RouteConfiguration,
    RouteMatch,
    VirtualHost,
)

__all__ = [
    "HEDGING",
    "ROUTER",
    "assignment",
    "cluster",
    "forward",
    "listener",
    "outlier",
    "retry",
    "route_config",
    "thresholds",
]

ROUTER = HttpFilter(name="router", type_url="router", config=RouterConfig())


def assignment(name: str, hosts: int, first: int = 1) -> ClusterLoadAssignment:
    """Endpoints 10.0.0.first:80 and so on."""
    endpoints = tuple(Endpoint(f"10.0.0.{first + index}", 80) for index in range(hosts))
    return ClusterLoadAssignment(cluster_name=name, localities=(LocalityEndpoints(endpoints=endpoints),))


def cluster(name: str = "a", hosts: int = 1, **fields: Any) -> Cluster:
    fields.setdefault("discovery", DiscoveryType.STATIC)
    fields.setdefault("load_assignment", assignment(name, hosts))
    return Cluster(name=name, **fields)


def thresholds(**limits: Any) -> CircuitBreakers:
    return CircuitBreakers(default=Thresholds(**limits))


def outlier(**fields: Any) -> OutlierDetection:
    fields.setdefault("max_ejection_percent", 100)
    return OutlierDetection(**fields)


def retry(on: str = "5xx", times: int = 1, **fields: Any) -> RetryPolicy:
    return RetryPolicy(retry_on=frozenset(on.split(",")), num_retries=times, **fields)


def forward(cluster: str = "a", **fields: Any) -> RouteAction:
    return RouteAction(cluster=cluster, **fields)


def route_config(action: Action, **host: Any) -> RouteConfiguration:
    """One virtual host for every domain with one route for every path. `route_` fields go to the route."""
    route = {key[6:]: host.pop(key) for key in list(host) if key.startswith("route_")}
    only = Route(match=RouteMatch(path=PathMatch(kind=PathKind.PREFIX, value="/")), action=action, **route)
    return RouteConfiguration(
        name="r", virtual_hosts=(VirtualHost(name="v", domains=("*",), routes=(only,), **host),)
    )


def listener(
    config: RouteConfiguration | None, filters: Sequence[HttpFilter] = (ROUTER,), **fields: Any
) -> Listener:
    """config None: the RouteConfiguration `r` comes by RDS."""
    name = "r" if config is None else None
    fields.setdefault("stream_idle_timeout", 0.0)
    manager = HttpConnectionManager(
        route_config=config, route_config_name=name, http_filters=tuple(filters), **fields
    )
    return Listener(name="svc:80", http=manager)


HEDGING = HedgePolicy(hedge_on_per_try_timeout=True)

NO_BACK_OFF = BackOff(base_interval=0.001, max_interval=0.001)

"""`/clusters`: what Envoy's shows of each cluster and its endpoints, as far as a process that only calls them knows it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from meshlib.admin.hosts import Host, hosts_of
from meshlib.engine.program import ClusterProgram
from meshlib.resources.cluster import DiscoveryType, Thresholds
from meshlib.resources.endpoint import Health

if TYPE_CHECKING:
    from meshlib.mesh import Mesh

__all__ = ["MOST_HOSTS", "address_json", "clusters_json", "clusters_text"]

MOST_HOSTS = 10_000
"""Endpoints of one cluster that are shown; the text says how many are left out."""

_EDS_HEALTH = {
    Health.HEALTHY: "HEALTHY",
    Health.DEGRADED: "DEGRADED",
    Health.UNHEALTHY: "UNHEALTHY",
    Health.DRAINING: "DRAINING",
}


def clusters_text(mesh: Mesh, names: Iterable[str]) -> str:
    """Envoy's text form, one fact a line: `CLUSTER::ENDPOINT::NAME::VALUE`."""
    lines: list[str] = []
    added = str(not mesh.snapshot.complete).lower()
    for name in names:
        cluster = mesh.engine.program.clusters[name]
        lines.append(f"{name}::observability_name::{name}")
        lines += _limits(name, "default_priority", cluster.cluster.circuit_breakers.default)
        lines += _limits(name, "high_priority", cluster.cluster.circuit_breakers.high)
        lines.append(f"{name}::added_via_api::{added}")
        if cluster.cluster.discovery is DiscoveryType.EDS:
            lines.append(f"{name}::eds_service_name::{cluster.cluster.eds_service_name}")
        for host in hosts_of(cluster, limit=MOST_HOSTS):
            lines += (f"{name}::{host.address}::{fact}::{value}" for fact, value in _facts(host))
        left = _size(cluster) - MOST_HOSTS
        if left > 0:
            lines.append(f"{name}::left_out::{left}")
    return "".join(f"{line}\n" for line in lines)


def clusters_json(mesh: Mesh, names: Iterable[str]) -> dict[str, Any]:
    """envoy.admin.v3.Clusters as JSON."""
    added = not mesh.snapshot.complete
    return {"cluster_statuses": [_status(mesh.engine.program.clusters[name], added) for name in names]}


def _status(cluster: ClusterProgram, added: bool) -> dict[str, Any]:
    resource = cluster.cluster
    breakers = resource.circuit_breakers
    status: dict[str, Any] = {
        "name": resource.name,
        "added_via_api": added,
        "host_statuses": [_host(host) for host in hosts_of(cluster, limit=MOST_HOSTS)],
        "circuit_breakers": {
            "thresholds": [_threshold(breakers.default), {"priority": "HIGH", **_threshold(breakers.high)}]
        },
        "observability_name": resource.name,
    }
    if resource.eds_service_name:
        status["eds_service_name"] = resource.eds_service_name
    return status


def _host(host: Host) -> dict[str, Any]:
    health: dict[str, Any] = {"eds_health_status": _EDS_HEALTH[host.health]}
    if host.ejection is not None:
        health["failed_outlier_check"] = True
    found: dict[str, Any] = {
        "address": address_json(host.address),
        "stats": [
            {"name": name, "type": "GAUGE", "value": str(value)}
            for name, value in (
                ("cx_active", host.connections),
                ("rq_active", host.active),
                ("rq_pending_active", host.waiting),
            )
        ],
        "health_status": health,
        "weight": host.weight,
        "locality": {
            name: value
            for name, value in (
                ("region", host.locality.region),
                ("zone", host.locality.zone),
                ("sub_zone", host.locality.sub_zone),
            )
            if value
        },
    }
    if host.hostname:
        found["hostname"] = host.hostname
    if host.priority:
        found["priority"] = host.priority
    return found


def address_json(key: str) -> dict[str, Any]:
    """config.core.v3.Address of `ip:port`, or of a Unix socket's path."""
    if key.startswith(("/", "@")):
        return {"pipe": {"path": key}}
    address, _, port = key.rpartition(":")
    return {"socket_address": {"address": address.strip("[]"), "port_value": int(port)}}


def _threshold(limits: Thresholds) -> dict[str, Any]:
    return {
        "max_connections": limits.max_connections,
        "max_pending_requests": limits.max_pending_requests,
        "max_requests": limits.max_requests,
        "max_retries": limits.max_retries,
    }


def _limits(name: str, priority: str, limits: Thresholds) -> Iterator[str]:
    for limit, value in _threshold(limits).items():
        yield f"{name}::{priority}::{limit}::{value}"


def _facts(host: Host) -> Iterator[tuple[str, object]]:
    yield "cx_active", host.connections
    yield "rq_active", host.active
    yield "rq_pending_active", host.waiting
    yield "hostname", host.hostname
    yield "health_flags", host.health_flags
    yield "weight", host.weight
    yield "region", host.locality.region
    yield "zone", host.locality.zone
    yield "sub_zone", host.locality.sub_zone
    yield "priority", host.priority


def _size(cluster: ClusterProgram) -> int:
    return 0 if cluster.assignment is None else cluster.assignment.size

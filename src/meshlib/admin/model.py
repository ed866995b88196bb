"""`/mesh.json`: everything that the page shows of one process, in one object that is fast to make.

Whoever does not need all of it says which PARTS: `/mesh.json?parts=routes,calls`. What is marked with a star is always there.

    now *               seconds since 1970 (not part of the ETag)
    process *           id, name (in the process directory), pid, group, service, command, meshlib, python, host, started, url,
                        ready, why_not_ready, loop_lag (seconds), recent_calls (how many are kept),
                        control_plane: kind (`files` or `xds`), server, node, connected, connected_since, streams, error;
                        types: for each type `type` (lds, ...), resources, nacked, awaited, version, last_ack and last_nack
                        ({version, at, reason} or null)
    window *            seconds that rates and percentiles are about
    alarms *            how many endpoints are ejected (`ejections`), resources are refused (`problems`) and certificates have
                        ended (`expired`)
    services            for each cluster: name, service (behind it), called, total, errors_total, rate and error_rate (a second),
                        p50, p90, p99 (milliseconds, null without calls), exists, and when it does: active, pending, connections,
                        saturation {share, resource} (0 to 1, the limit that is nearest), endpoints {total, healthy, degraded,
                        unhealthy, ejected}, tls, mtls, principals {own, peer}, discovery, lb_policy, subset_size (how many
                        endpoints a process calls, null for all), breaker (its state, null without one); those that are
                        called most come first
    clusters            the names of those that exist, in the same order
    graph               nodes, edges: `meshlib.admin.graph`
    ejections           cluster, endpoint, reason, at, until (seconds since 1970; until is the earliest), times, failures in a row
    routes              listener, route_config, virtual_host, domains, route, match, action, cluster, split ([{cluster, weight,
                        share}]), timeout, retry, and the golden signals as above; at most `routes.MOST_ROUTES`
    routes_total        how many there are
    calls               the newest first, at most `MOST_CALLS` of all and as many of those that failed, were tried again or took
                        long: `meshlib.admin.calls.call_json`
    requests            that this process has served, likewise: `meshlib.admin.calls.request_json`
    certificates        kind (own or ca), name, trust_domain, issuer, serial, not_before, not_after, expires_in (seconds)
    problems            refused resources: type, name, version, reason, at; in force: whether an older version is
    unsupported         fields that were reported and not applied: type, name, path; at most 200

`/mesh/endpoints.json?cluster=NAME&start=0&limit=200` has the endpoints of a cluster (without a name: of the one that is called
most) and what `services` says of it (`service`), `/mesh/call.json?number=N` one call with its decision, `/mesh/processes.json`
the processes of the directory, `/mesh/graph.json` the graph of all of them. With `process=NAME` the first two, and `/mesh.json`,
are those of another process. Traces: `meshlib.admin.traces`.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from meshlib.admin.calls import call_json, request_json
from meshlib.admin.certs import certificates
from meshlib.admin.golden import View
from meshlib.admin.graph import graph_of, service_of
from meshlib.admin.hosts import Ejection, Host, ejected_of, ejection_of, hosts_of, mtls_of, summary_of
from meshlib.admin.routes import routes
from meshlib.engine.readiness import first_missing
from meshlib.runtime.clock import epoch_offset
from meshlib.snapshot import Kind, ResourceState, ResourceStatus
from meshlib.state import EndpointState, Permits
from meshlib.stats import Reading
from meshlib.xds.client import AdsClient
from meshlib.xds.journal import Verdict

if TYPE_CHECKING:
    from meshlib.mesh import Mesh

__all__ = [
    "MOST_CALLS",
    "PARTS",
    "about_this_machine",
    "clusters",
    "control_plane",
    "endpoints",
    "model",
    "readiness",
]

MOST_CALLS = 100
MOST_UNSUPPORTED = 200

_LIMITS = (
    ("connections", "connections", "max_connections"),
    ("pending", "pending", "max_pending"),
    ("requests", "requests", "max_requests"),
    ("retries", "retries", "retry_limit"),
)


class _Look(NamedTuple):
    mesh: Mesh
    process: dict[str, Any]
    view: View
    statuses: tuple[ResourceStatus, ...]


def model(
    mesh: Mesh, process: dict[str, Any], view: View, parts: Collection[str] | None = None
) -> dict[str, Any]:
    """The object, but for `now`. process: who this is; the rest of its facts are added. parts: of PARTS, None for all of them."""
    look = _Look(mesh, process, view, mesh.status())
    ready, why_not = readiness(mesh)
    recent = mesh.recent
    lags = [metric for _, metric in mesh.stats.natives("meshlib_event_loop_lag_seconds")]
    lag = max((metric.value for metric in lags if isinstance(metric, Reading)), default=0.0)
    found = {
        "process": {
            **process,
            "ready": ready,
            "why_not_ready": why_not,
            "loop_lag": round(lag, 4),
            "recent_calls": 0 if recent is None else recent.size,
            "control_plane": control_plane(mesh),
            "types": _types(mesh, look.statuses),
        },
        "window": round(view.window, 1),
        "alarms": _alarms(look),
    }
    for part, tell in PARTS.items():
        if parts is None or part in parts:
            found |= tell(look)
    return found


def _alarms(look: _Look) -> dict[str, int]:
    clusters = look.mesh.engine.program.clusters.values()
    return {
        "ejections": sum(len(ejected_of(cluster)) for cluster in clusters),
        "problems": sum(status.error is not None for status in look.statuses),
        "expired": sum(each["expires_in"] <= 0 for each in certificates(look.mesh)),
    }


def readiness(mesh: Mesh) -> tuple[bool, str | None]:
    """Whether calls can be made, else why not: the Mesh is closed, or waits for configuration that was asked for.

    A process that has asked for nothing, since it has called nobody yet, waits for nothing.
    """
    if mesh.engine.closed:
        return False, "the Mesh has been closed"
    program = mesh.engine.program
    answered = program.snapshot.complete or program.snapshot.listeners or mesh.journal.streams
    if not answered and mesh.status():
        return False, "the control plane has not answered yet"
    missing = first_missing(program, program.snapshot.listeners, mesh.clock.monotonic())
    return missing is None, None if missing is None else f"waiting for {missing}"


def control_plane(mesh: Mesh) -> dict[str, Any]:
    source = mesh.engine.source
    journal = mesh.journal
    files = mesh.snapshot.complete
    error = None if source is None else source.last_error
    return {
        "kind": "files" if files else "xds",
        "server": source.bootstrap.server.server_uri if isinstance(source, AdsClient) else None,
        "node": mesh.node.id or None,
        "connected": journal.connected_since is not None,
        "connected_since": journal.connected_since,
        "streams": journal.streams,
        "error": None if error is None else str(error),
    }


def _types(mesh: Mesh, statuses: Iterable[ResourceStatus]) -> list[dict[str, Any]]:
    counts = {kind: dict.fromkeys(ResourceState, 0) for kind in Kind}
    for status in statuses:
        counts[status.kind][status.state] += 1
    journal, versions = mesh.journal, mesh.snapshot.versions
    return [
        {
            "type": kind.short,
            "resources": sum(count.values()) - count[ResourceState.DOES_NOT_EXIST],
            "nacked": count[ResourceState.NACKED],
            "awaited": count[ResourceState.REQUESTED],
            "version": versions.get(kind, ""),
            "last_ack": _verdict(journal.acks.get(kind)),
            "last_nack": _verdict(journal.nacks.get(kind)),
        }
        for kind, count in counts.items()
    ]


def _verdict(verdict: Verdict | None) -> dict[str, Any] | None:
    if verdict is None:
        return None
    return {"version": verdict.version, "at": verdict.at, "reason": verdict.reason}


# --- services and endpoints ------------------------------------------------------------------------------------------


def services(mesh: Mesh, view: View) -> list[dict[str, Any]]:
    """Each cluster of the configuration, and each that calls wanted and that does not exist."""
    known, called = mesh.engine.program.clusters, view.by_cluster
    names = [*known, *(name for name in called if name and name not in known)]
    return [_service(mesh, name, view) for name in _busiest(names, view)]


def clusters(mesh: Mesh, view: View) -> list[str]:
    return _busiest(mesh.engine.program.clusters, view)


def _busiest(names: Iterable[str], view: View) -> list[str]:
    """Those first that are called most."""

    def weight(name: str) -> tuple[float, int, str]:
        signals = view.signals(view.by_cluster.get(name, ()))
        return -signals.rate, -signals.total, name

    return sorted(names, key=weight)


def _service(mesh: Mesh, name: str, view: View) -> dict[str, Any]:
    cluster = mesh.engine.program.clusters.get(name)
    keys = view.by_cluster.get(name, ())
    signals = view.signals(keys).to_dict()
    entry = {"name": name, "service": service_of(mesh, name), "called": bool(keys), **signals}
    if cluster is None:
        return entry | {"exists": False}
    state = cluster.state
    permits = (state.default, state.high)
    tls, mtls = mtls_of(cluster)
    return entry | {
        "exists": True,
        "active": sum(each.requests for each in permits),
        "pending": sum(each.pending for each in permits),
        "connections": sum(each.connections for each in permits),
        "saturation": _saturation(permits),
        "endpoints": summary_of(cluster),
        "tls": tls,
        "mtls": mtls,
        "principals": _principals(list(state.endpoints.values()) if tls else ()),
        "discovery": cluster.cluster.discovery.name,
        "lb_policy": type(cluster.cluster.lb_policy).__name__.removesuffix("Config"),
        "subset_size": cluster.cluster.locality.subset_size,
        "breaker": None if cluster.breaker is None else cluster.breaker.state,
    }


def _saturation(permits: Iterable[Permits]) -> dict[str, Any]:
    """The limit that is nearest."""
    share, resource = 0.0, None
    for each in permits:
        for name, held, most in _LIMITS:
            limit = getattr(each, most)
            used = getattr(each, held)
            found = used / limit if limit else float(used > 0)
            if found > share:
                share, resource = min(found, 1.0), name
    return {"share": round(share, 4), "resource": resource}


def _principals(endpoints: Iterable[EndpointState]) -> dict[str, str | None]:
    """Who this process is to the endpoints, and who they must be."""
    for endpoint in endpoints:
        own, peer = getattr(endpoint.way.security, "principals", ("", ""))
        if own or peer:
            return {"own": own or None, "peer": peer or None}
    return {"own": None, "peer": None}


def endpoints(mesh: Mesh, view: View, name: str, *, start: int, limit: int) -> dict[str, Any] | None:
    """A page of the endpoints of a cluster, with `cluster`, `service`, `total`, `start`. None: there is no such cluster."""
    cluster = mesh.engine.program.clusters.get(name)
    if cluster is None:
        return None
    return {
        "cluster": name,
        "service": _service(mesh, name, view),
        "total": 0 if cluster.assignment is None else cluster.assignment.size,
        "start": start,
        "endpoints": [_endpoint(mesh, host) for host in hosts_of(cluster, start, limit)],
    }


def _endpoint(mesh: Mesh, host: Host) -> dict[str, Any]:
    locality = host.locality
    return {
        "address": host.address,
        "hostname": host.hostname,
        "priority": host.priority,
        "locality": "/".join(part for part in (locality.region, locality.zone, locality.sub_zone) if part),
        "weight": host.weight,
        "health": host.health.name,
        "usable": host.usable,
        "active": host.active,
        "connections": host.connections,
        "waiting": host.waiting,
        "failures": host.failures,
        "tls": host.tls,
        "ejection": None if host.ejection is None else _ejection(mesh, host.ejection, host.failures),
    }


def ejections(mesh: Mesh) -> list[dict[str, Any]]:
    """The latest first."""
    found = []
    for name, cluster in mesh.engine.program.clusters.items():
        for state in ejected_of(cluster):
            ejection = ejection_of(state, cluster)
            if ejection is not None:
                shown = _ejection(mesh, ejection, state.consecutive_5xx)
                found.append({"cluster": name, "endpoint": state.key, **shown})
    return sorted(found, key=lambda entry: -entry["at"])


def _ejection(mesh: Mesh, ejection: Ejection, failures: int) -> dict[str, Any]:
    offset = epoch_offset(mesh.clock)
    return {
        "reason": ejection.reason,
        "at": round(ejection.at + offset, 3),
        "until": round(ejection.until + offset, 3),
        "times": ejection.times,
        "failures": failures,
    }


# --- what is wrong ---------------------------------------------------------------------------------------------------


def _problems(statuses: Iterable[ResourceStatus]) -> list[dict[str, Any]]:
    return [
        {
            "type": status.kind.short,
            "name": status.name,
            "version": status.error_version,
            "reason": str(status.error),
            "at": status.updated,
            "in_force": bool(status.version),
        }
        for status in statuses
        if status.error is not None
    ]


def _unsupported(mesh: Mesh) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for (kind, name), paths in mesh.snapshot.unsupported.items():
        for path in paths:
            if len(found) >= MOST_UNSUPPORTED:
                return found
            found.append({"type": kind.short, "name": name, "path": path})
    return found


def _calls(look: _Look) -> dict[str, Any]:
    clock, recent = look.mesh.clock, look.mesh.recent
    newest = () if recent is None else recent.newest(MOST_CALLS)
    return {"calls": [call_json(number, facts, clock, trace) for number, facts, trace in newest]}


def _requests(look: _Look) -> dict[str, Any]:
    served = look.mesh.served
    return {
        "requests": [request_json(each) for each in (() if served is None else served.newest(MOST_CALLS))]
    }


PARTS: Mapping[str, Callable[[_Look], dict[str, Any]]] = {
    "services": lambda look: {"services": services(look.mesh, look.view)},
    "clusters": lambda look: {"clusters": clusters(look.mesh, look.view)},
    "graph": lambda look: {"graph": graph_of(look.mesh, look.process["service"], look.view)},
    "ejections": lambda look: {"ejections": ejections(look.mesh)},
    "routes": lambda look: routes(look.mesh, look.view),
    "calls": _calls,
    "requests": _requests,
    "certificates": lambda look: {"certificates": certificates(look.mesh)},
    "problems": lambda look: {"problems": _problems(look.statuses)},
    "unsupported": lambda look: {"unsupported": _unsupported(look.mesh)},
}


def about_this_machine() -> dict[str, Any]:
    """What does not change while a process lives."""
    return {"python": platform.python_version(), "host": platform.node()}

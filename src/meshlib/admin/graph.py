"""Who talks to whom: the edges that one process knows, and the graph that several of them make together.

A process knows whom it calls, and by their certificates who calls it. An edge from a process to a cluster ends at the service
behind the cluster; the process that is that service begins its own edges there. So the graphs of several processes make one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from meshlib.admin.golden import View
from meshlib.admin.hosts import mtls_of, summary_of
from meshlib.observe.istio import destination_of
from meshlib.stats import Counter

if TYPE_CHECKING:
    from meshlib.mesh import Mesh

__all__ = ["graph_of", "merged", "service_of"]

_SUMMED = ("total", "errors_total", "rate", "error_rate")
_LARGEST = ("p50", "p90", "p99")


def service_of(mesh: Mesh, cluster: str) -> str:
    """The service behind a cluster; the cluster's own name where nothing says."""
    program = mesh.engine.program.clusters.get(cluster)
    return destination_of(None if program is None else program.cluster, cluster).name


def graph_of(mesh: Mesh, own: str, view: View) -> dict[str, Any]:
    """`nodes`: id, kind (`self`, `service` or `caller`), and of a service whose cluster exists `endpoints` {total, healthy} (of
    the largest one); `edges`: source, destination, cluster, the golden signals, tls, mtls, principal (of the other end, None
    where it is not known)."""
    nodes: dict[str, dict[str, Any]] = {own: {"id": own, "kind": "self"}}
    edges: list[dict[str, Any]] = []
    for cluster, keys in view.by_cluster.items():
        if not cluster:
            continue
        service = service_of(mesh, cluster)
        node = nodes.setdefault(service, {"id": service, "kind": "service"})
        program = mesh.engine.program.clusters.get(cluster)
        if program is not None and node["kind"] == "service":
            _count(node, summary_of(program))
        tls, shows = (False, False) if program is None else mtls_of(program)
        edges.append(
            {
                "source": own,
                "destination": service,
                "cluster": cluster,
                **view.signals(keys).to_dict(),
                "tls": tls,
                "mtls": tls and shows,
                "principal": _principal(mesh, cluster) if tls else None,
            }
        )
    for principal, found in _callers(mesh).items():
        caller = _name_of(principal)
        nodes.setdefault(caller, {"id": caller, "kind": "caller"})
        edges.append(
            {
                "source": caller,
                "destination": own,
                "cluster": None,
                **dict.fromkeys((*_SUMMED, *_LARGEST)),
                "total": found[0],
                "errors_total": found[1],
                "tls": True,
                "mtls": True,
                "principal": principal,
            }
        )
    return {"nodes": list(nodes.values()), "edges": edges}


def _count(node: dict[str, Any], summary: dict[str, int]) -> None:
    known = node.get("endpoints")
    if known is None or known["total"] < summary["total"]:
        node["endpoints"] = {name: summary[name] for name in ("total", "healthy")}


def merged(graphs: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """One graph of those of several processes. Rates and totals of an edge add up; of latencies the worst is shown.

    What a server has counted of its callers is left out where the caller tells of it itself.
    """
    nodes: dict[str, dict[str, Any]] = {}
    edges: dict[tuple[str, str], dict[str, Any]] = {}
    later: list[dict[str, Any]] = []
    for graph in graphs:
        for node in graph["nodes"]:
            known = nodes.setdefault(node["id"], dict(node))
            if node["kind"] == "self":
                known["kind"] = "self"
            elif "endpoints" in node:
                known.setdefault("endpoints", node["endpoints"])
        for edge in graph["edges"]:
            if edge["cluster"] is None:
                later.append(edge)
            else:
                _add(edges, edge)
    told = set(edges)
    for edge in later:
        if (edge["source"], edge["destination"]) not in told:
            _add(edges, edge)
    return {"nodes": list(nodes.values()), "edges": list(edges.values())}


def _add(edges: dict[tuple[str, str], dict[str, Any]], edge: dict[str, Any]) -> None:
    place = edge["source"], edge["destination"]
    known = edges.get(place)
    if known is None:
        edges[place] = dict(edge)
        return
    for name in _SUMMED:
        known[name] = _either(known[name], edge[name], sum)
    for name in _LARGEST:
        known[name] = _either(known[name], edge[name], max)
    known["tls"], known["mtls"] = known["tls"] and edge["tls"], known["mtls"] and edge["mtls"]
    known["principal"] = known["principal"] or edge["principal"]


def _either(one: float | None, other: float | None, join: Any) -> float | None:
    given = [value for value in (one, other) if value is not None]
    return join(given) if given else None


def _principal(mesh: Mesh, cluster: str) -> str | None:
    """Who the cluster's endpoints have shown themselves to be."""
    program = mesh.engine.program.clusters.get(cluster)
    if program is None:
        return None
    for endpoint in list(program.state.endpoints.values()):
        peer = getattr(endpoint.way.security, "principals", ("", ""))[1]
        if peer:
            return str(peer)
    return None


def _callers(mesh: Mesh) -> dict[str, tuple[int, int]]:
    """Calls and failed ones by the principal of who called this process."""
    found: dict[str, tuple[int, int]] = {}
    for labels, metric in mesh.stats.natives("istio_requests_total"):
        known = dict(labels)
        principal = known.get("source_principal", "")
        if (
            not isinstance(metric, Counter)
            or known.get("reporter") != "destination"
            or not principal.startswith("spiffe://")
        ):
            continue
        total, errors = found.get(principal, (0, 0))
        failed = known.get("response_code", "").startswith("5")
        found[principal] = total + metric.value, errors + (metric.value if failed else 0)
    return found


def _name_of(principal: str) -> str:
    """`reviews` of `spiffe://cluster.local/ns/default/sa/reviews` and of `spiffe://shop.test/reviews`."""
    return principal.rstrip("/").rpartition("/")[2] or principal

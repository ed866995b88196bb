"""Routes as the page shows them: what they match, where they lead, and how the calls fare that take them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from meshlib.admin.golden import RouteKey, View
from meshlib.resources.matching import FractionalPercent
from meshlib.resources.route import (
    DirectResponse,
    PathKind,
    Redirect,
    Route,
    RouteAction,
    RouteConfiguration,
)

if TYPE_CHECKING:
    from meshlib.mesh import Mesh

__all__ = ["MOST_ROUTES", "routes"]

MOST_ROUTES = 500


def routes(mesh: Mesh, view: View) -> dict[str, Any]:
    """`routes` and `routes_total` of `/mesh.json`."""
    found: list[dict[str, Any]] = []
    total = 0
    for listener, config in _configurations(mesh):
        for host in config.virtual_hosts:
            total += len(host.routes)
            for index, route in enumerate(host.routes):
                if len(found) >= MOST_ROUTES:
                    break
                name = route.name or str(index)
                clusters = _targets(route)
                keys = [RouteKey(cluster, config.name, host.name, name) for cluster in clusters]
                found.append(
                    {
                        "listener": listener,
                        "route_config": config.name,
                        "virtual_host": host.name,
                        "domains": list(host.domains),
                        "route": name,
                        "match": _match(route),
                        **_action(route, host.retry_policy is not None),
                        **view.signals(keys).to_dict(),
                    }
                )
    return {"routes": found, "routes_total": total}


def _configurations(mesh: Mesh) -> Iterator[tuple[str, RouteConfiguration]]:
    for name, listener in mesh.engine.program.listeners.items():
        if listener.config is not None:
            yield name, listener.config


def _targets(route: Route) -> list[str]:
    action = route.action
    if not isinstance(action, RouteAction):
        return [""]
    if action.weighted_clusters is not None:
        return list(dict.fromkeys(entry.name or "" for entry in action.weighted_clusters.clusters))
    return [action.cluster or ""]


def _match(route: Route) -> str:
    match = route.match
    path = {
        PathKind.PREFIX: f"{match.path.value}*",
        PathKind.PATH: match.path.value,
        PathKind.SAFE_REGEX: f"~ {match.path.value}",
        PathKind.PATH_SEPARATED_PREFIX: f"{match.path.value}[/*]",
    }[match.path.kind]
    parts = [path]
    parts += (f"header {each.name}" for each in match.headers)
    parts += (f"query {each.name}" for each in match.query_parameters)
    if match.runtime_fraction is not None:
        parts.append(f"{_percent(match.runtime_fraction):g} %")
    if match.grpc:
        parts.append("gRPC")
    return ", ".join(parts)


def _percent(fraction: FractionalPercent) -> float:
    return 100.0 * fraction.numerator / fraction.denominator


def _action(route: Route, host_retries: bool) -> dict[str, Any]:
    action = route.action
    if isinstance(action, Redirect):
        return {"action": "redirect", "cluster": None, "split": [], "timeout": None, "retry": None}
    if isinstance(action, DirectResponse):
        name = f"answer {action.status}"
        return {"action": name, "cluster": None, "split": [], "timeout": None, "retry": None}
    if not isinstance(action, RouteAction):
        return {"action": "none", "cluster": None, "split": [], "timeout": None, "retry": None}
    split: list[dict[str, Any]] = []
    if action.weighted_clusters is not None:
        weights = action.weighted_clusters.clusters
        all_of_them = sum(entry.weight for entry in weights) or 1
        split = [
            {
                "cluster": entry.name or f"(header {entry.cluster_header})",
                "weight": entry.weight,
                "share": round(entry.weight / all_of_them, 4),
            }
            for entry in weights
        ]
    policy = action.retry_policy
    return {
        "action": "cluster",
        "cluster": action.cluster or (f"(header {action.cluster_header})" if action.cluster_header else None),
        "split": split,
        "timeout": action.timeout,
        "retry": (",".join(sorted(policy.retry_on)) if policy is not None else None)
        or ("(virtual host)" if host_retries and policy is None else None),
    }

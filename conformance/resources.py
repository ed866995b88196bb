"""From a case to the xDS resources that Envoy and meshlib both get, and the placeholders in them."""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from conformance.reader import CaseError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from conformance.case import Case

TYPE = "type.googleapis.com/"
HCM = TYPE + "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
ROUTER = TYPE + "envoy.extensions.filters.http.router.v3.Router"
LISTENER = TYPE + "envoy.config.listener.v3.Listener"
ROUTES = TYPE + "envoy.config.route.v3.RouteConfiguration"
CLUSTER = TYPE + "envoy.config.cluster.v3.Cluster"
ENDPOINTS = TYPE + "envoy.config.endpoint.v3.ClusterLoadAssignment"
HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"

_HTTP2 = {"@type": TYPE + HTTP_OPTIONS, "explicit_http_config": {"http2_protocol_options": {}}}
_INTERNAL = {
    "use_remote_address": True,
    "internal_address_config": {"cidr_ranges": [{"address_prefix": "127.0.0.0", "prefix_len": 8}]},
}
_PLACEHOLDER = re.compile(r"\$\{([A-Za-z0-9_.-]+)\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """The resources of a case. ``hcm`` is the HttpConnectionManager alone, ``others`` the RDS and EDS resources."""

    hcm: dict[str, Any]
    clusters: list[dict[str, Any]]
    others: list[dict[str, Any]]

    def document(self) -> dict[str, Any]:
        """One configuration with an ``api_listener``, as files and xDS clients take it."""
        listener = {"@type": LISTENER, "name": "conformance", "api_listener": {"api_listener": self.hcm}}
        return {"resources": [listener, *self.clusters, *self.others]}


def cluster_name(case: Case, name: str) -> str:
    """The name under which a cluster of the case is known to both sides: unique in the suite."""
    return f"{case.name}.{name}"


def compile_case(case: Case, ports: Mapping[str, int]) -> Compiled:
    """Build the resources of ``case`` with its upstreams at ``ports``."""
    if case.resources:
        return _from_resources(case, ports)
    routes = copy.deepcopy(case.route_config)
    routes.setdefault("name", case.name)
    _rename_clusters(routes, case)
    hcm: dict[str, Any] = {
        "@type": HCM,
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {"@type": ROUTER}}],
        "route_config": routes,
    }
    if case.internal:
        hcm |= _INTERNAL
    hcm |= {**case.hcm, "stat_prefix": case.name}  # its counters are its own
    clusters = [_cluster(case, name, body) for name, body in case.clusters.items()]
    return Compiled(hcm=substitute(hcm, case, ports), clusters=substitute(clusters, case, ports), others=[])


def _cluster(case: Case, name: str, body: dict[str, Any]) -> dict[str, Any]:
    """A Cluster: STATIC with a second to connect unless it says otherwise; ``upstreams: [A, B]`` is short for its endpoints."""
    given = copy.deepcopy(body)
    upstreams = given.pop("upstreams", [name])
    full = cluster_name(case, name)
    cluster: dict[str, Any] = {
        "@type": CLUSTER,
        "name": full,
        "type": "STATIC",
        "connect_timeout": "1s",
        **given,
    }
    if case.protocol == "grpc":
        cluster.setdefault("typed_extension_protocol_options", {HTTP_OPTIONS: _HTTP2})
    assignment = cluster.setdefault(
        "load_assignment", {"endpoints": [{"lb_endpoints": [f"${{{upstream}}}" for upstream in upstreams]}]}
    )
    assignment.setdefault("cluster_name", full)
    return cluster


def _rename_clusters(node: Any, case: Case) -> None:
    """Give each cluster of the short form its unique name, where a RouteConfiguration can name one."""
    if isinstance(node, list):
        for item in node:
            _rename_clusters(item, case)
    elif isinstance(node, dict):
        for key, value in node.items():
            if key == "cluster" and isinstance(value, str):
                node[key] = cluster_name(case, value)
            elif key == "weighted_clusters" and isinstance(value, dict):
                for entry in value.get("clusters", ()):
                    if "name" in entry:
                        entry["name"] = cluster_name(case, entry["name"])
                    _rename_clusters({k: v for k, v in entry.items() if k != "name"}, case)
            else:
                _rename_clusters(value, case)


def _from_resources(case: Case, ports: Mapping[str, int]) -> Compiled:
    """The long form: resources as a control plane would send them, cluster names unique by ``${cluster.NAME}``."""
    hcm: dict[str, Any] = {}
    clusters, others = [], []
    for resource in substitute(list(case.resources), case, ports):
        kind = resource.get("@type")
        if kind == LISTENER:
            hcm = {**_hcm_of(resource), "stat_prefix": case.name}
        elif kind == CLUSTER:
            clusters.append(resource)
        else:
            others.append(resource)
    return Compiled(hcm=(hcm | _INTERNAL) if case.internal else hcm, clusters=clusters, others=others)


def _hcm_of(listener: dict[str, Any]) -> dict[str, Any]:
    if "api_listener" in listener:
        hcm: dict[str, Any] = listener["api_listener"]["api_listener"]
    else:
        hcm = listener["filter_chains"][0]["filters"][0]["typed_config"]
    return hcm


def with_addresses(case: Case, ports: Mapping[str, int]) -> Case:
    """``case`` with the placeholders in its requests and expectations replaced."""
    requests = tuple(
        replace(
            request,
            path=substitute(request.path, case, ports),
            host=substitute(request.host, case, ports),
            headers=tuple((name, str(substitute(value, case, ports))) for name, value in request.headers),
        )
        for request in case.requests
    )
    expect = tuple(substitute(dict(entry), case, ports) for entry in case.expect)
    return replace(case, requests=requests, expect=expect)


def substitute(node: Any, case: Case, ports: Mapping[str, int]) -> Any:
    """Replace ``${A}`` (an lb_endpoint),
    ``${A.endpoint}``, ``${A.socket}``, ``${A.port}``, ``${A.address}`` and ``${cluster.NAME}``."""
    if isinstance(node, dict):
        return {key: substitute(value, case, ports) for key, value in node.items()}
    if isinstance(node, list):
        return [substitute(value, case, ports) for value in node]
    if not isinstance(node, str) or "${" not in node:
        return node
    whole = _PLACEHOLDER.fullmatch(node)
    if whole:
        return _value(whole[1], case, ports)
    return _PLACEHOLDER.sub(lambda match: str(_value(match[1], case, ports)), node)


def _value(name: str, case: Case, ports: Mapping[str, int]) -> Any:
    head, _, tail = name.partition(".")
    if head == "cluster":
        return cluster_name(case, tail)
    if head not in ports:
        raise CaseError(f"{case.file}: case {case.name}: ${{{name}}}: no upstream {head!r}")
    endpoint = {"address": {"socket_address": {"address": "127.0.0.1", "port_value": ports[head]}}}
    values = {
        "": {"endpoint": endpoint},
        "endpoint": endpoint,
        "socket": endpoint["address"],
        "port": ports[head],
        "address": f"127.0.0.1:{ports[head]}",
    }
    if tail not in values:
        raise CaseError(
            f"{case.file}: case {case.name}: ${{{name}}}: not one of endpoint, socket, port, address"
        )
    return values[tail]

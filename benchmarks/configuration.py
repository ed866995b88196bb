"""The xDS resources that every mesh of the benchmark applies, as plain dictionaries (protobuf's JSON form).

200 virtual hosts with 8 routes each; the measured request matches the sixth route of one in the middle, after a
header comparison that fails, and goes to two clusters by weight, with a retry policy, circuit-breaker limits
and outlier detection. meshlib reads them as files; the client's Envoy has the same in its static configuration.
"""

from __future__ import annotations

from typing import Any

from benchmarks.certificates import Identity

Resource = dict[str, Any]

VIRTUAL_HOSTS = 200
AUTHORITY = "service-137.bench"
PATH = "/api/items/17"
ROUTE_CONFIGURATION = "bench-routes"
_HCM = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
_TLS = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3."
_ROUTER = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"

RETRY_POLICY: Resource = {
    "retry_on": "connect-failure,reset,retriable-status-codes",
    "retriable_status_codes": [503],
    "num_retries": 2,
    "per_try_timeout": "2s",
}


def _routes() -> list[Resource]:
    def to(cluster: str) -> Resource:
        return {"cluster": cluster, "timeout": "5s"}

    def header(name: str, value: str) -> list[Resource]:
        return [{"name": name, "string_match": {"exact": value}}]

    split = {
        "weighted_clusters": {"clusters": [{"name": "v1", "weight": 90}, {"name": "v2", "weight": 10}]},
        "timeout": "5s",
        "retry_policy": RETRY_POLICY,
    }
    return [
        {"match": {"path": "/healthz"}, "route": to("v1")},
        {"match": {"prefix": "/admin/", "headers": header("x-role", "admin")}, "route": to("v1")},
        {"match": {"prefix": "/static/"}, "route": to("v1")},
        {"match": {"prefix": "/v2/"}, "route": to("v2")},
        {"match": {"prefix": "/api/", "headers": header("x-canary", "always")}, "route": to("v2")},
        {"match": {"prefix": "/api/"}, "route": split},
        {"match": {"prefix": "/legacy"}, "redirect": {"path_redirect": "/api/"}},
        {"match": {"prefix": "/"}, "route": to("v1")},
    ]


def virtual_hosts() -> list[Resource]:
    hosts = []
    for index in range(VIRTUAL_HOSTS):
        name = f"service-{index:03}.bench"
        hosts.append({"name": name, "domains": [name, f"{name}:80"], "routes": _routes()})
    return hosts


def http_connection_manager(**source: Any) -> Resource:
    """`source` is `rds=...` or `route_config=...`, and other fields of the HttpConnectionManager."""
    return {
        "@type": _HCM,
        "stat_prefix": "bench",
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {"@type": _ROUTER}}],
        **source,
    }


def load_assignment(cluster: str, endpoints: list[tuple[str, int]]) -> Resource:
    return {
        "cluster_name": cluster,
        "endpoints": [{
            "lb_endpoints": [
                {"endpoint": {"address": {"socket_address": {"address": address, "port_value": port}}}}
                for address, port in endpoints
            ],
        }],
    }  # fmt: skip


def policies(cluster: str) -> Resource:
    """A Cluster without its endpoints: limits far above what the benchmark needs, and outlier detection."""
    limits = {"max_connections": 2000, "max_pending_requests": 2000, "max_requests": 4000, "max_retries": 20}
    return {
        "name": cluster,
        "connect_timeout": "1s",
        "lb_policy": "ROUND_ROBIN",
        "circuit_breakers": {"thresholds": [limits]},
        "outlier_detection": {
            "consecutive_5xx": 5,
            "interval": "10s",
            "base_ejection_time": "30s",
            "enforcing_success_rate": 0,
        },
    }


def clusters(endpoints: list[tuple[str, int]]) -> list[Resource]:
    """v1 and v2, STATIC, each with all `endpoints`."""
    return [
        policies(name) | {"type": "STATIC", "load_assignment": load_assignment(name, endpoints)}
        for name in ("v1", "v2")
    ]


def upstream_tls(own: Identity, peer: Identity, *, least: str = "TLSv1_3") -> Resource:
    """A transport socket: TLS 1.3, or as old as `least`, with this certificate, to nobody but that peer."""
    common = common_tls(own, peer)
    common["tls_params"]["tls_minimum_protocol_version"] = least
    tls = {"@type": _TLS + "UpstreamTlsContext", "common_tls_context": common}
    return {"name": "envoy.transport_sockets.tls", "typed_config": tls}


def common_tls(own: Identity, peer: Identity) -> Resource:
    """A CommonTlsContext for both sides."""
    san = {"san_type": "URI", "matcher": {"exact": peer.spiffe_id}}
    return {
        "tls_params": {
            "tls_minimum_protocol_version": "TLSv1_3",
            "tls_maximum_protocol_version": "TLSv1_3",
        },
        "tls_certificates": [{
            "certificate_chain": {"filename": str(own.chain)},
            "private_key": {"filename": str(own.key)},
        }],
        "validation_context": {
            "trusted_ca": {"filename": str(own.bundle)},
            "match_typed_subject_alt_names": [san],
        },
    }  # fmt: skip


def mesh_resources(endpoints: list[tuple[str, int]], **of_clusters: Any) -> Resource:
    """One document of resources, as `Mesh(config=[...])` takes it. of_clusters: further fields of both clusters."""
    listener = {
        "@type": "type.googleapis.com/envoy.config.listener.v3.Listener",
        "name": f"{AUTHORITY}:80",
        "api_listener": {
            "api_listener": http_connection_manager(
                rds={"route_config_name": ROUTE_CONFIGURATION, "config_source": {"ads": {}}}
            )
        },
    }
    routes = {
        "@type": "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
        "name": ROUTE_CONFIGURATION,
        "virtual_hosts": virtual_hosts(),
    }
    cluster_type = {"@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster"}
    found = [cluster_type | cluster | of_clusters for cluster in clusters(endpoints)]
    return {"resources": [listener, routes, *found]}

"""The resources of the gRPC benchmark: the same 200 virtual hosts, limits and detection, with routes for gRPC.

The measured method matches the sixth route of its host, after a comparison of metadata that fails, and goes to two clusters by
weight, with a retry policy. meshlib reads them as files, C-core over ADS, Envoy in its static configuration.
"""

from __future__ import annotations

from benchmarks import configuration
from benchmarks.configuration import AUTHORITY, ROUTE_CONFIGURATION, VIRTUAL_HOSTS, Resource

TARGET = f"{AUTHORITY}:80"
UNARY = "/bench.Echo/Unary"
STREAM = "/bench.Echo/Stream"
_TYPE = "type.googleapis.com/envoy.config."
_PROTOCOL = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"

RETRY_POLICY: Resource = {
    "retry_on": "connect-failure,reset,unavailable,resource-exhausted",
    "num_retries": 2,
    "per_try_timeout": "2s",
}


def _routes() -> list[Resource]:
    def header(name: str, value: str) -> list[Resource]:
        return [{"name": name, "string_match": {"exact": value}}]

    split = {
        "weighted_clusters": {"clusters": [{"name": "v1", "weight": 90}, {"name": "v2", "weight": 10}]},
        "timeout": "30s",
        "retry_policy": RETRY_POLICY,
    }
    streams = {"weighted_clusters": split["weighted_clusters"], "timeout": "0s"}
    to_v1 = {"cluster": "v1", "timeout": "5s"}
    return [
        {"match": {"path": "/grpc.health.v1.Health/Check"}, "route": to_v1},
        {"match": {"prefix": "/bench.Admin/", "headers": header("x-role", "admin")}, "route": to_v1},
        {"match": {"path": STREAM}, "route": streams},
        {"match": {"prefix": "/bench.Old/"}, "route": to_v1},
        {"match": {"prefix": "/bench.Echo/", "headers": header("x-canary", "always")}, "route": to_v1},
        {"match": {"prefix": "/bench.Echo/"}, "route": split},
        {"match": {"prefix": "/bench."}, "redirect": {"path_redirect": "/bench.Echo/"}},
        {"match": {"prefix": "/"}, "route": to_v1},
    ]


def virtual_hosts() -> list[Resource]:
    hosts = []
    for index in range(VIRTUAL_HOSTS):
        name = f"service-{index:03}.bench"
        hosts.append({"name": name, "domains": [name, f"{name}:80"], "routes": _routes()})
    return hosts


def _cluster(name: str, **discovery: Resource | str) -> Resource:
    http2 = {
        "@type": f"type.googleapis.com/{_PROTOCOL}",
        "explicit_http_config": {"http2_protocol_options": {}},
    }
    return {
        **configuration.policies(name),
        "typed_extension_protocol_options": {_PROTOCOL: http2},
        **discovery,
    }


def clusters(endpoints: list[tuple[str, int]]) -> list[Resource]:
    """v1 and v2, STATIC, each with all `endpoints`."""
    return [
        _cluster(name, type="STATIC", load_assignment=configuration.load_assignment(name, endpoints))
        for name in ("v1", "v2")
    ]


def _listener_and_routes() -> list[Resource]:
    manager = configuration.http_connection_manager(
        rds={"route_config_name": ROUTE_CONFIGURATION, "config_source": {"ads": {}}}
    )
    return [
        {"@type": _TYPE + "listener.v3.Listener", "name": TARGET, "api_listener": {"api_listener": manager}},
        {
            "@type": _TYPE + "route.v3.RouteConfiguration",
            "name": ROUTE_CONFIGURATION,
            "virtual_hosts": virtual_hosts(),
        },
    ]


def few_of_many(size: int) -> Resource:
    """Fields of a Cluster of whose endpoints each process calls `size`."""
    package = "type.googleapis.com/envoy.extensions.load_balancing_policies"

    def policies(kind: str, **fields: Resource | int) -> Resource:
        typed = {"@type": f"{package}.{kind}", **fields}
        return {"policies": [{"typed_extension_config": {"name": kind, "typed_config": typed}}]}

    child = policies("round_robin.v3.RoundRobin")
    subsetting = policies("random_subsetting.v3.RandomSubsetting", subset_size=size, child_policy=child)
    return {"load_balancing_policy": subsetting}


def mesh_resources(endpoints: list[tuple[str, int]], **more: Resource) -> Resource:
    """As `Mesh(config=[...])` takes them. more: fields of each Cluster."""
    typed = [{"@type": _TYPE + "cluster.v3.Cluster", **cluster, **more} for cluster in clusters(endpoints)]
    return {"resources": [*_listener_and_routes(), *typed]}


def ads_resources(endpoints: list[tuple[str, int]]) -> Resource:
    """What C-core understands: clusters of type EDS, whose localities have weights."""
    found = _listener_and_routes()
    for name in ("v1", "v2"):
        eds = _cluster(name, type="EDS", eds_cluster_config={"eds_config": {"ads": {}}})
        found.append({"@type": _TYPE + "cluster.v3.Cluster", **eds})
        assignment = configuration.load_assignment(name, endpoints)
        assignment["endpoints"][0] |= {"locality": {"region": "bench"}, "load_balancing_weight": 1}
        found.append({"@type": _TYPE + "endpoint.v3.ClusterLoadAssignment", **assignment})
    return {"resources": found}

"""What Envoy refuses is refused, what it accepts is accepted: each case is given to a real Envoy (`--mode validate`)."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from conformance.envoy_process import envoy_binary
from meshlib import proto
from meshlib.errors import ResourceError
from tests.resources import test_decode_cluster, test_decode_endpoint, test_decode_route
from tests.resources.building import (
    EXTENSIONS,
    TYPES,
    assignment,
    decoded,
    endpoint,
    locality,
    manager,
    route_config,
)

pytestmark = pytest.mark.envoy

SIMPLE_CLUSTER = {"name": "c", "type": "STATIC", "load_assignment": assignment(locality(endpoint()))}


def parameters(function: Any) -> list[tuple[Any, ...]]:
    """The table that a test of the decoders is parametrized with."""
    return [tuple(row) for mark in function.pytestmark if mark.name == "parametrize" for row in mark.args[1]]


def with_cluster_c(route: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in {"cluster": "c", **route}.items() if value is not None}


def sent(*entries: dict[str, Any]) -> dict[str, Any]:
    return route_config(request_headers_to_add=list(entries))


REFUSED_ROUTES: list[dict[str, Any]] = [
    *(route_config(match=match) for match, _ in test_decode_route.MATCH_ERRORS),
    *(route_config(route=with_cluster_c(route)) for route, _ in test_decode_route.ACTION_ERRORS),
    *(route_config(**fields) for fields, _ in test_decode_route.ROUTE_ERRORS),
    *(config for config, _ in parameters(test_decode_route.test_errors_in_virtual_hosts)),
    *(
        sent({"header": {"key": "a", "value": v}})
        for v in ("%", "a%b", "%REQ()%", "%req(a)%", "%REQ(a?b?c)%")
    ),
    *(
        sent({"header": {"key": "a", "value": v}})
        for v in ("%PROTOCOL(x)%", "%REQ(a):x%", "%REQ(b c)%", "%FOO%")
    ),
    sent({"header": {"key": "x" * 20_000}}),
]
_ACCEPTED_ACTIONS: list[dict[str, Any]] = [
    {"prefix_rewrite": ""},
    {"host_rewrite_literal": ""},
    {"host_rewrite_header": ""},
    {"timeout": "0.0000001s"},
    {"regex_rewrite": {"pattern": {"regex": "a"}}},
    {"retry_policy": {}},
    {"retry_policy": {"retry_on": "bogus"}},
    {"retry_policy": {"retriable_status_codes": [99999]}},
    {"retry_policy": {"num_retries": 2**32 - 1}},
    {"retry_policy": {"retry_back_off": {"base_interval": "0.0005s", "max_interval": "0.0001s"}}},
    {"retry_policy": {"host_selection_retry_max_attempts": -1}},
]
ACCEPTED_ROUTES: list[dict[str, Any]] = [
    {"name": ""},
    *(
        {"virtual_hosts": [{"name": "v", "domains": [domain]}]}
        for domain in ("", "a*b", "**", "*-a", "a b", "*:80")
    ),
    *(
        route_config(match=match)
        for match in ({"prefix": ""}, {"path": "/a?b"}, {"path": "/a#b"}, {"prefix": "x"})
    ),
    route_config(match={"safe_regex": {"regex": "/a"}, "case_sensitive": False}),
    route_config(match={"prefix": "/", "headers": [{"name": "a b"}]}),
    route_config(match={"prefix": "/", "headers": [{"name": "a", "string_match": {"exact": ""}}]}),
    route_config(match={"prefix": "/", "headers": [{"name": "a", "range_match": {"start": 5, "end": 1}}]}),
    route_config(match={"prefix": "/", "runtime_fraction": {"default_value": {"numerator": 200}}}),
    *(route_config(route={"cluster": "c", **fields}) for fields in _ACCEPTED_ACTIONS),
    route_config(
        route={"weighted_clusters": {"clusters": [{"name": "c", "weight": 2**32 - 1}], "total_weight": 1}}
    ),
    *(
        route_config(route=None, redirect=redirect)
        for redirect in ({}, {"scheme_redirect": ""}, {"path_redirect": ""}, {"port_redirect": 99999})
    ),
    route_config(route=None, direct_response={"status": 200, "body": {"inline_string": "x" * 4096}}),
    route_config(route=None, non_forwarding_action={}),
    *(sent({"header": {"key": key, "value": "v"}}) for key in ("a b", "A", "a:b", "content-length")),
    *(
        sent({"header": {"key": "a", "value": v}})
        for v in ("%%", "%REQ(?a)%", "%REQ(a?)%", "%PROTOCOL()%", "")
    ),
    *(
        sent({"header": {"key": "a", "value": v}})
        for v in ("%REQ(a):0%", "%START_TIME(%)%", "%CEL(request.path)%")
    ),
    sent(*[{"header": {"key": "a"}}] * 1000),
    route_config(
        typed_per_filter_config={
            "x": {"@type": TYPES + "envoy.config.route.v3.FilterConfig", "disabled": True}
        }
    ),
]
HTTP = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
REFUSED_CLUSTERS: list[dict[str, Any]] = [
    *({"name": "c", **fields} for fields, _ in parameters(test_decode_cluster.test_errors)),
    *(
        {"name": "c", "load_assignment": assignment(locality(item))}
        for item, _ in parameters(test_decode_endpoint.test_errors_in_an_endpoint)
    ),
    *(
        {"name": "c", "load_assignment": value}
        for value, _ in parameters(test_decode_endpoint.test_errors_elsewhere)
    ),
]
_ACCEPTED: tuple[dict[str, Any], ...] = (
    {},
    {"type": "STRICT_DNS"},
    {"type": "LOGICAL_DNS", "load_assignment": assignment(locality(endpoint("1.2.3.4")))},
    {"connect_timeout": "0.0001s"},
    {"lb_policy": "RING_HASH"},
    {"lb_policy": "ROUND_ROBIN", "least_request_lb_config": {"choice_count": 2}},
    {"circuit_breakers": {"thresholds": [{}, {}, {"max_requests": 0}]}},
    {"common_lb_config": {"healthy_panic_threshold": {"value": 0}, "zone_aware_lb_config": {}}},
    {
        "outlier_detection": {
            "consecutive_5xx": 0,
            "base_ejection_time": "400s",
            "max_ejection_time_jitter": "0s",
        }
    },
    {"http2_protocol_options": {}, "max_requests_per_connection": 0},
    {"load_assignment": {"cluster_name": "other"}},
    *(
        {"load_assignment": assignment(*localities)}
        for localities in (
            [locality(endpoint(port=0))],
            [locality(endpoint(), endpoint())],
            [locality(endpoint(), priority=1)],
            [locality(endpoint(), priority=2), locality(endpoint())],
            [locality(endpoint(health_status=9))],
            [locality(endpoint("FE80::A"), endpoint("::ffff:1.2.3.4"), endpoint("fe80::1%eth0"))],
            [locality(endpoint(load_balancing_weight=2**32 - 1), endpoint(port=1, load_balancing_weight=1))],
            [locality(endpoint(), locality={"zone": "a"}), locality(endpoint(), locality={"zone": "a"})],
        )
    ),
    {
        "typed_extension_protocol_options": {
            HTTP: {"@type": TYPES + HTTP, "use_downstream_protocol_config": {}}
        }
    },
    {
        "transport_socket": {
            "name": "x",
            "typed_config": {"@type": EXTENSIONS + "transport_sockets.raw_buffer.v3.RawBuffer"},
        }
    },
)
ACCEPTED_CLUSTERS: list[dict[str, Any]] = [{"name": "c", **fields} for fields in _ACCEPTED]

# What only meshlib refuses, by the end of the path: it is not implemented, and neglecting it would match too much or send
# what must not be sent; or (the substitutions) Envoy finds out only when a request comes.
ONLY_HERE = (
    *("connect_matcher", "tls_context", "dynamic_metadata", "filter_state", "filter_action", "[0].matcher"),
    "regex_rewrite.substitution",
)


def is_only_here(error: ResourceError) -> bool:
    return error.path.endswith(ONLY_HERE)


def accepted_by_envoy(directory: Path, routes: list[dict[str, Any]], clusters: list[dict[str, Any]]) -> bool:
    listeners = []
    for number, config in enumerate(routes):
        address = {"socket_address": {"address": "127.0.0.1", "port_value": 0}}
        filters = [{"name": "http", "typed_config": manager(route_config=config)}]
        listeners.append({"name": f"l{number}", "address": address, "filter_chains": [{"filters": filters}]})
    path = directory / "envoy.json"
    path.write_text(json.dumps({"static_resources": {"listeners": listeners, "clusters": clusters}}))
    command = [str(envoy_binary()), "--mode", "validate", "-c", str(path), "-l", "off"]
    return subprocess.run(command, capture_output=True, timeout=50).returncode == 0


def refusal(type_url: str, value: dict[str, Any]) -> ResourceError | None:
    try:
        decoded(type_url, value)
    except ResourceError as error:
        return error
    return None


def test_accepted(tmp_path: Path) -> None:
    named = [{**cluster, "name": f"c{number}"} for number, cluster in enumerate(ACCEPTED_CLUSTERS)]
    assert accepted_by_envoy(tmp_path, ACCEPTED_ROUTES, [SIMPLE_CLUSTER, *named])


@pytest.mark.parametrize("routes", ACCEPTED_ROUTES)
def test_accepted_routes(routes: dict[str, Any]) -> None:
    assert refusal(proto.ROUTE, routes) is None


@pytest.mark.parametrize("cluster", ACCEPTED_CLUSTERS)
def test_accepted_clusters(cluster: dict[str, Any]) -> None:
    assert refusal(proto.CLUSTER, cluster) is None


@pytest.mark.parametrize("routes", REFUSED_ROUTES)
def test_refused_routes(tmp_path: Path, routes: dict[str, Any]) -> None:
    error = refusal(proto.ROUTE, routes)
    assert error is not None
    assert accepted_by_envoy(tmp_path, [routes], [SIMPLE_CLUSTER]) == is_only_here(error)


@pytest.mark.parametrize("cluster", REFUSED_CLUSTERS)
def test_refused_clusters(tmp_path: Path, cluster: dict[str, Any]) -> None:
    error = refusal(proto.CLUSTER, cluster)
    assert error is not None
    assert accepted_by_envoy(tmp_path, [], [cluster]) == is_only_here(error)

"""Cluster: what is read, where errors point, what is reported."""

from __future__ import annotations

from typing import Any

import pytest

from meshlib import proto
from meshlib.resources import decode
from meshlib.resources.cluster import (
    CircuitBreakers,
    Cluster,
    DiscoveryType,
    HttpProtocol,
    Keepalive,
    LeastRequestConfig,
    LocalityLbConfig,
    OutlierDetection,
    RandomConfig,
    RetryBudget,
    RoundRobinConfig,
    Service,
    Thresholds,
)
from meshlib.resources.endpoint import ClusterLoadAssignment, Endpoint
from tests.resources.building import (
    EXTENSIONS,
    TYPES,
    assignment,
    decode_cluster,
    decoded,
    endpoint,
    locality,
    refused,
)

HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
ADS = {"eds_config": {"ads": {}, "resource_api_version": "V3"}}


def http_options(**fields: Any) -> dict[str, Any]:
    return {HTTP_OPTIONS: {"@type": TYPES + HTTP_OPTIONS, **fields}}


def policy(name: str, **fields: Any) -> dict[str, Any]:
    config = {"@type": f"{EXTENSIONS}load_balancing_policies.{name}", **fields}
    return {"typed_extension_config": {"name": name, "typed_config": config}}


def policies(*entries: dict[str, Any]) -> dict[str, Any]:
    return {"policies": list(entries)}


def test_the_defaults() -> None:
    assert decode_cluster() == Cluster(
        name="c",
        discovery=DiscoveryType.STATIC,
        load_assignment=ClusterLoadAssignment(cluster_name="c"),
    )


def test_eds() -> None:
    cluster = decode_cluster(type="EDS", eds_cluster_config=ADS)
    assert (cluster.discovery, cluster.eds_service_name, cluster.load_assignment) == (
        DiscoveryType.EDS,
        "c",
        None,
    )
    named = {"eds_config": {"self": {}}, "service_name": "s"}
    assert decode_cluster(type="EDS", eds_cluster_config=named).eds_service_name == "s"


def test_eds_from_a_path_is_reported() -> None:
    config = {"eds_config": {"path_config_source": {"path": "eds.yaml"}}}
    found = decoded(proto.CLUSTER, {"name": "c", "type": "EDS", "eds_cluster_config": config})
    assert found.unsupported == ("eds_cluster_config.eds_config.path_config_source",)


def test_static_keeps_all_endpoints() -> None:
    load = assignment(locality(endpoint(), endpoint(), endpoint("::1", 8080)))
    made = decode_cluster(load_assignment=load).load_assignment
    assert made is not None
    assert list(made.localities[0].endpoints) == [
        Endpoint("127.0.0.1", 80),
        Endpoint("127.0.0.1", 80),
        Endpoint("::1", 8080),
    ]


def test_dns() -> None:
    cluster = decode_cluster(
        type="STRICT_DNS",
        dns_refresh_rate="2s",
        respect_dns_ttl=True,
        dns_lookup_family="V4_ONLY",
        load_assignment=assignment(locality(endpoint("example.com", 443))),
    )
    assert cluster.discovery is DiscoveryType.STRICT_DNS
    assert (cluster.dns_refresh_rate, cluster.respect_dns_ttl) == (2.0, True)
    assert (cluster.dns_ipv4_only, cluster.dns_ipv6_only) == (True, False)
    assert cluster.load_assignment is not None
    assert cluster.load_assignment.localities[0].endpoints[0] == Endpoint("example.com", 443)


def test_circuit_breakers() -> None:
    thresholds = [
        {"max_requests": 0, "track_remaining": True},
        {"priority": "HIGH", "max_connections": 1, "max_pending_requests": 2, "max_retries": 4},
        {"max_requests": 9},
    ]
    assert decode_cluster(circuit_breakers={"thresholds": thresholds}).circuit_breakers == CircuitBreakers(
        default=Thresholds(max_requests=0, track_remaining=True),
        high=Thresholds(max_connections=1, max_pending_requests=2, max_retries=4),
    )


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        ({}, RetryBudget(budget_percent=20.0, min_retry_concurrency=3)),
        ({"budget_percent": {}}, RetryBudget(budget_percent=0.0)),
        ({"budget_percent": {"value": 12.5}}, RetryBudget(budget_percent=12.5)),
        ({"min_retry_concurrency": 0}, RetryBudget(min_retry_concurrency=0)),
    ],
)
def test_retry_budget(budget: dict[str, Any], expected: RetryBudget) -> None:
    cluster = decode_cluster(circuit_breakers={"thresholds": [{"retry_budget": budget}]})
    assert cluster.circuit_breakers.default == Thresholds(retry_budget=expected)


def test_a_retry_budget_of_the_last_seconds_is_reported() -> None:
    """budget_interval is newer than the descriptors; without it the budget is counted as Envoy does by default."""
    message: Any = proto.from_dict(
        proto.full_name(proto.CLUSTER),
        {"name": "c", "circuit_breakers": {"thresholds": [{"retry_budget": {}}]}},
    )
    budget = message.circuit_breakers.thresholds[0].retry_budget
    budget.MergeFromString(bytes((0x1A, 2, 0x08, 10)))  # field 3: a Duration of 10 s
    found = decode(proto.CLUSTER, message)
    assert found.unsupported == ("circuit_breakers.thresholds[0].retry_budget.<field 3>",)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, OutlierDetection()),
        (
            {
                "consecutive_5xx": 2,
                "interval": "0.1s",
                "max_ejection_percent": 100,
                "always_eject_one_host": True,
            },
            OutlierDetection(
                consecutive_5xx=2, interval=0.1, max_ejection_percent=100, always_eject_one_host=True
            ),
        ),
        ({"base_ejection_time": "400s"}, OutlierDetection(base_ejection_time=400.0, max_ejection_time=400.0)),
        ({"max_ejection_time": "30s"}, OutlierDetection(max_ejection_time=30.0)),
        (
            {"enforcing_consecutive_5xx": 0, "max_ejection_time_jitter": "1s"},
            OutlierDetection(enforcing_consecutive_5xx=0, max_ejection_time_jitter=1.0),
        ),
    ],
)
def test_outlier_detection(fields: dict[str, Any], expected: OutlierDetection) -> None:
    assert decode_cluster(outlier_detection=fields).outlier_detection == expected


def test_detectors_that_are_not_implemented() -> None:
    found = decoded(
        proto.CLUSTER,
        {
            "name": "c",
            "outlier_detection": {
                "enforcing_consecutive_gateway_failure": 100,
                "enforcing_success_rate": 0,
                "success_rate_minimum_hosts": 3,
                "failure_percentage_threshold": 50,
                "consecutive_local_origin_failure": 3,
            },
        },
    )
    assert found.unsupported == ("outlier_detection.enforcing_consecutive_gateway_failure",)
    assert found.warnings == ()
    assert "success rate" in decoded(proto.CLUSTER, {"name": "c", "outlier_detection": {}}).warnings[0]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"explicit_http_config": {"http_protocol_options": {}}}, (HttpProtocol.HTTP1, 3600.0, 0, None)),
        ({"explicit_http_config": {"http2_protocol_options": {}}}, (HttpProtocol.HTTP2, 3600.0, 0, None)),
        (
            {
                "explicit_http_config": {"http_protocol_options": {}},
                "common_http_protocol_options": {
                    "idle_timeout": "0s",
                    "max_requests_per_connection": 5,
                    "max_stream_duration": "2s",
                },
            },
            (HttpProtocol.HTTP1, None, 5, 2.0),
        ),
    ],
)
def test_http_protocol_options(fields: dict[str, Any], expected: tuple[Any, ...]) -> None:
    cluster = decode_cluster(
        typed_extension_protocol_options=http_options(**fields), max_requests_per_connection=99
    )
    found = (
        cluster.protocol,
        cluster.idle_timeout,
        cluster.max_requests_per_connection,
        cluster.max_stream_duration,
    )
    assert found == expected


def test_legacy_http_options() -> None:
    cluster = decode_cluster(
        http2_protocol_options={},
        max_requests_per_connection=3,
        common_http_protocol_options={"idle_timeout": "7s"},
    )
    assert cluster.protocol is HttpProtocol.HTTP2
    assert (cluster.max_requests_per_connection, cluster.idle_timeout) == (3, 7.0)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"interval": "30s", "timeout": "2.5s"}, Keepalive(interval=30.0, timeout=2.5)),
        ({"timeout": "2s"}, None),
    ],
)
def test_connection_keepalive(settings: dict[str, Any], expected: Keepalive | None) -> None:
    http2 = {"http2_protocol_options": {"connection_keepalive": settings}}
    assert decode_cluster(**http2).keepalive == expected
    explicit = http_options(explicit_http_config=http2)
    assert decode_cluster(typed_extension_protocol_options=explicit).keepalive == expected


def test_automatic_protocols_are_reported() -> None:
    options = {"typed_extension_protocol_options": http_options(auto_config={})}
    found = decoded(proto.CLUSTER, {"name": "c", "transport_socket": TLS, **options})
    assert found.unsupported == (f'typed_extension_protocol_options["{HTTP_OPTIONS}"].auto_config',)


def test_automatic_protocols_need_alpn_everywhere() -> None:
    options = {"typed_extension_protocol_options": http_options(auto_config={})}
    matches = {"transport_socket_matches": [{"name": "plain", "transport_socket": RAW}]}
    for fields in (options, {**options, "transport_socket": TLS, **matches}):
        assert "ALPN" in refused(proto.CLUSTER, {"name": "c", **fields}).reason


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, RoundRobinConfig()),
        ({"lb_policy": "LEAST_REQUEST"}, LeastRequestConfig()),
        (
            {
                "lb_policy": "LEAST_REQUEST",
                "least_request_lb_config": {
                    "choice_count": 5,
                    "active_request_bias": {"default_value": 0.5, "runtime_key": "k"},
                },
            },
            LeastRequestConfig(choice_count=5, active_request_bias=0.5),
        ),
        ({"lb_policy": "RANDOM"}, RandomConfig()),
        (
            {"lb_policy": "RANDOM", "load_balancing_policy": policies(policy("round_robin.v3.RoundRobin"))},
            RoundRobinConfig(),
        ),
        ({"load_balancing_policy": policies(policy("least_request.v3.LeastRequest"))}, LeastRequestConfig()),
        (
            {
                "load_balancing_policy": policies(
                    {
                        "typed_extension_config": {
                            "name": "unknown",
                            "typed_config": {"@type": TYPES + "google.protobuf.Empty"},
                        }
                    },
                    policy("random.v3.Random"),
                    policy("ring_hash.v3.RingHash"),
                )
            },
            RandomConfig(),
        ),
    ],
)
def test_lb_policies(fields: dict[str, Any], expected: Any) -> None:
    found = decoded(proto.CLUSTER, {"name": "c", **fields})
    assert isinstance(found.resource, Cluster)
    assert found.resource.lb_policy == expected
    assert found.unsupported == ()


def test_locality_configuration() -> None:
    common = {
        "healthy_panic_threshold": {"value": 0},
        "zone_aware_lb_config": {"fail_traffic_on_panic": True},
        "update_merge_window": "1s",
    }
    assert decode_cluster(common_lb_config=common).locality == LocalityLbConfig(
        healthy_panic_threshold=0.0, fail_traffic_on_panic=True
    )
    assert decode_cluster(common_lb_config={"locality_weighted_lb_config": {}}).locality.locality_weighted
    own = policy("least_request.v3.LeastRequest", locality_lb_config={"locality_weighted_lb_config": {}})
    assert decode_cluster(load_balancing_policy=policies(own)).locality.locality_weighted
    wrapped = policy(
        "wrr_locality.v3.WrrLocality", endpoint_picking_policy=policies(policy("random.v3.Random"))
    )
    cluster = decode_cluster(load_balancing_policy=policies(wrapped))
    assert cluster.lb_policy == RandomConfig()
    assert cluster.locality.locality_weighted
    assert cluster.locality.subset_size is None


def test_a_subset() -> None:
    def of(size: int, child: dict[str, Any]) -> dict[str, Any]:
        return policy("random_subsetting.v3.RandomSubsetting", subset_size=size, child_policy=policies(child))

    def weighted(child: dict[str, Any]) -> dict[str, Any]:
        return policy("wrr_locality.v3.WrrLocality", endpoint_picking_policy=policies(child))

    rand = policy("random.v3.Random")
    for listed, size, of_each, by_locality in (
        (of(3, rand), 3, False, False),
        (of(3, weighted(rand)), 3, False, True),
        (weighted(of(3, rand)), 3, True, True),
        (of(3, of(2, rand)), 2, False, False),
        (of(3, of(4, rand)), 3, False, False),
    ):
        cluster = decode_cluster(load_balancing_policy=policies(listed))
        assert cluster.lb_policy == RandomConfig()
        assert cluster.locality == LocalityLbConfig(
            subset_size=size, subset_of_locality=of_each, locality_weighted=by_locality
        )


@pytest.mark.parametrize(
    ("fields", "unsupported"),
    [
        (
            {"load_balancing_policy": policies(policy("subset.v3.Subset"))},
            ("load_balancing_policy.policies[0].typed_extension_config.typed_config",),
        ),
        (
            {"lb_subset_config": {"subset_selectors": [{"keys": ["a"]}]}},
            ("lb_subset_config",),
        ),
        ({"round_robin_lb_config": {"slow_start_config": {}}}, ("round_robin_lb_config.slow_start_config",)),
        ({"circuit_breakers": {"per_host_thresholds": [{}]}}, ("circuit_breakers.per_host_thresholds",)),
        ({"preconnect_policy": {}, "alt_stat_name": "x", "metadata": {}}, ("preconnect_policy",)),
    ],
)
def test_what_is_not_applied_is_reported(fields: dict[str, Any], unsupported: tuple[str, ...]) -> None:
    found = decoded(proto.CLUSTER, {"name": "c", **fields})
    assert found.unsupported == unsupported
    assert isinstance(found.resource, Cluster)
    assert found.resource.lb_policy == RoundRobinConfig()


TLS = {"name": "tls", "typed_config": {"@type": EXTENSIONS + "transport_sockets.tls.v3.UpstreamTlsContext"}}
RAW = {"name": "raw", "typed_config": {"@type": EXTENSIONS + "transport_sockets.raw_buffer.v3.RawBuffer"}}


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"name": ""}, "name"),
        ({"type": 9}, "type"),
        ({"type": "ORIGINAL_DST"}, "type"),
        ({"cluster_type": {"name": "envoy.clusters.aggregate"}}, "cluster_type"),
        ({"type": "EDS"}, "eds_cluster_config"),
        ({"type": "EDS", "eds_cluster_config": {}}, "eds_cluster_config.eds_config"),
        (
            {
                "type": "EDS",
                "eds_cluster_config": {"eds_config": {"api_config_source": {"api_type": "GRPC"}}},
            },
            "eds_cluster_config.eds_config.api_config_source",
        ),
        ({"type": "EDS", "eds_cluster_config": ADS, "load_assignment": assignment()}, "load_assignment"),
        ({"eds_cluster_config": ADS}, "eds_cluster_config"),
        ({"type": "LOGICAL_DNS"}, "load_assignment"),
        (
            {
                "type": "LOGICAL_DNS",
                "load_assignment": assignment(locality(endpoint("a.b"), endpoint("c.d"))),
            },
            "load_assignment",
        ),
        (
            {"load_assignment": assignment(locality(endpoint("example.com")))},
            "load_assignment.endpoints[0].lb_endpoints[0].endpoint.address.socket_address.address",
        ),
        ({"load_assignment": {"endpoints": []}}, "load_assignment.cluster_name"),
        ({"connect_timeout": "0s"}, "connect_timeout"),
        ({"connect_timeout": "-1s"}, "connect_timeout"),
        ({"lb_policy": 99}, "lb_policy"),
        ({"lb_policy": "LOAD_BALANCING_POLICY_CONFIG"}, "lb_policy"),
        ({"lb_policy": "CLUSTER_PROVIDED"}, "lb_policy"),
        (
            {"lb_policy": "LEAST_REQUEST", "least_request_lb_config": {"choice_count": 1}},
            "least_request_lb_config.choice_count",
        ),
        ({"load_balancing_policy": policies()}, "load_balancing_policy.policies"),
        (
            {"load_balancing_policy": policies(policy("wrr_locality.v3.WrrLocality"))},
            "load_balancing_policy.policies[0].typed_extension_config.typed_config.endpoint_picking_policy",
        ),
        (
            {"load_balancing_policy": policies(policy("random_subsetting.v3.RandomSubsetting"))},
            "load_balancing_policy.policies[0].typed_extension_config.typed_config.subset_size",
        ),
        (
            {
                "load_balancing_policy": policies(
                    policy("random_subsetting.v3.RandomSubsetting", subset_size=0)
                )
            },
            "load_balancing_policy.policies[0].typed_extension_config.typed_config.subset_size",
        ),
        (
            {
                "load_balancing_policy": policies(
                    policy("random_subsetting.v3.RandomSubsetting", subset_size=2)
                )
            },
            "load_balancing_policy.policies[0].typed_extension_config.typed_config.child_policy",
        ),
        (
            {
                "common_lb_config": {"locality_weighted_lb_config": {}},
                "load_balancing_policy": policies(policy("random.v3.Random")),
            },
            "load_balancing_policy",
        ),
        (
            {"common_lb_config": {"healthy_panic_threshold": {"value": 101}}},
            "common_lb_config.healthy_panic_threshold.value",
        ),
        (
            {"common_lb_config": {"healthy_panic_threshold": {"value": "NaN"}}},
            "common_lb_config.healthy_panic_threshold.value",
        ),
        (
            {"circuit_breakers": {"thresholds": [{}, {"priority": 7}]}},
            "circuit_breakers.thresholds[1].priority",
        ),
        ({"outlier_detection": {"max_ejection_percent": 101}}, "outlier_detection.max_ejection_percent"),
        ({"outlier_detection": {"interval": "0s"}}, "outlier_detection.interval"),
        ({"outlier_detection": {"max_ejection_time": "1s"}}, "outlier_detection.max_ejection_time"),
        ({"dns_refresh_rate": "0s"}, "dns_refresh_rate"),
        ({"dns_lookup_family": 9}, "dns_lookup_family"),
        (
            {"http2_protocol_options": {"max_concurrent_streams": 0}},
            "http2_protocol_options.max_concurrent_streams",
        ),
        (
            {"typed_extension_protocol_options": http_options()},
            f'typed_extension_protocol_options["{HTTP_OPTIONS}"]',
        ),
        (
            {
                "typed_extension_protocol_options": http_options(
                    explicit_http_config={"http3_protocol_options": {}}
                )
            },
            f'typed_extension_protocol_options["{HTTP_OPTIONS}"].explicit_http_config.http3_protocol_options',
        ),
        ({"health_checks": [{}]}, "health_checks[0]"),
        ({"transport_socket": {"name": "envoy.transport_sockets.tls"}}, "transport_socket.typed_config"),
        ({"filters": [{"name": "f"}]}, "filters"),
    ],
)
def test_errors(fields: dict[str, Any], path: str) -> None:
    assert refused(proto.CLUSTER, {"name": "c", **fields}).path == path


def test_plaintext_may_be_asked_for() -> None:
    socket = {
        "name": "raw",
        "typed_config": {"@type": EXTENSIONS + "transport_sockets.raw_buffer.v3.RawBuffer"},
    }
    assert decoded(proto.CLUSTER, {"name": "c", "transport_socket": socket}).unsupported == ()


@pytest.mark.parametrize(
    ("istio", "expected"),
    [
        (
            {"services": [{"host": "a.b.svc", "name": "a", "namespace": "b"}, {"host": "c"}]},
            Service(host="a.b.svc", name="a", namespace="b"),
        ),
        ({"services": [{"host": "a.b.svc"}]}, Service(host="a.b.svc", name="", namespace="")),
        ({"services": [{"name": "a"}]}, None),
        ({"services": []}, None),
        ({"services": "a"}, None),
        ({}, None),
    ],
)
def test_whose_endpoints_they_are(istio: dict[str, Any], expected: Service | None) -> None:
    found = decoded(proto.CLUSTER, {"name": "c", "metadata": {"filter_metadata": {"istio": istio}}})
    assert isinstance(found.resource, Cluster)
    assert found.resource.service == expected
    assert found.unsupported == ()

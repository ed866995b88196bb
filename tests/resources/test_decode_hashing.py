"""RING_HASH, MAGLEV and hash policies, in the older and in the newer form."""

from __future__ import annotations

from typing import Any

import pytest

from meshlib import proto
from meshlib.resources.cluster import (
    Cluster,
    HashFunction,
    LbPolicy,
    MaglevConfig,
    RingHashConfig,
    RoundRobinConfig,
)
from meshlib.resources.endpoint_wire import LazyEndpoints
from meshlib.resources.hash_policy import (
    ChannelIdHash,
    CookieHash,
    HashPolicy,
    HeaderHash,
    QueryParameterHash,
)
from meshlib.resources.matching import RegexRewrite
from meshlib.resources.route import RouteAction
from meshlib.runtime import regex
from tests.resources.building import (
    EXTENSIONS,
    assignment,
    decode_assignment,
    decode_cluster,
    decode_one_route,
    decoded,
    endpoint,
    locality,
    refused,
    route_config,
)


def extension(name: str, **fields: Any) -> dict[str, Any]:
    config = {"@type": f"{EXTENSIONS}load_balancing_policies.{name}", **fields}
    return {"policies": [{"typed_extension_config": {"name": name, "typed_config": config}}]}


def ring(**fields: Any) -> dict[str, Any]:
    return {"load_balancing_policy": extension("ring_hash.v3.RingHash", **fields)}


def maglev(**fields: Any) -> dict[str, Any]:
    return {"load_balancing_policy": extension("maglev.v3.Maglev", **fields)}


BY_HEADER = {"header": {"header_name": "X-Key"}}
OF_HEADER = HashPolicy(by=HeaderHash(name="x-key"))
STRICT_DNS = {
    "type": "STRICT_DNS",
    "load_assignment": assignment(locality(endpoint("a.example"))),
    "common_lb_config": {
        "consistent_hashing_lb_config": {"use_hostname_for_hashing": True, "hash_balance_factor": 150}
    },
}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"lb_policy": "RING_HASH"}, RingHashConfig()),
        (
            {
                "lb_policy": "RING_HASH",
                "ring_hash_lb_config": {
                    "minimum_ring_size": 7,
                    "maximum_ring_size": 9,
                    "hash_function": "MURMUR_HASH_2",
                },
            },
            RingHashConfig(
                minimum_ring_size=7, maximum_ring_size=9, hash_function=HashFunction.MURMUR_HASH_2
            ),
        ),
        (
            {"lb_policy": "RING_HASH", **STRICT_DNS},
            RingHashConfig(use_hostname_for_hashing=True, hash_balance_factor=150),
        ),
        ({"lb_policy": "RING_HASH", "maglev_lb_config": {"table_size": 5}}, RingHashConfig()),
        ({"lb_policy": "MAGLEV"}, MaglevConfig()),
        ({"lb_policy": "MAGLEV", "maglev_lb_config": {"table_size": 5}}, MaglevConfig(table_size=5)),
        (
            {"lb_policy": "MAGLEV", **STRICT_DNS},
            MaglevConfig(use_hostname_for_hashing=True, hash_balance_factor=150),
        ),
        ({"lb_policy": "ROUND_ROBIN", **STRICT_DNS}, RoundRobinConfig()),
        (ring(), RingHashConfig()),
        (ring(hash_function="XX_HASH", minimum_ring_size=3), RingHashConfig(minimum_ring_size=3)),
        (ring(hash_function="MURMUR_HASH_2"), RingHashConfig(hash_function=HashFunction.MURMUR_HASH_2)),
        (
            ring(use_hostname_for_hashing=True, hash_balance_factor=120),
            RingHashConfig(use_hostname_for_hashing=True, hash_balance_factor=120),
        ),
        (
            ring(use_hostname_for_hashing=True, hash_balance_factor=120, consistent_hashing_lb_config={}),
            RingHashConfig(),
        ),
        (
            ring(consistent_hashing_lb_config={"hash_balance_factor": 100, "hash_policy": [BY_HEADER]}),
            RingHashConfig(hash_balance_factor=100, hash_policy=(OF_HEADER,)),
        ),
        (
            maglev(
                table_size=5000011,
                consistent_hashing_lb_config={
                    "use_hostname_for_hashing": True,
                    "hash_policy": [BY_HEADER],
                },
            ),
            MaglevConfig(table_size=5000011, use_hostname_for_hashing=True, hash_policy=(OF_HEADER,)),
        ),
    ],
)
def test_policies(fields: dict[str, Any], expected: LbPolicy) -> None:
    found = decoded(proto.CLUSTER, {"name": "c", **fields})
    assert isinstance(found.resource, Cluster)
    assert found.resource.lb_policy == expected
    assert found.unsupported == ()


@pytest.mark.parametrize("policy", [ring, maglev])
def test_locality_weights(policy: Any) -> None:
    assert not decode_cluster(**policy()).locality.locality_weighted
    assert decode_cluster(**policy(locality_weighted_lb_config={})).locality.locality_weighted
    older = {"lb_policy": "MAGLEV", "common_lb_config": {"locality_weighted_lb_config": {}}}
    assert decode_cluster(**older).locality.locality_weighted


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"lb_policy": "MAGLEV", "maglev_lb_config": {"table_size": 65536}}, "maglev_lb_config.table_size"),
        ({"lb_policy": "MAGLEV", "maglev_lb_config": {"table_size": 0}}, "maglev_lb_config.table_size"),
        ({"lb_policy": "MAGLEV", "maglev_lb_config": {"table_size": 1}}, "maglev_lb_config.table_size"),
        ({"lb_policy": "MAGLEV", "maglev_lb_config": {"table_size": 5000077}}, "maglev_lb_config.table_size"),
        (
            {"lb_policy": "RING_HASH", "ring_hash_lb_config": {"maximum_ring_size": 1023}},
            "ring_hash_lb_config.minimum_ring_size",
        ),
        (
            {"lb_policy": "RING_HASH", "ring_hash_lb_config": {"maximum_ring_size": 8388609}},
            "ring_hash_lb_config.maximum_ring_size",
        ),
        (
            {"common_lb_config": {"consistent_hashing_lb_config": {"use_hostname_for_hashing": True}}},
            "common_lb_config.consistent_hashing_lb_config.use_hostname_for_hashing",
        ),
        (
            {
                "lb_policy": "RING_HASH",
                "common_lb_config": {"consistent_hashing_lb_config": {"hash_balance_factor": 99}},
            },
            "common_lb_config.consistent_hashing_lb_config.hash_balance_factor",
        ),
    ],
)
def test_refused(fields: dict[str, Any], path: str) -> None:
    assert refused(proto.CLUSTER, {"name": "c", **fields}).path == path


def policies_of(*entries: dict[str, Any]) -> tuple[HashPolicy, ...]:
    action = decode_one_route(route={"cluster": "c", "hash_policy": list(entries)}).action
    assert isinstance(action, RouteAction)
    return action.hash_policy


def test_hash_policies() -> None:
    rewrite = RegexRewrite(pattern=regex.compile("a(b)", unanchored=True), substitution="\\1")
    assert policies_of(
        BY_HEADER,
        {
            "header": {
                "header_name": "h",
                "regex_rewrite": {"pattern": {"regex": "a(b)"}, "substitution": "\\1"},
            },
            "terminal": True,
        },
        {"cookie": {"name": "c"}},
        {
            "cookie": {
                "name": "c",
                "ttl": "60.9s",
                "path": "/p",
                "attributes": [{"name": "SameSite", "value": "Strict"}, {"name": "Secure"}],
            }
        },
        {"query_parameter": {"name": "Q"}, "terminal": True},
        {"filter_state": {"key": "io.grpc.channel_id"}},
        {"connection_properties": {}, "terminal": True},
    ) == (
        OF_HEADER,
        HashPolicy(by=HeaderHash(name="h", regex_rewrite=rewrite), terminal=True),
        HashPolicy(by=CookieHash(name="c")),
        HashPolicy(
            by=CookieHash(name="c", ttl=60, path="/p", attributes=(("SameSite", "Strict"), ("Secure", "")))
        ),
        HashPolicy(by=QueryParameterHash(name="Q"), terminal=True),
        HashPolicy(by=ChannelIdHash()),
    )


def test_what_can_not_be_hashed_is_reported() -> None:
    entries = [
        {"connection_properties": {"source_ip": True}, "terminal": True},
        {"filter_state": {"key": "other"}},
    ]
    found = decoded(proto.ROUTE, route_config(route={"cluster": "c", "hash_policy": entries}))
    place = "virtual_hosts[0].routes[0].route.hash_policy"
    assert found.unsupported == (
        f"{place}[0].connection_properties.source_ip",
        f"{place}[1].filter_state.key",
    )
    config: Any = found.resource
    assert config.virtual_hosts[0].routes[0].action.hash_policy == (
        HashPolicy(by=None, terminal=True),
        HashPolicy(by=None),
    )


def test_weighted_clusters_by_hash() -> None:
    clusters: dict[str, Any] = {"clusters": [{"name": "a", "weight": 1}]}
    for given, expected in ((None, False), (False, False), (True, True)):
        extra = {} if given is None else {"use_hash_policy": given}
        action = decode_one_route(route={"weighted_clusters": clusters | extra}).action
        assert isinstance(action, RouteAction)
        assert action.weighted_clusters is not None
        assert action.weighted_clusters.use_hash_policy is expected


def lb(**values: Any) -> dict[str, Any]:
    return {"filter_metadata": {"envoy.lb": values}}


def test_what_endpoints_are_known_by() -> None:
    given = (
        endpoint("10.0.0.1", 80),
        endpoint("10.0.0.2", 65535, metadata=lb(hash_key="second"), load_balancing_weight=3),
        endpoint("10.0.0.3", 128, metadata=lb(hash_key=3)),
        endpoint("10.0.0.4", 80, metadata=lb(other="x"), health_status="UNHEALTHY"),
        endpoint("10.0.0.5", 16384, metadata={"filter_metadata": {"other": {"hash_key": "x"}}}),
    )
    endpoints = decode_assignment(assignment(locality(*given))).localities[0].endpoints
    assert isinstance(endpoints, LazyEndpoints)
    keys = [each.hash_key for each in endpoints]
    assert keys == ["", "second", "", "", ""]
    plain = ["10.0.0.1:80", "second", "10.0.0.3:128", "10.0.0.4:80", "10.0.0.5:16384"]
    assert endpoints.names(0, 5, hostnames=False) == plain
    assert endpoints.names(1, 3, hostnames=False) == plain[1:3]
    assert endpoints.names(0, 5, hostnames=True) == ["", "second", "", "", ""]


def test_what_endpoints_of_other_layouts_are_known_by() -> None:
    named = endpoint("10.0.0.2", 80)
    named["endpoint"]["hostname"] = "b.example"
    keyed = endpoint("10.0.0.3", 80, metadata=lb(hash_key="k"))
    keyed["endpoint"]["hostname"] = "c.example"
    endpoints = (
        decode_assignment(assignment(locality(endpoint("::1", 80), named, keyed))).localities[0].endpoints
    )
    assert isinstance(endpoints, LazyEndpoints)
    assert endpoints.names(0, 3, hostnames=False) == ["[::1]:80", "10.0.0.2:80", "k"]
    assert endpoints.names(0, 3, hostnames=True) == ["", "b.example", "k"]

"""Whatever bytes come, decoding ends in a resource or in a ResourceError."""

from __future__ import annotations

import random
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshlib import proto
from meshlib.errors import ResourceError
from meshlib.resources import Decoded, decode_any
from meshlib.resources.decode_endpoint import check_addresses
from meshlib.resources.endpoint import ClusterLoadAssignment
from tests.resources.building import (
    EXTENSIONS,
    ROUTER,
    TYPES,
    api_listener,
    assignment,
    endpoint,
    locality,
    route_config,
    socket_listener,
)
from tests.resources.test_decode_inbound import chain, listener, rbac_filter
from tests.resources.test_decode_rbac import PERMISSIONS, PRINCIPALS, rbac
from tests.resources.tls_samples import (
    bundle_map,
    certificate,
    common,
    downstream,
    fingerprint,
    from_sds,
    from_server,
    san,
    spiffe,
    trusted,
    upstream,
)

RICH_ROUTE = route_config(
    match={
        "safe_regex": {"regex": "/a/.*"},
        "headers": [{"name": "h", "string_match": {"prefix": "x"}}, {"name": "r", "range_match": {"end": 5}}],
        "query_parameters": [{"name": "q", "present_match": True}],
        "runtime_fraction": {"default_value": {"numerator": 5}},
    },
    route={
        "weighted_clusters": {"clusters": [{"name": "a", "weight": 1}, {"cluster_header": "b", "weight": 2}]},
        "timeout": "1s",
        "regex_rewrite": {"pattern": {"regex": "a(b)"}, "substitution": "\\1"},
        "retry_policy": {
            "retry_on": "5xx",
            "retry_back_off": {"base_interval": "0.1s", "max_interval": "1s"},
            "rate_limited_retry_back_off": {"reset_headers": [{"name": "n"}]},
        },
    },
    request_headers_to_add=[
        {"header": {"key": "k", "value": "%REQ(a?b):3%"}, "append_action": "ADD_IF_ABSENT"}
    ],
    typed_per_filter_config={"f": {"@type": TYPES + "envoy.config.route.v3.FilterConfig", "disabled": True}},
)
RICH_CLUSTER = {
    "name": "c",
    "type": "STRICT_DNS",
    "connect_timeout": "1s",
    "load_assignment": assignment(locality(endpoint("a.b", load_balancing_weight=2), priority=1)),
    "circuit_breakers": {"thresholds": [{"max_requests": 3}]},
    "outlier_detection": {"interval": "1s", "max_ejection_percent": 5},
    "common_lb_config": {"healthy_panic_threshold": {"value": 5}},
    "load_balancing_policy": {
        "policies": [
            {
                "typed_extension_config": {
                    "name": "w",
                    "typed_config": {
                        "@type": EXTENSIONS + "load_balancing_policies.least_request.v3.LeastRequest",
                        "choice_count": 3,
                    },
                }
            }
        ]
    },
}
RICH_ASSIGNMENT = assignment(
    locality(
        endpoint("10.0.0.1", health_status="UNHEALTHY", load_balancing_weight=3),
        endpoint("::1", 8080),
        locality={"zone": "z"},
        load_balancing_weight=2,
    ),
    locality(endpoint("10.0.0.2"), priority=1),
    policy={"overprovisioning_factor": 100},
)
RICH_TLS = common(
    trusted(
        match_typed_subject_alt_names=[san(), san("OTHER_NAME", oid="1.2.3", safe_regex={"regex": "a.*"})],
        verify_certificate_hash=[fingerprint()],
        max_verify_depth=3,
    ),
    tls_certificate_sds_secret_configs=[from_sds("s", **from_server())],
    alpn_protocols=["h2"],
    tls_params={"tls_maximum_protocol_version": "TLSv1_3", "cipher_suites": ["x"]},
)
SECURE_CLUSTER = {
    "name": "c",
    "type": "STATIC",
    "transport_socket": upstream(RICH_TLS, sni="a"),
    "transport_socket_matches": [
        {
            "name": "m",
            "match": {"a": "b", "n": 1, "l": [None, {"x": True}]},
            "transport_socket": upstream(common(spiffe("a"))),
        },
        {
            "name": "b",
            "transport_socket": upstream(common(spiffe(trust_bundles={"inline_string": bundle_map()}))),
        },
    ],
}
INBOUND = listener(
    chain(
        downstream(common(tls_certificates=[certificate()])),
        rbac_filter(),
        filter_chain_match={
            "server_names": ["*.a"],
            "source_ports": [1],
            "prefix_ranges": [{"address_prefix": "10.0.0.0", "prefix_len": 8}],
        },
    )
)
AUTHORIZED = socket_listener(
    http_filters=[
        {
            "name": "rbac",
            "typed_config": rbac(
                {"and_rules": {"rules": [each for each, _ in PERMISSIONS]}},
                {"or_ids": {"ids": [each for each, _ in PRINCIPALS]}},
            ),
        },
        ROUTER,
    ]
)
SAMPLES = [
    (proto.LISTENER, api_listener(route_config=RICH_ROUTE)),
    (proto.LISTENER, socket_listener(stream_idle_timeout="1s")),
    (proto.ROUTE, RICH_ROUTE),
    (proto.CLUSTER, RICH_CLUSTER),
    (proto.ENDPOINT, RICH_ASSIGNMENT),
    (proto.CLUSTER, SECURE_CLUSTER),
    (proto.LISTENER, INBOUND),
    (proto.LISTENER, AUTHORIZED),
    (proto.SECRET, {"name": "s", "tls_certificate": certificate()}),
    (proto.SECRET, {"name": "s", "validation_context": trusted(allow_expired_certificate=True)}),
]
ENCODED = [
    (url, proto.from_dict(proto.full_name(url), value).SerializeToString(deterministic=True))
    for url, value in SAMPLES
]
URLS = [proto.LISTENER, proto.ROUTE, proto.CLUSTER, proto.ENDPOINT, proto.SECRET]


def attempt(type_url: str, data: bytes) -> Decoded | ResourceError:
    try:
        return decode_any(type_url, data)
    except ResourceError as error:
        return error


def outcome(type_url: str, data: bytes) -> Decoded | ResourceError:
    """Anything else that is raised fails the test; so does an endpoint that can't be looked at."""
    found = attempt(type_url, data)
    if isinstance(found, ResourceError):
        assert found.type_url == type_url
        assert found.reason
        assert not found.reason.startswith("can't be read")  # the net under a decoder that failed
        return found
    if isinstance(found.resource, ClusterLoadAssignment):
        check_addresses(found.resource)
        for place in found.resource.localities:
            list(place.endpoints)
    return found


@pytest.mark.parametrize(("type_url", "data"), ENCODED)
def test_the_samples_are_right(type_url: str, data: bytes) -> None:
    assert isinstance(outcome(type_url, data), Decoded)


@given(st.sampled_from(URLS), st.binary(max_size=200))
@settings(max_examples=500)
def test_random_bytes(type_url: str, data: bytes) -> None:
    outcome(type_url, data)


@pytest.mark.parametrize(("type_url", "data"), ENCODED)
def test_every_truncation(type_url: str, data: bytes) -> None:
    for length in range(len(data)):
        outcome(type_url, data[:length])


@given(st.sampled_from(ENCODED), st.randoms(use_true_random=False))
@settings(max_examples=1500)
def test_damaged_messages(sample: tuple[str, bytes], source: random.Random) -> None:
    type_url, data = sample
    damaged = bytearray(data)
    for _ in range(source.randint(1, 4)):
        place = source.randrange(len(damaged))
        match source.randrange(4):
            case 0:
                damaged[place] = source.randrange(256)
            case 1:
                del damaged[place]
            case 2:
                damaged.insert(place, source.randrange(256))
            case _:
                damaged[place:place] = damaged[place : place + source.randrange(20)]
    outcome(type_url, bytes(damaged))


def _shrunk(value: Any, source: random.Random) -> Any:
    """The dictionary with one value replaced by an absurd one of the same kind."""
    if isinstance(value, dict):
        keys = [key for key in value if key != "@type"]
        if not keys:
            return value
        key = source.choice(keys)
        return {**value, key: _shrunk(value[key], source)}
    if isinstance(value, list) and value:
        index = source.randrange(len(value))
        if source.random() < 0.2:
            return value * 3
        return [*value[:index], _shrunk(value[index], source), *value[index + 1 :]]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return source.choice([0, 1, 2**31 - 1, 2**32 - 1])
    if isinstance(value, str) and value.endswith("s") and value[:1].isdigit():
        return source.choice(["0s", "-1s", "315576000000s", "0.000000001s"])
    return source.choice(["", "\0", "\r\n", "*", "%", "(", "\u00e9" * 300, "a" * 20_000, ":", "(a+)+$"])


@given(st.sampled_from(SAMPLES), st.randoms(use_true_random=False))
@settings(max_examples=1000)
def test_absurd_values(sample: tuple[str, dict[str, Any]], source: random.Random) -> None:
    type_url, value = sample
    for _ in range(source.randint(1, 3)):
        value = _shrunk(value, source)
    try:
        message = proto.from_dict(proto.full_name(type_url), value)
    except proto.FieldError:
        return
    outcome(type_url, message.SerializeToString())


@pytest.mark.parametrize("type_url", URLS)
def test_deep_nesting(type_url: str) -> None:
    for tag in (0x0A, 0x12, 0x1A, 0x22, 0x7A):
        data = b""
        for _ in range(3000):
            if len(data) >= 1 << 14:
                break
            size = len(data)
            length = bytes((size,)) if size < 128 else bytes((size & 0x7F | 0x80, size >> 7))
            data = bytes((tag,)) + length + data
        outcome(type_url, data)


def test_configurations_nested_in_each_other() -> None:
    policy: dict[str, Any] = {}
    leaf = {"@type": EXTENSIONS + "load_balancing_policies.round_robin.v3.RoundRobin"}
    config: dict[str, Any] = leaf
    for _ in range(12):
        policy = {"policies": [{"typed_extension_config": {"name": "w", "typed_config": config}}]}
        config = {
            "@type": EXTENSIONS + "load_balancing_policies.wrr_locality.v3.WrrLocality",
            "endpoint_picking_policy": policy,
        }
    cluster = {"name": "c", "load_balancing_policy": policy}
    message = proto.from_dict("envoy.config.cluster.v3.Cluster", cluster)
    error = outcome(proto.CLUSTER, message.SerializeToString())
    assert isinstance(error, ResourceError)
    assert "too deep" in error.reason


@pytest.mark.parametrize("text", [b"\xff", b"\xc3\x28", b"\xed\xa0\x80"])
@pytest.mark.parametrize("type_url", URLS)
def test_invalid_utf_8(type_url: str, text: bytes) -> None:
    assert isinstance(outcome(type_url, b"\x0a" + bytes((len(text),)) + text), ResourceError)


def test_an_unknown_type() -> None:
    for type_url in ("", "x", TYPES + "envoy.config.core.v3.Node"):
        with pytest.raises(ResourceError) as caught:
            decode_any(type_url, b"")
        assert caught.value.type_url == type_url


@pytest.mark.parametrize("pattern", ["(a+)+$", "(.*a){25}b", "(a|a)*b", "a{1000}{1000}"])
def test_a_regular_expression_that_would_hang_a_backtracking_matcher(pattern: str) -> None:
    config = route_config(match={"safe_regex": {"regex": pattern}})
    message = proto.from_dict("envoy.config.route.v3.RouteConfiguration", config)
    started = time.process_time()
    found = outcome(proto.ROUTE, message.SerializeToString())
    if isinstance(found, Decoded):
        regex = found.resource.virtual_hosts[0].routes[0].match.path.regex  # type: ignore[union-attr]
        assert regex is not None
        assert regex.regex is not None
        regex.regex.fullmatch("a" * 20_000 + "!")
    assert time.process_time() - started < 5  # a backtracking matcher would take for ever


@pytest.mark.parametrize("path", ["/dev/zero", "/proc/self/environ", "/proc/../dev/zero", "", "\0", "/"])
def test_a_file_that_has_no_end(path: str) -> None:
    secret = {"name": "s", "validation_context": {"trusted_ca": {"filename": path}}}
    message = proto.from_dict(proto.full_name(proto.SECRET), secret)
    error = outcome(proto.SECRET, message.SerializeToString())
    assert isinstance(error, ResourceError)


def test_rules_nested_in_each_other() -> None:
    rule: dict[str, Any] = {"any": True}
    for _ in range(40):
        rule = {"and_rules": {"rules": [rule]}}
    config = socket_listener(http_filters=[{"name": "rbac", "typed_config": rbac(rule)}, ROUTER])
    message = proto.from_dict(proto.full_name(proto.LISTENER), config)
    error = outcome(proto.LISTENER, message.SerializeToString())
    assert isinstance(error, ResourceError)
    assert "deep" in error.reason

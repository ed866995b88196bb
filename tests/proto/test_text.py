from __future__ import annotations

import copy
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshlib import proto

LISTENER = "envoy.config.listener.v3.Listener"
HCM = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
ROUTER = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
HOST = "api_listener.api_listener.route_config.virtual_hosts[0]"

GOOD: dict[str, Any] = {
    "name": "web",
    "api_listener": {
        "api_listener": {
            "@type": HCM,
            "route_config": {
                "name": "r",
                "virtual_hosts": [
                    {
                        "name": "v",
                        "domains": ["*"],
                        "routes": [
                            {"match": {"prefix": "/"}, "route": {"cluster": "c", "timeout": "0.250s"}}
                        ],
                    }
                ],
            },
            "http_filters": [{"name": "router", "typed_config": {"@type": ROUTER}}],
        }
    },
}


def hcm(value: dict[str, Any]) -> Any:
    return value["api_listener"]["api_listener"]


def host(value: dict[str, Any]) -> Any:
    return hcm(value)["route_config"]["virtual_hosts"][0]


def action(value: dict[str, Any]) -> Any:
    return host(value)["routes"][0]["route"]


def test_the_json_form_there_and_back() -> None:
    listener = proto.from_dict(LISTENER, GOOD)
    manager = proto.unpack(listener.api_listener.api_listener)
    route = manager.route_config.virtual_hosts[0].routes[0]
    assert route.route.timeout.ToTimedelta() == timedelta(milliseconds=250)
    assert proto.to_dict(listener) == GOOD


def test_lower_camel_case_names_are_accepted() -> None:
    cluster = proto.from_dict(
        "envoy.config.cluster.v3.Cluster", {"connectTimeout": "1s", "lbPolicy": "RANDOM"}
    )
    assert cluster.connect_timeout.seconds == 1


def edit(change: Callable[[dict[str, Any]], object]) -> proto.FieldError:
    value = copy.deepcopy(GOOD)
    change(value)
    with pytest.raises(proto.FieldError) as caught:
        proto.from_dict(LISTENER, value)
    return caught.value


@pytest.mark.parametrize(
    ("change", "path", "reason"),
    [
        (
            lambda v: v.update(nam="x"),
            "nam",
            "unknown field of envoy.config.listener.v3.Listener; did you mean 'name'?",
        ),
        (lambda v: v.update({3: 4}), "3", "unknown field"),
        (lambda v: host(v).update(domains="x"), f"{HOST}.domains", "repeated field domains must be in []"),
        (lambda v: host(v).update(domains=["a", 1]), f"{HOST}.domains[1]", "got 'int'"),
        (lambda v: host(v).update(routes=[None]), f"{HOST}.routes[0]", "null is not allowed"),
        (lambda v: host(v).update(routes=[7]), f"{HOST}.routes[0]", "expected a mapping, got 7"),
        (
            lambda v: action(v).update(timeout="5"),
            f"{HOST}.routes[0].route.timeout",
            'must end with letter "s": 5',
        ),
        (lambda v: action(v).update(timeout=5), f"{HOST}.routes[0].route.timeout", "not a string: 5"),
        (
            lambda v: action(v).update(cluster_header="x"),
            f"{HOST}.routes[0].route",
            'multiple "cluster_specifier"',
        ),
        (
            lambda v: action(v).update(cluster_not_found_response_code="FOO"),
            f"{HOST}.routes[0].route.cluster_not_found_response_code",
            "'FOO' is not one of SERVICE_UNAVAILABLE, NOT_FOUND, INTERNAL_SERVER_ERROR",
        ),
        (
            lambda v: hcm(v)["http_filters"][0]["typed_config"].update(
                {"@type": ROUTER.replace("router", "ruter")}
            ),
            "api_listener.api_listener.http_filters[0].typed_config.@type",
            "did you mean 'envoy.extensions.filters.http.router.v3.Router'?",
        ),
        (
            lambda v: hcm(v)["http_filters"][0]["typed_config"].update(start_child_span="maybe"),
            "api_listener.api_listener.http_filters[0].typed_config.start_child_span",
            "true or false",
        ),
        (
            lambda v: hcm(v)["http_filters"][0].update(typed_config=3),
            "api_listener.api_listener.http_filters[0].typed_config",
            "expected a mapping, got 3",
        ),
        (
            lambda v: hcm(v)["http_filters"][0].update(typed_config={"a": 1}),
            "api_listener.api_listener.http_filters[0].typed_config",
            "no usable '@type'",
        ),
        (
            lambda v: host(v).update(typed_per_filter_config={"a.b": {"@type": ROUTER, "zz": 1}}),
            f'{HOST}.typed_per_filter_config["a.b"].zz',
            "unknown field",
        ),
        (
            lambda v: host(v)["routes"][0].update(metadata={"filter_metadata": {"envoy.lb": 3}}),
            f'{HOST}.routes[0].metadata.filter_metadata["envoy.lb"]',
            "Struct must be in a dict which is 3",
        ),
    ],
)
def test_a_mistake_is_found_where_it_is(
    change: Callable[[dict[str, Any]], object], path: str, reason: str
) -> None:
    error = edit(change)
    assert error.path == path
    assert reason in error.reason
    assert "\n" not in str(error)


def test_a_message_that_is_not_a_mapping() -> None:
    with pytest.raises(proto.FieldError, match="expected a mapping"):
        proto.from_dict(LISTENER, ["name"])  # type: ignore[arg-type]


def test_nesting_without_end_is_refused() -> None:
    value: dict[str, Any] = {"prefix": "/"}
    match: dict[str, Any] = {"any": True}
    for _ in range(300):
        match = {"and_rules": {"rules": [match]}}
    rbac = {"policies": {"p": {"permissions": [match]}}}
    with pytest.raises(proto.FieldError):
        proto.from_dict("envoy.config.rbac.v3.RBAC", rbac)
    assert proto.from_dict("envoy.config.route.v3.RouteMatch", value).prefix == "/"


def test_a_typed_struct_becomes_the_type_that_it_names() -> None:
    struct = {"type_url": ROUTER, "value": {"start_child_span": True}}
    packed = proto.pack(proto.from_dict("xds.type.v3.TypedStruct", struct))
    assert proto.unpack(packed) == proto.from_dict(proto.full_name(ROUTER), {"start_child_span": True})


def test_a_typed_struct_of_an_unknown_type_names_that_type() -> None:
    packed = proto.pack(proto.from_dict("xds.type.v3.TypedStruct", {"type_url": "a/b.C", "value": {}}))
    with pytest.raises(proto.UnknownType) as caught:
        proto.unpack(packed)
    assert caught.value.type_url == "b.C"


@pytest.mark.parametrize("url", ["", "type.googleapis.com/", "type.googleapis.com/no.Such"])
def test_unpack_refuses_what_it_does_not_know(url: str) -> None:
    with pytest.raises(proto.UnknownType):
        proto.unpack(proto.message("google.protobuf.Any")(type_url=url, value=b""))


def test_unpack_refuses_broken_bytes() -> None:
    with pytest.raises(proto.DecodeError):
        proto.unpack(proto.message("google.protobuf.Any")(type_url=proto.LISTENER, value=b"\xff"))


def test_pack_and_unpack() -> None:
    listener = proto.from_dict(LISTENER, GOOD)
    packed = proto.pack(listener)
    assert packed.type_url == proto.LISTENER
    assert proto.unpack(packed) == listener


def test_an_any_of_an_unknown_type_is_still_shown() -> None:
    listener = proto.from_dict(LISTENER, GOOD)
    strange = proto.message("google.protobuf.Any")(type_url="x/foo.Bar", value=b"\x01\x02")
    manager = proto.unpack(listener.api_listener.api_listener)
    manager.http_filters[0].typed_config.CopyFrom(strange)
    manager.route_config.virtual_hosts[0].typed_per_filter_config["f"].CopyFrom(strange)
    listener.api_listener.api_listener.Pack(manager)
    shown = hcm(proto.to_dict(listener))
    for any_value in (shown["http_filters"][0], host(proto.to_dict(listener))["typed_per_filter_config"]):
        inner = any_value.get("typed_config") or any_value["f"]
        assert inner["value"] == {"type_url": "x/foo.Bar", "value": "0102"}
    assert proto.unpack(listener.api_listener.api_listener) == manager, "the message itself must not change"


@given(st.binary(max_size=200))
def test_bytes_at_random_are_a_message_or_a_decode_error(data: bytes) -> None:
    try:
        message = proto.parse(LISTENER, data)
    except proto.DecodeError:
        return
    assert proto.parse(LISTENER, message.SerializeToString()) == message


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.sampled_from(
        [
            "name",
            "domains",
            "routes",
            "require_tls",
            "cors",
            "retry_policy",
            "typed_per_filter_config",
            "metadata",
        ]
    ),
    JSON,
)
def test_any_value_is_a_message_or_a_field_error(field: str, value: Any) -> None:
    try:
        proto.from_dict("envoy.config.route.v3.VirtualHost", {field: value})
    except proto.FieldError as error:
        path, reason = error.path, error.reason
    else:
        return
    assert path.startswith(field)
    assert reason

"""Listener and HttpConnectionManager: what is read, where errors point, what is reported."""

from __future__ import annotations

from typing import Any

import pytest

from meshlib import proto
from meshlib.errors import ResourceError
from meshlib.resources import decode
from meshlib.resources.listener import Listener, PathWithEscapedSlashesAction, RouterConfig
from tests.resources.building import (
    EXTENSIONS,
    ROUTER,
    api_listener,
    decode_listener,
    decoded,
    manager,
    refused,
    socket_listener,
)

API = "api_listener.api_listener"
SOCKET = "filter_chains[0].filters[0].typed_config"
RBAC = {"name": "rbac", "typed_config": {"@type": EXTENSIONS + "filters.http.rbac.v3.RBAC"}}
TLS = {"name": "tls", "typed_config": {"@type": EXTENSIONS + "transport_sockets.tls.v3.DownstreamTlsContext"}}


@pytest.mark.parametrize("listener", [api_listener(), socket_listener()])
def test_the_simplest_listener(listener: dict[str, Any]) -> None:
    found = decoded(proto.LISTENER, listener)
    assert found.name == "l"
    assert found.unsupported == ()
    made = decode_listener(listener)
    assert made.http.route_config_name is None
    assert made.http.route_config is not None
    assert made.http.route_config.cluster_names == {"c"}
    assert [entry.config for entry in made.http.http_filters] == [RouterConfig()]
    assert made.per_connection_buffer_limit_bytes == 1024 * 1024


def test_rds() -> None:
    rds = {"config_source": {"ads": {}}, "route_config_name": "routes"}
    made = decode_listener(api_listener(rds=rds, route_config=None))
    assert made.http.route_config_name == "routes"
    assert made.http.route_config is None


def test_everything_that_is_read() -> None:
    listener = api_listener(
        common_http_protocol_options={"max_stream_duration": "9s", "idle_timeout": "1s"},
        stream_idle_timeout="0s",
        request_timeout="2s",
        generate_request_id=False,
        preserve_external_request_id=True,
        always_set_request_id_in_response=True,
        strip_any_host_port=True,
        strip_trailing_host_dot=True,
        path_with_escaped_slashes_action="UNESCAPE_AND_REDIRECT",
        normalize_path=True,
        merge_slashes=True,
        server_name="s",
        use_remote_address=True,
        codec_type="HTTP2",
    )
    router = {**ROUTER, "typed_config": {**ROUTER["typed_config"], "suppress_envoy_headers": True}}
    listener["api_listener"]["api_listener"]["http_filters"] = [router]
    listener["per_connection_buffer_limit_bytes"] = 5
    found = decoded(proto.LISTENER, listener)
    assert found.unsupported == ()
    made = decode_listener(listener)
    http = made.http
    assert (http.max_stream_duration, http.stream_idle_timeout, http.request_timeout) == (9.0, 0.0, 2.0)
    assert not http.generate_request_id
    assert http.preserve_external_request_id
    assert http.always_set_request_id_in_response
    assert (http.strip_any_host_port, http.strip_matching_host_port, http.strip_trailing_host_dot) == (
        True,
        False,
        True,
    )
    assert http.path_with_escaped_slashes_action is PathWithEscapedSlashesAction.UNESCAPE_AND_REDIRECT
    assert (http.normalize_path, http.merge_slashes) == (True, True)
    assert http.server_name == "s"
    assert made.per_connection_buffer_limit_bytes == 5
    assert http.http_filters[0].config == RouterConfig(suppress_envoy_headers=True)


@pytest.mark.parametrize("action", list(PathWithEscapedSlashesAction))
def test_escaped_slashes(action: PathWithEscapedSlashesAction) -> None:
    found = decoded(proto.LISTENER, api_listener(path_with_escaped_slashes_action=action.name))
    assert found.unsupported == ()
    assert isinstance(found.resource, Listener)
    http = found.resource.http
    assert http.path_with_escaped_slashes_action is action
    assert (http.normalize_path, http.merge_slashes) == (False, False)


def test_the_default_filter_chain() -> None:
    listener = socket_listener()
    listener["default_filter_chain"] = listener.pop("filter_chains")[0]
    assert decode_listener(listener).name == "l"


def test_an_optional_filter_that_is_unknown_is_left_out_and_reported() -> None:
    found = decoded(proto.LISTENER, api_listener(http_filters=[{**RBAC, "is_optional": True}, ROUTER]))
    assert found.unsupported == (f"{API}.http_filters[0].typed_config",)


def test_what_is_not_applied_is_reported() -> None:
    listener = socket_listener(via="v")
    listener["filter_chains"][0]["filter_chain_match"] = {"destination_port": 80}
    listener["access_log"] = [{"name": "b"}]
    assert set(decoded(proto.LISTENER, listener).unsupported) == {
        "access_log",
        f"{SOCKET}.via",
    }


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"route_config": None}, ""),
        ({"route_config": None, "rds": {"config_source": {"ads": {}}}}, "rds.route_config_name"),
        ({"route_config": None, "rds": {"config_source": {}, "route_config_name": "r"}}, "rds.config_source"),
        (
            {
                "route_config": None,
                "scoped_routes": {
                    "name": "s",
                    "scope_key_builder": {
                        "fragments": [{"header_value_extractor": {"name": "h", "index": 0}}]
                    },
                    "scoped_route_configurations_list": {
                        "scoped_route_configurations": [
                            {"name": "n", "key": {"fragments": [{"string_key": "k"}]}}
                        ]
                    },
                },
            },
            "scoped_routes",
        ),
        ({"http_filters": []}, "http_filters"),
        ({"http_filters": [ROUTER, ROUTER]}, "http_filters[0]"),
        ({"http_filters": [RBAC, ROUTER]}, "http_filters[0].typed_config"),
        ({"http_filters": [{"name": "x"}, ROUTER]}, "http_filters[0].typed_config"),
        ({"http_filters": [{**RBAC, "is_optional": True}]}, "http_filters"),
        ({"http_filters": [{**ROUTER, "disabled": True}]}, "http_filters[0].disabled"),
        (
            {
                "http_filters": [
                    {"name": "x", "config_discovery": {"config_source": {"ads": {}}, "type_urls": ["t"]}},
                    ROUTER,
                ]
            },
            "http_filters[0].config_discovery",
        ),
        ({"stream_idle_timeout": "-1s"}, "stream_idle_timeout"),
        ({"path_with_escaped_slashes_action": 9}, "path_with_escaped_slashes_action"),
        (
            {"typed_header_validation_config": {"name": "v", "typed_config": ROUTER["typed_config"]}},
            "typed_header_validation_config",
        ),
        (
            {"route_config": {"virtual_hosts": [{"name": "v", "domains": []}]}},
            "route_config.virtual_hosts[0].domains",
        ),
    ],
)
def test_errors_in_the_manager(fields: dict[str, Any], path: str) -> None:
    error = refused(proto.LISTENER, api_listener(**fields))
    assert error.path == API + (f".{path}" if path else "")
    assert error.name == "l"


def test_errors_in_the_listener() -> None:
    chain = socket_listener()["filter_chains"][0]
    http = {"name": "h", "typed_config": manager()}
    cases: list[tuple[dict[str, Any], str]] = [
        ({"name": "l"}, ""),
        ({"name": "l", "filter_chains": [chain, chain]}, "filter_chains[1].filter_chain_match"),
        ({"name": "l", "filter_chains": [{"filters": []}]}, "filter_chains[0].filters"),
        ({"name": "l", "filter_chains": [{"filters": [http, http]}]}, "filter_chains[0].filters"),
        (
            {"name": "l", "filter_chains": [{**chain, "transport_socket": TLS}]},
            "filter_chains[0].transport_socket.typed_config.common_tls_context",
        ),
        ({"name": "l", "api_listener": {}}, "api_listener.api_listener"),
        (
            {"name": "l", "api_listener": {"api_listener": ROUTER["typed_config"]}},
            "api_listener.api_listener",
        ),
    ]
    for listener, path in cases:
        assert refused(proto.LISTENER, listener).path == path
    unknown: Any = proto.from_dict("envoy.config.listener.v3.Listener", socket_listener())
    unknown.filter_chains[0].filters[0].typed_config.type_url = EXTENSIONS + "filters.network.rbac.v3.RBAC"
    with pytest.raises(ResourceError) as caught:
        decode(proto.LISTENER, unknown)
    assert caught.value.path == "filter_chains[0].filters"


def test_the_name_of_statistics_may_be_missing_as_for_grpc() -> None:
    listener = decoded(proto.LISTENER, api_listener(stat_prefix="")).resource
    assert isinstance(listener, Listener)
    assert listener.name == "l"

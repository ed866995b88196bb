"""Listener and the HttpConnectionManager in it."""

from __future__ import annotations

from meshlib.resources.decode_common import check_transport_socket, from_control_plane
from meshlib.resources.decode_route import decode_route_configuration
from meshlib.resources.filters import decode_chain
from meshlib.resources.listener import HttpConnectionManager, Listener
from meshlib.resources.reader import Reader
from meshlib.resources.route import RouteConfiguration

__all__ = ["decode_listener"]

_HCM = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
_BUFFER_LIMIT = 1024 * 1024


def decode_listener(reader: Reader) -> Listener:
    """config.listener.v3.Listener: of an api_listener, or of a socket listener with one filter chain. Raises ResourceError."""
    api = reader.child("api_listener")
    if api is not None:
        reader.leave("filter_chains", "default_filter_chain")  # Envoy and gRPC take the api_listener then
        content = _manager(api, "api_listener")
    else:
        content = _in_filter_chain(reader)
    limit = reader.boxed("per_connection_buffer_limit_bytes")
    return Listener(
        name=reader.text("name"),
        http=_http_connection_manager(content),
        per_connection_buffer_limit_bytes=_BUFFER_LIMIT if limit is None else limit,
    )


def _manager(reader: Reader, field: str) -> Reader:
    config = reader.required(field)
    content = config.unpacked()
    if content.type_name != _HCM:
        raise reader.fail(field, f"expected an HttpConnectionManager, got {content.type_name}")
    return content


def _in_filter_chain(reader: Reader) -> Reader:
    chains = reader.items("filter_chains")
    default = reader.child("default_filter_chain")
    if default is not None:
        chains.append(default)
    if not chains:
        raise reader.fail("", "has neither an api_listener nor a filter chain")
    if len(chains) > 1:
        reason = "several filter chains: which one applies depends on a downstream connection, which a client has not"
        raise reader.fail("filter_chains", reason)
    chain = chains[0]
    check_transport_socket(chain)
    filters = chain.items("filters")
    for index, entry in enumerate(filters):
        entry.leave("name")
        kind = entry.message.typed_config.type_url.rpartition("/")[2]
        if kind == _HCM and len(filters) == 1:
            return _manager(entry, "typed_config")
        if kind != _HCM:
            reason = f"the network filter {entry.message.name!r} ({kind or 'no type'}) is not implemented"
            raise chain.fail(f"filters[{index}]", reason)
    raise chain.fail(
        "filters", "the last filter must be the HttpConnectionManager, and there must be only one"
    )


def _http_connection_manager(reader: Reader) -> HttpConnectionManager:
    name, config = _routes(reader)
    common = reader.child("common_http_protocol_options")
    longest = None
    if common is not None:
        longest = common.duration("max_stream_duration")
        # They concern the downstream connection, which does not exist.
        common.leave(
            "idle_timeout", "max_connection_duration", "max_requests_per_connection", "max_headers_count"
        )
        common.leave("headers_with_underscores_action")
    idle = reader.duration("stream_idle_timeout")
    generate = reader.boxed("generate_request_id")
    reader.leave("strip_port_mode")
    return HttpConnectionManager(
        route_config_name=name,
        route_config=config,
        http_filters=decode_chain(reader, "http_filters"),
        stat_prefix=reader.text("stat_prefix"),
        max_stream_duration=longest,
        stream_idle_timeout=300.0 if idle is None else idle,
        request_timeout=reader.duration("request_timeout"),
        generate_request_id=True if generate is None else generate,
        preserve_external_request_id=reader.flag("preserve_external_request_id"),
        always_set_request_id_in_response=reader.flag("always_set_request_id_in_response"),
        strip_any_host_port=reader.flag("strip_any_host_port"),
        strip_matching_host_port=reader.flag("strip_matching_host_port"),
        strip_trailing_host_dot=reader.flag("strip_trailing_host_dot"),
        server_name=reader.text("server_name"),
    )


def _routes(reader: Reader) -> tuple[str | None, RouteConfiguration | None]:
    kind = reader.which("route_specifier")
    if kind == "rds":
        rds = reader.required(kind)
        from_control_plane(rds, "config_source")
        name = rds.text("route_config_name")
        if not name:
            raise rds.fail("route_config_name", "must not be empty")
        return name, None
    if kind == "route_config":
        return None, decode_route_configuration(reader.required(kind))
    raise reader.fail(kind or "", "scoped routes are not implemented" if kind else "must have routes")

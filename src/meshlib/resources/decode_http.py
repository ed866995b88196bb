"""HttpConnectionManager: what a client and a server take from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from meshlib.resources.decode_access_log import decode_access_logs
from meshlib.resources.decode_common import from_control_plane
from meshlib.resources.decode_route import decode_route_configuration
from meshlib.resources.decode_tracing import decode_tracing
from meshlib.resources.filters import CHAIN, decode_chain
from meshlib.resources.listener import HttpConnectionManager, PathWithEscapedSlashesAction
from meshlib.resources.reader import Reader
from meshlib.resources.route import RouteConfiguration

__all__ = ["HTTP_CONNECTION_MANAGER", "decode_http_connection_manager"]

HTTP_CONNECTION_MANAGER = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"

_ESCAPED_SLASHES = {each.value: each for each in PathWithEscapedSlashesAction}


def decode_http_connection_manager(
    reader: Reader, filters: Mapping[str, Callable[[Reader], Any]] = CHAIN
) -> HttpConnectionManager:
    """filters: the HTTP filters that may stand in the chain, by type. Raises ResourceError."""
    name, config = _routes(reader)
    common = reader.child("common_http_protocol_options")
    longest = None
    if common is not None:
        longest = common.duration("max_stream_duration")
        # They concern the downstream connection: a client has none, and a server's is not ours.
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
        http_filters=decode_chain(reader, "http_filters", filters),
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
        path_with_escaped_slashes_action=reader.enum("path_with_escaped_slashes_action", _ESCAPED_SLASHES),
        normalize_path=bool(reader.boxed("normalize_path")),
        merge_slashes=reader.flag("merge_slashes"),
        server_name=reader.text("server_name"),
        access_log=decode_access_logs(reader),
        tracing=decode_tracing(reader),
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

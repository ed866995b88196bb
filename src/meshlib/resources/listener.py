"""Listener and the HttpConnectionManager in it (config.listener.v3, extensions.filters.network.http_connection_manager.v3)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from meshlib.resources.access_log import AccessLog
from meshlib.resources.route import RouteConfiguration
from meshlib.resources.tracing import Tracing

if TYPE_CHECKING:
    from meshlib.resources.inbound import InboundListener

__all__ = ["HttpConnectionManager", "HttpFilter", "Listener", "PathWithEscapedSlashesAction", "RouterConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterConfig:
    """extensions.filters.http.router.v3.Router, the last filter of every chain."""

    suppress_envoy_headers: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpFilter:
    """One filter of the HTTP filter chain, in order. config is the filter's own validated dataclass."""

    name: str
    type_url: str
    config: Any
    disabled: bool = False


class PathWithEscapedSlashesAction(Enum):
    """What happens to a request with `%2F` or `%5C` in its path. Envoy's default, without a runtime, is KEEP_UNCHANGED."""

    IMPLEMENTATION_SPECIFIC_DEFAULT = 0
    KEEP_UNCHANGED = 1
    REJECT_REQUEST = 2
    UNESCAPE_AND_REDIRECT = 3
    UNESCAPE_AND_FORWARD = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpConnectionManager:
    """What meshlib uses of the HttpConnectionManager. Exactly one of route_config_name (RDS) and route_config is set.

    http_filters: never empty, the router is last. Durations in seconds; None is "not given", 0 is none.
    use_remote_address and internal_addresses decide, as in Envoy, whether the caller is internal.
    path_with_escaped_slashes_action, normalize_path, merge_slashes: what is done to the path, in this order
    (`routing.path`).
    """

    route_config_name: str | None = None
    route_config: RouteConfiguration | None = None
    http_filters: tuple[HttpFilter, ...]
    stat_prefix: str = ""
    max_stream_duration: float | None = None
    stream_idle_timeout: float = 300.0
    request_timeout: float | None = None
    generate_request_id: bool = True
    preserve_external_request_id: bool = False
    always_set_request_id_in_response: bool = False
    strip_any_host_port: bool = False
    strip_matching_host_port: bool = False
    strip_trailing_host_dot: bool = False
    path_with_escaped_slashes_action: PathWithEscapedSlashesAction = (
        PathWithEscapedSlashesAction.IMPLEMENTATION_SPECIFIC_DEFAULT
    )
    normalize_path: bool = False
    merge_slashes: bool = False
    server_name: str = ""
    access_log: tuple[AccessLog, ...] = ()
    tracing: Tracing | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """config.listener.v3.Listener. The HttpConnectionManager of `api_listener`, or of the socket listener's filter chain.

    per_connection_buffer_limit_bytes: how much of a request body is kept for a retry. inbound: what it says to a server, None for
    an api_listener. metadata: see `metadata.packed`. A Listener that only a server can use is an `inbound.InboundListener`.
    """

    name: str
    http: HttpConnectionManager
    per_connection_buffer_limit_bytes: int = 1024 * 1024
    inbound: InboundListener | None = None
    metadata: bytes = b""

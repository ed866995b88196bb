"""What happens to fields that no decoder reads: tables of those that mean nothing to a client, and of those that are refused.

Every other field that is set is reported as unsupported.
"""

from __future__ import annotations

__all__ = ["IGNORED", "REFUSED", "STRICT"]

_CLUSTER = "envoy.config.cluster.v3."
_CORE = "envoy.config.core.v3."
_ENDPOINT = "envoy.config.endpoint.v3."
_LISTENER = "envoy.config.listener.v3."
_ROUTE = "envoy.config.route.v3."
_HCM = "envoy.extensions.filters.network.http_connection_manager.v3."
_RBAC = "envoy.config.rbac.v3."
_TLS = "envoy.extensions.transport_sockets.tls.v3."
_ROUTER = "envoy.extensions.filters.http.router.v3."


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


IGNORED: dict[str, frozenset[str]] = {
    # Names for statistics, metadata for other filters, versions of the API itself.
    _CLUSTER + "Cluster": _names(
        "alt_stat_name metadata track_cluster_stats wait_for_warm_on_init cleanup_interval"
    ),
    _CORE + "ConfigSource": _names("resource_api_version initial_fetch_timeout"),
    _ENDPOINT + "LocalityLbEndpoints": _names("metadata"),
    _ROUTE + "RouteConfiguration": _names("metadata validate_clusters"),
    _ROUTE + "VirtualHost": _names("metadata"),
    _ROUTE + "Route": _names("metadata"),
    # The total is the sum of the weights; Envoy ignores this field too.
    _ROUTE + "WeightedCluster": _names("total_weight"),
    # How the listening socket is opened and named: a client has none.
    _LISTENER + "Listener": _names(
        "address additional_addresses stat_prefix metadata drain_type freebind socket_options enable_reuse_port reuse_port"
        " tcp_fast_open_queue_length tcp_backlog_size bind_to_port traffic_direction connection_balance_config"
        " max_connections_to_accept_per_socket_event transparent use_original_dst deprecated_v1 enable_mptcp"
        " ignore_global_conn_limit bypass_overload_manager listener_filters listener_filters_timeout"
        " continue_on_listener_filters_timeout"
    ),
    _LISTENER + "FilterChain": _names("name metadata transport_socket_connect_timeout"),
    # What is spoken and trusted on the downstream connection: there is none, the caller is this process.
    _HCM + "HttpConnectionManager": _names(
        "codec_type use_remote_address xff_num_trusted_hops skip_xff_append internal_address_config max_request_headers_kb"
        " original_ip_detection_extensions request_headers_timeout drain_timeout delayed_close_timeout"
        " represent_ipv4_remote_address_as_ipv4_mapped_ipv6 http_protocol_options http2_protocol_options"
        " http3_protocol_options forward_client_cert_details set_current_client_cert_details forward_client_cert_matcher"
        " stream_error_on_invalid_http_message http1_safe_max_connection_duration add_proxy_protocol_connection_state"
        " stream_flush_timeout"
    ),
    _ROUTER + "Router": _names("dynamic_stats suppress_grpc_request_failure_code_stats"),
}
"""By message type: fields that have no effect in a client, or none on what a call does."""

_TOO_MUCH = "is not implemented, and without it more requests would match than are meant to"

REFUSED: dict[tuple[str, str], str] = {
    (
        _CLUSTER + "Cluster",
        "transport_socket_matcher",
    ): "choosing a transport socket by a matcher is not implemented; use transport_socket_matches",
    (_CLUSTER + "Cluster", "filters"): "network filters on the upstream connection are not implemented",
    (_CLUSTER + "Cluster", "upstream_config"): "another upstream than plain HTTP is not implemented",
    (_CLUSTER + "Cluster", "original_dst_lb_config"): "the original destination is not known to a client",
    (_ENDPOINT + "LocalityLbEndpoints", "leds_cluster_locality_config"): "LEDS is not implemented",
    (
        _LISTENER + "Listener",
        "filter_chain_matcher",
    ): "choosing a filter chain by a matcher is not implemented",
    (_LISTENER + "Listener", "fcds_config"): "filter chain discovery is not implemented",
    (_LISTENER + "Listener", "udp_listener_config"): "a UDP listener has no HTTP routes",
    (
        _HCM + "HttpConnectionManager",
        "early_header_mutation_extensions",
    ): "early header mutation is not implemented",
    (
        _HCM + "HttpConnectionManager",
        "typed_header_validation_config",
    ): "header validators are not implemented, in Envoy's own builds neither",
    (_ROUTE + "RouteConfiguration", "vhds"): "virtual host discovery is not implemented",
    (_ROUTE + "VirtualHost", "matcher"): "the generic matcher is not implemented",
    (_ROUTE + "RouteMatch", "tls_context"): f"matching on TLS {_TOO_MUCH}",
    (_ROUTE + "RouteMatch", "dynamic_metadata"): f"matching on metadata {_TOO_MUCH}",
    (_ROUTE + "RouteMatch", "filter_state"): f"matching on filter state {_TOO_MUCH}",
    (_ROUTER + "Router", "upstream_http_filters"): "HTTP filters after the router are not implemented",
}
"""By (message type, field): why the resource can't be used, because neglecting the field would weaken security."""

STRICT = frozenset(
    (
        _ROUTE + "RouteMatch",
        _ROUTE + "HeaderMatcher",
        _ROUTE + "QueryParameterMatcher",
        "envoy.type.matcher.v3.StringMatcher",
        _LISTENER + "FilterChainMatch",
        *(_RBAC + name for name in ("RBAC", "Policy", "Permission", "Principal", "Principal.Authenticated")),
        "envoy.extensions.filters.http.rbac.v3.RBAC",
        "envoy.extensions.filters.http.rbac.v3.RBACPerRoute",
        "envoy.extensions.filters.network.rbac.v3.RBAC",
        "envoy.extensions.rbac.principals.mtls_authenticated.v3.Config",
        *(
            _TLS + name
            for name in (
                "UpstreamTlsContext",
                "DownstreamTlsContext",
                "CommonTlsContext",
                "CommonTlsContext.CombinedCertificateValidationContext",
                "CertificateValidationContext",
                "SPIFFECertValidatorConfig",
                "SubjectAltNameMatcher",
                "TlsCertificate",
                "TlsParameters",
            )
        ),
    )
)
"""Messages in which a field that this version's API does not have (RouteMatch.cookies, for one) is an error: matches, and
whatever security depends on."""

"""What a cluster says about HTTP to its endpoints: HttpProtocolOptions, or the older fields of the Cluster itself."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from meshlib.resources.cluster import HttpProtocol, Keepalive
from meshlib.resources.reader import Reader
from meshlib.resources.tls import UpstreamTls

__all__ = ["UpstreamHttp", "upstream_http"]

_HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_UPSTREAM_CODEC = "envoy.extensions.filters.http.upstream_codec.v3.UpstreamCodec"


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamHttp:
    """options: protocol, keepalive, idle_timeout, max_requests_per_connection and max_stream_duration of the Cluster.

    names: auto_sni and its like, fields of UpstreamTls. negotiates: the endpoint chooses the protocol, by ALPN.
    """

    options: dict[str, Any]
    names: dict[str, Any] = field(default_factory=dict)
    negotiates: bool = False

    def named(self, tls: UpstreamTls) -> UpstreamTls:
        return replace(tls, **self.names) if self.names else tls


def upstream_http(reader: Reader) -> UpstreamHttp:
    """Of a Cluster. Raises ResourceError."""
    for key, entry in reader.entries("typed_extension_protocol_options"):
        if entry.message.type_url.rpartition("/")[2] == _HTTP_OPTIONS:
            reader.leave("common_http_protocol_options", "http_protocol_options", "http2_protocol_options")
            reader.leave(
                "max_requests_per_connection", "protocol_selection", "upstream_http_protocol_options"
            )
            return _explicit(entry.unpacked())
        entry.leave("type_url", "value")
        reader.unsupported(f'typed_extension_protocol_options["{key}"]')
    requests = reader.boxed("max_requests_per_connection")
    reader.child("http_protocol_options")
    http2 = reader.child("http2_protocol_options")
    common = _common(reader.child("common_http_protocol_options"))
    return UpstreamHttp(
        options={
            **common,
            "protocol": HttpProtocol.HTTP1 if http2 is None else HttpProtocol.HTTP2,
            "keepalive": _keepalive(http2),
            "max_requests_per_connection": requests or common["max_requests_per_connection"],
        },
        names=_names(reader.child("upstream_http_protocol_options")),
    )


def _explicit(options: Reader) -> UpstreamHttp:
    protocol, keepalive = HttpProtocol.HTTP1, None
    kind = options.which("upstream_protocol_options")
    if kind == "explicit_http_config":
        explicit = options.required(kind)
        chosen = explicit.which("protocol_config")
        if chosen == "http3_protocol_options":
            raise explicit.fail(chosen, "HTTP/3 is not implemented")
        spoken = None if chosen is None else explicit.child(chosen)
        if chosen == "http2_protocol_options":
            protocol, keepalive = HttpProtocol.HTTP2, _keepalive(spoken)
    elif kind is not None:
        options.unsupported(kind)
    for index, entry in enumerate(options.items("http_filters")):
        entry.leave("name", "typed_config", "disabled", "is_optional", "config_discovery")
        if entry.message.typed_config.type_url.rpartition("/")[2] != _UPSTREAM_CODEC:
            raise options.fail(f"http_filters[{index}]", "HTTP filters of a cluster are not implemented")
    common = _common(options.child("common_http_protocol_options"))
    return UpstreamHttp(
        options={"protocol": protocol, "keepalive": keepalive, **common},
        names=_names(options.child("upstream_http_protocol_options")),
        negotiates=kind == "auto_config",
    )


def _names(options: Reader | None) -> dict[str, Any]:
    """core.v3.UpstreamHttpProtocolOptions; without TLS it means nothing."""
    if options is None:
        return {}
    return {
        "auto_sni": options.flag("auto_sni"),
        "auto_san_validation": options.flag("auto_san_validation"),
        "override_auto_sni_header": options.text("override_auto_sni_header").lower(),
    }


def _keepalive(http2: Reader | None) -> Keepalive | None:
    """core.v3.KeepaliveSettings; without an interval Envoy pings only where connection_idle_interval says so."""
    settings = None if http2 is None else http2.child("connection_keepalive")
    if settings is None:
        return None
    interval, timeout = settings.duration("interval"), settings.duration("timeout")
    if timeout is None:
        raise settings.fail("timeout", "is required")
    return None if not interval else Keepalive(interval=interval, timeout=timeout)


def _common(options: Reader | None) -> dict[str, Any]:
    """core.v3.HttpProtocolOptions."""
    if options is None:
        return {"max_requests_per_connection": 0}
    idle = options.duration("idle_timeout")
    return {
        "idle_timeout": 3600.0 if idle is None else idle or None,
        "max_requests_per_connection": options.boxed("max_requests_per_connection") or 0,
        "max_stream_duration": options.duration("max_stream_duration") or None,
    }

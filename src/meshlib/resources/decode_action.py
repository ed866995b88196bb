"""What a route does: forward, redirect, answer."""

from __future__ import annotations

from meshlib.resources.decode_common import data_source, format_string
from meshlib.resources.decode_hash_policy import hash_policies
from meshlib.resources.decode_headers import request_headers, response_headers
from meshlib.resources.decode_matching import regex_rewrite
from meshlib.resources.decode_retry import hedge_policy, retry_policy
from meshlib.resources.filters import decode_overrides
from meshlib.resources.reader import Reader
from meshlib.resources.route import (
    Action,
    DirectResponse,
    HostRewrite,
    HostRewriteKind,
    MaxStreamDuration,
    NonForwardingAction,
    Priority,
    Redirect,
    RouteAction,
    WeightedCluster,
    WeightedClusters,
)

__all__ = ["decode_action"]

_MAX_WEIGHT = 2**32 - 1
_DEFAULT_TIMEOUT = 15.0


def decode_action(reader: Reader, *, body_limit: int) -> Action:
    """The action of a config.route.v3.Route. body_limit: bytes that a direct response may have. Raises ResourceError."""
    kind = reader.which("action")
    if kind == "route":
        return _route_action(reader.required(kind))
    if kind == "redirect":
        return _redirect(reader.required(kind))
    if kind == "direct_response":
        return _direct_response(reader.required(kind), body_limit)
    if kind == "non_forwarding_action":
        reader.leave(kind)
        return NonForwardingAction()
    raise reader.fail(kind or "", "this action is not implemented" if kind else "must have an action")


def _route_action(reader: Reader) -> RouteAction:
    kind = reader.which("cluster_specifier")
    if kind not in ("cluster", "cluster_header", "weighted_clusters"):
        raise reader.fail(kind or "", "this way to choose a cluster is not implemented")
    weighted = reader.child("weighted_clusters")
    prefix_rewrite = reader.text("prefix_rewrite") or None
    rewrite = reader.child("regex_rewrite")
    given = (prefix_rewrite is not None, rewrite is not None, reader.has("path_rewrite_policy"))
    if sum(given) > 1:
        raise reader.fail(
            "", "only one of prefix_rewrite, regex_rewrite and path_rewrite_policy may be given"
        )
    timeout = reader.duration("timeout")
    duration = reader.child("max_stream_duration")
    return RouteAction(
        cluster=reader.text("cluster") if kind == "cluster" else None,
        cluster_header=reader.text("cluster_header").lower() if kind == "cluster_header" else None,
        weighted_clusters=None if weighted is None else _weighted_clusters(weighted),
        cluster_not_found_response_code=reader.enum(
            "cluster_not_found_response_code", {0: 503, 1: 404, 2: 500}
        ),
        prefix_rewrite=prefix_rewrite,
        regex_rewrite=None if rewrite is None else regex_rewrite(rewrite),
        host_rewrite=_host_rewrite(reader),
        append_x_forwarded_host=reader.flag("append_x_forwarded_host"),
        timeout=_DEFAULT_TIMEOUT if timeout is None else timeout,
        max_stream_duration=None if duration is None else _max_stream_duration(duration),
        max_grpc_timeout=reader.duration("max_grpc_timeout"),
        grpc_timeout_offset=reader.duration("grpc_timeout_offset"),
        retry_policy=retry_policy(reader),
        hedge_policy=hedge_policy(reader),
        priority=reader.enum("priority", {0: Priority.DEFAULT, 1: Priority.HIGH}),
        hash_policy=hash_policies(reader),
    )


def _weighted_clusters(reader: Reader) -> WeightedClusters:
    clusters = tuple(_weighted_cluster(entry) for entry in reader.each("clusters"))
    total = sum(cluster.weight for cluster in clusters)
    if not 1 <= total <= _MAX_WEIGHT:
        raise reader.fail("clusters", f"the weights add up to {total}; it must be 1 to {_MAX_WEIGHT}")
    return WeightedClusters(
        clusters=clusters,
        header_name=reader.text("header_name").lower() or None,
        use_hash_policy=bool(reader.boxed("use_hash_policy")),
    )


def _weighted_cluster(reader: Reader) -> WeightedCluster:
    name = reader.text("name") or None
    header = reader.text("cluster_header").lower() or None
    if (name is None) == (header is None):
        raise reader.fail("", "exactly one of name and cluster_header must be given")
    weight = reader.boxed("weight")
    if weight is None:
        raise reader.fail("weight", "must be given")
    return WeightedCluster(
        name=name,
        cluster_header=header,
        weight=weight,
        request_headers=request_headers(reader),
        response_headers=response_headers(reader),
        host_rewrite_literal=reader.text("host_rewrite_literal") or None,
        typed_per_filter_config=decode_overrides(reader),
    )


def _host_rewrite(reader: Reader) -> HostRewrite | None:
    kind = reader.which("host_rewrite_specifier")
    if kind == "host_rewrite_literal":
        literal = reader.text(kind)
        return HostRewrite(kind=HostRewriteKind.LITERAL, value=literal) if literal else None
    if kind == "auto_host_rewrite":
        return HostRewrite(kind=HostRewriteKind.AUTO) if reader.boxed(kind) else None
    if kind == "host_rewrite_header":
        name = reader.text(kind).lower()
        return HostRewrite(kind=HostRewriteKind.HEADER, value=name) if name else None
    if kind == "host_rewrite_path_regex":
        return HostRewrite(kind=HostRewriteKind.PATH_REGEX, regex=regex_rewrite(reader.required(kind)))
    return None


def _max_stream_duration(reader: Reader) -> MaxStreamDuration:
    return MaxStreamDuration(
        max_stream_duration=reader.duration("max_stream_duration"),
        grpc_timeout_header_max=reader.duration("grpc_timeout_header_max"),
        grpc_timeout_header_offset=reader.duration("grpc_timeout_header_offset"),
    )


def _redirect(reader: Reader) -> Redirect:
    scheme = reader.which("scheme_rewrite_specifier")
    path = reader.which("path_rewrite_specifier")
    secure = scheme == "https_redirect" and reader.flag("https_redirect")
    rewrite = reader.child("regex_rewrite")
    if path not in (None, "path_redirect", "prefix_rewrite", "regex_rewrite"):
        reader.unsupported(path)
    return Redirect(
        scheme="https" if secure else reader.text("scheme_redirect") or None,
        host=reader.text("host_redirect") or None,
        port=reader.number("port_redirect"),
        path=reader.text("path_redirect") or None,
        prefix_rewrite=reader.text("prefix_rewrite") or None,
        regex_rewrite=None if rewrite is None else regex_rewrite(rewrite),
        response_code=reader.enum("response_code", {0: 301, 1: 302, 2: 303, 3: 307, 4: 308}),
        strip_query=reader.flag("strip_query"),
    )


def _direct_response(reader: Reader, body_limit: int) -> DirectResponse:
    source = reader.child("body")
    body = b"" if source is None else data_source(source)
    if len(body) > body_limit:
        raise reader.fail(
            "body", f"{len(body)} bytes are more than {body_limit} (max_direct_response_body_size_bytes)"
        )
    body_format = None
    formatted = reader.child("body_format")
    if formatted is not None:
        kind = formatted.which("format")
        if kind == "text_format":
            body_format = format_string(formatted, kind, formatted.text(kind))
        elif kind == "text_format_source":
            text = data_source(formatted.required(kind)).decode("utf-8", "replace")
            body_format = format_string(formatted, kind, text)
    return DirectResponse(status=reader.number("status"), body=body, body_format=body_format)

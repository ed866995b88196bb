"""RouteConfiguration and all below it (config.route.v3), validated. Durations are seconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import Any

from meshlib.resources.format import Format
from meshlib.resources.hash_policy import HashPolicy
from meshlib.resources.headers import HeaderEdits
from meshlib.resources.matching import (
    FractionalPercent,
    HeaderMatch,
    QueryParameterMatch,
    RegexRewrite,
    StringMatch,
)
from meshlib.resources.tracing import NO_METADATA, RouteTracing

__all__ = [
    "Action",
    "BackOff",
    "DirectResponse",
    "FilterConfig",
    "HostRewrite",
    "HostRewriteKind",
    "MaxStreamDuration",
    "MirrorPolicy",
    "NonForwardingAction",
    "PathKind",
    "PathMatch",
    "Priority",
    "RateLimitedBackOff",
    "Redirect",
    "ResetHeader",
    "RetryPolicy",
    "Route",
    "RouteAction",
    "RouteConfiguration",
    "RouteMatch",
    "TlsRequirement",
    "VirtualHost",
    "WeightedCluster",
    "WeightedClusters",
]

FilterConfigs = Mapping[str, Any]
NO_FILTER_CONFIGS: FilterConfigs = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterConfig:
    """config.route.v3.FilterConfig: what a route says about a filter.

    disabled: the filter is skipped; config is then not used. config: the filter's own dataclass for routes, None when not given.
    """

    disabled: bool = False
    config: Any = None


class PathKind(Enum):
    """Which path specifier of RouteMatch is set."""

    PREFIX = "prefix"
    PATH = "path"
    SAFE_REGEX = "safe_regex"
    PATH_SEPARATED_PREFIX = "path_separated_prefix"


@dataclass(frozen=True, slots=True, kw_only=True)
class PathMatch:
    """The path specifier. value has no query part; match carries the compiled regex when kind is SAFE_REGEX."""

    kind: PathKind
    value: str
    case_sensitive: bool = True
    regex: StringMatch | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteMatch:
    """config.route.v3.RouteMatch; every part that is given must match.

    grpc: the request must be gRPC (content-type `application/grpc` or `application/grpc+...`).
    runtime_fraction: share of the requests that match, evaluated first; None is all.
    """

    path: PathMatch
    headers: tuple[HeaderMatch, ...] = ()
    query_parameters: tuple[QueryParameterMatch, ...] = ()
    runtime_fraction: FractionalPercent | None = None
    grpc: bool = False


class Priority(Enum):
    """Chooses the circuit-breaker thresholds."""

    DEFAULT = 0
    HIGH = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class BackOff:
    """retry_back_off: the wait before retry N is uniform in [0, min(base * 2**(N-1), max)). Seconds."""

    base_interval: float = 0.025
    max_interval: float = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class ResetHeader:
    """One of rate_limited_retry_back_off.reset_headers. unix_timestamp: the value is a time, otherwise seconds to wait."""

    name: str
    unix_timestamp: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimitedBackOff:
    """rate_limited_retry_back_off: the wait is uniform in [t, 1.5 t) for a header that gives t <= max_interval (300 s)."""

    reset_headers: tuple[ResetHeader, ...]
    max_interval: float = 300.0


_BELOW_500 = frozenset(
    (
        "cancelled",
        "deadline-exceeded",
        "envoy-ratelimited",
        "internal",
        "resource-exhausted",
        "retriable-4xx",
        "unavailable",
    )
)
"""Conditions of retry_on that a response below 500 can meet; the gRPC ones do at 200."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """config.route.v3.RetryPolicy. The route's policy replaces the virtual host's as a whole.

    retry_on: Envoy's condition names. per_try_timeout: None or 0 is none.
    """

    retry_on: frozenset[str] = frozenset()
    num_retries: int = 1
    per_try_timeout: float | None = None
    back_off: BackOff = BackOff()
    rate_limited_back_off: RateLimitedBackOff | None = None
    retriable_status_codes: frozenset[int] = frozenset()
    retriable_headers: tuple[HeaderMatch, ...] = ()
    retriable_request_headers: tuple[HeaderMatch, ...] = ()

    @property
    def looks_at_ok(self) -> bool:
        """Whether even a gRPC response with status OK may be one to retry."""
        on = self.retry_on
        return bool(
            "envoy-ratelimited" in on
            or ("retriable-headers" in on and self.retriable_headers)
            or ("retriable-status-codes" in on and 200 in self.retriable_status_codes)
        )

    @property
    def looks_at_success(self) -> bool:
        """Whether a response below 500 may be one to retry, so that even a 200 has to be looked at."""
        on = self.retry_on
        return bool(
            on & _BELOW_500
            or ("retriable-headers" in on and self.retriable_headers)
            or (
                "retriable-status-codes" in on and any(status < 500 for status in self.retriable_status_codes)
            )
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightedCluster:
    """One entry of weighted_clusters. Exactly one of name and cluster_header is set."""

    name: str | None = None
    cluster_header: str | None = None
    weight: int
    request_headers: HeaderEdits = HeaderEdits()
    response_headers: HeaderEdits = HeaderEdits()
    host_rewrite_literal: str | None = None
    typed_per_filter_config: FilterConfigs = field(default_factory=lambda: NO_FILTER_CONFIGS)


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightedClusters:
    """config.route.v3.WeightedCluster. Never empty; the weights add up to 1 .. 2**32-1.

    header_name: a request header whose unsigned decimal value replaces the random number. use_hash_policy: the hash of the
    route's hash_policy replaces it, where there is one.
    """

    clusters: tuple[WeightedCluster, ...]
    header_name: str | None = None
    use_hash_policy: bool = False


class HostRewriteKind(Enum):
    """Where the rewritten Host comes from. AUTO is the endpoint's hostname."""

    LITERAL = "host_rewrite_literal"
    AUTO = "auto_host_rewrite"
    HEADER = "host_rewrite_header"
    PATH_REGEX = "host_rewrite_path_regex"


@dataclass(frozen=True, slots=True, kw_only=True)
class HostRewrite:
    """value: the literal, or the header's lower-case name; regex for PATH_REGEX (on the path without query)."""

    kind: HostRewriteKind
    value: str = ""
    regex: RegexRewrite | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MaxStreamDuration:
    """RouteAction.max_stream_duration. Its presence switches the route timeout off. Seconds; 0 is none.

    grpc_timeout_header_max: None means that a grpc-timeout header is ignored; 0 takes it uncapped.
    """

    max_stream_duration: float | None = None
    grpc_timeout_header_max: float | None = None
    grpc_timeout_header_offset: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MirrorPolicy:
    """RouteAction.RequestMirrorPolicy. The copy's Host gets `-shadow`, unless keep_host is set. fraction None: all."""

    cluster: str
    fraction: FractionalPercent | None = None
    keep_host: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class HedgePolicy:
    """config.route.v3.HedgePolicy as far as Envoy implements it.

    hedge_on_per_try_timeout: a per-try timeout leaves its attempt alive and, whatever retry_on says, starts another one as
    num_retries allows; the first response that is not to be retried wins.
    """

    hedge_on_per_try_timeout: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteAction:
    """Forward the request. Exactly one of cluster, cluster_header and weighted_clusters is set.

    timeout: seconds from the end of the request to the end of the response with all retries; 0 is none, default 15.
    max_grpc_timeout: deprecated; the caller's grpc-timeout less grpc_timeout_offset replaces timeout, at most this (0: uncapped).
    cluster_not_found_response_code: 503, 404 or 500. prefix_rewrite, regex_rewrite: at most one is set.
    hash_policy: what clusters hash that balance by hash, unless their own policy says it.
    mirrors is understood by the engine; the decoder reports it as unsupported until every transport can carry it out.
    """

    cluster: str | None = None
    cluster_header: str | None = None
    weighted_clusters: WeightedClusters | None = None
    cluster_not_found_response_code: int = 503
    prefix_rewrite: str | None = None
    regex_rewrite: RegexRewrite | None = None
    host_rewrite: HostRewrite | None = None
    append_x_forwarded_host: bool = False
    timeout: float = 15.0
    max_stream_duration: MaxStreamDuration | None = None
    max_grpc_timeout: float | None = None
    grpc_timeout_offset: float | None = None
    retry_policy: RetryPolicy | None = None
    priority: Priority = Priority.DEFAULT
    hash_policy: tuple[HashPolicy, ...] = ()
    hedge_policy: HedgePolicy | None = None
    mirrors: tuple[MirrorPolicy, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Redirect:
    """config.route.v3.RedirectAction. scheme: given by https_redirect or scheme_redirect. port 0 is "not given".

    path: path_redirect, may hold a query. prefix_rewrite and regex_rewrite change the path and keep the query.
    """

    scheme: str | None = None
    host: str | None = None
    port: int = 0
    path: str | None = None
    prefix_rewrite: str | None = None
    regex_rewrite: RegexRewrite | None = None
    response_code: int = 301
    strip_query: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectResponse:
    """config.route.v3.DirectResponseAction. status is 200 .. 599. body_format: an access-log format, None for the plain body."""

    status: int
    body: bytes = b""
    body_format: Format | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NonForwardingAction:
    """For servers; a client that meets it answers 503 NC as Envoy does."""


Action = RouteAction | Redirect | DirectResponse | NonForwardingAction


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """config.route.v3.Route. operation: of its decorator, the name of a span; empty: none. metadata: filter_metadata."""

    name: str = ""
    match: RouteMatch
    action: Action
    request_headers: HeaderEdits = HeaderEdits()
    response_headers: HeaderEdits = HeaderEdits()
    typed_per_filter_config: FilterConfigs = field(default_factory=lambda: NO_FILTER_CONFIGS)
    operation: str = ""
    tracing: RouteTracing | None = None
    metadata: Mapping[str, Any] = field(default_factory=lambda: NO_METADATA)
    stat_prefix: str = ""


class TlsRequirement(Enum):
    """VirtualHost.require_tls."""

    NONE = 0
    EXTERNAL_ONLY = 1
    ALL = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class VirtualCluster:
    """config.route.v3.VirtualCluster: requests that are counted together, those which match all `headers`. name: never empty."""

    name: str
    headers: tuple[HeaderMatch, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class VirtualHost:
    """config.route.v3.VirtualHost. domains are as written; matching is case-insensitive. metadata: see `metadata.packed`."""

    name: str
    domains: tuple[str, ...]
    routes: tuple[Route, ...] = ()
    request_headers: HeaderEdits = HeaderEdits()
    response_headers: HeaderEdits = HeaderEdits()
    retry_policy: RetryPolicy | None = None
    hedge_policy: HedgePolicy | None = None
    include_request_attempt_count: bool = False
    include_attempt_count_in_response: bool = False
    include_is_timeout_retry_header: bool = False
    require_tls: TlsRequirement = TlsRequirement.NONE
    per_request_buffer_limit_bytes: int | None = None
    typed_per_filter_config: FilterConfigs = field(default_factory=lambda: NO_FILTER_CONFIGS)
    virtual_clusters: tuple[VirtualCluster, ...] = ()
    metadata: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteConfiguration:
    """config.route.v3.RouteConfiguration. No domain stands twice."""

    name: str
    virtual_hosts: tuple[VirtualHost, ...] = ()
    request_headers: HeaderEdits = HeaderEdits()
    response_headers: HeaderEdits = HeaderEdits()
    most_specific_header_mutations_wins: bool = False
    ignore_port_in_host_matching: bool = False
    typed_per_filter_config: FilterConfigs = field(default_factory=lambda: NO_FILTER_CONFIGS)

    @property
    def cluster_names(self) -> frozenset[str]:
        """Every cluster that a route names outright; one named by a header is not known before the request."""
        names: set[str] = set()
        for host in self.virtual_hosts:
            for route in host.routes:
                action = route.action
                if not isinstance(action, RouteAction):
                    continue
                if action.cluster is not None:
                    names.add(action.cluster)
                if action.weighted_clusters is not None:
                    names.update(entry.name for entry in action.weighted_clusters.clusters if entry.name)
        return frozenset(names)

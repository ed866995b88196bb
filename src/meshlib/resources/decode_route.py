"""RouteConfiguration, its virtual hosts, routes and what they match."""

from __future__ import annotations

from meshlib.resources.decode_action import decode_action
from meshlib.resources.decode_common import runtime_fraction
from meshlib.resources.decode_headers import request_headers, response_headers
from meshlib.resources.decode_matching import header_match, query_parameter_match, regex_match
from meshlib.resources.decode_retry import hedge_policy, retry_policy
from meshlib.resources.decode_tracing import decode_metadata, decode_route_tracing
from meshlib.resources.filters import decode_overrides
from meshlib.resources.metadata import packed
from meshlib.resources.reader import Reader
from meshlib.resources.route import (
    PathKind,
    PathMatch,
    Route,
    RouteConfiguration,
    RouteMatch,
    TlsRequirement,
    VirtualCluster,
    VirtualHost,
)

__all__ = ["decode_route_configuration"]

_BODY_LIMIT = 4096
_PATH_KINDS = {kind.value: kind for kind in PathKind}
_TLS_REQUIREMENTS = {
    0: TlsRequirement.NONE,
    1: TlsRequirement.EXTERNAL_ONLY,
    2: TlsRequirement.ALL,
}


def decode_route_configuration(reader: Reader) -> RouteConfiguration:
    """config.route.v3.RouteConfiguration. Raises ResourceError."""
    limit = reader.boxed("max_direct_response_body_size_bytes")
    seen: dict[str, str] = {}
    return RouteConfiguration(
        name=reader.text("name"),
        virtual_hosts=tuple(
            _virtual_host(entry, seen, _BODY_LIMIT if limit is None else limit)
            for entry in reader.each("virtual_hosts")
        ),
        request_headers=request_headers(reader),
        response_headers=response_headers(reader),
        most_specific_header_mutations_wins=reader.flag("most_specific_header_mutations_wins"),
        ignore_port_in_host_matching=reader.flag("ignore_port_in_host_matching"),
        typed_per_filter_config=decode_overrides(reader),
    )


def _virtual_host(reader: Reader, seen: dict[str, str], body_limit: int) -> VirtualHost:
    domains = reader.values("domains")
    for index, domain in enumerate(domains):
        place = reader.at(f"domains[{index}]")
        first = seen.setdefault(domain.lower(), place)
        if first != place:
            raise reader.fail(f"domains[{index}]", f"{domain!r} stands twice, first at {first}")
    limits = [reader.boxed("request_body_buffer_limit"), reader.boxed("per_request_buffer_limit_bytes")]
    return VirtualHost(
        name=reader.text("name"),
        domains=domains,
        routes=tuple(_route(entry, body_limit) for entry in reader.each("routes")),
        request_headers=request_headers(reader),
        response_headers=response_headers(reader),
        retry_policy=retry_policy(reader),
        hedge_policy=hedge_policy(reader),
        include_request_attempt_count=reader.flag("include_request_attempt_count"),
        include_attempt_count_in_response=reader.flag("include_attempt_count_in_response"),
        include_is_timeout_retry_header=reader.flag("include_is_timeout_retry_header"),
        require_tls=reader.enum("require_tls", _TLS_REQUIREMENTS),
        per_request_buffer_limit_bytes=next((limit for limit in limits if limit is not None), None),
        typed_per_filter_config=decode_overrides(reader),
        virtual_clusters=tuple(_virtual_cluster(entry) for entry in reader.each("virtual_clusters")),
        metadata=packed(reader.message.metadata),
    )


def _virtual_cluster(reader: Reader) -> VirtualCluster:
    name = reader.text("name")
    if not name:
        raise reader.fail("name", "must not be empty")
    return VirtualCluster(name=name, headers=tuple(header_match(entry) for entry in reader.each("headers")))


def _route(reader: Reader, body_limit: int) -> Route:
    reader.reading.pause()
    decorator = reader.child("decorator")
    if decorator is not None:
        decorator.boxed("propagate")
    return Route(
        name=reader.text("name"),
        match=_match(reader.required("match")),
        action=decode_action(reader, body_limit=body_limit),
        request_headers=request_headers(reader),
        response_headers=response_headers(reader),
        typed_per_filter_config=decode_overrides(reader),
        operation="" if decorator is None else decorator.text("operation"),
        tracing=decode_route_tracing(reader),
        metadata=decode_metadata(reader),
        stat_prefix=reader.text("stat_prefix"),
    )


def _match(reader: Reader) -> RouteMatch:
    reader.child("grpc")
    return RouteMatch(
        path=_path(reader),
        headers=tuple(header_match(entry) for entry in reader.each("headers")),
        query_parameters=tuple(query_parameter_match(entry) for entry in reader.each("query_parameters")),
        runtime_fraction=runtime_fraction(reader.child("runtime_fraction")),
        grpc=reader.has("grpc"),
    )


def _path(reader: Reader) -> PathMatch:
    kind = reader.which("path_specifier")
    if kind not in _PATH_KINDS:
        raise reader.fail(kind or "", "this path matcher is not implemented")
    sensitive = reader.boxed("case_sensitive")
    case_sensitive = True if sensitive is None else sensitive
    if kind == "safe_regex":
        regex = regex_match(reader, kind)
        return PathMatch(kind=PathKind.SAFE_REGEX, value=regex.value, regex=regex)
    return PathMatch(kind=_PATH_KINDS[kind], value=reader.text(kind), case_sensitive=case_sensitive)

"""Cluster: from protobuf to dataclasses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from meshlib.resources.cluster import (
    CircuitBreakers,
    Cluster,
    DiscoveryType,
    OutlierDetection,
    RetryBudget,
    Service,
    Thresholds,
)
from meshlib.resources.decode_common import from_control_plane
from meshlib.resources.decode_endpoint import decode_load_assignment
from meshlib.resources.decode_lb import decode_lb
from meshlib.resources.decode_transport_socket import transport_socket_matches, upstream_socket
from meshlib.resources.decode_upstream_http import UpstreamHttp, upstream_http
from meshlib.resources.endpoint import ClusterLoadAssignment
from meshlib.resources.metadata import packed
from meshlib.resources.reader import Reader
from meshlib.resources.tls import TransportSocketMatch, UpstreamTls

__all__ = ["decode_cluster"]

_DISCOVERY = {
    0: DiscoveryType.STATIC,
    1: DiscoveryType.STRICT_DNS,
    2: DiscoveryType.LOGICAL_DNS,
    3: DiscoveryType.EDS,
}
_DNS = (DiscoveryType.STRICT_DNS, DiscoveryType.LOGICAL_DNS)


def decode_cluster(reader: Reader) -> Cluster:
    """config.cluster.v3.Cluster. Raises ResourceError."""
    name = reader.text("name")
    discovery = _discovery(reader)
    lb_policy, locality = decode_lb(reader)
    http = upstream_http(reader)
    tls, matches = _transport(reader, http)
    family = reader.enum("dns_lookup_family", {0: "auto", 1: "v4", 2: "v6", 3: "v4 preferred", 4: "all"})
    if family in ("v4 preferred", "all") and discovery in _DNS:
        reader.unsupported("dns_lookup_family")
    respect_ttl = reader.flag("respect_dns_ttl")
    if respect_ttl and discovery in _DNS:
        reader.unsupported("respect_dns_ttl")  # the system's resolver tells no time to live
    refresh = reader.duration("dns_refresh_rate")
    if discovery not in _DNS:
        reader.leave("dns_jitter", "dns_failure_refresh_rate", "dns_resolvers", "dns_resolution_config")
        reader.leave("typed_dns_resolver_config", "use_tcp_for_dns_lookups")
    connect_timeout = reader.duration("connect_timeout")
    return Cluster(
        name=name,
        discovery=discovery,
        eds_service_name=_eds_service_name(reader, discovery, name),
        load_assignment=_load_assignment(reader, discovery, name),
        lb_policy=lb_policy,
        locality=locality,
        connect_timeout=5.0 if connect_timeout is None else connect_timeout,
        circuit_breakers=_circuit_breakers(reader),
        outlier_detection=_outlier_detection(reader.child("outlier_detection")),
        dns_refresh_rate=5.0 if refresh is None else refresh,
        respect_dns_ttl=respect_ttl,
        dns_ipv4_only=family == "v4",
        dns_ipv6_only=family == "v6",
        tls=tls,
        transport_socket_matches=matches,
        load_reporting=_load_reporting(reader),
        service=_service(reader.message.metadata),
        metadata=packed(reader.message.metadata),
        **http.options,
    )


def _service(metadata: Any) -> Service | None:
    if "istio" not in metadata.filter_metadata:
        return None
    services = metadata.filter_metadata["istio"].fields["services"].list_value.values
    if not services:
        return None
    fields = services[0].struct_value.fields
    host, name, namespace = (str(fields[key].string_value) for key in ("host", "name", "namespace"))
    return Service(host=host, name=name, namespace=namespace) if host else None


def _discovery(reader: Reader) -> DiscoveryType:
    if reader.which("cluster_discovery_type") == "cluster_type":
        kind = reader.message.cluster_type.name
        raise reader.fail("cluster_type", f"clusters of the custom type {kind!r} are not implemented")
    if reader.number("type") == 4:
        raise reader.fail(
            "type", "ORIGINAL_DST has no meaning in a client: the original destination is not known"
        )
    return reader.enum("type", _DISCOVERY)


def _eds_service_name(reader: Reader, discovery: DiscoveryType, name: str) -> str:
    eds = reader.child("eds_cluster_config")
    if discovery is not DiscoveryType.EDS:
        if eds is not None:
            raise reader.fail("eds_cluster_config", "is only for clusters of type EDS")
        return ""
    if eds is None:
        raise reader.fail("eds_cluster_config", "a cluster of type EDS needs it")
    from_control_plane(eds, "eds_config")
    return eds.text("service_name") or name


def _load_reporting(reader: Reader) -> bool:
    """Reports go to the server that the cluster came from (gRFC A27), or to none."""
    server = reader.child("lrs_server")
    if server is None:
        return False
    if server.which("config_source_specifier") != "self":
        reader.unsupported("lrs_server")
        return False
    server.leave("self")
    return True


def _load_assignment(reader: Reader, discovery: DiscoveryType, name: str) -> ClusterLoadAssignment | None:
    child = reader.child("load_assignment")
    if discovery is DiscoveryType.EDS:
        if child is not None:
            raise reader.fail("load_assignment", "a cluster of type EDS gets its endpoints from EDS")
        return None
    if child is None:
        assignment = ClusterLoadAssignment(cluster_name=name)
    else:
        child.leave("cluster_name", "endpoints", "named_endpoints", "policy")  # read from the bytes
        assignment = decode_load_assignment(
            child.message.SerializeToString(),
            reader.reading,
            path=child.path,
            hostnames=discovery in _DNS,
            unique=False,
        )
    sizes = [len(locality.endpoints) for locality in assignment.localities]
    if discovery is DiscoveryType.LOGICAL_DNS and sizes != [1]:
        reason = "a cluster of type LOGICAL_DNS must have exactly one locality with exactly one endpoint"
        raise reader.fail("load_assignment", reason)
    return assignment


def _circuit_breakers(reader: Reader) -> CircuitBreakers:
    child = reader.child("circuit_breakers")
    if child is None:
        return CircuitBreakers()
    found: dict[str, Thresholds] = {}
    for entry in child.each("thresholds"):
        priority = entry.enum("priority", {0: "default", 1: "high"})
        limits: dict[str, Any] = {}
        for field in ("max_connections", "max_pending_requests", "max_requests", "max_retries"):
            limit = entry.boxed(field)
            if limit is not None:
                limits[field] = limit
        thresholds = Thresholds(
            **limits,
            retry_budget=_retry_budget(entry.child("retry_budget")),
            track_remaining=entry.flag("track_remaining"),
        )
        found.setdefault(priority, thresholds)  # the first of a priority counts, as in Envoy
    return CircuitBreakers(**found)


def _retry_budget(reader: Reader | None) -> RetryBudget | None:
    if reader is None:
        return None
    percent, least = reader.percent("budget_percent"), reader.boxed("min_retry_concurrency")
    default = RetryBudget()
    return RetryBudget(
        budget_percent=default.budget_percent if percent is None else percent,
        min_retry_concurrency=default.min_retry_concurrency if least is None else least,
    )


# Detectors that are not implemented: the field that says how often they eject, its default, and their parameters.
_OTHER_DETECTORS = (
    ("enforcing_consecutive_gateway_failure", 0, ("consecutive_gateway_failure",)),
    (
        "enforcing_success_rate",
        100,
        ("success_rate_minimum_hosts", "success_rate_request_volume", "success_rate_stdev_factor"),
    ),
    (
        "enforcing_failure_percentage",
        0,
        (
            "failure_percentage_threshold",
            "failure_percentage_minimum_hosts",
            "failure_percentage_request_volume",
        ),
    ),
)
# Without split_external_local_origin_errors these do nothing.
_LOCAL_ORIGIN = (
    "consecutive_local_origin_failure",
    "enforcing_consecutive_local_origin_failure",
    "enforcing_local_origin_success_rate",
    "enforcing_failure_percentage_local_origin",
)


def _outlier_detection(reader: Reader | None) -> OutlierDetection | None:
    if reader is None:
        return None
    given: dict[str, Any] = {}
    for field in ("interval", "base_ejection_time", "max_ejection_time", "max_ejection_time_jitter"):
        given[field] = reader.duration(field)
    for field in ("consecutive_5xx", "enforcing_consecutive_5xx", "max_ejection_percent"):
        given[field] = reader.boxed(field)
    given["always_eject_one_host"] = reader.boxed("always_eject_one_host")
    given = {field: value for field, value in given.items() if value is not None}
    base = given.get("base_ejection_time", 30.0)
    if "max_ejection_time" not in given:
        given["max_ejection_time"] = max(300.0, base)
    elif given["max_ejection_time"] < base:
        raise reader.fail("max_ejection_time", f"must not be smaller than base_ejection_time ({base:g} s)")
    reader.leave("successful_active_health_check_uneject_host")  # there are no active health checks
    if not reader.message.split_external_local_origin_errors:
        reader.leave(*_LOCAL_ORIGIN)
    for enforcing, default, parameters in _OTHER_DETECTORS:
        percent = reader.boxed(enforcing)
        if (default if percent is None else percent) == 0:
            reader.leave(*parameters)
        elif percent is not None:
            reader.unsupported(enforcing)
        else:
            detector = enforcing.removeprefix("enforcing_").replace("_", " ")
            reader.reading.warnings.append(
                f"{reader.path}: Envoy also ejects by {detector} unless {enforcing} is 0; it is not implemented"
            )
    return OutlierDetection(**given)


def _transport(
    reader: Reader, http: UpstreamHttp
) -> tuple[UpstreamTls | None, tuple[TransportSocketMatch, ...]]:
    """The cluster's own transport socket and the matches, each with what the protocol options say about names."""
    tls, matches = upstream_socket(reader), transport_socket_matches(reader)
    if http.negotiates and (tls is None or any(match.tls is None for match in matches)):
        raise reader.fail("", "auto_config needs ALPN, so every transport socket of the cluster must be TLS")
    named = [match if match.tls is None else replace(match, tls=http.named(match.tls)) for match in matches]
    return None if tls is None else http.named(tls), tuple(named)

"""Istio's standard metrics: which labels a call has.

Names, labels and their values are those of Istio's own proxies (the `istio.stats` filter), so that its dashboards and Kiali
read them. What is not known is `unknown`. Where a control plane does not say whose endpoints a cluster has, the cluster's own
name is the service, not the request's host as with Istio: whoever asks for a million hosts should not make a million series.
"""

from __future__ import annotations

from typing import NamedTuple

from meshlib.observe.workload import UNKNOWN, Workload
from meshlib.resources.cluster import Cluster
from meshlib.stats import ENVOY_BOUNDS, Counter, Histogram, Labels, Registry

__all__ = ["Destination", "Series", "destination_of", "labels"]


class Destination(NamedTuple):
    """service: its host. name, namespace: of the service."""

    service: str = UNKNOWN
    name: str = UNKNOWN
    namespace: str = UNKNOWN


def destination_of(cluster: Cluster | None, name: str) -> Destination:
    """The service behind a cluster. name: what the route calls it, also where it does not exist; empty for none."""
    service = None if cluster is None else cluster.service
    if service is not None:
        return Destination(service.host, service.name or UNKNOWN, service.namespace or UNKNOWN)
    if not name:
        return Destination()
    host = name
    if name.startswith("outbound"):  # Istio's: direction|port|subset|host
        parts = name.replace("_.", "|").split("|")
        if len(parts) == 4:
            host = parts[3].removeprefix("_")
    first, _, rest = host.partition(".")
    namespace, kind, _ = (*rest.split(".", 2), "", "")[:3]
    if kind == "svc" or host != name:
        return Destination(host, first, namespace if kind == "svc" else UNKNOWN)
    return Destination(host, host)


def labels(
    *,
    reporter: str,
    source: Workload,
    source_principal: str,
    destination: Workload,
    destination_principal: str,
    service: Destination,
    protocol: str,
    status: int,
    grpc_status: str | None,
    flags: tuple[str, ...],
    security: str,
) -> Labels:
    """In Istio's order. security: `mutual_tls`, `none`, or `unknown` for the caller's side."""
    return (
        ("reporter", reporter),
        ("source_workload", source.name),
        ("source_canonical_service", source.canonical_service),
        ("source_canonical_revision", source.canonical_revision),
        ("source_workload_namespace", source.namespace),
        ("source_principal", source_principal or UNKNOWN),
        ("source_app", source.app),
        ("source_version", source.version),
        ("source_cluster", source.cluster),
        ("destination_workload", destination.name),
        ("destination_workload_namespace", destination.namespace),
        ("destination_principal", destination_principal or UNKNOWN),
        ("destination_app", destination.app),
        ("destination_version", destination.version),
        ("destination_service", service.service),
        ("destination_canonical_service", destination.canonical_service),
        ("destination_canonical_revision", destination.canonical_revision),
        ("destination_service_name", service.name),
        ("destination_service_namespace", service.namespace),
        ("destination_cluster", destination.cluster),
        ("request_protocol", protocol),
        ("response_code", str(status)),
        ("grpc_response_status", grpc_status or ""),
        ("response_flags", ",".join(flags) or "-"),
        ("connection_security_policy", security),
    )


class Series:
    """The metrics of one set of labels, bound. Messages are gRPC's; None for HTTP."""

    __slots__ = ("bytes_in", "bytes_out", "duration", "messages_in", "messages_out", "requests")

    def __init__(self, registry: Registry, labels: Labels, *, rpc: bool) -> None:
        scope = registry.labelled(labels)
        self.requests: Counter = scope.counter("istio_requests_total")
        self.duration: Histogram = scope.histogram("istio_request_duration_milliseconds", ENVOY_BOUNDS)
        self.bytes_out: Histogram = scope.histogram("istio_request_bytes", ENVOY_BOUNDS)
        self.bytes_in: Histogram = scope.histogram("istio_response_bytes", ENVOY_BOUNDS)
        self.messages_out = scope.counter("istio_request_messages_total") if rpc else None
        self.messages_in = scope.counter("istio_response_messages_total") if rpc else None

    def count(self, milliseconds: float, sent: int, received: int) -> None:
        """One request; sent: bytes of its body, received: of the response's."""
        self.requests.value += 1
        self.duration.record(milliseconds)
        self.bytes_out.record(sent)
        self.bytes_in.record(received)

    def count_messages(self, sent: int, received: int) -> None:
        if self.messages_out is not None and self.messages_in is not None:
            self.messages_out.value += sent
            self.messages_in.value += received

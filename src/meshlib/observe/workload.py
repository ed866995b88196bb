"""Who calls and who answers, in the words of Istio's metrics: from what the configuration and the environment say.

Istio's agents put it into the node metadata of the bootstrap (`WORKLOAD_NAME`, `NAMESPACE`, `CLUSTER_ID`, `LABELS`, ...); a
control plane writes it beside each endpoint, `name;namespace;canonical service;canonical revision;cluster`. Without Istio,
what OpenTelemetry is told (`OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`) and the pod's own variables serve.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote

if TYPE_CHECKING:
    from meshlib.xds.bootstrap import Node

__all__ = ["UNKNOWN", "Workload", "namespace_of", "of_endpoint", "own_workload"]

UNKNOWN = "unknown"
_LATEST = "latest"


class Workload(NamedTuple):
    """Each is `unknown` where nothing says. domain: of the names of its services (`default.svc.cluster.local`), else empty."""

    name: str = UNKNOWN
    namespace: str = UNKNOWN
    app: str = UNKNOWN
    version: str = UNKNOWN
    cluster: str = UNKNOWN
    canonical_service: str = UNKNOWN
    canonical_revision: str = UNKNOWN
    domain: str = ""


def of_endpoint(text: str) -> Workload:
    """From the metadata of an endpoint (`Endpoint.workload`); Istio knows neither app nor version there."""
    if not text:
        return Workload()
    name, namespace, service, revision, cluster, *_ = (*text.split(";"), "", "", "", "", "")
    return Workload(
        name=name or UNKNOWN,
        namespace=namespace or UNKNOWN,
        cluster=cluster or UNKNOWN,
        canonical_service=service or UNKNOWN,
        canonical_revision=revision or _LATEST,
    )


def own_workload(node: Node | None, environment: Mapping[str, str]) -> Workload:
    """This process's own. node: of the bootstrap, None without a control plane."""
    metadata: Mapping[str, Any] = {} if node is None else node.metadata
    labels = metadata.get("LABELS")
    label = _reader(labels if isinstance(labels, Mapping) else {})
    given = _reader(metadata)
    told = _reader(_resource(environment.get("OTEL_RESOURCE_ATTRIBUTES", "")))
    around = _reader(environment)
    place, domain = ("", "") if node is None else _of_node_id(node.id)

    service = around("OTEL_SERVICE_NAME") or told("service.name")
    name = given("WORKLOAD_NAME") or service or told("k8s.deployment.name") or (node.cluster if node else "")
    app = label("app") or label("app.kubernetes.io/name") or service
    version = label("version") or label("app.kubernetes.io/version") or told("service.version")
    canonical = label("service.istio.io/canonical-name") or label("app.kubernetes.io/name") or app or name
    revision = label("service.istio.io/canonical-revision") or version
    namespace = (
        given("NAMESPACE")
        or told("k8s.namespace.name")
        or told("service.namespace")
        or around("POD_NAMESPACE")
        or place
    )
    cluster = given("CLUSTER_ID") or around("ISTIO_META_CLUSTER_ID") or told("k8s.cluster.name")
    return Workload(
        name=name or UNKNOWN,
        namespace=namespace or UNKNOWN,
        app=app or UNKNOWN,
        version=version or UNKNOWN,
        cluster=cluster or UNKNOWN,
        canonical_service=canonical or UNKNOWN,
        canonical_revision=revision or (_LATEST if canonical else UNKNOWN),
        domain=domain,
    )


def namespace_of(principal: str) -> str:
    """`default` of `spiffe://cluster.local/ns/default/sa/reviews`."""
    parts = principal.split("/")
    return parts[4] if len(parts) > 4 and parts[0] == "spiffe:" and parts[3] == "ns" else UNKNOWN


def _reader(values: Mapping[str, Any]) -> Any:
    def text(key: str) -> str:
        found = values.get(key)
        return found if isinstance(found, str) else ""

    return text


def _resource(text: str) -> dict[str, str]:
    """OTEL_RESOURCE_ATTRIBUTES: `key=value,...`, percent-encoded."""
    pairs = (part.partition("=") for part in text.split(",") if "=" in part)
    return {key.strip(): unquote(value.strip()) for key, _, value in pairs}


def _of_node_id(node_id: str) -> tuple[str, str]:
    """Namespace and domain of `sidecar~10.0.0.1~pod.namespace~namespace.svc.cluster.local`."""
    parts = node_id.split("~")
    if len(parts) != 4:
        return "", ""
    return parts[2].rpartition(".")[2] if "." in parts[2] else "", parts[3]

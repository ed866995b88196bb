"""meshlib as the client of the TLS cases: a Mesh for each case, over httpx, blocking or on asyncio."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import httpx

import meshlib
from conformance.resources import CLUSTER, HCM, LISTENER, ROUTER
from conformance.tls.case import TlsCase
from conformance.tls.envoy import TlsOutcome, cluster_resource, interesting
from meshlib.httpx import AsyncMeshTransport, MeshTransport

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from conformance.tls.materials import Materials

TIMEOUT = 20.0
HOST = "srv.example"


class MeshClients:
    """The clients of the cases. A context manager. `ports`: where the server of each case listens."""

    def __init__(
        self,
        cases: Iterable[TlsCase],
        materials: Materials,
        ports: Mapping[str, int],
        *,
        on_asyncio: bool = False,
    ) -> None:
        self._asyncio = on_asyncio
        self._materials = materials
        self._ports = ports

    def __enter__(self) -> MeshClients:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def send(self, case: TlsCase) -> TlsOutcome:
        """One request through the case's cluster, on a connection of its own."""
        cluster = cluster_resource(case, self._materials, self._ports[case.name])
        with meshlib.Mesh(config=[document(cluster)], headers="envoy") as mesh:
            mesh.wait_ready(timeout=TIMEOUT)
            return replace(self._ask(mesh), client_stats=counted(mesh, case))

    def _ask(self, mesh: meshlib.Mesh) -> TlsOutcome:
        if self._asyncio:
            return asyncio.run(self._send_async(mesh))
        with httpx.Client(transport=MeshTransport(mesh, local_reply="response"), timeout=TIMEOUT) as client:
            return _outcome(client.get(f"http://{HOST}/"))

    async def _send_async(self, mesh: meshlib.Mesh) -> TlsOutcome:
        transport = AsyncMeshTransport(mesh, local_reply="response")
        async with httpx.AsyncClient(transport=transport, timeout=TIMEOUT) as client:
            return _outcome(await client.get(f"http://{HOST}/"))


def counted(mesh: meshlib.Mesh, case: TlsCase) -> tuple[str, ...]:
    """The names of the cluster's ssl counters that moved."""
    prefix = f"cluster.{case.name}.ssl."
    return interesting(
        metric.name.removeprefix(prefix) for metric in mesh.stats if metric.name.startswith(prefix)
    )


def document(cluster: dict[str, Any]) -> dict[str, Any]:
    """A configuration whose every request goes to this cluster."""
    route = {"match": {"prefix": "/"}, "route": {"cluster": cluster["name"]}}
    manager = {
        "@type": HCM,
        "stat_prefix": "client",
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {"@type": ROUTER}}],
        "route_config": {
            "name": "all",
            "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}],
        },
    }
    listener = {"@type": LISTENER, "name": "all", "api_listener": {"api_listener": manager}}
    return {"resources": [listener, {"@type": CLUSTER, **cluster}]}


def _outcome(response: httpx.Response) -> TlsOutcome:
    info = response.extensions["meshlib"]
    _, bar, rest = info.details.partition("|")
    return TlsOutcome(
        status=response.status_code,
        body=response.text,
        flags=info.flags,
        details=info.details,
        transport=rest.removesuffix("}") if bar else "",
        headers=dict(response.headers),
    )

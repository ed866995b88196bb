"""What a whole Mesh counts: principals of mutual TLS, who is who by what an Istio control plane writes, gRPC of all kinds."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import httpx
import pytest

import meshlib
import meshlib.grpc
from meshlib.httpx import AsyncMeshTransport, MeshTransport
from meshlib.stats import Histogram
from meshlib.testing import serve
from meshlib.testing.upstream import Upstream
from tests.mesh.test_tls import by_secrets, secrets, secured
from tests.observe.counting import configuration
from tests.transport.http.secure import CLIENT, SERVER, World


def requests(mesh: meshlib.Mesh) -> list[tuple[dict[str, str], Any]]:
    return [
        (dict(labels), getattr(metric, "value", None))
        for labels, metric in mesh.stats.natives("istio_requests_total")
    ]


def test_principals() -> None:
    world = World()
    with world.serve() as server:
        config = secured(server.port, by_secrets())
        config["resources"] += secrets(world, world.client)
        with meshlib.Mesh(config=config) as mesh, httpx.Client(transport=MeshTransport(mesh)) as client:
            assert client.get("http://reviews/").status_code == 200
            ((labels, value),) = requests(mesh)
    assert value == 1
    assert (labels["source_principal"], labels["destination_principal"]) == (CLIENT, SERVER)
    assert labels["connection_security_policy"] == "unknown", "the server's side says it, as with Istio"


def test_who_is_who_by_an_istio_control_plane() -> None:
    """Istio's own names, metadata and bootstrap."""
    name = "outbound|80|v1|ratings.shop.svc.cluster.local"
    with Upstream() as upstream:
        config = configuration(upstream.port)
        listener, cluster = config["resources"]
        manager = listener["api_listener"]["api_listener"]
        manager["route_config"]["virtual_hosts"][0]["routes"][0]["route"]["cluster"] = name
        service = {"host": "ratings.shop.svc.cluster.local", "name": "ratings", "namespace": "shop"}
        cluster["name"] = cluster["load_assignment"]["cluster_name"] = name
        cluster["metadata"] = {"filter_metadata": {"istio": {"services": [service]}}}
        host = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0]
        host["metadata"] = {"filter_metadata": {"istio": {"workload": "ratings-v1;shop;ratings;v1;east"}}}
        with serve(config) as control_plane:
            bootstrap = control_plane.bootstrap()
            bootstrap["node"] = {
                "id": "sidecar~10.0.0.1~page-v2-x.front~front.svc.cluster.local",
                "metadata": {
                    "WORKLOAD_NAME": "page-v2",
                    "NAMESPACE": "front",
                    "CLUSTER_ID": "east",
                    "LABELS": {"app": "page", "version": "v2"},
                },
            }
            with meshlib.Mesh(bootstrap=bootstrap) as mesh:
                with httpx.Client(transport=MeshTransport(mesh)) as client:
                    assert client.get("http://backend/").status_code == 200
                ((labels, _),) = requests(mesh)
    told = {key: value for key, value in labels.items() if value not in ("unknown", "")}
    assert told == {
        "reporter": "source",
        "source_workload": "page-v2",
        "source_canonical_service": "page",
        "source_canonical_revision": "v2",
        "source_workload_namespace": "front",
        "source_app": "page",
        "source_version": "v2",
        "source_cluster": "east",
        "destination_workload": "ratings-v1",
        "destination_workload_namespace": "shop",
        "destination_service": "ratings.shop.svc.cluster.local",
        "destination_canonical_service": "ratings",
        "destination_canonical_revision": "v1",
        "destination_service_name": "ratings",
        "destination_service_namespace": "shop",
        "destination_cluster": "east",
        "request_protocol": "http",
        "response_code": "200",
        "response_flags": "-",
    }


class _Echo(grpc.GenericRpcHandler):  # type: ignore[misc]
    def service(self, details: Any) -> Any:
        if details.method.endswith("Twice"):
            return grpc.stream_stream_rpc_method_handler(
                lambda found, _: (each for one in found for each in (one, one))
            )

        def say(message: bytes, context: Any) -> bytes:
            if message == b"no":
                context.abort(grpc.StatusCode.NOT_FOUND, "no")
            return message

        return grpc.unary_unary_rpc_method_handler(say)


@pytest.fixture
def echo() -> Iterator[dict[str, Any]]:
    """The configuration of a mesh with a gRPC service."""
    server = grpc.server(ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers((_Echo(),))
    config = configuration(server.add_insecure_port("127.0.0.1:0"))
    config["resources"][0]["name"] = "backend"
    config["resources"][1]["http2_protocol_options"] = {}
    server.start()
    yield config
    server.stop(None).wait()


EXPECTED = {("200", "0"): (2, 3, 5), ("200", "5"): (1, 1, 0)}
"""By status: calls, messages sent, messages received."""


def counted(mesh: meshlib.Mesh) -> dict[tuple[str, str], tuple[float, ...]]:
    found: dict[tuple[str, str], list[float]] = {}
    for family in ("istio_requests_total", "istio_request_messages_total", "istio_response_messages_total"):
        for labels, metric in mesh.stats.natives(family):
            named = dict(labels)
            assert named["request_protocol"] == "grpc"
            key = (named["response_code"], named["grpc_response_status"])
            found.setdefault(key, []).append(getattr(metric, "value", 0))
    return {key: tuple(values) for key, values in found.items()}


def test_blocking_grpc(echo: dict[str, Any]) -> None:
    with meshlib.Mesh(config=echo) as mesh, meshlib.grpc.channel("backend", mesh=mesh) as channel:
        say = channel.unary_unary("/echo.Echo/Say")
        assert say(b"yes") == b"yes"
        with pytest.raises(grpc.RpcError):
            say(b"no")
        assert counted(mesh) == {("200", "0"): (1, 1, 1), ("200", "5"): (1, 1, 0)}


def test_asyncio_grpc(echo: dict[str, Any]) -> None:
    async def calls() -> None:
        with meshlib.Mesh(config=echo) as mesh:
            async with meshlib.grpc.aio_channel("backend", mesh=mesh) as channel:
                say = channel.unary_unary("/echo.Echo/Say")
                assert await say(b"yes") == b"yes"
                with pytest.raises(grpc.RpcError):
                    await say(b"no")
                twice = channel.stream_stream("/echo.Echo/Twice")(iter([b"a", b"b"]))
                assert [message async for message in twice] == [b"a", b"a", b"b", b"b"]
            assert counted(mesh) == EXPECTED

    asyncio.run(calls())


def test_bodies_and_the_lag_of_a_loop() -> None:
    async def calls(port: int) -> None:
        with meshlib.Mesh(config=configuration(port)) as mesh:
            async with httpx.AsyncClient(transport=AsyncMeshTransport(mesh)) as client:
                for _ in range(3):
                    await client.post("http://backend/", content=b"x" * 100)
            sizes = {
                family: (metric.count, metric.total)
                for family in ("istio_request_bytes", "istio_response_bytes")
                for _, metric in mesh.stats.natives(family)
                if isinstance(metric, Histogram)
            }
            assert sizes == {"istio_request_bytes": (3, 300), "istio_response_bytes": (3, 0)}
            ((_, lag),) = mesh.stats.natives("meshlib_event_loop_lag_seconds")
            assert getattr(lag, "value", -1) >= 0

    with Upstream() as upstream:
        asyncio.run(calls(upstream.port))

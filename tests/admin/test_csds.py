"""CSDS over real gRPC connections, blocking and asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import grpc.aio
import pytest

import meshlib
from meshlib import proto, testing
from meshlib.admin.csds import SERVICE, add_csds
from meshlib.controlplane import ControlPlane

LIMIT = 20.0
METHODS = ("FetchClientStatus", "StreamClientStatus")
KEY = "-----BEGIN PRIVATE KEY-----\nnot to be seen\n-----END PRIVATE KEY-----\n"


def documents() -> list[dict[str, Any]]:
    """A service that works, and one whose cluster is refused."""
    refused = testing.service("bad", "127.0.0.1:9")
    for resource in refused["resources"]:
        if resource["@type"] == proto.CLUSTER:
            resource["lb_policy"] = "CLUSTER_PROVIDED"
            resource["metadata"] = {"filter_metadata": {"x": {"api_token": KEY}}}
    return [testing.service("good", "127.0.0.1:9"), refused]


@pytest.fixture
def control_plane() -> Iterator[ControlPlane]:
    with testing.serve(*documents()) as running:
        yield running


@pytest.fixture
def mesh(control_plane: ControlPlane) -> Iterator[meshlib.Mesh]:
    with meshlib.Mesh(bootstrap=control_plane.bootstrap("me")) as made:
        made.wait_ready("good:80", timeout=LIMIT)
        made.engine.source.want_listener("bad:80")  # type: ignore[union-attr]
        control_plane.wait_for(lambda each: any(answer.error for answer in each.answers), LIMIT)
        yield made


def request(**fields: Any) -> bytes:
    data: bytes = proto.from_dict("envoy.service.status.v3.ClientStatusRequest", fields).SerializeToString()
    return data


def blocking(method: str, data: bytes, *meshes: meshlib.Mesh) -> bytes:
    """What a blocking server answers."""
    server = grpc.server(ThreadPoolExecutor(2))
    add_csds(server, *meshes)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            if method == "FetchClientStatus":
                return bytes(channel.unary_unary(f"/{SERVICE}/{method}")(data, timeout=LIMIT))
            (answer,) = channel.stream_stream(f"/{SERVICE}/{method}")(iter([data]), timeout=LIMIT)
            return bytes(answer)
    finally:
        server.stop(None).wait()


def asynchronous(method: str, data: bytes, *meshes: meshlib.Mesh) -> bytes:
    """What a server of grpc.aio answers."""

    async def call() -> bytes:
        server = grpc.aio.server()
        add_csds(server, *meshes)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                if method == "FetchClientStatus":
                    return bytes(await channel.unary_unary(f"/{SERVICE}/{method}")(data, timeout=LIMIT))
                stream = channel.stream_stream(f"/{SERVICE}/{method}")(iter([data]), timeout=LIMIT)
                (answer,) = [bytes(message) async for message in stream]
                return answer
        finally:
            await server.stop(None)

    return asyncio.run(call())


Ask = Callable[..., bytes]


def answer(data: bytes) -> Any:
    return proto.parse("envoy.service.status.v3.ClientStatusResponse", data)


@pytest.mark.parametrize("ask", [blocking, asynchronous])
@pytest.mark.parametrize("method", METHODS)
def test_what_a_process_holds(ask: Ask, method: str, mesh: meshlib.Mesh) -> None:
    (config,) = answer(ask(method, request(), mesh)).config
    assert (config.node.id, config.node.user_agent_name) == ("me", "meshlib")
    found = {(entry.type_url, entry.name): entry for entry in config.generic_xds_configs}
    names = {proto.LISTENER: "good:80", proto.ROUTE: "good", proto.CLUSTER: "good", proto.ENDPOINT: "good"}
    state = proto.message("envoy.service.status.v3.ClientConfig.GenericXdsConfig")
    for kind, name in names.items():
        entry = found[kind, name]
        assert entry == state(
            type_url=kind,
            name=name,
            version_info="1",
            xds_config=proto.pack(proto.parse(proto.full_name(kind), entry.xds_config.value)),
            client_status="ACKED",
            last_updated=entry.last_updated,
        )
        assert entry.last_updated.seconds > 1_600_000_000
        assert name.encode() in entry.xds_config.value
    refused = found[proto.CLUSTER, "bad"]
    assert refused.client_status == state(client_status="NACKED").client_status
    assert not refused.HasField("xds_config")
    assert not refused.HasField("last_updated")
    assert refused.error_state.version_info == "1"
    assert "lb_policy" in refused.error_state.details
    assert refused.error_state.failed_configuration.type_url == proto.CLUSTER


def test_no_secret_is_shown(mesh: meshlib.Mesh) -> None:
    data = blocking("FetchClientStatus", request(), mesh)
    assert b"api_token" in data
    assert b"not to be seen" not in data


def test_contents_may_be_left_out(mesh: meshlib.Mesh) -> None:
    (config,) = answer(blocking("FetchClientStatus", request(exclude_resource_contents=True), mesh)).config
    assert {entry.name for entry in config.generic_xds_configs} >= {"good:80", "good", "bad"}
    for entry in config.generic_xds_configs:
        assert not entry.HasField("xds_config")
        assert not entry.error_state.HasField("failed_configuration")


def test_several_meshes_and_files(mesh: meshlib.Mesh) -> None:
    with meshlib.Mesh(config=[documents()[0]]) as static:
        first, second = answer(blocking("FetchClientStatus", request(), mesh, static)).config
    assert first.node.id == "me"
    assert {entry.is_static_resource for entry in first.generic_xds_configs} == {False}
    assert {entry.is_static_resource for entry in second.generic_xds_configs} == {True}
    assert {entry.name for entry in second.generic_xds_configs} == {"good:80", "good"}


@pytest.mark.parametrize("ask", [blocking, asynchronous])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("data", [b"\xff\xff", request(node_matchers=[{}])])
def test_what_it_refuses(ask: Ask, method: str, data: bytes, mesh: meshlib.Mesh) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        ask(method, data, mesh)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT

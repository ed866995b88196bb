"""The published clients of gRPC's standard services work over a mesh channel: health checking and reflection."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import proto_reflection_descriptor_database as database
from grpc_reflection.v1alpha import reflection

import meshlib
import meshlib.grpc
from meshlib.testing import service
from tests.transport.grpc.interop.server import TestService
from tests.transport.grpc.interop.stubs import pb, services

NAME = "grpc.testing.TestService"
LIMIT = 20.0


@pytest.fixture
def servicer() -> object:
    return health.HealthServicer()


@pytest.fixture
def channel(servicer: object) -> Iterator[grpc.Channel]:
    with ThreadPoolExecutor(4) as executor:
        server = grpc.server(executor)
        services.add_TestServiceServicer_to_server(TestService(), server)
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
        reflection.enable_server_reflection((NAME, reflection.SERVICE_NAME), server)
        address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        with (
            meshlib.Mesh(config=service("standard", address, listener="standard:1")) as mesh,
            meshlib.grpc.channel("standard:1", mesh=mesh) as made,
        ):
            yield made
        server.stop(None).wait()


def test_health_check_and_watch(channel: grpc.Channel, servicer: object) -> None:
    stub, serving = health_pb2_grpc.HealthStub(channel), health_pb2.HealthCheckResponse
    request = health_pb2.HealthCheckRequest(service=NAME)
    with pytest.raises(grpc.RpcError) as raised:
        stub.Check(request)
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND
    watch = stub.Watch(request, timeout=LIMIT)
    assert next(watch).status == serving.SERVICE_UNKNOWN
    servicer.set(NAME, serving.SERVING)  # type: ignore[attr-defined]
    assert next(watch).status == serving.SERVING
    watch.cancel()
    assert stub.Check(request).status == serving.SERVING


def test_reflection(channel: grpc.Channel) -> None:
    found = database.ProtoReflectionDescriptorDatabase(channel)
    assert NAME in set(found.get_services())
    assert found.FindFileContainingSymbol(NAME).name == pb.DESCRIPTOR.name

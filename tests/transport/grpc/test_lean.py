"""The lean blocking call gives what grpcio's own `with_call` gives."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import pytest

import meshlib.grpc
from meshlib.transport.grpc import lean
from meshlib.transport.grpc.lean import LeanUnary, lean_unary
from tests.transport.grpc.support import Backend, backend, config, mesh_for


@pytest.fixture
def server() -> Iterator[Backend]:
    with backend() as started:
        yield started


@pytest.fixture
def channel(server: Backend) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.address) as opened:
        yield opened


def made(channel: grpc.Channel, method: str = "echo", **options: Any) -> LeanUnary:
    found = lean_unary(channel.unary_unary("/test.Echo/" + method, **options))
    assert found is not None, "this grpcio is not made as expected"
    return found


def test_success(server: Backend, channel: grpc.Channel) -> None:
    def handler(request: bytes, context: grpc.ServicerContext) -> bytes:
        context.send_initial_metadata((("first", "1"), ("raw-bin", b"\x00\xff")))
        context.set_trailing_metadata((("last", "2"),))
        return request[::-1]

    server.unary("meta", handler)
    multicallable = channel.unary_unary("/test.Echo/meta")
    theirs, call = multicallable.with_call(b"abc", metadata=(("k", "v"),), timeout=30)
    receipt = made(channel, "meta")(b"abc", 30.0, (("k", "v"),), None)
    assert receipt is not None
    assert (receipt.number, receipt.response, receipt.result()) == (0, theirs, theirs)
    assert receipt.code() is call.code()
    assert receipt.details() == call.details()
    assert tuple(receipt.initial_metadata()) == tuple(call.initial_metadata())
    assert tuple(receipt.trailing_metadata()) == tuple(call.trailing_metadata())
    (_, before, first), (_, now, second) = server.seen
    assert before == now
    assert first is not None
    assert second is not None
    assert abs(first - second) < 5


def test_a_status(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/test.Echo/fail")(b"NOT_FOUND:what? \xc3\xa9")
    theirs: Any = caught.value
    receipt = made(channel, "fail")(b"NOT_FOUND:what? \xc3\xa9", None, None, None)
    assert receipt is not None
    ended = receipt.ended()
    assert (ended.code, ended.details) == (5, theirs.details())
    assert ended.debug == theirs.debug_error_string()
    assert receipt.code() is grpc.StatusCode.NOT_FOUND
    assert receipt.response is None


def test_a_deadline(server: Backend, channel: grpc.Channel) -> None:
    server.unary("hang", lambda request, context: server.gate.wait() and b"")
    receipt = made(channel, "hang")(b"", 0.05, None, None)
    assert receipt is not None
    assert receipt.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    server.gate.set()


def _refuse(_message: object) -> bytes:
    raise ValueError("no")


@pytest.mark.parametrize(
    ("option", "details"),
    [
        ("request_serializer", "Exception serializing request!"),
        ("response_deserializer", "Exception deserializing response!"),
    ],
)
def test_messages_that_cannot_be_transformed(channel: grpc.Channel, option: str, details: str) -> None:
    multicallable = channel.unary_unary("/test.Echo/echo", **{option: _refuse})
    with pytest.raises(grpc.RpcError) as caught:
        multicallable(b"x")
    theirs: Any = caught.value
    refusing: Any = {option: _refuse}
    receipt = made(channel, **refusing)(b"x", None, None, None)
    assert receipt is not None
    ended = receipt.ended()
    assert (ended.details, theirs.details()) == (details, details)
    assert receipt.code() is theirs.code() is grpc.StatusCode.INTERNAL
    assert ended.debug is None


def test_serializers(channel: grpc.Channel) -> None:
    call = made(channel, request_serializer=str.encode, response_deserializer=bytes.decode)
    receipt = call("text", None, None, None)
    assert receipt is not None
    assert receipt.response == "text"


def test_a_closed_channel(server: Backend) -> None:
    channel = grpc.insecure_channel(server.address)
    call = made(channel)
    channel.close()
    with pytest.raises(ValueError, match="closed channel"):
        call(b"x", None, None, None)


def test_an_observability_plugin_wants_grpcio_itself(
    channel: grpc.Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = made(channel)
    monkeypatch.setattr("grpc._observability._OBSERVABILITY_PLUGIN", object())
    assert call(b"x", None, None, None) is None


def test_another_grpcio(server: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    assert lean_unary(object()) is None
    monkeypatch.setattr(lean, "_usable", False)
    with mesh_for(config(server.address)) as mesh, meshlib.grpc.channel("echo:80", mesh=mesh) as channel:
        response, call = channel.unary_unary("/test.Echo/echo").with_call(b"x")
        assert response == b"x"
        assert call.code() is grpc.StatusCode.OK
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/test.Echo/fail")(b"ABORTED:x")
        failed: Any = caught.value
        assert failed.code() is grpc.StatusCode.ABORTED


def test_a_routes_timeout_is_kept_here_and_a_callers_deadline_is_sent(server: Backend) -> None:
    server.unary("hang", lambda request, context: server.gate.wait() and b"")
    document = config(server.address, route={"timeout": "1s"})
    with mesh_for(document) as mesh, meshlib.grpc.channel("echo:80", mesh=mesh) as channel:
        assert channel.unary_unary("/test.Echo/echo")(b"x") == b"x"
        assert channel.unary_unary("/test.Echo/echo")(b"x", timeout=30) == b"x"
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/test.Echo/hang")(b"")
        failed: Any = caught.value
        assert (failed.code(), failed.details()) == (grpc.StatusCode.UNAVAILABLE, "upstream request timeout")
        server.gate.set()
    (_, _, first), (_, _, second), (_, _, third) = server.seen
    assert first is not None
    assert third is not None
    assert min(first, third) > 1e9, "grpcio's way to say that there is none"
    assert second is not None
    assert second < 5, "what is left for the attempt"

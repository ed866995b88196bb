"""What observers are told of gRPC calls: messages, bytes, status, trailers, and what goes out. `test_tally` counts closer."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

import meshlib
from meshlib.engine.attempt import Attempt
from meshlib.engine.call import Call
from meshlib.engine.observer import CallObserver
from meshlib.grpc import aio_channel, channel
from meshlib.testing import service

QUIET = meshlib.Observe(tracing=False, metrics=False, recent_calls=0)
SIZE = 7 + 5


class Witness(CallObserver):
    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []

    def attempt_begun(self, call: Call, attempt: Attempt, now: float) -> None:
        attempt.headers_to_add = (("x-seen-by", "witness"), ("x-raw-bin", "AAH/"))

    def over(self, call: Call, now: float) -> None:
        names = "messages_sent messages_received bytes_sent bytes_received grpc_status status protocol is_rpc"
        self.seen.append({name: getattr(call, name) for name in names.split()})
        self.seen[-1]["trailers"] = dict(call.response_trailers)
        self.seen[-1]["sent"] = dict(call.request_headers_sent)
        self.seen[-1]["error"] = None if call.error is None else type(call.error).__name__


class Handler(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Echoes; `/s/Fail...` ends with NOT_FOUND. seen: metadata of the last call."""

    def __init__(self) -> None:
        self.seen: dict[str, Any] = {}

    def service(self, details: Any) -> Any:
        self.seen = dict(details.invocation_metadata)
        fails = "Fail" in details.method

        def end(context: Any) -> None:
            context.set_trailing_metadata((("x-end", "yes"),))
            if fails:
                context.abort(grpc.StatusCode.NOT_FOUND, "gone")

        def one(request: Any, context: Any) -> bytes:
            if not isinstance(request, bytes):
                request = list(request)[-1]
            end(context)
            return bytes(request)

        def many(request: Any, context: Any) -> Iterator[bytes]:
            yield from [request] * 2 if isinstance(request, bytes) else list(request)
            end(context)

        kind = details.method.rpartition(".")[2]
        make = getattr(grpc, f"{kind}_rpc_method_handler")
        return make(many if kind.endswith("stream") else one)


@pytest.fixture
def world() -> Iterator[tuple[meshlib.Mesh, Witness, Handler]]:
    handler, witness = Handler(), Witness()
    with ThreadPoolExecutor(4) as workers:
        server = grpc.server(workers)
        server.add_generic_rpc_handlers((handler,))
        config = service("back", f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
        config["resources"][2]["http2_protocol_options"] = {}
        server.start()
        try:
            with meshlib.Mesh(config, observe=QUIET) as mesh:
                mesh.start()
                mesh.engine.observe(witness)
                yield mesh, witness, handler
        finally:
            server.stop(None).wait()


KINDS = {
    "unary_unary": (1, 1),
    "unary_stream": (1, 2),
    "stream_unary": (3, 1),
    "stream_stream": (3, 3),
}


def blocking(mesh: meshlib.Mesh, kind: str, method: str, how: str) -> None:
    with channel("back:80", mesh=mesh) as made:
        call = getattr(made, kind)(method)
        request = iter([b"message"] * 3) if kind.startswith("stream") else b"message"
        if kind.endswith("stream"):
            list(call(request))
        elif how == "future":
            call.future(request).result()
        else:
            call(request)


async def asyncio_call(mesh: meshlib.Mesh, kind: str, method: str) -> None:
    async with aio_channel("back:80", mesh=mesh) as made:
        call = getattr(made, kind)(method)
        request = iter([b"message"] * 3) if kind.startswith("stream") else b"message"
        if kind.endswith("stream"):
            async for _ in call(request):
                pass
        else:
            await call(request)


def run(mesh: meshlib.Mesh, kind: str, method: str, how: str) -> None:
    if how == "aio":
        asyncio.run(asyncio_call(mesh, kind, method))
    else:
        blocking(mesh, kind, method, how)


@pytest.mark.parametrize("how", ["blocking", "future", "aio"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_call_that_goes_well(world: tuple[meshlib.Mesh, Witness, Handler], kind: str, how: str) -> None:
    mesh, witness, handler = world
    run(mesh, kind, f"/s.S/Echo.{kind}", how)
    (seen,) = witness.seen
    sent, received = KINDS[kind]
    assert (seen["messages_sent"], seen["bytes_sent"]) == (sent, sent * SIZE)
    assert (seen["messages_received"], seen["bytes_received"]) == (received, received * SIZE)
    assert (seen["grpc_status"], seen["status"], seen["protocol"]) == ("0", 200, "HTTP/2")
    assert seen["is_rpc"]
    assert seen["trailers"]["x-end"] == "yes"
    assert seen["error"] is None
    assert handler.seen["x-seen-by"] == seen["sent"]["x-seen-by"] == "witness"
    assert handler.seen["x-raw-bin"] == b"\x00\x01\xff"


@pytest.mark.parametrize("how", ["blocking", "future", "aio"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_call_that_the_endpoint_ends_with_an_error(
    world: tuple[meshlib.Mesh, Witness, Handler], kind: str, how: str
) -> None:
    mesh, witness, _ = world
    with pytest.raises(grpc.RpcError):
        run(mesh, kind, f"/s.S/Fail.{kind}", how)
    (seen,) = witness.seen
    assert seen["grpc_status"] == "5"
    assert seen["error"] is None, "it is the endpoint's answer"
    if kind.endswith("stream"):
        assert seen["messages_received"] == KINDS[kind][1]
        assert seen["trailers"]["x-end"] == "yes"


@pytest.mark.parametrize("how", ["blocking", "future", "aio"])
def test_a_call_that_nobody_answers(world: tuple[meshlib.Mesh, Witness, Handler], how: str) -> None:
    _, witness, _ = world
    with meshlib.Mesh(service("back", "127.0.0.1:1"), observe=QUIET) as broken:
        broken.start()
        broken.engine.observe(witness)
        with pytest.raises(meshlib.UpstreamError):
            run(broken, "unary_unary", "/s.S/Echo.unary_unary", how)
    (seen,) = witness.seen
    assert seen["grpc_status"] == "14"
    assert seen["error"] == "ConnectFailed"
    assert seen["messages_received"] == 0

"""From caller to front end to back end: the back end learns of the caller's deadline, through the mesh in between."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import httpx
import pytest

import meshlib
import meshlib.grpc
from meshlib.httpx import MeshTransport
from meshlib.runtime.clock import SystemClock
from meshlib.testing import Hang, Upstream, service
from tests.server.servers import SERVICE, asyncio_server, blocking_server, handlers_of

BACK = "/tests.Server/unary_unary"
LONG, SHORT = 100.0, 0.2


@pytest.fixture
def remaining() -> list[float | None]:
    """What the back end was told, call by call; None: no deadline."""
    return []


@pytest.fixture
def mesh(remaining: list[float | None]) -> Iterator[meshlib.Mesh]:
    """Its service is the back end, whose route sets no timeout."""

    def back(request: bytes, context: Any) -> bytes:
        left = context.time_remaining()
        remaining.append(left if left < threading.TIMEOUT_MAX else None)
        return b""

    with ThreadPoolExecutor(4) as executor:
        server = grpc.server(executor)
        handlers = {"unary_unary": grpc.unary_unary_rpc_method_handler(back)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        with meshlib.Mesh(config=without_timeout(f"127.0.0.1:{port}")) as made:
            yield made
        server.stop(None).wait()


def without_timeout(address: str) -> dict[str, Any]:
    config = service("back", address)
    config["resources"][1]["virtual_hosts"][0]["routes"][0]["route"]["timeout"] = "0s"
    return config


@contextlib.contextmanager
def blocking_front(mesh: meshlib.Mesh) -> Iterator[str]:
    with meshlib.grpc.channel("back:80", mesh=mesh) as channel:
        method = channel.unary_unary(BACK)

        def unary(request: Any, context: Any) -> bytes:
            answer: bytes = method(b"")
            return answer

        def stream(request: Any, context: Any) -> Iterator[bytes]:
            yield method(b"")
            yield method.future(b"").result()

        with blocking_server(handlers_of(unary, stream), SystemClock()) as address:
            yield address


@contextlib.contextmanager
def asyncio_front(mesh: meshlib.Mesh) -> Iterator[str]:
    channel = meshlib.grpc.aio_channel("back:80", mesh=mesh)
    method = channel.unary_unary(BACK)

    async def unary(request: Any, context: Any) -> bytes:
        answer: bytes = await method(b"")
        return answer

    async def stream(request: Any, context: Any) -> AsyncIterator[bytes]:
        yield await method(b"")
        yield await method(b"")

    with asyncio_server(handlers_of(unary, stream), SystemClock(), ending=channel.close) as address:
        yield address


FRONTS = {"blocking": blocking_front, "asyncio": asyncio_front}


@pytest.mark.parametrize("front", FRONTS)
def test_the_back_end_is_told_the_callers_deadline(
    front: str, mesh: meshlib.Mesh, remaining: list[float | None]
) -> None:
    with FRONTS[front](mesh) as address, grpc.insecure_channel(address) as channel:
        unary = channel.unary_unary(f"/{SERVICE}/unary_unary")
        stream = channel.unary_stream(f"/{SERVICE}/unary_stream")
        unary(b"", timeout=LONG)
        assert len(list(stream(b"", timeout=LONG))) == 2
        with_deadline = remaining.copy()
        remaining.clear()
        unary(b"")
        assert len(list(stream(b""))) == 2
    assert len(with_deadline) == 3
    # grpc-timeout has few digits; each hop may round it up.
    assert all(left is not None and LONG / 2 < left <= LONG * 1.05 for left in with_deadline), with_deadline
    assert remaining == [None] * 3


def test_an_outgoing_http_call_ends_with_the_inbound_deadline() -> None:
    errors: list[BaseException] = []
    over = threading.Event()
    with (
        Upstream(default=Hang()) as upstream,
        meshlib.Mesh(config=without_timeout(upstream.address)) as mesh,
        httpx.Client(transport=MeshTransport(mesh), timeout=None) as client,
    ):

        def unary(request: Any, context: Any) -> bytes:
            try:
                client.get("http://back/")
            except meshlib.MeshError as error:
                errors.append(error)
            finally:
                over.set()
            return b""

        with (
            blocking_server(handlers_of(unary, unary), SystemClock()) as address,
            grpc.insecure_channel(address) as channel,
        ):
            channel.unary_unary(f"/{SERVICE}/unary_unary").future(b"", timeout=SHORT).exception(20.0)
            assert over.wait(20.0)
    assert [type(error) for error in errors] == [meshlib.httpx.DeadlineExceeded]

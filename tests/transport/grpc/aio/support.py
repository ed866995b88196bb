"""What these tests share: scripted servers of grpc.aio on loopback, in the loop of the test."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any

import grpc
import grpc.aio
import pytest

import meshlib
import meshlib.grpc
from tests.ports import reserved
from tests.transport.grpc.support import config, mesh_for

__all__ = ["LIMIT", "Backend", "backend", "channel_to", "complaints", "eventually", "held", "name_of", "run"]

LIMIT = 20.0
"""Seconds after which a test that waits for something has failed."""

Body = Callable[..., Any]


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run a test in an event loop of its own."""

    async def limited() -> None:
        async with asyncio.timeout(LIMIT):
            await main

    asyncio.run(limited())


def name_of(method: str) -> str:
    return "/test.Echo/" + method


class Backend(grpc.GenericRpcHandler):  # type: ignore[misc]
    """A server whose methods are what `methods` says: by name, an arity and a function.

    seen: (name, metadata, seconds left) of each call, in order. started, stopped: set when a call of `hang` begins and when
    it is cancelled.
    """

    def __init__(self) -> None:
        self.methods: dict[str, tuple[str, Body]] = {
            "echo": ("unary_unary", _echo),
            "fail": ("unary_unary", _fail),
            "hang": ("unary_unary", self._hang),
            "repeat": ("unary_stream", _repeat),
            "hang_stream": ("unary_stream", self._hang_stream),
            "collect": ("stream_unary", _collect),
            "chat": ("stream_stream", _chat),
        }
        self.seen: list[tuple[str, dict[str, Any], float | None]] = []
        self.started = asyncio.Event()
        self.stopped = asyncio.Event()
        self.port = 0
        self.server: Any = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        name = details.method.rpartition("/")[2]
        if name not in self.methods:
            return None
        arity, body = self.methods[name]
        metadata = dict(details.invocation_metadata)
        streams = arity.endswith("stream")

        def note(context: grpc.aio.ServicerContext) -> None:
            self.seen.append((name, metadata, context.time_remaining()))

        async def one(request: Any, context: grpc.aio.ServicerContext) -> Any:
            note(context)
            return await body(request, context)

        async def many(request: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
            note(context)
            async for message in body(request, context):
                yield message

        return getattr(grpc, arity + "_rpc_method_handler")(many if streams else one)

    async def start(self, port: int = 0) -> None:
        self.server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        self.server.add_generic_rpc_handlers((self,))
        self.port = self.server.add_insecure_port(f"127.0.0.1:{port}")
        await self.server.start()

    async def stop(self) -> None:
        if self.server is not None:
            await self.server.stop(None)
            self.server = None

    def calls(self) -> list[str]:
        return [name for name, _, _ in self.seen]

    async def _hang(self, _request: bytes, _context: grpc.aio.ServicerContext) -> bytes:
        self.started.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.stopped.set()
        return b""

    async def hang_once(self, request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        """The first call hangs, later ones are answered."""
        return request if self.started.is_set() else await self._hang(request, context)

    async def _hang_stream(self, request: bytes, _context: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
        self.started.set()
        try:
            yield request
            await asyncio.Event().wait()
        finally:
            self.stopped.set()


async def _echo(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
    await context.send_initial_metadata((("x-initial", "1"),))
    context.set_trailing_metadata((("x-trailing", "2"),))
    return request


async def _fail(request: bytes, context: grpc.aio.ServicerContext) -> None:
    name, _, details = request.decode().partition(":")
    await context.abort(grpc.StatusCode[name], details, (("x-why", "because"),))


async def _repeat(request: bytes, _context: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
    for _ in range(3):
        yield request


async def _collect(requests: AsyncIterator[bytes], _context: grpc.aio.ServicerContext) -> bytes:
    return b",".join([message async for message in requests])


async def _chat(requests: AsyncIterator[bytes], _context: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
    async for message in requests:
        yield message.upper()


@contextlib.asynccontextmanager
async def backend() -> AsyncIterator[Backend]:
    """A started server, which may be started again at its port."""
    server = Backend()
    with reserved() as port:
        await server.start(port)
        try:
            yield server
        finally:
            await server.stop()


@contextlib.asynccontextmanager
async def channel_to(
    *addresses: str,
    route: dict[str, Any] | None = None,
    cluster: dict[str, Any] | None = None,
    interceptors: Any = (),
    options: Any = None,
    headers: Any = "none",
) -> AsyncIterator[tuple[grpc.aio.Channel, meshlib.Mesh]]:
    """A mesh channel to these endpoints, and its mesh."""
    document = config(*addresses, route=route, cluster=cluster)
    with mesh_for(document, headers=headers) as mesh:
        async with meshlib.grpc.aio_channel(
            "echo:80", mesh=mesh, interceptors=interceptors, options=options
        ) as channel:
            yield channel, mesh


def held(mesh: meshlib.Mesh) -> int:
    """How many permits of requests, waiting calls and retries the calls of the mesh hold."""
    total = 0
    for state in mesh.engine.store:
        state.drain_abandoned()
        for permits in (state.default, state.high):
            total += permits.requests + permits.pending + permits.retries
        total += sum(endpoint.active for endpoint in state.endpoints.values())
    return total


async def eventually(condition: Callable[[], bool] | Callable[[], Awaitable[bool]]) -> None:
    """Let the loop run until it holds; the test's own limit ends the wait."""
    while True:
        found = condition()
        if found if isinstance(found, bool) else await found:
            return
        await asyncio.sleep(0.001)


def complaints(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged, but by grpcio's poller: what it has to say of a call may overtake the rest (see `aio_leaving`).

    Nor by the server, which is ours, too: it says so when its caller has left while it wrote.
    """
    others = ("PollerCompletionQueue._handle_events", "raised in core by servicer method")
    return [line for line in caplog.messages if not any(each in line for each in others)]

"""A blocking server, and an asyncio server with asyncio or with blocking handlers, that do the same."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from meshlib.runtime.clock import Clock
from meshlib.server.grpc import AsyncMeshInterceptor, MeshInterceptor
from meshlib.server.inbound import Inbound

__all__ = [
    "ARITIES",
    "SERVERS",
    "SERVICE",
    "Look",
    "asyncio_server",
    "blocking_server",
    "call",
    "handlers_of",
    "idle",
]

SERVICE = "tests.Server"
ARITIES = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")

Look = Callable[[], object]
"""What a handler does at each of its steps."""


def blocking_handlers(look: Look) -> dict[str, Any]:
    def unary(request: Any, context: Any) -> bytes:
        look()
        return b""

    def stream(request: Any, context: Any) -> Iterator[bytes]:
        look()
        yield b""
        look()
        yield b""
        look()

    return handlers_of(unary, stream)


def asyncio_handlers(look: Look) -> dict[str, Any]:
    async def unary(request: Any, context: Any) -> bytes:
        look()
        return b""

    async def stream(request: Any, context: Any) -> AsyncIterator[bytes]:
        look()
        yield b""
        look()
        yield b""
        look()

    return handlers_of(unary, stream)


def writing_handlers(look: Look) -> dict[str, Any]:
    """Coroutines that send by themselves instead of yielding."""

    async def unary(request: Any, context: Any) -> bytes:
        look()
        return b""

    async def stream(request: Any, context: Any) -> None:
        look()
        await context.write(b"")
        look()
        await context.write(b"")
        look()

    return handlers_of(unary, stream)


def handlers_of(unary: Any, stream: Any) -> dict[str, Any]:
    """Of all four arities, named as they are."""
    return {
        "unary_unary": grpc.unary_unary_rpc_method_handler(unary),
        "unary_stream": grpc.unary_stream_rpc_method_handler(stream),
        "stream_unary": grpc.stream_unary_rpc_method_handler(unary),
        "stream_stream": grpc.stream_stream_rpc_method_handler(stream),
    }


@contextlib.contextmanager
def blocking_server(handlers: dict[str, Any], clock: Clock, inbound: Inbound | None = None) -> Iterator[str]:
    with ThreadPoolExecutor(1) as executor:  # one thread: what a call leaves in it, the next one would find
        server = grpc.server(executor, interceptors=[MeshInterceptor(inbound, clock=clock)])
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            server.stop(None).wait()


async def _nothing() -> None: ...


async def idle(executor: ThreadPoolExecutor) -> None:
    """Until its one thread has left every handler. grpcio has a blocking generator put what it yields into a queue of this
    loop, and the end of it too: the thread would wait for ever on a loop that is over."""
    left = asyncio.get_running_loop().run_in_executor(executor, int)
    while not (await asyncio.wait({left}, timeout=0.01))[0]:
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()


@contextlib.contextmanager
def asyncio_server(
    handlers: dict[str, Any],
    clock: Clock,
    inbound: Inbound | None = None,
    ending: Callable[[], Awaitable[None]] = _nothing,
) -> Iterator[str]:
    """ending: awaited on the server's loop when it has stopped."""
    with ThreadPoolExecutor(1) as executor:
        started, ports, ends = threading.Event(), list[int](), list[Callable[[], object]]()

        async def run() -> None:
            server = grpc.aio.server(executor, interceptors=[AsyncMeshInterceptor(inbound, clock=clock)])
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
            ports.append(server.add_insecure_port("127.0.0.1:0"))
            await server.start()
            told, loop = asyncio.Event(), asyncio.get_running_loop()
            ends.append(lambda: loop.call_soon_threadsafe(told.set))
            started.set()
            await told.wait()
            await server.stop(None)
            await ending()
            await idle(executor)

        thread = threading.Thread(target=lambda: asyncio.run(run()))
        thread.start()
        assert started.wait(20.0), "the server did not start"
        try:
            yield f"127.0.0.1:{ports[0]}"
        finally:
            ends[0]()
            thread.join()


SERVERS = {
    "blocking": (blocking_server, blocking_handlers),
    "asyncio": (asyncio_server, asyncio_handlers),
    "asyncio-writing": (asyncio_server, writing_handlers),
    "asyncio-blocking": (asyncio_server, blocking_handlers),
}


def call(channel: grpc.Channel, arity: str, timeout: float | None, metadata: Any = None) -> None:
    """Make one call of this arity and take all of its responses."""
    method = getattr(channel, arity)(f"/{SERVICE}/{arity}")
    request: Any = iter([b""]) if arity.startswith("stream") else b""
    outcome = method(request, timeout=timeout, metadata=metadata)
    if arity.endswith("stream"):
        assert list(outcome) == [b"", b""]

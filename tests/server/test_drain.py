"""A server that drains loses nothing: health first, then no new calls, then those under way."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from meshlib.server.grpc import aio_drain, drain

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 20.0


class Held:
    """A handler whose calls last until they are let go."""

    def __init__(self) -> None:
        self.began, self.go = threading.Event(), threading.Event()

    def __call__(self, request: bytes, context: Any) -> bytes:
        self.began.set()
        assert self.go.wait(LIMIT)
        return b"whole"

    def handlers(self) -> tuple[Any, ...]:
        handler = grpc.unary_unary_rpc_method_handler(self)
        return (grpc.method_handlers_generic_handler("tests.Server", {"held": handler}),)


def test_health_says_so_first_then_calls_under_way_end_whole() -> None:
    held, servicer = Held(), health.HealthServicer()
    servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    with ThreadPoolExecutor(4) as executor:
        server = grpc.server(executor)
        server.add_generic_rpc_handlers(held.handlers())
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            under_way = channel.unary_unary("/tests.Server/held").future(b"", timeout=LIMIT)
            assert held.began.wait(LIMIT)
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=LIMIT)
            assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
            drained = executor.submit(drain, server, servicer, notice=0.01, grace=LIMIT)
            assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
            watch.cancel()
            held.go.set()
            assert under_way.result() == b"whole"
            drained.result(LIMIT)


def test_health_of_an_asyncio_server() -> None:
    held, servicer = Held(), health.aio.HealthServicer()
    statuses: list[int] = []

    async def run() -> None:
        await servicer.set("", health_pb2.HealthCheckResponse.SERVING)
        with ThreadPoolExecutor(2) as executor:
            server = grpc.aio.server(executor)
            server.add_generic_rpc_handlers(held.handlers())
            health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
            port = server.add_insecure_port("127.0.0.1:0")
            await server.start()
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                under_way = channel.unary_unary("/tests.Server/held")(b"", timeout=LIMIT)
                await asyncio.to_thread(held.began.wait, LIMIT)
                watch = health_pb2_grpc.HealthStub(channel).Watch(
                    health_pb2.HealthCheckRequest(), timeout=LIMIT
                )
                statuses.append((await watch.read()).status)
                drained = asyncio.ensure_future(aio_drain(server, servicer, notice=0.01, grace=LIMIT))
                statuses.append((await watch.read()).status)
                watch.cancel()
                held.go.set()
                assert await under_way == b"whole"
                await drained

    asyncio.run(run())
    assert statuses == [
        health_pb2.HealthCheckResponse.SERVING,
        health_pb2.HealthCheckResponse.NOT_SERVING,
    ]


def test_no_new_calls_while_those_under_way_end() -> None:
    held = Held()
    with ThreadPoolExecutor(4) as executor, ThreadPoolExecutor(1) as drainer:
        server = grpc.server(executor)
        server.add_generic_rpc_handlers(held.handlers())
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            method = channel.unary_unary("/tests.Server/held")
            under_way = method.future(b"", timeout=LIMIT)
            assert held.began.wait(LIMIT)
            drained = drainer.submit(drain, server, grace=LIMIT)
            refused = _first_refusal(method)
            waits = not drained.done()
            held.go.set()
            assert waits
            # CANCELLED: it was on its way when the server stopped taking calls.
            assert refused.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
            assert under_way.result() == b"whole"
            drained.result(LIMIT)


def _first_refusal(method: Any) -> Any:
    """The draining thread may not have come to stop() yet; calls that still get through wait in the handler."""
    while True:
        error = method.future(b"", timeout=0.2).exception()
        if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
            return error


def test_calls_that_outlast_the_grace_are_cancelled() -> None:
    held = Held()
    with ThreadPoolExecutor(2) as executor:
        server = grpc.server(executor)
        server.add_generic_rpc_handlers(held.handlers())
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            under_way = channel.unary_unary("/tests.Server/held").future(b"", timeout=LIMIT)
            assert held.began.wait(LIMIT)
            drain(server, grace=0.01)
            assert isinstance(under_way.exception(LIMIT), grpc.RpcError)
            held.go.set()


SERVE = """
import grpc
from concurrent.futures import ThreadPoolExecutor
from meshlib.server.grpc import serve
server = grpc.server(ThreadPoolExecutor(2))
server.add_insecure_port("127.0.0.1:0")
start = server.start
server.start = lambda: (start(), print("ready", flush=True))
serve(server)
print("drained", flush=True)
"""

AIO_SERVE = """
import asyncio, grpc
from meshlib.server.grpc import aio_serve
async def main():
    server = grpc.aio.server()
    server.add_insecure_port("127.0.0.1:0")
    start = server.start
    async def started():
        await start()
        print("ready", flush=True)
    server.start = started
    await aio_serve(server)
    print("drained", flush=True)
asyncio.run(main())
"""


@pytest.fixture
def started(request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", request.param],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("started", [SERVE, AIO_SERVE], indirect=True, ids=["blocking", "asyncio"])
def test_a_signal_drains(started: subprocess.Popen[str], number: signal.Signals) -> None:
    assert started.stdout is not None
    assert started.stdout.readline() == "ready\n"
    started.send_signal(number)
    output, errors = started.communicate(timeout=LIMIT)
    assert (started.returncode, output, errors) == (0, "drained\n", "")

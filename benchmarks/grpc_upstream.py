"""The gRPC server that answers the benchmark's calls, in a process of its own: `python -m benchmarks.grpc_upstream PORT...`.

`Unary` echoes its request. `Stream` sends as many messages of 100 bytes as its request says, in decimal.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc

MESSAGE = b"x" * 100


async def _unary(request: bytes, _context: Any) -> bytes:
    return request


async def _stream(request: bytes, _context: Any) -> AsyncIterator[bytes]:
    for _ in range(int(request)):
        yield MESSAGE


async def _serve(ports: list[str]) -> None:
    server = grpc.aio.server()
    handlers = {
        "Unary": grpc.unary_unary_rpc_method_handler(_unary),
        "Stream": grpc.unary_stream_rpc_method_handler(_stream),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Echo", handlers),))
    for port in ports:
        server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1:]))

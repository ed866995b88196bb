"""The gRPC server that answers the benchmark's calls, in a process of its own: `python -m benchmarks.grpc_upstream PORT...
[--secure PORT... --identity CHAIN KEY BUNDLE]`.

`Unary` echoes its request. `Stream` sends as many messages of 100 bytes as its request says, in decimal.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc

MESSAGE = b"x" * 100


async def _unary(request: bytes, _context: Any) -> bytes:
    return request


async def _stream(request: bytes, _context: Any) -> AsyncIterator[bytes]:
    for _ in range(int(request)):
        yield MESSAGE


async def _serve(arguments: argparse.Namespace) -> None:
    server = grpc.aio.server()
    handlers = {
        "Unary": grpc.unary_unary_rpc_method_handler(_unary),
        "Stream": grpc.unary_stream_rpc_method_handler(_stream),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Echo", handlers),))
    for port in arguments.ports:
        server.add_insecure_port(f"127.0.0.1:{port}")
    if arguments.secure:
        chain, key, bundle = (path.read_bytes() for path in arguments.identity)
        credentials = grpc.ssl_server_credentials([(key, chain)], bundle, True)
        for port in arguments.secure:
            server.add_secure_port(f"127.0.0.1:{port}", credentials)
    await server.start()
    await server.wait_for_termination()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("ports", type=int, nargs="+")
    parser.add_argument("--secure", type=int, nargs="*", default=[], help="ports that speak TLS")
    parser.add_argument("--identity", type=Path, nargs=3, metavar=("CHAIN", "KEY", "BUNDLE"))
    return parser.parse_args()


if __name__ == "__main__":
    asyncio.run(_serve(_arguments()))

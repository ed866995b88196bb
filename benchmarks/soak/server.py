"""A server of the soak in a process of its own: `python -m benchmarks.soak.server web|rpc`.

`web` is uvicorn with an ASGI application, `rpc` a grpc.server. Both show the workload's identity and verify callers with
meshlib.server; a connection's age is exact for HTTP, and counted from its first call for gRPC, where C-core keeps to itself
what it has shown.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import uvicorn

import meshlib
from benchmarks.soak.rotations import Rotations
from benchmarks.soak.verdict import PIECE, PIECES, Question, judge
from benchmarks.worker import serve
from meshlib.server.asgi import MeshMiddleware
from meshlib.server.grpc import MeshInterceptor, listen
from meshlib.server.inbound import Inbound
from meshlib.server.tls import CONNECTION
from meshlib.server.uvicorn import options

ALPN = {"web": ("http/1.1",), "rpc": ("h2",)}

Serving = Callable[[Inbound, Rotations], contextlib.AbstractContextManager[int]]


@contextlib.contextmanager
def web(inbound: Inbound, rotations: Rotations) -> Iterator[int]:
    """The path is a Question."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        question = Question.decode(scope["path"].removeprefix("/"))
        age = rotations.settled(question.begun) - CONNECTION.get().epoch
        verdict = judge(max(0, age)).encode()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        if question.seconds:
            for _ in range(PIECES):
                await send({"type": "http.response.body", "body": PIECE, "more_body": True})
                await asyncio.sleep(question.seconds / PIECES)
        await send({"type": "http.response.body", "body": verdict})

    listening = socket.create_server(("127.0.0.1", 0), backlog=1024)
    # As sockets have it that asyncio opens by itself; it is inherited by those that are accepted.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    config = uvicorn.Config(
        MeshMiddleware(app, inbound),
        log_level="warning",
        access_log=False,
        lifespan="off",
        ws="none",
        timeout_keep_alive=3600,  # whoever ends a connection here would cut a call that is just being sent
        **options(inbound),
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield listening.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()
        listening.close()


@contextlib.contextmanager
def rpc(inbound: Inbound, rotations: Rotations) -> Iterator[int]:
    """The request is a Question; `Ask` answers at once, `Tell` streams."""
    security = inbound.security(ALPN["rpc"])
    made: dict[tuple[str, str], int] = {}

    def verdict(question: Question, context: Any) -> bytes:
        # A port may be taken again, but not as soon as by a connection with the same certificate.
        connection = (context.peer(), meshlib.current_peer().sha256)
        age = rotations.settled(question.begun) - made.setdefault(connection, security.epoch)
        return judge(max(0, age)).encode()

    def ask(request: bytes, context: Any) -> bytes:
        return verdict(Question.decode(request.decode()), context)

    def tell(request: bytes, context: Any) -> Iterator[bytes]:
        question = Question.decode(request.decode())
        last = verdict(question, context)
        for _ in range(PIECES):
            yield PIECE
            time.sleep(question.seconds / PIECES)
        yield last

    methods = {
        "Ask": grpc.unary_unary_rpc_method_handler(ask),
        "Tell": grpc.unary_stream_rpc_method_handler(tell),
    }
    with ThreadPoolExecutor(64) as executor:
        server = grpc.server(executor, interceptors=[MeshInterceptor(inbound)])
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("soak.Soak", methods),))
        with listen(server, "127.0.0.1:0", inbound) as listening:
            server.start()
            try:
                yield listening.port
            finally:
                server.stop(None).wait()


KINDS: dict[str, Serving] = {"web": web, "rpc": rpc}


def main() -> None:
    """Argument: which one. The first command starts it, all others ask how it does."""
    kind = sys.argv[1]
    with contextlib.ExitStack() as stack:
        rotations: Rotations | None = None

        def handle(command: dict[str, Any]) -> dict[str, Any]:
            nonlocal rotations
            if rotations is not None:
                return rotations.status()
            mesh = stack.enter_context(meshlib.Mesh(config=[], identity=f"unix://{command['socket']}"))
            inbound = Inbound(mesh)
            inbound.wait_ready()
            security = inbound.security(ALPN[kind])
            rotations = Rotations(mesh.identity, lambda: security.epoch, command["settle"])
            return {"port": stack.enter_context(KINDS[kind](inbound, rotations))}

        serve(handle)


if __name__ == "__main__":
    main()

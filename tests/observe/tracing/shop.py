"""A service of three, as a process of its own: `python -m tests.observe.tracing.shop front|cart|stock http|grpc`.

The first line of its input is the address of the service that it calls, its first line of output the address at which it is.
It serves until its input ends, and then says what it has seen, as JSON. The environment says where its spans go
(OTEL_EXPORTER_OTLP_TRACES_ENDPOINT). What a service does with a request knows nothing of traces, ids and headers.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any

import flask
import grpc
import grpc.aio
import httpx
import uvicorn
import werkzeug.serving
from opentelemetry import baggage, trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

import meshlib
from meshlib.grpc import aio_channel
from meshlib.httpx import MeshTransport
from meshlib.server import asgi, wsgi
from meshlib.server.grpc import AsyncMeshInterceptor
from meshlib.server.inbound import Inbound
from meshlib.testing import service

METHOD = "/shop.Stock/Count"


def target(name: str, address: str, *, http2: bool = False) -> dict[str, Any]:
    """A service that is tried again when it refuses."""
    made = service(name, address)
    made["resources"][1]["virtual_hosts"][0]["retry_policy"] = {
        "retry_on": "5xx",
        "num_retries": 1,
        "retry_back_off": {"base_interval": "0.001s", "max_interval": "0.001s"},
    }
    if http2:
        made["resources"][2]["http2_protocol_options"] = {}
    return made


def wait_for_end() -> None:
    sys.stdin.read()


# --- front: Flask and httpx ------------------------------------------------------------------------------------------


class Quiet(werkzeug.serving.WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log(self, *_: Any) -> None: ...


def front(behind: str) -> dict[str, Any]:
    app = flask.Flask("front")
    with (
        meshlib.Mesh([target("cart", behind)]) as mesh,
        httpx.Client(transport=MeshTransport(mesh)) as client,
    ):

        @app.get("/checkout/<item>")
        def checkout(item: str) -> str:
            return client.get(f"http://cart/items/{item}").text

        app.wsgi_app = wsgi.MeshMiddleware(app.wsgi_app, Inbound(mesh))  # type: ignore[method-assign]
        server = werkzeug.serving.make_server("127.0.0.1", 0, app, threaded=True, request_handler=Quiet)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        print(f"127.0.0.1:{server.port}", flush=True)
        wait_for_end()
        server.shutdown()
        thread.join()
        server.server_close()
    return {}


# --- cart: ASGI and grpc.aio -----------------------------------------------------------------------------------------


def cart(behind: str) -> dict[str, Any]:
    """It refuses the first request."""
    refused = 0
    channels: list[Any] = []

    async def start(_scope: Any, receive: Any, send: Any) -> None:
        while (message := await receive())["type"] != "lifespan.shutdown":
            channels.append(aio_channel("stock:80", mesh=mesh))
            await send({"type": message["type"] + ".complete"})
        await channels[0].close()
        await send({"type": "lifespan.shutdown.complete"})

    async def items() -> tuple[int, bytes]:
        nonlocal refused
        if not refused:
            refused += 1
            return 503, b"not yet"
        return 200, await channels[0].unary_unary(METHOD)(b"3 left")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await start(scope, receive, send)
            return
        status, body = await items()
        length = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": length})
        await send({"type": "http.response.body", "body": body})

    with meshlib.Mesh([target("stock", behind, http2=True)]) as mesh:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            config = uvicorn.Config(asgi.MeshMiddleware(app, Inbound(mesh)), log_level="critical", ws="none")
            server = uvicorn.Server(config)
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
            thread.start()
            print(f"127.0.0.1:{listening.getsockname()[1]}", flush=True)
            wait_for_end()
            server.should_exit = True
            thread.join()
    return {"refused": refused}


# --- stock: grpc.aio -------------------------------------------------------------------------------------------------


def stock(_behind: str) -> dict[str, Any]:
    seen: dict[str, Any] = {"baggage": [], "request_ids": []}

    async def count(request: bytes, context: Any) -> bytes:
        seen["baggage"].append(dict(baggage.get_all()))
        seen["request_ids"].append(dict(context.invocation_metadata()).get("x-request-id"))
        return request

    async def serve(mesh: meshlib.Mesh) -> None:
        server = grpc.aio.server(interceptors=[AsyncMeshInterceptor(Inbound(mesh))])
        handlers = {"Count": grpc.unary_unary_rpc_method_handler(count)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("shop.Stock", handlers),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        print(f"127.0.0.1:{port}", flush=True)
        await asyncio.to_thread(wait_for_end)
        await server.stop(None)

    with meshlib.Mesh([]) as mesh:
        asyncio.run(serve(mesh))
    return seen


# ---------------------------------------------------------------------------------------------------------------------

SERVICES: dict[str, Callable[[str], dict[str, Any]]] = {"front": front, "cart": cart, "stock": stock}
EXPORTERS: dict[str, Callable[[], Any]] = {"http": HttpExporter, "grpc": GrpcExporter}


def main(name: str, protocol: str) -> None:
    about = Resource.create({"service.name": name, "process.pid": os.getpid()})
    provider = TracerProvider(resource=about)
    provider.add_span_processor(BatchSpanProcessor(EXPORTERS[protocol]()))
    trace.set_tracer_provider(provider)
    seen = SERVICES[name](sys.stdin.readline().strip())
    provider.shutdown()
    print(json.dumps(seen))


if __name__ == "__main__":
    main(*sys.argv[1:])

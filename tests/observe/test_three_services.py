"""One trace through three services, Flask -> httpx -> ASGI -> gRPC -> grpc.aio, with one retry: the application copies no header.

Each service has a Mesh, an OpenTelemetry provider and an exporter of its own; what they export goes to one OTLP receiver.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any

import flask
import grpc
import httpx
import pytest
import uvicorn
import werkzeug.serving
from opentelemetry import baggage
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
from tests.observe.tracing.receiver import Receiver, grpc_receiver, http_receiver

METHOD = "/shop.Stock/Count"


class Service:
    """name: its service.name. config: what it calls."""

    def __init__(self, name: str, receiver: Receiver, config: list[dict[str, Any]]) -> None:
        exporter = (
            HttpExporter(endpoint=receiver.endpoint)
            if receiver.endpoint.startswith("http")
            else GrpcExporter(endpoint=receiver.endpoint, insecure=True)
        )
        self.provider = TracerProvider(resource=Resource({"service.name": name}), shutdown_on_exit=False)
        self.provider.add_span_processor(BatchSpanProcessor(exporter))
        self.mesh = meshlib.Mesh(config=config, observe=meshlib.Observe(tracing=self.provider))
        self.inbound = Inbound(self.mesh)

    def __enter__(self) -> Service:
        self.mesh.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.mesh.close()
        self.provider.shutdown()


class Seen:
    """What the last service was told."""

    def __init__(self) -> None:
        self.baggage: list[dict[str, Any]] = []
        self.request_ids: list[str | None] = []
        self.refused = 0


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


@contextlib.contextmanager
def stock(receiver: Receiver, seen: Seen) -> Iterator[str]:
    """grpc.aio."""

    async def count(request: bytes, context: Any) -> bytes:
        seen.baggage.append(dict(baggage.get_all()))
        seen.request_ids.append(dict(context.invocation_metadata()).get("x-request-id"))
        return request

    ready, address = threading.Event(), [""]
    loop = asyncio.new_event_loop()
    over = asyncio.Event()

    async def run(made: Service) -> None:
        server = grpc.aio.server(interceptors=[AsyncMeshInterceptor(made.inbound)])
        handler = grpc.unary_unary_rpc_method_handler(count)
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("shop.Stock", {"Count": handler}),)
        )
        address[0] = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        ready.set()
        await over.wait()
        await server.stop(None)

    with Service("stock", receiver, []) as made:
        thread = threading.Thread(target=loop.run_until_complete, args=(run(made),))
        thread.start()
        assert ready.wait(10)
        try:
            yield address[0]
        finally:
            loop.call_soon_threadsafe(over.set)
            thread.join()
            loop.close()


@contextlib.contextmanager
def cart(receiver: Receiver, seen: Seen, behind: str) -> Iterator[str]:
    """ASGI on uvicorn. Refuses the first request."""
    with Service("cart", receiver, [target("stock", behind, http2=True)]) as made:
        channels: list[Any] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "lifespan":
                while (message := await receive())["type"] != "lifespan.shutdown":
                    channels.append(aio_channel("stock:80", mesh=made.mesh))
                    await send({"type": message["type"] + ".complete"})
                await channels[0].close()
                await send({"type": "lifespan.shutdown.complete"})
                return
            seen.refused += 1
            status, body = 503, b"not yet"
            if seen.refused > 1:
                status, body = 200, await channels[0].unary_unary(METHOD)(b"3 left")
            length = str(len(body)).encode()
            await send(
                {"type": "http.response.start", "status": status, "headers": [(b"content-length", length)]}
            )
            await send({"type": "http.response.body", "body": body})

        listening = socket.create_server(("127.0.0.1", 0))
        config = uvicorn.Config(asgi.MeshMiddleware(app, made.inbound), log_level="critical", ws="none")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
            listening.close()


class Quiet(werkzeug.serving.WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log(self, *_: Any) -> None: ...


@contextlib.contextmanager
def front(receiver: Receiver, behind: str) -> Iterator[str]:
    """Flask."""
    with Service("front", receiver, [target("cart", behind)]) as made:
        with httpx.Client(transport=MeshTransport(made.mesh)) as client:
            app = flask.Flask("front")

            @app.get("/checkout/<item>")
            def checkout(item: str) -> str:
                return client.get(f"http://cart/items/{item}").text

            app.wsgi_app = wsgi.MeshMiddleware(app.wsgi_app, made.inbound)  # type: ignore[method-assign]
            server = werkzeug.serving.make_server("127.0.0.1", 0, app, threaded=True, request_handler=Quiet)
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
            thread.start()
            try:
                yield f"http://127.0.0.1:{server.port}"
            finally:
                server.shutdown()
                thread.join()
                server.server_close()


TREE = """
front: GET /checkout/<item> SERVER
  front: GET INTERNAL
    front: GET CLIENT
      cart: GET SERVER
    front: GET CLIENT
      cart: GET SERVER
        cart: shop.Stock/Count INTERNAL
          cart: shop.Stock/Count CLIENT
            stock: shop.Stock/Count SERVER
""".strip()

CALLER = "00-000000000000000000000000000000aa-00000000000000bb-01"


@pytest.mark.shared_workers
@pytest.mark.parametrize("receiving", [http_receiver, grpc_receiver], ids=["otlp-http", "otlp-grpc"])
@pytest.mark.parametrize("called", [False, True], ids=["root", "within-a-trace"])
def test_one_connected_tree(receiving: Any, called: bool) -> None:
    seen = Seen()
    headers = {"x-request-id": "12345678-0000-4000-8000-000000000000", "baggage": "user=me"}
    if called:
        headers["traceparent"] = CALLER
    with receiving() as receiver:
        with stock(receiver, seen) as third, cart(receiver, seen, third) as second:
            with front(receiver, second) as url, httpx.Client() as outside:
                response = outside.get(f"{url}/checkout/7", headers=headers)
        assert (response.status_code, response.text) == (200, "3 left")
        assert receiver.tree() == TREE
        root = receiver.ordered()[0]
        if called:
            assert (root.trace_id[-2:], root.parent_id[-2:]) == ("aa", "bb")
        else:
            assert not root.parent_id.strip("0")
        sent = [span for span in receiver.ordered() if span.kind == "CLIENT"]
        assert [span.attributes.get("http.request.resend_count") for span in sent] == [None, 1, None]
        assert sent[2].attributes["server.address"] == "stock"
        assert sent[2].attributes["network.peer.address"] == "127.0.0.1"
    assert seen.baggage == [{"user": "me"}]
    assert seen.request_ids == [headers["x-request-id"]]

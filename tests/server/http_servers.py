"""Real servers in this process: uvicorn (h11, httptools), hypercorn, werkzeug, each with an application that says who calls."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import hypercorn.asyncio
import uvicorn
import werkzeug.serving

import meshlib
from meshlib.server import asgi, wsgi
from meshlib.server.hypercorn import MeshConfig
from meshlib.server.inbound import Inbound
from meshlib.server.uvicorn import options

__all__ = ["ASGI", "SERVERS", "serving"]


def told(scheme: str, xfcc: str | None, path: str) -> bytes:
    """What the application answers."""
    peer = meshlib.current_peer()
    return json.dumps(
        {
            "id": None if peer.spiffe_id is None else str(peer.spiffe_id),
            "tls": peer.tls,
            "address": peer.address,
            "forwarded": [element.uri for element in peer.forwarded],
            "scheme": scheme,
            "xfcc": xfcc,
            "path": path,
        }
    ).encode()


async def asgi_app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    while (await receive()).get("more_body", False):
        pass
    headers = {name.decode(): value.decode() for name, value in scope["headers"]}
    body = told(scope["scheme"], headers.get("x-forwarded-client-cert"), scope["path"])
    length = str(len(body)).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", length)]})
    await send({"type": "http.response.body", "body": body})


def wsgi_app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "application/json")])
    if environ["PATH_INFO"] == "/slow":
        return slow(environ)
    return [
        told(environ["wsgi.url_scheme"], environ.get("HTTP_X_FORWARDED_CLIENT_CERT"), environ["PATH_INFO"])
    ]


def slow(environ: dict[str, Any]) -> Iterator[bytes]:
    yield b""
    yield told(environ["wsgi.url_scheme"], None, environ["PATH_INFO"])


@contextlib.contextmanager
def with_uvicorn(inbound: Inbound, http: Any = "h11") -> Iterator[int]:
    listening = socket.create_server(("127.0.0.1", 0))
    app: Any = asgi.MeshMiddleware(asgi_app, inbound)
    config = uvicorn.Config(app, http=http, log_level="critical", ws="none", **options(inbound))
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
def with_hypercorn(inbound: Inbound) -> Iterator[int]:
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    config = MeshConfig(inbound)
    config.bind = [f"fd://{listening.detach()}"]
    config.graceful_timeout = 1.0
    loop = asyncio.new_event_loop()
    over = asyncio.Event()
    app: Any = asgi.MeshMiddleware(asgi_app, inbound)

    def run() -> None:
        loop.run_until_complete(hypercorn.asyncio.serve(app, config, shutdown_trigger=over.wait))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield port
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join()
        loop.close()


@contextlib.contextmanager
def with_werkzeug(inbound: Inbound) -> Iterator[int]:
    app: Any = wsgi.MeshMiddleware(wsgi_app, inbound)
    server = werkzeug.serving.make_server(
        "127.0.0.1", 0, app, threaded=True, ssl_context=inbound.context(), request_handler=_Quiet
    )
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server.port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Quiet(werkzeug.serving.WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log(self, *args: Any) -> None:
        pass


Serve = Callable[[Inbound], contextlib.AbstractContextManager[int]]

ASGI: dict[str, Serve] = {
    "uvicorn-h11": with_uvicorn,
    "uvicorn-httptools": lambda inbound: with_uvicorn(inbound, "httptools"),
    "hypercorn": with_hypercorn,
}
SERVERS: dict[str, Serve] = {**ASGI, "werkzeug": with_werkzeug}


def serving(kind: str, inbound: Inbound) -> contextlib.AbstractContextManager[int]:
    inbound.wait_ready()  # a handshake before there is a certificate fails
    return SERVERS[kind](inbound)

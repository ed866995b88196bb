"""ASGI applications (Starlette, FastAPI, Quart, Django) on uvicorn, hypercorn or any other asyncio server.

    app = MeshMiddleware(app, Inbound(mesh, rbac="rbac.yaml"))

Handlers read `meshlib.current_peer()`. Whoever may not pass gets Envoy's answer: 403 `RBAC: access denied`, or, for gRPC over
ASGI, PERMISSION_DENIED. An HTTP/1.1 connection that was made with an earlier certificate ends with its next response. Where the
Listener asks for normal paths, the application sees those.

What the application calls through meshlib inherits the deadline and the request id of the request; see `meshlib.server.visit`.

The peer is known where the server's TLS context is one of `meshlib.server` (`uvicorn.options`,
`hypercorn.MeshConfig`, `Inbound.context`).
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any
from urllib.parse import quote, unquote

from meshlib.engine.headers import REQUEST_ID
from meshlib.engine.replies import grpc_form
from meshlib.routing.request import Headers
from meshlib.server.arrival import UNESCAPED, Arrival, is_grpc
from meshlib.server.asgi_watch import App, Receive, Scope, Send, Watch
from meshlib.server.inbound import Inbound
from meshlib.server.tls import CONNECTION, UNKNOWN, Connection
from meshlib.server.visit import Visit
from meshlib.server.xfcc import HEADER

__all__ = ["MeshMiddleware"]

_XFCC = HEADER.encode()
_REQUEST_ID = REQUEST_ID.encode()
_VERSIONS = {"2.0": "2", "3.0": "3"}
_REFUSED = 1008
"""WebSocket close code: policy violation (RFC 6455, section 7.4.1)."""


class MeshMiddleware:
    """Around an ASGI application. inbound None: plaintext or TLS, only who is calling, and what its calls inherit.

    Tasks that the application starts, also in the background, inherit the context (contextvars) as it is then.
    """

    def __init__(self, app: App, inbound: Inbound | None = None) -> None:
        self._app = app
        self._inbound = inbound or Inbound()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        version = str(scope.get("http_version", "1.1"))
        connection = CONNECTION.get()
        arrival = _arrival(scope)
        visit = self._inbound.receive(arrival, f"HTTP/{_VERSIONS.get(version, version)}")
        tokens = visit.enter()
        try:
            if visit.admission.refusal is not None:
                await _refuse(scope, receive, send, visit, arrival.headers)
                return
            if connection.outdated and kind == "http" and version.startswith("1"):
                send = _closing(send)
            await self._run(_shown(scope, visit, connection), receive, send, visit)
        finally:
            visit.leave(tokens)

    async def _run(self, scope: Scope, receive: Receive, send: Send, visit: Visit) -> None:
        if not visit.is_watched:
            await self._app(scope, receive, send)
            return
        watch = Watch(visit, scope, receive, send)
        try:
            await self._app(scope, watch.receive, watch.send)
        except BaseException as error:
            watch.failed(error)
            raise
        watch.returned()


def _shown(scope: Scope, visit: Visit, connection: Connection) -> Scope:
    """What the application sees."""
    admission = visit.admission
    shown = dict(scope)
    if connection is not UNKNOWN:  # a PERMISSIVE server takes every connection for an encrypted one
        shown["scheme"] = _scheme(shown["type"], connection.tls)
    shown["headers"] = _with_xfcc(shown["headers"], admission.xfcc)
    if (identity := visit.context.request_id) is not None:
        shown["headers"] = _with_request_id(shown["headers"], identity)
    if admission.path is not None:
        _show_path(shown, admission.path)
    return shown


def _arrival(scope: Scope) -> Arrival:
    connection = CONNECTION.get()
    authority = ""
    headers: Headers = []
    for name, value in scope["headers"]:
        key = name.decode("latin-1").lower()
        if key in ("host", ":authority"):
            authority = authority or value.decode("latin-1")
        elif not key.startswith(":"):
            headers.append((key, value.decode("latin-1")))
    client, server = scope.get("client") or (None, 0), scope.get("server") or (None, 0)
    on_unix_socket = server[0] is not None and server[1] is None
    encrypted = connection.tls if connection is not UNKNOWN else scope.get("scheme") in ("https", "wss")
    return Arrival(
        method=scope.get("method", "GET"),
        scheme="https" if encrypted else "http",
        authority=authority,
        path=_path(scope),
        headers=headers,
        connection=connection,
        remote="" if on_unix_socket else client[0],
        local="" if on_unix_socket else server[0],
        local_port=server[1],
        remote_port=0 if on_unix_socket else int(client[1] or 0),
    )


def _path(scope: Scope) -> str:
    """As it was sent; a server that does not say that is believed to have decoded it."""
    raw = scope.get("raw_path")
    path = quote(scope["path"], safe=UNESCAPED) if raw is None else raw.decode("latin-1")
    query = scope.get("query_string", b"")
    path = path.partition("?")[0]
    return f"{path}?{query.decode('latin-1')}" if query else path


def _show_path(scope: Scope, path: str) -> None:
    bare = path.partition("?")[0].encode("latin-1")
    scope["path"] = unquote(bare)
    if scope.get("raw_path") is not None:
        scope["raw_path"] = bare


def _scheme(kind: str, encrypted: bool) -> str:
    return ("https" if encrypted else "http") if kind == "http" else "wss" if encrypted else "ws"


def _with_xfcc(headers: Any, value: str | None) -> list[tuple[bytes, bytes]]:
    """The headers with x-forwarded-client-cert as the application may see it."""
    kept = [pair for pair in headers if pair[0].lower() != _XFCC]
    if value is not None:
        kept.append((_XFCC, value.encode("latin-1", "replace")))
    return kept


def _with_request_id(headers: list[tuple[bytes, bytes]], value: str) -> list[tuple[bytes, bytes]]:
    pair = (_REQUEST_ID, value.encode("latin-1", "replace"))
    return headers if pair in headers else [*(each for each in headers if each[0] != _REQUEST_ID), pair]


def _closing(send: Send) -> Send:
    """End the connection with the response: the next one begins with today's certificates."""

    async def closing(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            kept = [pair for pair in message.get("headers", ()) if pair[0].lower() != b"connection"]
            message = {**message, "headers": [*kept, (b"connection", b"close")]}
        await send(message)

    return closing


async def _refuse(scope: Scope, receive: Receive, send: Send, visit: Visit, headers: Headers) -> None:
    reply = visit.admission.refusal
    assert reply is not None
    prefix = "http.response"
    if scope["type"] == "websocket":
        await receive()  # websocket.connect
        if "websocket.http.response" not in (scope.get("extensions") or {}):
            visit.refused()
            await send({"type": "websocket.close", "code": _REFUSED})
            return
        prefix = "websocket.http.response"
    elif is_grpc(headers):
        reply = grpc_form(reply)
        if visit.record is not None:
            visit.record.status, visit.record.response_headers = reply.status, list(reply.headers)
            visit.record.grpc_status = dict(reply.headers)["grpc-status"]
    visit.refused()
    echoed = [] if visit.echoed is None else [(REQUEST_ID, visit.echoed)]
    pairs = [(name.encode(), value.encode("latin-1", "replace")) for name, value in (*reply.headers, *echoed)]
    await send({"type": f"{prefix}.start", "status": reply.status, "headers": pairs})
    await send({"type": f"{prefix}.body", "body": reply.body})

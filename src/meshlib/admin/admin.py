"""The admin of a Mesh as an application: ASGI, WSGI, or on a server of its own.

    app = mesh.admin()                           # mount it: Starlette, Flask's DispatcherMiddleware, ...
    with mesh.admin().serve("127.0.0.1:15000"):  # or let it listen by itself
        ...

Whoever may ask it sees the whole configuration, so it answers this machine only, by a name of this machine (so that no page of
another site can have a browser ask: DNS rebinding), unless it is told otherwise. What changes something needs the token.
"""

from __future__ import annotations

import asyncio
import hmac
import os
from collections.abc import Awaitable, Callable, Iterable, Iterator, MutableMapping
from contextlib import suppress
from http import HTTPStatus
from types import TracebackType
from typing import TYPE_CHECKING, Any

from meshlib.admin.handler import Handler
from meshlib.admin.http import Live, Reply, Request, text_reply
from meshlib.admin.server import BEAT, AdminServer, is_loopback, listen_tcp

if TYPE_CHECKING:
    from meshlib.mesh import Mesh

__all__ = ["TOKEN_VARIABLE", "Admin", "Serving"]

TOKEN_VARIABLE = "MESHLIB_ADMIN_TOKEN"  # noqa: S105 - the name of a variable

_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
_LOOK = 0.1
"""Seconds between two looks for more of an answer that goes on, on an event loop."""

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
StartResponse = Callable[..., object]


class Admin:
    """See the module's text.

    token: what `Authorization: Bearer TOKEN` must say for requests that change something; None: MESHLIB_ADMIN_TOKEN, and without
    that they are refused. allow_remote: answer other machines too; then whoever mounts it has to see to who they are. hosts:
    names (of the Host header, without port) under which it may be asked besides those of this machine; with allow_remote and
    none given, any.
    """

    def __init__(
        self, mesh: Mesh, *, token: str | None = None, allow_remote: bool = False, hosts: Iterable[str] = ()
    ) -> None:
        mesh.remember()
        self._handler = Handler(mesh)
        self._token = token if token is not None else os.environ.get(TOKEN_VARIABLE)
        self._allow_remote = allow_remote
        self._hosts = frozenset(host.lower() for host in hosts)

    @property
    def handler(self) -> Handler:
        """What answers, without a look at who asks."""
        return self._handler

    def handle(self, request: Request) -> Reply:
        """Pure but for what it looks at. Refuses what is not allowed to ask."""
        refusal = self._refusal(request)
        return self._handler.handle(request) if refusal is None else refusal

    def _refusal(self, request: Request) -> Reply | None:
        if not request.trusted:
            if not self._allow_remote and (
                not request.local or "x-forwarded-for" in request.headers or "forwarded" in request.headers
            ):
                return text_reply("the admin answers this machine only\n", 403)
            name = _without_port(request.headers.get("host", ""))
            anything = self._allow_remote and not self._hosts
            if not anything and name not in _NAMES and name not in self._hosts:
                return text_reply("the admin is not known by this Host\n", 403)
            site, mode = request.headers.get("sec-fetch-site"), request.headers.get("sec-fetch-mode")
            if site in ("cross-site", "same-site") and mode != "navigate":
                return text_reply("the admin answers no other site\n", 403)
        if request.method in ("GET", "HEAD"):
            return None
        given = request.headers.get("authorization", "")
        if not self._token:
            return text_reply(f"changes need a token, and none is set ({TOKEN_VARIABLE})\n", 403)
        if not hmac.compare_digest(given.encode(), f"Bearer {self._token}".encode()):
            return text_reply("changes need the token\n", 401, ("www-authenticate", "Bearer"))
        return None

    # --- on a server of its own --------------------------------------------------------------------------------------

    def serve(self, listen: str = "127.0.0.1:15000") -> Serving:
        """Listen from now on. listen: `host:port`, port 0 for a free one.

        Raises:
            ConfigError: it is no address, or not one of loopback without allow_remote. OSError: it can't be bound.
        """
        return Serving(AdminServer(self.handle, [listen_tcp(listen, allow_remote=self._allow_remote)]))

    # --- as an application -------------------------------------------------------------------------------------------

    def __call__(self, *arguments: Any) -> Any:
        """WSGI with two arguments, ASGI with three (or one, as ASGI 2 has it)."""
        if len(arguments) == 2:
            return self.wsgi(*arguments)
        if len(arguments) == 1:
            return lambda receive, send: self.asgi(arguments[0], receive, send)
        return self.asgi(*arguments)

    def wsgi(self, environ: MutableMapping[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        """PEP 3333."""
        headers = {
            name[5:].replace("_", "-").lower(): str(value)
            for name, value in environ.items()
            if name.startswith("HTTP_")
        }
        reply = self._asked(
            str(environ.get("REQUEST_METHOD", "GET")),
            str(environ.get("PATH_INFO", "")).encode("latin-1", "replace").decode("utf-8", "replace"),
            str(environ.get("QUERY_STRING", "")),
            headers,
            str(environ.get("REMOTE_ADDR", "")),
        )
        phrase = HTTPStatus(reply.status).phrase
        start_response(f"{reply.status} {phrase}", reply.all_headers())
        if environ.get("REQUEST_METHOD") == "HEAD":
            _close(reply)
            return []
        return [reply.body] if isinstance(reply.body, bytes) else _Pieces(reply.body)

    async def asgi(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI 3: http, and lifespan, which has nothing to do."""
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        if scope["type"] != "http":
            raise RuntimeError(f"the admin does not speak {scope['type']}")
        path = str(scope["path"]).removeprefix(str(scope.get("root_path", "")).rstrip("/"))
        client = scope.get("client")
        reply = await asyncio.to_thread(
            self._asked,
            scope["method"],
            path,
            scope.get("query_string", b"").decode("latin-1"),
            {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]},
            "" if client is None else str(client[0]),
        )
        start = {
            "type": "http.response.start",
            "status": reply.status,
            "headers": [
                (name.encode(), value.encode("latin-1", "replace")) for name, value in reply.all_headers()
            ],
        }
        await send(start)
        if isinstance(reply.body, bytes) or scope["method"] == "HEAD":
            body = reply.body if isinstance(reply.body, bytes) and scope["method"] != "HEAD" else b""
            _close(reply)
            await send({"type": "http.response.body", "body": body})
            return
        await _stream(reply.body, receive, send)

    def _asked(self, method: str, path: str, query: str, headers: dict[str, str], remote: str) -> Reply:
        try:
            parameters = Request.parameters(query)
        except ValueError:
            return text_reply("too many parameters\n", 400)
        # No address: a Unix socket, whose server the application has chosen.
        local = not remote or is_loopback(remote)
        return self.handle(
            Request(method=method, path=path or "/", query=parameters, headers=headers, local=local)
        )


class Serving:
    """An admin that listens. address: `host:port`; url: for a browser."""

    def __init__(self, server: AdminServer) -> None:
        self._server = server
        self.address = server.addresses[0]
        self.url = f"http://{self.address}"

    def close(self) -> None:
        """Idempotent."""
        self._server.close()

    def __enter__(self) -> Serving:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class _Pieces:
    """A body that goes on, for WSGI."""

    def __init__(self, body: Live) -> None:
        self._body = body

    def __iter__(self) -> Iterator[bytes]:
        while (data := self._body.take()) is not None:
            if not data:
                self._body.wait(BEAT)
                data = self._body.take()
                if data is None:
                    return
            yield data or b"\n"

    def close(self) -> None:
        self._body.close()


async def _stream(body: Live, receive: Receive, send: Send) -> None:
    left = asyncio.ensure_future(_until_disconnected(receive))
    beats = 0
    try:
        while not left.done() and (data := body.take()) is not None:
            beats += 1
            if data or beats * _LOOK >= BEAT:
                beats = 0
                await send({"type": "http.response.body", "body": data or b"\n", "more_body": True})
            if not data:
                await asyncio.wait((left,), timeout=_LOOK)
        if not left.done():
            await send({"type": "http.response.body", "body": b""})
    finally:
        body.close()
        left.cancel()
        with suppress(asyncio.CancelledError):
            await left


async def _until_disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


def _close(reply: Reply) -> None:
    if not isinstance(reply.body, bytes):
        reply.body.close()


def _without_port(host: str) -> str:
    host = host.lower()
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0]

"""WSGI applications (Flask, Django, Pyramid) on gunicorn, werkzeug or any other server.

    app.wsgi_app = MeshMiddleware(app.wsgi_app, Inbound(mesh, rbac="rbac.yaml"))

Handlers read `meshlib.current_peer()`. Whoever may not pass gets Envoy's answer: 403 `RBAC: access denied`. Where the
Listener asks for normal paths, the application sees those. The peer is known where the server's TLS context is one of
`meshlib.server` and the server hands out its sockets, as gunicorn and werkzeug do.

What the application calls through meshlib inherits the deadline and the request id of the request; see `meshlib.server.visit`.

WSGI joins headers that stand several times with a comma. A rule sees the joined value and each of its parts, so that a DENY rule
can't be got round by sending a header twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextvars import Context, copy_context
from http import HTTPStatus
from typing import Any, TypeAlias
from urllib.parse import quote, unquote_to_bytes, urlsplit

from meshlib.engine.headers import REQUEST_ID
from meshlib.errors import LocalReply
from meshlib.routing.request import Headers
from meshlib.server.arrival import UNESCAPED, Arrival
from meshlib.server.inbound import Inbound
from meshlib.server.tls import UNKNOWN, Connection, connection_of
from meshlib.server.visit import Visit
from meshlib.server.wsgi_body import Place, Watch, body_of

__all__ = ["MeshMiddleware"]

Environ: TypeAlias = dict[str, Any]
StartResponse: TypeAlias = Callable[..., Any]
App = Callable[[Environ, StartResponse], Iterable[bytes]]

_SOCKETS = ("gunicorn.socket", "werkzeug.socket")
_RAW = ("RAW_URI", "REQUEST_URI")
_XFCC = "HTTP_X_FORWARDED_CLIENT_CERT"
_REQUEST_ID = "HTTP_X_REQUEST_ID"
_PRESERVES = "werkzeug.debug.preserve_context"
"""Flask's test client wants the context variables of the application for its test: they can't be in a copy of the context."""
_WITHOUT_PREFIX = {"CONTENT_TYPE": "content-type", "CONTENT_LENGTH": "content-length"}


class MeshMiddleware:
    """Around a WSGI application. inbound None: only who is calling, and what its calls inherit.

    Each request has a context (contextvars) of its own, in which the application runs, its response is made and closed. Nothing
    that it sets there is seen by the next request of the thread.
    """

    def __init__(self, app: App, inbound: Inbound | None = None) -> None:
        self._app = app
        self._inbound = inbound or Inbound()

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        if _PRESERVES in environ:
            return self._answer(environ, start_response, None)
        context = copy_context()
        return context.run(self._answer, environ, start_response, context)

    def _answer(
        self, environ: Environ, start_response: StartResponse, context: Context | None
    ) -> Iterable[bytes]:
        socket = next((environ[name] for name in _SOCKETS if name in environ), None)
        connection = connection_of(socket)
        arrival = _arrival(environ, socket, connection)
        visit = self._inbound.receive(arrival, environ.get("SERVER_PROTOCOL", "HTTP/1.1"))
        place, refusal = Place(visit, context), visit.admission.refusal
        try:
            if refusal is not None:
                visit.refused()
                return _refuse(start_response, refusal, visit.echoed)
            _show(environ, visit, arrival)
            watch = Watch(visit, environ, start_response) if visit.is_watched else None
            body = self._app(environ, start_response if watch is None else watch.start_response)
            return body_of(body, environ, place, watch)
        except BaseException as error:
            visit.failed(error)
            raise
        finally:
            place.leave()


def _show(environ: Environ, visit: Visit, arrival: Arrival) -> None:
    """What the application sees."""
    admission, connection = visit.admission, arrival.connection
    if connection is not UNKNOWN:  # a PERMISSIVE server takes every connection for an encrypted one
        environ["wsgi.url_scheme"] = "https" if connection.tls else "http"
    environ.pop(_XFCC, None)
    if admission.xfcc is not None:
        environ[_XFCC] = admission.xfcc
    if visit.context.request_id is not None:
        environ[_REQUEST_ID] = visit.context.request_id
    if admission.path is not None:
        _show_path(environ, arrival.path, admission.path)


def _arrival(environ: Environ, socket: Any, connection: Connection) -> Arrival:
    encrypted = connection.tls if connection is not UNKNOWN else environ.get("wsgi.url_scheme") == "https"
    local, local_port = _local(environ, socket)
    return Arrival(
        method=environ["REQUEST_METHOD"],
        scheme="https" if encrypted else "http",
        authority=environ.get("HTTP_HOST", ""),
        path=_path(environ),
        headers=_headers(environ),
        connection=connection,
        remote=environ.get("REMOTE_ADDR"),
        local=local,
        local_port=local_port,
        forwarded_for=environ.get("HTTP_X_FORWARDED_FOR"),
        remote_port=int(port) if (port := str(environ.get("REMOTE_PORT", ""))).isdecimal() else 0,
    )


def _local(environ: Environ, socket: Any) -> tuple[str | None, int | None]:
    if socket is not None:
        try:
            name = socket.getsockname()
        except OSError:  # the caller has gone
            return None, None
        if not isinstance(name, tuple):
            return "", 0
        return str(name[0]), int(name[1])
    port = str(environ.get("SERVER_PORT", ""))
    return None, int(port) if port.isdecimal() else None


def _path(environ: Environ) -> str:
    """As it was sent; a server that does not say that has decoded it."""
    raw = next((environ[name] for name in _RAW if environ.get(name)), None)
    if raw is None:
        decoded = f"{environ.get('SCRIPT_NAME', '')}{environ.get('PATH_INFO', '')}"
        path = quote(decoded or "/", safe=UNESCAPED, encoding="latin-1")
        query = environ.get("QUERY_STRING", "")
        return f"{path}?{query}" if query else path
    if not raw.startswith("/") and "://" in raw:  # absolute-form (RFC 9112, section 3.2.2)
        parts = urlsplit(raw)
        path = parts.path or "/"
        return f"{path}?{parts.query}" if parts.query else path
    return str(raw)


def _show_path(environ: Environ, sent: str, path: str) -> None:
    """Where the application is mounted stays what it is, unless the path leads out of there."""
    mount, whole = environ.get("SCRIPT_NAME", ""), _decoded(path)
    if mount and _below(mount, _decoded(sent)):
        if _below(mount, whole):
            whole = whole[len(mount) :]
        else:
            environ["SCRIPT_NAME"] = ""
    environ["PATH_INFO"] = whole
    for name in _RAW:
        if environ.get(name):
            environ[name] = path


def _below(mount: str, path: str) -> bool:
    return path == mount or path.startswith(f"{mount}/")


def _decoded(path: str) -> str:
    """Without the query, in the form that WSGI has for text."""
    return unquote_to_bytes(path.partition("?")[0].encode("latin-1")).decode("latin-1")


def _headers(environ: Environ) -> Headers:
    found: Headers = []
    for key, value in environ.items():
        if key.startswith("HTTP_") and key != "HTTP_HOST":
            name = key[5:].replace("_", "-").lower()
        elif key in _WITHOUT_PREFIX and value:
            name = _WITHOUT_PREFIX[key]
        else:
            continue
        found.append((name, value))
        if "," in value and key != _XFCC:
            found.extend((name, part.strip()) for part in value.split(","))
    return found


def _refuse(start_response: StartResponse, reply: LocalReply, identity: str | None) -> list[bytes]:
    phrase = HTTPStatus(reply.status).phrase
    echoed = [] if identity is None else [(REQUEST_ID, identity)]
    start_response(f"{reply.status} {phrase}", [*reply.headers, *echoed])
    return [reply.body]

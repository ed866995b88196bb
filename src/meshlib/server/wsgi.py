"""WSGI applications (Flask, Django, Pyramid) on gunicorn, werkzeug or any other server.

    app.wsgi_app = MeshMiddleware(app.wsgi_app, Inbound(mesh, rbac="rbac.yaml"))

Handlers read `meshlib.current_peer()`. Whoever may not pass gets Envoy's answer: 403 `RBAC: access denied`. Where the
Listener asks for normal paths, the application sees those. The peer is known where the server's TLS context is one of
`meshlib.server` and the server hands out its sockets, as gunicorn and werkzeug do.

WSGI joins headers that stand several times with a comma. A rule sees the joined value and each of its parts, so that a DENY rule
can't be got round by sending a header twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from http import HTTPStatus
from typing import Any, TypeAlias
from urllib.parse import quote, unquote_to_bytes, urlsplit

from meshlib.errors import LocalReply
from meshlib.routing.request import Headers
from meshlib.server.arrival import UNESCAPED, Arrival
from meshlib.server.inbound import Inbound
from meshlib.server.peer import CURRENT, NOBODY
from meshlib.server.tls import UNKNOWN, Connection, connection_of

__all__ = ["MeshMiddleware"]

Environ: TypeAlias = dict[str, Any]
StartResponse: TypeAlias = Callable[..., Any]
App = Callable[[Environ, StartResponse], Iterable[bytes]]

_SOCKETS = ("gunicorn.socket", "werkzeug.socket")
_RAW = ("RAW_URI", "REQUEST_URI")
_XFCC = "HTTP_X_FORWARDED_CLIENT_CERT"
_WITHOUT_PREFIX = {"CONTENT_TYPE": "content-type", "CONTENT_LENGTH": "content-length"}


class MeshMiddleware:
    """Around a WSGI application. inbound None: only who is calling."""

    def __init__(self, app: App, inbound: Inbound | None = None) -> None:
        self._app = app
        self._inbound = inbound or Inbound()

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        socket = next((environ[name] for name in _SOCKETS if name in environ), None)
        connection = connection_of(socket)
        arrival = _arrival(environ, socket, connection)
        admission = self._inbound.admit(arrival)
        if admission.refusal is not None:
            return _refuse(start_response, admission.refusal)
        if connection is not UNKNOWN:  # a PERMISSIVE server takes every connection for an encrypted one
            environ["wsgi.url_scheme"] = "https" if connection.tls else "http"
        environ.pop(_XFCC, None)
        if admission.xfcc is not None:
            environ[_XFCC] = admission.xfcc
        if admission.path is not None:
            _show_path(environ, arrival.path, admission.path)
        CURRENT.set(admission.peer)
        try:
            body = self._app(environ, start_response)
        except BaseException:
            CURRENT.set(NOBODY)
            raise
        if isinstance(body, (list, tuple)) or _is_file(body, environ):
            CURRENT.set(NOBODY)  # the application's code is done
            return body
        return _Body(body)


class _Body:
    """A response that is still being made: its code goes on to see who is calling, until it is closed."""

    def __init__(self, body: Iterable[bytes]) -> None:
        self._body = body

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._body)

    def close(self) -> None:
        try:
            close = getattr(self._body, "close", None)
            if close is not None:
                close()
        finally:
            CURRENT.set(NOBODY)


def _is_file(body: object, environ: Environ) -> bool:
    wrapper = environ.get("wsgi.file_wrapper")
    return isinstance(wrapper, type) and isinstance(body, wrapper)


def _arrival(environ: Environ, socket: Any, connection: Connection) -> Arrival:
    encrypted = connection.tls if connection is not UNKNOWN else environ.get("wsgi.url_scheme") == "https"
    local, port = _local(environ, socket)
    return Arrival(
        method=environ["REQUEST_METHOD"],
        scheme="https" if encrypted else "http",
        authority=environ.get("HTTP_HOST", ""),
        path=_path(environ),
        headers=_headers(environ),
        connection=connection,
        remote=environ.get("REMOTE_ADDR"),
        local=local,
        local_port=port,
        forwarded_for=environ.get("HTTP_X_FORWARDED_FOR"),
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


def _refuse(start_response: StartResponse, reply: LocalReply) -> list[bytes]:
    phrase = HTTPStatus(reply.status).phrase
    start_response(f"{reply.status} {phrase}", list(reply.headers))
    return [reply.body]

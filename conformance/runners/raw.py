"""A plain HTTP/1.1 client: sends a request as it is written and keeps what came of a body that was cut."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from typing import TYPE_CHECKING

from conformance.outcome import Outcome
from conformance.upstream.record import REQUEST_ID

if TYPE_CHECKING:
    from conformance.outcome import Sent

TIMEOUT = 20.0
_CHUNK = 1024


class RawClient:
    """Sends to one address. Connections are kept only where ``keep_alive`` says so, one for each thread."""

    def __init__(self, address: tuple[str, int], *, keep_alive: bool = False) -> None:
        self._address = address
        self._keep_alive = keep_alive
        self._local = threading.local()
        self._open: list[http.client.HTTPConnection] = []

    def send(self, sent: Sent) -> Outcome:
        """Send and read to the end. ``status`` 0 if the connection ended without a response."""
        connection = self._connection()
        start = time.monotonic()
        try:
            _put(connection, sent)
            response = connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            self._drop(connection)
            return Outcome(id=sent.id, complete=False, error=repr(error), elapsed=time.monotonic() - start)
        body, complete = _read(response)
        elapsed = time.monotonic() - start
        if not self._keep_alive or not complete or response.will_close:
            self._drop(connection)
        return Outcome(
            id=sent.id,
            status=response.status,
            headers=tuple((name.lower(), value) for name, value in response.getheaders()),
            body=body,
            complete=complete,
            elapsed=elapsed,
        )

    def close(self) -> None:
        """Close what is still open."""
        for connection in self._open:
            connection.close()
        self._open.clear()

    def _connection(self) -> http.client.HTTPConnection:
        kept: http.client.HTTPConnection | None = getattr(self._local, "connection", None)
        if kept is not None:
            return kept
        connection = http.client.HTTPConnection(*self._address, timeout=TIMEOUT)
        connection.connect()
        assert connection.sock is not None
        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._local.connection = connection
        self._open.append(connection)
        return connection

    def _drop(self, connection: http.client.HTTPConnection) -> None:
        connection.close()
        self._local.connection = None
        if connection in self._open:
            self._open.remove(connection)


def _put(connection: http.client.HTTPConnection, sent: Sent) -> None:
    request = sent.request
    lines = [f"{request.method} {request.path} HTTP/1.1", f"Host: {request.host}", f"{REQUEST_ID}: {sent.id}"]
    lines += [f"{name}: {value}" for name, value in request.headers]
    body = request.body
    if body is not None:
        lines.append("Transfer-Encoding: chunked" if request.chunked else f"Content-Length: {len(body)}")
    payload = b"" if body is None else body
    if request.chunked and body is not None:
        payload = (b"%x\r\n%s\r\n" % (len(body), body) if body else b"") + b"0\r\n\r\n"
    # http.client refuses or rewrites some request lines that a case may want; its parser is what we are after.
    connection._HTTPConnection__state = "Request-sent"  # type: ignore[attr-defined]
    connection._method = request.method  # type: ignore[attr-defined]
    connection.send("\r\n".join([*lines, "", ""]).encode("latin-1") + payload)


def _read(response: http.client.HTTPResponse) -> tuple[bytes, bool]:
    parts = []
    try:
        while data := response.read1(_CHUNK):
            parts.append(data)
    except (OSError, http.client.HTTPException) as error:
        partial = getattr(error, "partial", b"")
        return b"".join(parts) + partial, False
    complete = not response.length
    response.close()
    return b"".join(parts), complete

"""A small HTTP server for the admin: of its own, so that it is there whatever the application runs on, in whatever state.

One thread waits for connections; each request has a thread of its own, of which there are few. A connection serves one request.
Everything has a time limit and a size limit, and a client that keeps to neither only loses its own connection. TCP is bound to
loopback addresses unless it is said otherwise.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import selectors
import socket
import threading
from collections.abc import Callable, Iterable
from http import HTTPStatus
from urllib.parse import unquote

from meshlib.admin.http import Reply, Request, text_reply
from meshlib.errors import ConfigError
from meshlib.runtime.clock import SystemClock

__all__ = ["AdminServer", "is_loopback", "listen_tcp", "split_address"]

logger = logging.getLogger("meshlib.admin")

MOST_CONNECTIONS = 32
"""At once. More are told to come back."""

HEAD_LIMIT = 16 * 1024
BODY_LIMIT = 64 * 1024
READ_TIMEOUT = 5.0
"""Seconds for the whole request."""

WRITE_TIMEOUT = 20.0
"""Seconds for the whole answer; of one that goes on, for each piece."""

CLOSE_TIMEOUT = 2.0

REST = 0.2
"""Seconds before another connection is tried to accept when one could not be."""

BEAT = 1.0
"""Seconds after which an answer that goes on sends an empty line, so that a client that has left is noticed."""

Handle = Callable[[Request], Reply]

_monotonic = SystemClock.monotonic


class AdminServer:
    """Serves `handle` on these listening sockets, which it owns from now on, until `close`."""

    def __init__(self, handle: Handle, listeners: Iterable[socket.socket]) -> None:
        self._handle = handle
        self._listeners = list(listeners)
        self._slots = threading.BoundedSemaphore(MOST_CONNECTIONS)
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._closing = False
        self._rest = threading.Event()
        self._waker, self._woken = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._woken, selectors.EVENT_READ)
        for listener in self._listeners:
            listener.setblocking(False)
            self._selector.register(listener, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._accept_all, name="meshlib-admin", daemon=True)
        self._thread.start()

    @property
    def addresses(self) -> list[str]:
        """`host:port` of each TCP listener."""
        return [
            _shown(listener.getsockname())
            for listener in self._listeners
            if listener.family in (socket.AF_INET, socket.AF_INET6)
        ]

    def close(self) -> None:
        """Stop, close every connection and wait a moment for what serves them. Idempotent."""
        if self._closing:
            return
        self._closing = True
        self._rest.set()
        self._waker.close()
        if self._thread is not threading.current_thread():
            self._thread.join(CLOSE_TIMEOUT)
        self._woken.close()
        for listener in self._listeners:
            listener.close()
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        due = _monotonic() + CLOSE_TIMEOUT
        for _ in range(MOST_CONNECTIONS):
            if not self._slots.acquire(timeout=max(due - _monotonic(), 0.0)):
                break

    def forget(self) -> None:
        """In a forked child: the threads are the parent's; let go of the sockets without touching what they are connected to."""
        self._closing = True
        self._selector.close()
        for each in (self._waker, self._woken, *self._listeners, *self._connections):
            each.close()

    # --- connections -------------------------------------------------------------------------------------------------

    def _accept_all(self) -> None:
        with self._selector:
            while not self._closing:
                for key, _ in self._selector.select():
                    if isinstance(key.fileobj, socket.socket) and key.fileobj is not self._woken:
                        self._accept(key.fileobj)

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, peer = listener.accept()
        except (BlockingIOError, ConnectionError):  # the client has left already
            return
        except OSError:  # there is no descriptor free; the client still waits, and would wake us at once
            self._rest.wait(REST)
            return
        unix = listener.family == socket.AF_UNIX
        local = unix or is_loopback(str(peer[0]))
        if not self._slots.acquire(blocking=False):
            with connection:
                connection.setblocking(False)
                with contextlib.suppress(OSError):
                    connection.send(_encode_head(text_reply("too many connections\n", 503)))
            return
        with self._lock:
            self._connections.add(connection)
        thread = threading.Thread(
            target=self._serve, args=(connection, local, unix), name="meshlib-admin-request", daemon=True
        )
        try:
            thread.start()
        except RuntimeError:  # no thread can be made
            self._release(connection)

    def _release(self, connection: socket.socket) -> None:
        with self._lock:
            self._connections.discard(connection)
        connection.close()
        self._slots.release()

    def _serve(self, connection: socket.socket, local: bool, trusted: bool) -> None:
        try:
            connection.settimeout(READ_TIMEOUT)
            try:
                request = _read(connection, local=local, trusted=trusted)
            except _BadRequest as error:
                reply = text_reply(f"{error}\n", error.status)
                request = None
            else:
                if request is None:  # it only looked whether somebody is here
                    return
                reply = self._answer(request)
            self._send(connection, reply, head_only=request is not None and request.method == "HEAD")
        except OSError:
            pass
        finally:
            self._release(connection)

    def _answer(self, request: Request) -> Reply:
        try:
            return self._handle(request)
        except Exception:
            logger.exception("the admin failed to answer %s", request.path)
            return text_reply("something went wrong; the log says what\n", 500)

    def _send(self, connection: socket.socket, reply: Reply, *, head_only: bool) -> None:
        connection.settimeout(WRITE_TIMEOUT)
        connection.sendall(_encode_head(reply))
        body = reply.body
        if isinstance(body, bytes):
            if not head_only:
                connection.sendall(body)
            connection.shutdown(socket.SHUT_WR)
            return
        try:
            while not self._closing and not head_only and (data := body.take()) is not None:
                if not data:
                    body.wait(BEAT)
                    data = body.take()
                    if data is None:
                        break
                connection.sendall(data or b"\n")
        finally:
            body.close()


# --- HTTP/1.1 --------------------------------------------------------------------------------------------------------


class _BadRequest(Exception):
    def __init__(self, text: str, status: int = 400) -> None:
        super().__init__(text)
        self.status = status


def _read(connection: socket.socket, *, local: bool, trusted: bool) -> Request | None:
    """None: the client closed without a word."""
    due = _monotonic() + READ_TIMEOUT
    data = bytearray()
    while (end := data.find(b"\r\n\r\n")) < 0:
        if len(data) > HEAD_LIMIT:
            raise _BadRequest("the request head is too long", 431)
        chunk = _receive(connection, due)
        if not chunk:
            if data:
                raise _BadRequest("the request is cut short")
            return None
        data += chunk
    if end > HEAD_LIMIT:
        raise _BadRequest("the request head is too long", 431)
    request, length = _parse(bytes(data[:end]), local=local, trusted=trusted)
    left = length - (len(data) - end - 4)
    while left > 0:  # nothing is done with a body; it is read so that the answer is
        chunk = _receive(connection, due)
        if not chunk:
            break
        left -= len(chunk)
    return request


def _receive(connection: socket.socket, due: float) -> bytes:
    left = due - _monotonic()
    if left <= 0:
        raise _BadRequest("the request took too long", 408)
    connection.settimeout(left)
    try:
        return connection.recv(65536)
    except TimeoutError:
        raise _BadRequest("the request took too long", 408) from None


def _parse(head: bytes, *, local: bool, trusted: bool) -> tuple[Request, int]:
    """The request, and the length of its body."""
    try:
        text = head.decode("ascii")
    except UnicodeDecodeError:
        raise _BadRequest("the request head is not ASCII") from None
    first, *lines = text.split("\r\n")
    if any(character < " " and character != "\t" for line in (first, *lines) for character in line):
        raise _BadRequest("the request head has control characters")
    parts = first.split(" ")
    if len(parts) != 3 or not parts[0].isalpha() or parts[2] not in ("HTTP/1.1", "HTTP/1.0"):
        raise _BadRequest("not a request of HTTP/1.1")
    method, target, _ = parts
    if not target.startswith("/"):
        raise _BadRequest("the request target must begin with a slash")
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        name = name.lower()
        if not colon or not name or name != name.strip() or name[0] in " \t":
            raise _BadRequest("a header is malformed")
        if name in headers and name in ("host", "content-length", "transfer-encoding", "authorization"):
            raise _BadRequest(f"{name} is given twice")
        headers[name] = value.strip(" \t")
    if "transfer-encoding" in headers:
        raise _BadRequest("transfer-encoding is not supported", 501)
    length = headers.get("content-length", "0")
    if not length.isdigit() or len(length) > 9 or int(length) > BODY_LIMIT:
        raise _BadRequest("the body is too long, or its length malformed", 413)
    path, _, query = target.partition("#")[0].partition("?")
    try:
        parameters = Request.parameters(query)
    except ValueError:
        raise _BadRequest("too many parameters") from None
    request = Request(
        method=method,
        path=unquote(path),
        query=parameters,
        headers=headers,
        local=local,
        trusted=trusted,
    )
    return request, int(length)


def _encode_head(reply: Reply) -> bytes:
    try:
        phrase = HTTPStatus(reply.status).phrase
    except ValueError:
        phrase = ""
    lines = [f"HTTP/1.1 {reply.status} {phrase}"]
    lines += (f"{name}: {value}" for name, value in reply.all_headers())
    lines.append("connection: close")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace")


# --- addresses -------------------------------------------------------------------------------------------------------


def is_loopback(address: str) -> bool:
    """An IP address of this machine alone; also one that IPv6 maps from IPv4."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
        found = found.ipv4_mapped
    return found.is_loopback


def split_address(listen: str) -> tuple[str, int]:
    """`host:port`, `[ip]:port` or `port` (then 127.0.0.1).

    Raises:
        ConfigError: it is none of them.
    """
    host, _, port = listen.rpartition(":")
    if not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise ConfigError(f"{listen!r} is not an address such as 127.0.0.1:15000")
    host = host.removeprefix("[").removesuffix("]")
    return ("127.0.0.1" if host in ("", "localhost") else host), int(port)


def listen_tcp(listen: str, *, allow_remote: bool = False) -> socket.socket:
    """A listening socket. A port of 0 takes a free one.

    Raises:
        ConfigError: it is not an address; not one of loopback, and allow_remote does not say so. OSError: it can't be bound.
    """
    host, port = split_address(listen)
    if not allow_remote and not is_loopback(host):
        raise ConfigError(
            f"the admin listens on loopback addresses only, and {host} is none; say allow_remote=True if others may see it"
        )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(MOST_CONNECTIONS)
    except OSError:
        listener.close()
        raise
    return listener


def _shown(name: tuple[str, int]) -> str:
    return f"[{name[0]}]:{name[1]}" if ":" in name[0] else f"{name[0]}:{name[1]}"

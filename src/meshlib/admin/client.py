"""Asking the admin of a running process: by its Unix socket, or by a URL."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from meshlib.errors import ConfigError, MeshError
from meshlib.runtime.clock import SystemClock

__all__ = ["AdminError", "Answer", "Asker", "Lines", "by_socket", "by_url"]

LARGEST = 256 * 1024 * 1024
"""Bytes; a longer answer is refused."""

_monotonic = SystemClock.monotonic


class AdminError(MeshError):
    """A process could not be asked: it does not answer, not in time, or not as an admin does."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What an admin said. headers: lower-case names."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The body, parsed.

        Raises:
            AdminError: it is not JSON.
        """
        try:
            return json.loads(self.body)
        except ValueError as error:
            raise AdminError(f"the answer is not JSON: {error}") from error


class Asker:
    """One process that can be asked. name: for messages. connect: a new connection, within that many seconds."""

    def __init__(
        self, name: str, connect: Callable[[float], http.client.HTTPConnection], prefix: str = ""
    ) -> None:
        self.name = name
        self._connect = connect
        self._prefix = prefix

    def ask(self, path: str, *, timeout: float = 5.0, headers: Mapping[str, str] | None = None) -> Answer:
        """`GET path`. timeout: seconds for all of it.

        Raises:
            AdminError: there is no complete answer in time.
        """
        due = _monotonic() + timeout
        connection = self._connect(timeout)
        try:
            response, sock = self._begin(connection, path, headers or {})
            body = bytearray()
            while chunk := _read(response, sock, due):
                body += chunk
                if len(body) > LARGEST:
                    raise AdminError(f"{self.name}: the answer to {path} is too long")
            if response.length:
                raise http.client.IncompleteRead(bytes(body), response.length)
            found = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, found, bytes(body))
        except (OSError, http.client.HTTPException) as error:
            raise self.failed(path, error) from error
        finally:
            connection.close()

    def lines(self, path: str, *, timeout: float = 5.0) -> Lines:
        """`GET path` of an answer that goes on and on, line by line, until its end. timeout: seconds until it begins.

        Raises:
            AdminError: the answer is not 200.
        """
        connection = self._connect(timeout)
        try:
            response, sock = self._begin(connection, path, {})
            if response.status != 200:
                text = response.read(2000).decode("utf-8", "replace").strip()
                raise AdminError(f"{self.name}: {response.status} for {path}: {text}")
            sock.settimeout(None)
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise self.failed(path, error) from error
        except BaseException:
            connection.close()
            raise
        return Lines(self, path, response, sock)

    def _begin(
        self, connection: http.client.HTTPConnection, path: str, headers: Mapping[str, str]
    ) -> tuple[http.client.HTTPResponse, socket.socket]:
        connection.request("GET", self._prefix + path, headers={"connection": "close", **headers})
        sock: socket.socket = connection.sock  # from here on the response's own
        return connection.getresponse(), sock

    def failed(self, path: str, error: Exception) -> AdminError:
        """What is raised when there is no answer, or no more of it."""
        reason = str(error) or type(error).__name__
        return AdminError(f"{self.name}: no answer to {path}: {reason}")


class Lines:
    """The lines of an answer that goes on. Iterate once, on one thread; `close` from any."""

    def __init__(
        self, asker: Asker, path: str, response: http.client.HTTPResponse, sock: socket.socket
    ) -> None:
        self._asker = asker
        self._path = path
        self._response = response
        self._socket = sock

    def __iter__(self) -> Iterator[bytes]:
        """Raises: AdminError: the answer breaks off."""
        try:
            while line := self._response.readline():
                yield line
        except (OSError, http.client.HTTPException) as error:
            raise self._asker.failed(self._path, error) from error
        finally:
            self._response.close()

    def close(self) -> None:
        """The iteration ends. Idempotent."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)


def _read(response: http.client.HTTPResponse, sock: socket.socket, due: float) -> bytes:
    left = due - _monotonic()
    if left <= 0:
        raise TimeoutError("timed out")
    if sock.fileno() >= 0:  # not when the response is complete
        sock.settimeout(left)
    return response.read1(65536)


class _SocketConnection(http.client.HTTPConnection):
    def __init__(self, address: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._address = address

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._address)


def by_socket(name: str, address: str) -> Asker:
    """Who listens on this Unix socket."""
    return Asker(name, lambda timeout: _SocketConnection(address, timeout))


def by_url(url: str) -> Asker:
    """The admin at this URL, which may have a path where it is mounted in an application.

    Raises:
        ConfigError: it is not a URL of http or https.
    """
    parts = urlsplit(url)
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if parts.scheme not in ("http", "https") or not host:
        raise ConfigError(f"{url!r} is not a URL such as http://127.0.0.1:15000")

    def connect(timeout: float) -> http.client.HTTPConnection:
        if parts.scheme == "http":
            return http.client.HTTPConnection(host, port, timeout=timeout)
        return http.client.HTTPSConnection(host, port, timeout=timeout, context=ssl.create_default_context())

    return Asker(url, connect, parts.path.rstrip("/"))

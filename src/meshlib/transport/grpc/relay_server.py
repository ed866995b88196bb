"""The relay's socket: a Unix socket in a folder of this user's, where only this process is let in.

It is served by the thread that opens connections, and is there only while something can be asked for.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable
from functools import partial

from meshlib.transport.grpc.relay_ads import AdsConnection, Broken, Find, Rejected
from meshlib.transport.grpc.tunnel_door import process_of
from meshlib.transport.grpc.tunnel_loop import GONE, IN, OUT, opening_loop

__all__ = ["AdsServer"]

_BACKLOG = 16
_PIECE = 64 * 1024


class AdsServer:
    """path: of the socket. find, rejected: see `AdsConnection`. idle: called on the thread after each thing that C-core did."""

    def __init__(self, path: str, find: Find, rejected: Rejected, idle: Callable[[], None]) -> None:
        self.path = path
        self._find = find
        self._rejected = rejected
        self._idle = idle
        self._listening: socket.socket | None = None

    def open(self) -> None:
        """From any thread, one at a time. Raises OSError."""
        if self._listening is not None:
            return
        listening = socket.socket(socket.AF_UNIX)
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path)  # noqa: PTH108 - a str is what bind takes
            listening.bind(self.path)
            listening.listen(_BACKLOG)
            listening.setblocking(False)
        except OSError:
            listening.close()
            raise
        self._listening = listening
        loop = opening_loop()
        loop.submit(lambda: loop.watch(listening, IN, partial(self._admit, listening), _ignore))

    def close(self) -> None:
        """From any thread, one at a time. Idempotent. What C-core has open it closes itself."""
        listening, self._listening = self._listening, None
        if listening is not None:
            opening_loop().submit(partial(_close, listening))

    def _admit(self, listening: socket.socket, _mask: int) -> None:
        while True:
            try:
                caller, _ = listening.accept()
            except OSError:
                return
            if process_of(caller) != os.getpid():
                caller.close()
                continue
            caller.setblocking(False)
            _Connection(caller, AdsConnection(self._find, self._rejected), self._idle)


class _Connection:
    """On the loop's thread."""

    def __init__(self, sock: socket.socket, ads: AdsConnection, idle: Callable[[], None]) -> None:
        self._socket = sock
        self._ads = ads
        self._idle = idle
        self._unsent = b""
        opening_loop().watch(sock, IN, self._serve, self._broken)
        self._speak()

    def _serve(self, mask: int) -> None:
        try:
            if mask & (IN | GONE):
                data = self._socket.recv(_PIECE)
                if not data:
                    self._end()
                    return
                self._ads.receive(data)
        except BlockingIOError:
            pass
        except (OSError, Broken):
            self._end()
            return
        self._speak()
        self._idle()

    def _speak(self) -> None:
        self._unsent += self._ads.take()
        try:
            sent = self._socket.send(self._unsent) if self._unsent else 0
        except BlockingIOError:
            sent = 0
        except OSError:
            self._end()
            return
        self._unsent = self._unsent[sent:]
        opening_loop().change(self._socket, IN | (OUT if self._unsent else 0))

    def _broken(self, _error: Exception) -> None:
        self._end()

    def _end(self) -> None:
        _close(self._socket)
        self._idle()


def _close(sock: socket.socket) -> None:
    opening_loop().forget(sock)
    sock.close()


def _ignore(_error: Exception) -> None:
    """Nothing that a stranger does ends the listening."""

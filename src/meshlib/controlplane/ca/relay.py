"""Unix sockets whose server knows the process at the other end.

grpcio's server can't say who a caller on a Unix socket is. So the sockets that callers see are listened on here: the kernel
names the process that connected (SO_PEERCRED), then bytes are handed on, both ways, to grpcio's own socket, which lies in a
folder that only this user may enter. The connection to it is bound to a fresh name in that folder, grpcio gives that name as the
peer of each call, and `caller` translates it. One thread serves all connections.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import struct
import threading
from pathlib import Path
from urllib.parse import unquote

from meshlib.controlplane.ca.callers import Caller
from meshlib.errors import ConfigError

__all__ = ["Relay"]

_CHUNK = 64 * 1024
_FULL = 256 * 1024
"""Bytes that wait for one side; while there are so many, the other side is not read."""

_CREDENTIALS = struct.Struct("3i")


class _End:
    """One of the two sockets of a relayed connection, and the bytes that wait to go into it."""

    __slots__ = ("ended", "name", "other", "shut", "socket", "waiting")

    def __init__(self, sock: socket.socket, name: str) -> None:
        self.socket = sock
        self.name = name
        self.waiting = bytearray()
        self.ended = False  # it has nothing more to say
        self.shut = False  # nothing more is said to it
        self.other = self


class Relay:
    """Listens on `paths` and hands on to the socket at `target`, whose server is to ask `caller`."""

    def __init__(self, target: Path) -> None:
        """target: its folder must be writable, and by nobody else."""
        self._target = target
        self._callers: dict[str, Caller] = {}
        self._listeners: list[tuple[socket.socket, Path]] = []
        self._selector = selectors.DefaultSelector()
        self._stop, self._stopped = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name="meshlib-ca-relay", daemon=True)
        self._count = 0

    def listen(self, path: Path, *, mode: int) -> None:
        """Take connections at this path from now on; a socket that a dead process left there is replaced.

        Raises:
            ConfigError: somebody listens there, or the path can't be used.
        """
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            _clear(path)
            listener.bind(str(path))
            path.chmod(mode)
            listener.listen(128)
        except OSError as error:
            listener.close()
            raise ConfigError(f"cannot listen on unix:{path}: {error.strerror or error}") from None
        except ConfigError:
            listener.close()
            raise
        listener.setblocking(False)
        self._listeners.append((listener, path))

    def start(self) -> None:
        """Begin to serve what `listen` opened."""
        self._selector.register(self._stopped, selectors.EVENT_READ)
        for listener, _ in self._listeners:
            self._selector.register(listener, selectors.EVENT_READ)
        self._thread.start()

    def close(self) -> None:
        """End every connection and remove the sockets."""
        if self._thread.ident is not None:
            self._stop.send(b"x")
            self._thread.join()
        for listener, path in self._listeners:
            listener.close()
            path.unlink(missing_ok=True)
        self._listeners.clear()
        self._selector.close()
        self._stop.close()
        self._stopped.close()

    def caller(self, peer: str) -> Caller | None:
        """The process behind grpcio's `context.peer()`; None for a connection that did not come through here."""
        return self._callers.get(unquote(peer.removeprefix("unix:")))

    def _run(self) -> None:
        while True:
            for key, events in self._selector.select():
                if key.fileobj is self._stopped:
                    self._close_all()
                    return
                if key.data is None:
                    assert isinstance(key.fileobj, socket.socket)
                    self._accept(key.fileobj)
                elif key.data.socket.fileno() >= 0:  # its other end may just have closed both
                    self._move(key.data, events)

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionError):
            outer, _ = listener.accept()
            self._count += 1
            path = self._target.with_name(f"caller-{self._count}")
            inner = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                self._callers[str(path)] = _credentials(outer)
                inner.bind(str(path))
                path.unlink()  # the socket keeps the name
                inner.connect(str(self._target))
            except OSError:
                outer.close()
                inner.close()
                path.unlink(missing_ok=True)
                self._callers.pop(str(path), None)
                return
            ends = _End(outer, str(path)), _End(inner, str(path))
            for end, other in (ends, ends[::-1]):
                end.other = other
                end.socket.setblocking(False)
                self._selector.register(end.socket, selectors.EVENT_READ, end)

    def _move(self, end: _End, events: int) -> None:
        try:
            if events & selectors.EVENT_READ:
                data = end.socket.recv(_CHUNK)
                end.ended = not data
                end.other.waiting += data
                _flush(end.other)
            if events & selectors.EVENT_WRITE:
                _flush(end)
        except BlockingIOError:
            pass
        except OSError:
            self._close(end)
            return
        if end.shut and end.other.shut:
            self._close(end)
            return
        for each in (end, end.other):
            self._watch(each)

    def _watch(self, end: _End) -> None:
        wanted = 0
        if not end.ended and len(end.other.waiting) < _FULL:
            wanted |= selectors.EVENT_READ
        if end.waiting:
            wanted |= selectors.EVENT_WRITE
        known = end.socket in self._selector.get_map()
        if wanted and known:
            self._selector.modify(end.socket, wanted, end)
        elif wanted:
            self._selector.register(end.socket, wanted, end)
        elif known:
            self._selector.unregister(end.socket)

    def _close(self, end: _End) -> None:
        for each in (end, end.other):
            if each.socket in self._selector.get_map():
                self._selector.unregister(each.socket)
            each.socket.close()
        self._callers.pop(end.name, None)

    def _close_all(self) -> None:
        for key in list(self._selector.get_map().values()):
            if isinstance(key.data, _End) and key.data.socket.fileno() >= 0:
                self._close(key.data)


def _flush(end: _End) -> None:
    """Send what waits, as much as fits; pass the other side's end on after its last byte."""
    while end.waiting:
        try:
            sent = end.socket.send(end.waiting)
        except BlockingIOError:
            return
        del end.waiting[:sent]
    if end.other.ended and not end.shut:
        end.shut = True
        with contextlib.suppress(OSError):  # it has gone already
            end.socket.shutdown(socket.SHUT_WR)


def _credentials(connection: socket.socket) -> Caller:
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:  # not Linux: only our own user may enter the socket's folder
        return Caller(pid=0, uid=os.getuid(), gid=os.getgid())
    pid, uid, gid = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, option, _CREDENTIALS.size))
    return Caller(pid=pid, uid=uid, gid=gid)


def _clear(path: Path) -> None:
    """Remove a socket that nobody listens on any longer."""
    if not path.is_socket():
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            path.unlink(missing_ok=True)
            return
    raise ConfigError(f"cannot listen on unix:{path}: another process does")

"""A door for servers that cannot tell TLS from plaintext themselves (gRPC): PERMISSIVE on one port.

The server listens on two abstract Unix sockets of this process, one with TLS and one without. The front listens on the port,
looks at the first byte of each connection without taking it, and joins the connection to one of the two. Bytes pass as they are:
TLS is ended by the server. One thread serves all connections; what one side does not take is not read from the other (at most
`BUFFER` bytes wait in each direction), and an end of stream is passed on.

The server sees a Unix socket where the caller's address would be, so each connection has a name of its own there, by which
`origin_of` finds the address again.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import selectors
import socket
import threading
from dataclasses import dataclass, field

__all__ = ["BUFFER", "Front", "abstract_name", "origin_of"]

BUFFER = 256 * 1024
"""Bytes that are read at once, and that may wait in each direction."""

BACKLOG = 512
_HANDSHAKE = 0x16
_READ, _WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE
_numbers = itertools.count()
_origins: dict[str, str] = {}


def abstract_name() -> str:
    """A name for a socket of this process, without the leading zero byte, that nobody else can guess."""
    return f"meshlib-{os.getpid()}-{os.urandom(8).hex()}-{next(_numbers)}"


def origin_of(name: str) -> str:
    """The IP address behind a connection of this name; empty for one that no front of this process has made."""
    return _origins.get(name, "")


@dataclass(slots=True, eq=False)
class _Side:
    """One socket of a pair. waiting: what the other side has sent and this one has not taken. ended: it sends no more."""

    socket: socket.socket
    waiting: memoryview = field(default_factory=lambda: memoryview(b""))
    ended: bool = False
    shut: bool = False
    other: _Side | None = None
    name: str = ""


class Front:
    """Listens at once; `close` ends the thread and every connection.

    listening: a bound socket, which the front owns from now on. tls, plaintext: names of the abstract sockets to join with.
    """

    def __init__(self, listening: socket.socket, *, tls: str, plaintext: str) -> None:
        self._listening = listening
        self._tls, self._plaintext = tls, plaintext
        self._selector = selectors.DefaultSelector()
        self._bell, self._rope = socket.socketpair()
        self._sides: set[_Side] = set()
        self._open = True
        listening.setblocking(False)
        listening.listen(BACKLOG)
        self._selector.register(listening, _READ, self._accept)
        self._selector.register(self._bell, _READ, self._stop)
        self._thread = threading.Thread(target=self._run, name="meshlib-front", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._listening.getsockname()[1])

    def close(self) -> None:
        """End all connections. Idempotent."""
        with contextlib.suppress(OSError):
            self._rope.send(b"x")
        self._thread.join()

    def _run(self) -> None:
        try:
            while self._open:
                for key, mask in self._selector.select():
                    if isinstance(key.data, _Side):
                        self._ready(key.data, mask)
                    else:
                        key.data(mask)
        finally:
            for side in list(self._sides):
                self._end(side)
            for each in (self._listening, self._bell, self._rope):
                each.close()
            self._selector.close()

    def _stop(self, mask: int) -> None:
        self._open = False

    def _accept(self, mask: int) -> None:
        while True:
            try:
                made, _ = self._listening.accept()
            except (BlockingIOError, ConnectionError):
                return
            except OSError:  # out of descriptors: others will be free when connections end
                return
            made.setblocking(False)
            with contextlib.suppress(OSError):
                made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            side = _Side(made)
            self._sides.add(side)
            self._selector.register(made, _READ, side)

    def _ready(self, side: _Side, mask: int) -> None:
        if side not in self._sides:  # ended by what happened before it in the same round
            return
        try:
            if side.other is None:
                self._join(side)
                return
            if mask & _WRITE:
                self._flush(side)
            if mask & _READ:
                self._pull(side, side.other)
        except (OSError, ValueError):
            self._end(side)

    def _join(self, side: _Side) -> None:
        """The first byte has come."""
        begin = side.socket.recv(1, socket.MSG_PEEK)
        if not begin:
            self._end(side)
            return
        inner = socket.socket(socket.AF_UNIX)
        other = _Side(inner, other=side, name=abstract_name())
        side.other = other
        self._sides.add(other)
        inner.setblocking(False)
        inner.bind(f"\0{other.name}")
        address = side.socket.getpeername()
        _origins[other.name] = str(address[0])
        inner.connect(f"\0{self._tls if begin[0] == _HANDSHAKE else self._plaintext}")
        self._selector.register(inner, _READ, other)
        self._pull(side, other)

    def _pull(self, side: _Side, other: _Side) -> None:
        try:
            data = side.socket.recv(BUFFER)
        except BlockingIOError:
            return
        if data:
            other.waiting = memoryview(data)
        else:
            side.ended = True
        self._flush(other)

    def _flush(self, side: _Side) -> None:
        """Give the side what waits for it, and read on where nothing waits any more."""
        source = side.other
        assert source is not None
        while side.waiting:
            try:
                side.waiting = side.waiting[side.socket.send(side.waiting) :]
            except BlockingIOError:
                break
        if source.ended and not side.waiting and not side.shut:
            side.shut = True
            side.socket.shutdown(socket.SHUT_WR)
        if side.shut and source.shut:
            self._end(side)
            return
        self._watch(side)
        self._watch(source)

    def _watch(self, side: _Side) -> None:
        assert side.other is not None
        reads = not side.ended and not side.other.waiting
        mask = (_READ if reads else 0) | (_WRITE if side.waiting else 0)
        known = self._selector.get_map().get(side.socket)
        if mask == 0:
            if known is not None:
                self._selector.unregister(side.socket)
        elif known is None:
            self._selector.register(side.socket, mask, side)
        elif known.events != mask:
            self._selector.modify(side.socket, mask, side)

    def _end(self, side: _Side) -> None:
        for each in (side, side.other):
            if each is None or each not in self._sides:
                continue
            self._sides.discard(each)
            _origins.pop(each.name, None)
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(each.socket)
            each.socket.close()

"""What a blocking and an asyncio connection have in common beyond their place in a pool: a socket, and what is known of it."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from meshlib.engine.actions import Start
from meshlib.runtime.ahead import mypyc_attr
from meshlib.state import Way
from meshlib.transport.http.address import socket_address
from meshlib.transport.http.description import Description, describe
from meshlib.transport.http.pool import Pool, PooledConnection, Shelf

if TYPE_CHECKING:
    from meshlib.transport.http.tls import TlsSession

__all__ = ["SocketConnection"]


@mypyc_attr(allow_interpreted_subclasses=True)
class SocketConnection(PooledConnection):
    """_begun, _opened_at, _ready_at: monotonic seconds, of the first SYN, of the end of the TCP handshake, and of that of TLS."""

    __slots__ = ("_begun", "_description", "_opened_at", "_ready_at", "_socket")

    _session: TlsSession | None = None

    def __init__(self, pool: Pool, start: Start, way: Way, shelf: Shelf | None = None) -> None:
        """Raises OSError when there is no socket to be had; the pool has not heard of the connection then."""
        family, _ = socket_address(start.endpoint)
        self._socket = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        super().__init__(pool, start, way, shelf)
        self._description: Description | None = None
        self._begun = self._opened_at = self._ready_at = 0.0

    def describe(self) -> Description:
        """Of an open connection: what access logs show of it."""
        found = self._description
        if found is None:
            found = self._description = describe(
                self._socket, self._session, self._begun, self._opened_at, self._ready_at
            )
        return found

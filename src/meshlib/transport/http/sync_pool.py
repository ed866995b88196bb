"""The connections of blocking code.

What has to happen while no call runs, the exchange of a connection whose certificate was renewed, happens on the thread of
`meshlib.runtime.timers`: it never waits for a peer, but looks at the handshake every few milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from meshlib.engine.actions import Start
from meshlib.policy.failure import FailureKind
from meshlib.runtime.timers import timers
from meshlib.transport.http.failure import TransportFailure, connect_failure
from meshlib.transport.http.h1 import H1Codec
from meshlib.transport.http.h2_single import H2Single
from meshlib.transport.http.pool import Alarm, Pool, PooledConnection
from meshlib.transport.http.secure_sync import SecureSyncConnection
from meshlib.transport.http.sync_connection import SyncConnection

__all__ = ["SyncPool"]

LOOK = 0.005
"""Seconds between two looks at a successor that connects."""


class SyncPool(Pool):
    """Of all threads of a process."""

    def make(self, start: Start, authority: str) -> SyncConnection:
        """A connection the way that leads there now, not connected. Raises OSError when there is no socket to be had.

        authority: what the request is for.
        """
        endpoint = start.endpoint
        way = endpoint.way
        codec = H2Single() if way.multiplexed else H1Codec()
        if way.security is None:
            return SyncConnection(self, start, way, codec)
        shelf = (endpoint, authority) if way.named else endpoint
        return SecureSyncConnection(self, start, way, codec, shelf, authority)

    def later(self, delay: float, task: Callable[[], None]) -> Alarm:
        return timers().later(delay, task)

    def succeed(self, connection: PooledConnection, start: Start) -> None:
        try:
            successor = self.make(start, connection.name)
        except OSError as error:
            self.never_made(start, connect_failure(error))
            return
        self.coming.add(successor)
        try:
            successor.connect()
        except TransportFailure as failure:
            self.given_up(successor, failure.kind)
            return
        self._look(connection, successor, self.monotonic() + start.cluster.connect_timeout)

    def _look(self, connection: PooledConnection, successor: SyncConnection, until: float) -> None:
        """Go on with the handshake as far as it goes at once."""
        if successor.closed:
            return
        try:
            while successor.connecting:
                successor.advance(0.0)
        except TransportFailure as failure:
            self.given_up(successor, failure.kind)
        except TimeoutError:
            if self.monotonic() >= until:
                self.given_up(successor, FailureKind.CONNECT_TIMEOUT)
            else:
                self.later(LOOK, partial(self._look, connection, successor, until))
        else:
            self.replace(connection, successor)

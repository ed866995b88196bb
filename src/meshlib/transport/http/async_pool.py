"""The connections of one event loop: those of HTTP/1.1 as in any pool, those of HTTP/2 shared by many calls."""

from __future__ import annotations

import asyncio

from meshlib.resources.cluster import Cluster
from meshlib.runtime.clock import Clock
from meshlib.state import ClusterState, EndpointState, Permits, Way
from meshlib.transport.http.async_connection import AsyncConnection
from meshlib.transport.http.async_h2 import AsyncH2Connection, H2Lane
from meshlib.transport.http.pool import Pool, Shelf
from meshlib.transport.http.secure_async import SecureConnection, SecureH2Connection

__all__ = ["AsyncPool", "Lane"]

Lane = AsyncConnection | H2Lane
"""What an asyncio attempt uses: an HTTP/1.1 connection, or one stream of an HTTP/2 connection."""


class AsyncPool(Pool):
    """The connections of one event loop: HTTP/1.1 ones when idle, HTTP/2 ones as long as they are open."""

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: Clock) -> None:
        super().__init__(clock)
        self.loop = loop
        self._shared: dict[Shelf, list[AsyncH2Connection]] = {}

    def acquire(self, shelf: Shelf, way: Way) -> Lane | None:
        """A connection that was made this way and can take a request, None when there is none."""
        if way.multiplexed:
            for shared in self._shared.get(shelf, ()):
                if shared.way is way and shared.credit > 0:
                    return H2Lane(shared)
            return None
        connection = self.pop_idle(shelf, way)
        assert connection is None or isinstance(connection, AsyncConnection)
        return connection

    def connect(
        self,
        endpoint: EndpointState,
        cluster: Cluster,
        state: ClusterState,
        permits: Permits,
        authority: str,
        limit: float,
    ) -> Lane:
        """Begin to open a connection the way that leads there now. Raises OSError when there is no socket to be had.

        authority: what the request is for.
        """
        way = endpoint.way
        shelf = (endpoint, authority) if way.named else endpoint
        if way.multiplexed:
            shared_kind = AsyncH2Connection if way.security is None else SecureH2Connection
            shared = shared_kind(self, endpoint, cluster, state, permits, way, shelf, self._freed)
            self._shared.setdefault(shelf, []).append(shared)
            lane = H2Lane(shared)
            lane.connect(limit, authority)
            return lane
        kind = AsyncConnection if way.security is None else SecureConnection
        connection = kind(self, endpoint, cluster, state, permits, way, shelf)
        connection.connect(limit, authority)
        return connection

    def _freed(self, connection: AsyncH2Connection) -> None:
        """A stream of the connection ended, or the connection itself."""
        endpoint = connection.endpoint
        if (
            connection.failure is None
            and connection.way is endpoint.way
            and connection.codec.usable
            and connection.served < connection.max_requests
        ):
            while endpoint.waiters and connection.credit > 0 and connection.shelf is endpoint:
                lane = H2Lane(connection)
                waiter = connection.state.next_waiter(endpoint, self, lane)
                if waiter is None:
                    connection.lanes.discard(lane)
                    break
                waiter.wake()
            if connection.lanes or not (endpoint.departed or endpoint.waiters):
                connection.idle_until = self.monotonic() + connection.idle_timeout
                return
        if connection.failure is not None or not connection.lanes:
            self._remove(connection)
            connection.close()

    def _remove(self, connection: AsyncH2Connection) -> None:
        shared = self._shared.get(connection.shelf, [])
        if connection in shared:
            shared.remove(connection)
        if not shared:
            self._shared.pop(connection.shelf, None)

    def spare(self, endpoint: EndpointState) -> None:
        super().spare(endpoint)
        for connection in self._unused():
            if connection.endpoint is endpoint:
                self._remove(connection)
                connection.close()
                return

    def _unused(self) -> list[AsyncH2Connection]:
        """The HTTP/2 connections that no call uses."""
        return [each for shared in list(self._shared.values()) for each in shared if not each.lanes]

    def sweep(self, now: float) -> None:
        super().sweep(now)
        for connection in self._unused():
            endpoint = connection.endpoint
            over = connection.idle_until <= now or connection.expires <= now
            if over or endpoint.departed or connection.way is not endpoint.way:
                self._remove(connection)
                connection.close()

    def close_idle(self) -> None:
        super().close_idle()
        for connection in self._unused():
            self._remove(connection)
            connection.close()

    def idle_connections(self) -> int:
        return super().idle_connections() + len(self._unused())

    def forget(self) -> None:
        super().forget()
        self._shared = {}

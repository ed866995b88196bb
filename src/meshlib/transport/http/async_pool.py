"""The connections of one event loop: those of HTTP/1.1 as in any pool, those of HTTP/2 shared by many calls."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

from meshlib.engine.actions import Start
from meshlib.policy.failure import FailureKind
from meshlib.runtime.clock import Clock
from meshlib.state import EndpointState, Way
from meshlib.transport.http.async_connection import AsyncConnection
from meshlib.transport.http.async_h2 import AsyncH2Connection, H2Lane
from meshlib.transport.http.failure import connect_failure
from meshlib.transport.http.pool import Alarm, Pool, PooledConnection, Shelf, Successor, no_successor
from meshlib.transport.http.secure_async import SecureConnection, SecureH2Connection

__all__ = ["AsyncPool", "Lane"]

Lane = AsyncConnection | H2Lane
"""What an asyncio attempt uses: an HTTP/1.1 connection, or one stream of an HTTP/2 connection."""


class AsyncPool(Pool):
    """The connections of one event loop: HTTP/1.1 ones when idle, HTTP/2 ones as long as they are open."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, clock: Clock, successor: Successor = no_successor
    ) -> None:
        super().__init__(clock, successor)
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

    def connect(self, start: Start, authority: str, limit: float) -> Lane:
        """Begin to open a connection the way that leads there now. Raises OSError when there is no socket to be had.

        authority: what the request is for.
        """
        connection = self._make(start, authority)
        lane: Lane
        if isinstance(connection, AsyncH2Connection):
            self._share(connection)
            lane = H2Lane(connection)
        else:
            lane = connection
        lane.connect(limit, authority)
        return lane

    def _make(self, start: Start, authority: str) -> AsyncConnection | AsyncH2Connection:
        endpoint = start.endpoint
        way = endpoint.way
        shelf = (endpoint, authority) if way.named else endpoint
        if way.multiplexed:
            shared_kind = AsyncH2Connection if way.security is None else SecureH2Connection
            return shared_kind(self, start, way, shelf, self._freed)
        kind = AsyncConnection if way.security is None else SecureConnection
        return kind(self, start, way, shelf)

    def _share(self, connection: AsyncH2Connection) -> None:
        self._shared.setdefault(connection.shelf, []).append(connection)

    def in_use(self, connection: PooledConnection) -> bool:
        if isinstance(connection, AsyncH2Connection):
            return bool(connection.lanes)
        return super().in_use(connection)

    def later(self, delay: float, task: Callable[[], None]) -> Alarm:
        return self.loop.call_later(delay, task)

    def succeed(self, connection: PooledConnection, start: Start) -> None:
        try:
            successor = self._make(start, connection.name)
        except OSError as error:
            self.never_made(start, connect_failure(error))
            return
        self.coming.add(successor)
        task = successor.connect(start.cluster.connect_timeout, connection.name)
        task.add_done_callback(partial(self._succeeded, connection, successor))

    def _succeeded(
        self, connection: PooledConnection, successor: AsyncConnection | AsyncH2Connection, _task: Any
    ) -> None:
        failure = successor.failure
        if successor.opened and failure is None:
            self.replace(connection, successor)
        else:  # without a failure the event loop ends
            self.given_up(successor, FailureKind.TERMINATED if failure is None else failure.kind)

    def welcome(self, successor: PooledConnection) -> None:
        if isinstance(successor, AsyncH2Connection):
            self._share(successor)
            self._freed(successor)
        else:
            super().welcome(successor)

    def _freed(self, connection: AsyncH2Connection) -> None:
        """A stream of the connection ended, or the connection itself."""
        endpoint = connection.endpoint
        if (
            connection.failure is None
            and connection.way is endpoint.way
            and connection.expires > self.monotonic()
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

    def discard(self, connection: PooledConnection) -> None:
        if not isinstance(connection, AsyncH2Connection):
            super().discard(connection)
        elif not connection.lanes:
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
                self.discard(connection)
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
                self.discard(connection)

    def close_idle(self) -> None:
        super().close_idle()
        for connection in self._unused():
            self.discard(connection)

    def idle_connections(self) -> int:
        return super().idle_connections() + len(self._unused())

    def forget(self) -> None:
        super().forget()
        self._shared = {}

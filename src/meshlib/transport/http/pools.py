"""Which pools a Mesh has: one for blocking code, one for each event loop; all new after a fork.

Every transport of a Mesh shares them, so that two clients share connections. A connection that sits idle in one pool can
keep another pool's calls from opening theirs (`max_connections` counts both): a parked call asks the others to spare one.
"""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any

from meshlib.resources.cluster import Cluster, HttpProtocol
from meshlib.state import ClusterState, EndpointState, Permits
from meshlib.transport.http.async_connection import AsyncConnection
from meshlib.transport.http.async_h2 import AsyncH2Connection, H2Lane
from meshlib.transport.http.pool import Pool

__all__ = ["AsyncPool", "Lane", "PoolSet", "pools_of"]

Lane = AsyncConnection | H2Lane
"""What an asyncio attempt uses: an HTTP/1.1 connection, or one stream of an HTTP/2 connection."""


class AsyncPool(Pool):
    """The connections of one event loop: HTTP/1.1 ones when idle, HTTP/2 ones as long as they are open."""

    def __init__(self, loop: asyncio.AbstractEventLoop, monotonic: Callable[[], float]) -> None:
        super().__init__(monotonic)
        self.loop = loop
        self._shared: dict[EndpointState, list[AsyncH2Connection]] = {}

    def acquire(self, endpoint: EndpointState, protocol: HttpProtocol) -> Lane | None:
        """A connection that can take a request, None when there is none."""
        if protocol is HttpProtocol.HTTP2:
            for shared in self._shared.get(endpoint, ()):
                if shared.credit > 0:
                    return H2Lane(shared)
            return None
        connection = self.pop_idle(endpoint, protocol)
        assert connection is None or isinstance(connection, AsyncConnection)
        return connection

    def connect(
        self, endpoint: EndpointState, cluster: Cluster, state: ClusterState, permits: Permits, limit: float
    ) -> Lane:
        """Begin to open a connection. Raises OSError when there is no socket to be had."""
        if cluster.protocol is HttpProtocol.HTTP2:
            shared = AsyncH2Connection(self, endpoint, cluster, state, permits, self._freed)
            self._shared.setdefault(endpoint, []).append(shared)
            lane = H2Lane(shared)
            lane.connect(limit)
            return lane
        connection = AsyncConnection(self, endpoint, cluster, state, permits)
        connection.connect(limit)
        return connection

    def _freed(self, connection: AsyncH2Connection) -> None:
        """A stream of the connection ended, or the connection itself."""
        endpoint = connection.endpoint
        if (
            connection.failure is None
            and connection.codec.usable
            and connection.served < connection.max_requests
        ):
            while endpoint.waiters and connection.credit > 0:
                lane = H2Lane(connection)
                waiter = connection.state.next_waiter(endpoint, self, lane)
                if waiter is None:
                    connection.lanes.discard(lane)
                    break
                waiter.wake()
            if connection.lanes or not (endpoint.departed or endpoint.waiters):
                connection.idle_until = self._monotonic() + connection.idle_timeout
                return
        if connection.failure is not None or not connection.lanes:
            self._remove(connection)
            connection.close()

    def _remove(self, connection: AsyncH2Connection) -> None:
        shared = self._shared.get(connection.endpoint, [])
        if connection in shared:
            shared.remove(connection)
        if not shared:
            self._shared.pop(connection.endpoint, None)

    def spare(self, endpoint: EndpointState) -> None:
        super().spare(endpoint)
        for connection in list(self._shared.get(endpoint, ())):
            if not connection.lanes:
                self._remove(connection)
                connection.close()
                return

    def sweep(self, now: float) -> None:
        super().sweep(now)
        for endpoint, connections in list(self._shared.items()):
            for connection in list(connections):
                if not connection.lanes and (endpoint.departed or connection.idle_until <= now):
                    self._remove(connection)
                    connection.close()

    def close_idle(self) -> None:
        super().close_idle()
        for connections in list(self._shared.values()):
            for connection in list(connections):
                if not connection.lanes:
                    self._remove(connection)
                    connection.close()

    def idle_connections(self) -> int:
        shared = [connection for connections in self._shared.values() for connection in connections]
        return super().idle_connections() + sum(not connection.lanes for connection in shared)

    def forget(self) -> None:
        super().forget()
        self._shared = {}


class PoolSet:
    """The pools of one Mesh."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._by_loop: dict[int, AsyncPool] = {}
        self._last: AsyncPool | None = None
        self.sync = Pool(monotonic)

    def for_loop(self, loop: asyncio.AbstractEventLoop) -> AsyncPool:
        """The pool of the running loop. Pools of loops that were closed are emptied on the way."""
        last = self._last
        if last is not None and last.loop is loop:
            return last
        pool = self._by_loop.get(id(loop))
        if pool is None or pool.loop is not loop:
            with self._lock:
                for key, other in list(self._by_loop.items()):
                    if other.loop.is_closed():
                        del self._by_loop[key]
                        other.close_idle()
                pool = self._by_loop[id(loop)] = AsyncPool(loop, self._monotonic)
        self._last = pool
        return pool

    def spare(self, endpoint: EndpointState, owner: Pool) -> None:
        """A call of `owner` is parked: let another pool close an idle connection to the endpoint."""
        for pool in (self.sync, *list(self._by_loop.values())):
            if pool is not owner:
                pool.spare(endpoint)

    def renew(self) -> None:
        """In a forked child."""
        self._lock = threading.Lock()
        for pool in (self.sync, *self._by_loop.values()):
            pool.forget()
        self._by_loop = {}
        self._last = None
        self.sync = Pool(self._monotonic)


_sets: weakref.WeakKeyDictionary[Any, PoolSet] = weakref.WeakKeyDictionary()
_sets_lock = threading.Lock()


def pools_of(owner: object, monotonic: Callable[[], float]) -> PoolSet:
    """The pools of this Mesh (or engine), made at first use."""
    with _sets_lock:
        pools = _sets.get(owner)
        if pools is None:
            pools = _sets[owner] = PoolSet(monotonic)
    return pools


def _renew_all() -> None:
    global _sets_lock
    _sets_lock = threading.Lock()
    for pools in list(_sets.values()):
        pools.renew()


os.register_at_fork(after_in_child=_renew_all)

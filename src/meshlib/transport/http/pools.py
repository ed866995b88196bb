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
from contextlib import suppress

from meshlib.engine.actions import Start
from meshlib.engine.engine import Engine
from meshlib.engine.program import Program
from meshlib.engine.successor import successor_of
from meshlib.runtime.clock import Clock
from meshlib.state import EndpointState
from meshlib.transport.http.async_pool import AsyncPool
from meshlib.transport.http.pool import Pool, PooledConnection
from meshlib.transport.http.sync_pool import SyncPool

__all__ = ["PoolSet", "pools_of"]


class PoolSet:
    """The pools of one Mesh."""

    def __init__(self, clock: Clock, program: Callable[[], Program]) -> None:
        self._clock = clock
        self._program = program
        self._lock = threading.Lock()
        self._by_loop: dict[int, AsyncPool] = {}
        self._last: AsyncPool | None = None
        self.sync = SyncPool(clock, self._successor)

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
                pool = self._by_loop[id(loop)] = AsyncPool(loop, self._clock, self._successor)
        self._last = pool
        return pool

    def _successor(self, connection: PooledConnection) -> Start | None:
        return successor_of(
            self._program(), connection.state, connection.endpoint, connection.permits, connection.name
        )

    def spare(self, endpoint: EndpointState, owner: Pool) -> None:
        """A call of `owner` is parked: let another pool close an idle connection to the endpoint."""
        for pool in (self.sync, *list(self._by_loop.values())):
            if pool is not owner:
                pool.spare(endpoint)

    def sweep(self) -> None:
        """Endpoints have left or are connected to in another way now, or certificates were renewed. From any thread."""
        _review(self.sync)
        for pool in list(self._by_loop.values()):
            with suppress(RuntimeError):  # its loop is closed
                pool.loop.call_soon_threadsafe(_review, pool)

    def renew(self) -> None:
        """In a forked child."""
        self._lock = threading.Lock()
        for pool in (self.sync, *self._by_loop.values()):
            pool.forget()
        self._by_loop = {}
        self._last = None
        self.sync = SyncPool(self._clock, self._successor)


def _review(pool: Pool) -> None:
    pool.exchange()
    pool.sweep(pool.monotonic())


_sets: weakref.WeakSet[PoolSet] = weakref.WeakSet()
_sets_lock = threading.Lock()


def pools_of(engine: Engine) -> PoolSet:
    """The pools of this engine, made at first use. They hear of each push."""
    with _sets_lock:
        pools = engine.pools
        if not isinstance(pools, PoolSet):
            pools = engine.pools = PoolSet(engine.clock, lambda: engine.program)
            engine.adopt(pools)
            _sets.add(pools)
    return pools


def _renew_all() -> None:
    global _sets_lock
    _sets_lock = threading.Lock()
    for pools in list(_sets):
        pools.renew()


os.register_at_fork(after_in_child=_renew_all)

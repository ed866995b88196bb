"""Idle connections by endpoint, last in first out. One pool for all sync code of a process, one for each event loop.

The pool decides only which idle connection is used next. How many may exist, and who waits, is the business of
`state.ClusterState`; the pool tells it when a connection becomes free or goes away.

No wake-up is lost: `release` looks at the queue again after it has put the connection away, and a parked call looks at the
pool again after it has joined the queue (`rescue`); whichever comes second sees the other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from math import inf

from meshlib.resources.cluster import Cluster, HttpProtocol
from meshlib.state import ClusterState, EndpointState, Permits

__all__ = ["Pool", "PooledConnection"]

SWEEP_INTERVAL = 5.0
"""Seconds between two looks for idle connections that nobody asked for and whose time is over."""


class PooledConnection:
    """What the pool knows of a connection. Subclasses move the bytes.

    served: requests so far. idle_until: monotonic seconds. protocol: what is spoken, which the cluster may have changed since.
    """

    __slots__ = (
        "__weakref__",
        "closed",
        "endpoint",
        "idle_timeout",
        "idle_until",
        "max_requests",
        "permits",
        "pool",
        "protocol",
        "served",
        "state",
    )

    def __init__(
        self, pool: Pool, endpoint: EndpointState, cluster: Cluster, state: ClusterState, permits: Permits
    ) -> None:
        self.pool = pool
        self.endpoint = endpoint
        self.state = state
        self.permits = permits
        self.idle_timeout = inf if cluster.idle_timeout is None else cluster.idle_timeout
        self.idle_until = inf
        self.protocol = cluster.protocol
        self.max_requests = cluster.max_requests_per_connection or inf
        self.served = 0
        self.closed = False
        pool.members.add(self)

    def healthy(self) -> bool:
        """Whether a request may be sent now: nothing arrived, and the peer has not closed. Cheap."""
        raise NotImplementedError

    def disconnect(self) -> None:
        """Close the socket."""
        raise NotImplementedError

    def forget(self) -> None:
        """In a forked child: let go of the socket without disturbing the parent, which goes on using it."""
        raise NotImplementedError

    def close(self) -> None:
        """Close, and tell the cluster. Idempotent."""
        if not self.closed:
            self.closed = True
            self.pool.members.discard(self)
            self.disconnect()
            self.state.connection_closed(self.endpoint, self.permits)


class Pool:
    """The connections of one owner (the sync code of a process, or an event loop). Safe to use from any thread.

    members: all that are open, in use or idle. They are held here so that the garbage collector never meets an open socket.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._idle: dict[EndpointState, deque[PooledConnection]] = {}
        self._sweep_at = 0.0
        self.members: set[PooledConnection] = set()

    def pop_idle(
        self, endpoint: EndpointState, protocol: HttpProtocol | None = None
    ) -> PooledConnection | None:
        """The connection that was used last, if it still works; others found dead on the way are closed.

        protocol: what it has to speak, since the cluster may have changed; None: whatever it speaks.
        """
        idle = self._idle.get(endpoint)
        while idle:
            try:
                connection = idle.pop()
            except IndexError:  # another thread was faster
                break
            if (
                connection.idle_until > self._monotonic()
                and (protocol is None or connection.protocol is protocol)
                and connection.healthy()
            ):
                return connection
            connection.close()
        return None

    def release(self, connection: PooledConnection) -> None:
        """A connection that may be used again: to the head of its endpoint's queue, else to the idle ones."""
        endpoint = connection.endpoint
        if connection.closed or endpoint.departed or connection.served >= connection.max_requests:
            connection.close()
            return
        if endpoint.waiters and self._hand_over(connection):
            return
        now = self._monotonic()
        connection.idle_until = now + connection.idle_timeout
        idle = self._idle.get(endpoint)
        if idle is None:
            idle = self._idle.setdefault(endpoint, deque())
        idle.append(connection)
        if endpoint.waiters:
            self.rescue(endpoint)
        if now >= self._sweep_at:
            self.sweep(now)

    def rescue(self, endpoint: EndpointState) -> None:
        """Somebody waits for this endpoint: give away a connection that became idle in the meantime."""
        connection = self.pop_idle(endpoint)
        if connection is not None:
            self.release(connection)

    def _hand_over(self, connection: PooledConnection) -> bool:
        """To the head of the queue. When that belongs to another owner, closing lets it open a connection of its own."""
        waiter = connection.state.next_waiter(connection.endpoint, self, connection)
        if waiter is not None:
            waiter.wake()
            return True
        if connection.endpoint.waiters:
            connection.close()
            return True
        return False

    def discard(self, connection: PooledConnection) -> None:
        """An idle connection ended by itself."""
        idle = self._idle.get(connection.endpoint)
        if idle is not None:
            try:
                idle.remove(connection)
            except ValueError:
                return  # taken in the meantime: whoever has it sees that it ended
            connection.close()

    def sweep(self, now: float) -> None:
        """Close idle connections whose time is over or whose endpoint has left."""
        self._sweep_at = now + SWEEP_INTERVAL
        for endpoint, idle in list(self._idle.items()):
            while idle and (endpoint.departed or idle[0].idle_until <= now):
                try:
                    connection = idle.popleft()
                except IndexError:
                    break
                connection.close()
            if endpoint.departed and not idle:
                self._idle.pop(endpoint, None)

    def spare(self, endpoint: EndpointState) -> None:
        """A call of another owner waits for the right to open a connection to this endpoint: close one that is idle."""
        connection = self.pop_idle(endpoint)
        if connection is not None:
            connection.close()

    def close_idle(self) -> None:
        for idle in list(self._idle.values()):
            while idle:
                try:
                    connection = idle.pop()
                except IndexError:
                    break
                connection.close()

    def idle_connections(self) -> int:
        return sum(len(idle) for idle in list(self._idle.values()))

    def forget(self) -> None:
        """In a forked child: nothing in here is ours. The parent's connections stay as they are."""
        self._idle = {}
        for connection in list(self.members):
            connection.closed = True
            connection.forget()
        self.members.clear()

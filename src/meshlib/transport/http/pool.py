"""Idle connections by endpoint, last in first out. One pool for all sync code of a process, one for each event loop.

The pool decides only which idle connection is used next. How many may exist, and who waits, is the business of
`state.ClusterState`; the pool tells it when a connection becomes free or goes away.

No wake-up is lost: `release` looks at the queue again after it has put the connection away, and a parked call looks at the
pool again after it has joined the queue (`rescue`); whichever comes second sees the other.

A connection that was made in another way than one would be made now (`EndpointState.way`) is given to no call, neither out of
the pool nor from one call to the next. One that was opened with a certificate that has been renewed since expires soon. One
that TLS has tied to a name (its SNI comes from the request's authority) waits on
a shelf of its own, where only calls with that name look.
"""

from __future__ import annotations

from collections import deque
from math import inf

from meshlib.policy.rotation import delays, within
from meshlib.resources.cluster import Cluster
from meshlib.runtime.ahead import mypyc_attr
from meshlib.runtime.clock import Clock
from meshlib.state import ClusterState, EndpointState, Permits, Way

__all__ = ["Pool", "PooledConnection", "Shelf"]

SWEEP_INTERVAL = 5.0
"""Seconds between two looks for idle connections that nobody asked for and whose time is over."""


Shelf = EndpointState | tuple[EndpointState, str]
"""Where a connection waits: with all others to its endpoint, or with those of the same name."""


@mypyc_attr(allow_interpreted_subclasses=True)
class PooledConnection:
    """What the pool knows of a connection. Subclasses move the bytes.

    served: requests so far. idle_until, expires: monotonic seconds; after `expires` it takes no more requests. way: how it was
    made, which may have changed for its endpoint since.
    """

    __slots__ = (
        "__weakref__",
        "closed",
        "endpoint",
        "expires",
        "idle_timeout",
        "idle_until",
        "max_requests",
        "permits",
        "pool",
        "served",
        "shelf",
        "state",
        "way",
    )

    def __init__(
        self,
        pool: Pool,
        endpoint: EndpointState,
        cluster: Cluster,
        state: ClusterState,
        permits: Permits,
        way: Way,
        shelf: Shelf | None = None,
    ) -> None:
        self.pool = pool
        self.endpoint = endpoint
        self.way = way
        self.shelf: Shelf = shelf or endpoint
        self.state = state
        self.permits = permits
        self.idle_timeout = inf if cluster.idle_timeout is None else cluster.idle_timeout
        self.idle_until = inf
        self.expires = inf
        self.max_requests = cluster.max_requests_per_connection or inf
        self.served = 0
        self.closed = False
        pool.members.add(self)
        state.stats.connection_begun(multiplexed=way.multiplexed)

    def healthy(self) -> bool:
        """Whether a request may be sent now: nothing arrived, and the peer has not closed. Cheap."""
        raise NotImplementedError

    def superseded(self) -> float | None:
        """None, or wall seconds: the end of the certificate that it was opened with, which has been renewed since."""
        return None

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


@mypyc_attr(allow_interpreted_subclasses=True)
class Pool:
    """The connections of one owner (the sync code of a process, or an event loop). Safe to use from any thread.

    members: all that are open, in use or idle. They are held here so that the garbage collector never meets an open socket.
    """

    def __init__(self, clock: Clock) -> None:
        self.monotonic = clock.monotonic
        self._time = clock.time
        self._idle: dict[Shelf, deque[PooledConnection]] = {}
        self._sweep_at = 0.0
        self.members: set[PooledConnection] = set()

    def pop_idle(self, shelf: Shelf, way: Way) -> PooledConnection | None:
        """The connection that was used last, if it still works; others found dead on the way are closed.

        way: how it has to have been made; those that were not are closed too.
        """
        idle = self._idle.get(shelf)
        while idle:
            try:
                connection = idle.pop()
            except IndexError:  # another thread was faster
                break
            if connection.idle_until > self.monotonic() and connection.way is way and connection.healthy():
                return connection
            connection.close()
        return None

    def opened(self, connection: PooledConnection, not_after: float) -> None:
        """The handshake is over. not_after: of our own certificate, wall seconds, inf without one; it expires then."""
        if not_after != inf:
            connection.expires = min(connection.expires, self.monotonic() + (not_after - self._time()))
        if connection.superseded() is not None:
            self.exchange()

    def release(self, connection: PooledConnection) -> None:
        """A connection that may be used again: to the head of its endpoint's queue, else to the idle ones."""
        endpoint = connection.endpoint
        if connection.closed or endpoint.departed or connection.served >= connection.max_requests:
            connection.close()
            return
        if endpoint.waiters and self._hand_over(connection):
            return
        now = self.monotonic()
        connection.idle_until = now + connection.idle_timeout
        shelf = connection.shelf
        idle = self._idle.get(shelf)
        if idle is None:
            idle = self._idle.setdefault(shelf, deque())
        idle.append(connection)
        if endpoint.waiters:
            self.rescue(endpoint)
        if now >= self._sweep_at:
            self.sweep(now)

    def rescue(self, endpoint: EndpointState) -> None:
        """Somebody waits for this endpoint: give away a connection that became idle in the meantime."""
        connection = self._any_idle(endpoint)
        if connection is not None:
            self.release(connection)

    def _any_idle(self, endpoint: EndpointState) -> PooledConnection | None:
        """One connection to the endpoint that is idle, whatever its name."""
        way = endpoint.way
        if way.named:
            for shelf in list(self._idle):
                if isinstance(shelf, tuple) and shelf[0] is endpoint:
                    connection = self.pop_idle(shelf, way)
                    if connection is not None:
                        return connection
        return self.pop_idle(endpoint, way)

    def _hand_over(self, connection: PooledConnection) -> bool:
        """To the head of the queue, when that can use it; otherwise closing lets it open a connection of its own."""
        endpoint = connection.endpoint
        if connection.way is endpoint.way and connection.shelf is endpoint:
            waiter = connection.state.next_waiter(endpoint, self, connection)
            if waiter is not None:
                waiter.wake()
                return True
            if not endpoint.waiters:
                return False
        connection.close()
        return True

    def discard(self, connection: PooledConnection) -> None:
        """An idle connection ended by itself."""
        idle = self._idle.get(connection.shelf)
        if idle is not None:
            try:
                idle.remove(connection)
            except ValueError:
                return  # taken in the meantime: whoever has it sees that it ended
            connection.close()

    def sweep(self, now: float) -> None:
        """Close idle connections whose time is over, whose endpoint has left or is connected to in another way now."""
        self._sweep_at = now + SWEEP_INTERVAL
        for shelf, idle in list(self._idle.items()):
            endpoint = shelf[0] if isinstance(shelf, tuple) else shelf
            for connection in list(idle):
                over = connection.idle_until <= now or connection.expires <= now
                if over or endpoint.departed or connection.way is not endpoint.way:
                    self.discard(connection)
            if endpoint.departed and not idle:
                self._idle.pop(shelf, None)

    def exchange(self) -> None:
        """Let connections that were opened with a certificate that has been renewed since expire, one after the other.

        May be called at any time: those that have their moment already keep it.
        """
        now, wall = self.monotonic(), self._time()
        left = inf
        old: list[PooledConnection] = []
        for connection in list(self.members):
            end = connection.superseded()
            if end is not None and connection.expires > now + within(end - wall):
                old.append(connection)
                left = min(left, end - wall)
        for connection, delay in zip(old, delays(len(old), left)):
            connection.expires = now + delay

    def spare(self, endpoint: EndpointState) -> None:
        """A call of another owner waits for the right to open a connection to this endpoint: close one that is idle."""
        connection = self._any_idle(endpoint)
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

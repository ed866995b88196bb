"""Idle connections by endpoint, last in first out. One pool for all sync code of a process, one for each event loop.

The pool decides only which idle connection is used next. How many may exist, and who waits, is the business of
`state.ClusterState`; the pool tells it when a connection becomes free or goes away.

No wake-up is lost: `release` looks at the queue again after it has put the connection away, and a parked call looks at the
pool again after it has joined the queue (`rescue`); whichever comes second sees the other.

A connection that was made in another way than one would be made now (`EndpointState.way`) is given to no call, neither out of
the pool nor from one call to the next. One that TLS has tied to a name (its SNI comes from the request's authority) waits on
a shelf of its own, where only calls with that name look.

A connection that was opened with a certificate that has been renewed since is exchanged for another one when its moment comes
(`Pool.exchange`): a successor is opened beside it, and takes its place once it is open (`meshlib.engine.successor`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from math import inf
from typing import Protocol

from meshlib.engine.actions import Start
from meshlib.engine.counting import count_connect_failure
from meshlib.policy.failure import FailureKind
from meshlib.policy.rotation import delays
from meshlib.runtime.ahead import mypyc_attr
from meshlib.runtime.clock import Clock
from meshlib.state import EndpointState, Way
from meshlib.transport.http.failure import TransportFailure

__all__ = ["Alarm", "Pool", "PooledConnection", "Shelf", "Successor", "no_successor"]

SWEEP_INTERVAL = 5.0
"""Seconds between two looks for idle connections that nobody asked for and whose time is over."""


Shelf = EndpointState | tuple[EndpointState, str]
"""Where a connection waits: with all others to its endpoint, or with those of the same name."""


class Alarm(Protocol):
    """What is due some day."""

    def cancel(self) -> None: ...


class Renewal:
    """The certificate of a connection was renewed. alarm: when the connection is to be exchanged.

    epoch: of the certificates that are in force. served: requests until then.
    """

    __slots__ = ("alarm", "epoch", "served")

    def __init__(self, epoch: int, served: int) -> None:
        self.epoch = epoch
        self.served = served
        self.alarm: Alarm | None = None


@mypyc_attr(allow_interpreted_subclasses=True)
class PooledConnection:
    """What the pool knows of a connection. Subclasses move the bytes.

    start: where it leads, and where it is counted already. shelf: where it waits, by default with all others to its endpoint.
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
        "renewal",
        "served",
        "shelf",
        "state",
        "way",
    )

    def __init__(self, pool: Pool, start: Start, way: Way, shelf: Shelf | None = None) -> None:
        cluster = start.cluster
        self.pool = pool
        self.endpoint = start.endpoint
        self.way = way
        self.shelf: Shelf = shelf or start.endpoint
        self.state = start.state
        self.permits = start.permits
        self.idle_timeout = inf if cluster.idle_timeout is None else cluster.idle_timeout
        self.idle_until = inf
        self.expires = inf
        self.max_requests = cluster.max_requests_per_connection or inf
        self.served = 0
        self.closed = False
        self.renewal: Renewal | None = None
        pool.members.add(self)
        start.state.stats.connection_begun(multiplexed=way.multiplexed)

    @property
    def name(self) -> str:
        """The authority that TLS has tied it to; empty for none."""
        shelf = self.shelf
        return shelf[1] if isinstance(shelf, tuple) else ""

    def healthy(self) -> bool:
        """Whether a request may be sent now: nothing arrived, and the peer has not closed. Cheap."""
        raise NotImplementedError

    @property
    def trusted(self) -> bool:
        """The authority that its peer was verified by has not been withdrawn."""
        return True

    def superseded(self) -> tuple[int, float] | None:
        """Its certificate has been renewed since it was opened: the epoch of now, and the end of the old one, wall seconds."""
        return None

    def expire(self) -> None:
        """It takes no new calls."""
        self.expires = self.pool.monotonic()
        self.pool.discard(self)

    def settle(self) -> None:
        """It is open, and nobody waits for it: send what is left to say of the handshake."""

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
            if self.renewal is not None and self.renewal.alarm is not None:
                self.renewal.alarm.cancel()
            self.disconnect()
            self.state.connection_closed(self.endpoint, self.permits)


Successor = Callable[[PooledConnection], Start | None]
"""What opens the successor of a connection, already counted; None: there is to be none."""


def no_successor(_connection: PooledConnection) -> None:
    """There is none."""


@mypyc_attr(allow_interpreted_subclasses=True)
class Pool:
    """The connections of one owner (the sync code of a process, or an event loop). Safe to use from any thread.

    members: all that are open, in use or idle. They are held here so that the garbage collector never meets an open socket.
    coming: the successors that are not open yet.
    """

    def __init__(self, clock: Clock, successor: Successor = no_successor) -> None:
        self._successor = successor
        self.coming: set[PooledConnection] = set()
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

    # --- exchanging connections whose certificate was renewed ----------------------------------------------------------

    def exchange(self) -> None:
        """Certificates may have been renewed: let connections of before be exchanged, one after the other. Authorities may have
        been withdrawn: connections to peers of theirs take no new call.

        May be called at any time: those that have their moment already keep it.
        """
        wall = self._time()
        left = inf
        old: list[PooledConnection] = []
        for connection in list(self.members):
            if not connection.trusted:
                connection.expire()
                continue
            found = connection.superseded()
            if found is None:
                continue
            epoch, end = found
            renewal = connection.renewal
            if renewal is None:
                connection.renewal = Renewal(epoch, connection.served)
                old.append(connection)
                left = min(left, end - wall)
            elif renewal.epoch != epoch:
                renewal.epoch = epoch
                connection.expire()
        for connection, delay in zip(old, delays(len(old), left)):
            assert connection.renewal is not None
            connection.renewal.alarm = self.later(delay, partial(self._come, connection))

    def _come(self, connection: PooledConnection) -> None:
        """Its moment. A connection that nobody has used since has no successor."""
        renewal = connection.renewal
        assert renewal is not None
        if connection.closed or connection.expires <= self.monotonic():
            return
        start = None
        used = connection.served > renewal.served or self.in_use(connection)
        if used and connection.way is connection.endpoint.way:
            start = self._successor(connection)
        if start is None:
            connection.expire()
        else:
            self.succeed(connection, start)

    def in_use(self, connection: PooledConnection) -> bool:
        """Whether a call has it now."""
        return connection not in self._idle.get(connection.shelf, ())

    def later(self, delay: float, task: Callable[[], None]) -> Alarm:
        """Run the task after `delay` seconds."""
        raise NotImplementedError

    def succeed(self, connection: PooledConnection, start: Start) -> None:
        """Begin to open the connection's successor; `replace` or `given_up` is called when that is over."""
        raise NotImplementedError

    def replace(self, connection: PooledConnection, successor: PooledConnection) -> None:
        """The successor is open."""
        self.coming.discard(successor)
        if not successor.closed:
            successor.settle()
            self.welcome(successor)
            connection.expire()

    def welcome(self, successor: PooledConnection) -> None:
        """Calls may use it from now on."""
        self.release(successor)

    def given_up(self, successor: PooledConnection, kind: FailureKind) -> None:
        """It could not be opened: its predecessor goes on until the next renewal, or the end of its certificate."""
        self.coming.discard(successor)
        if kind in (FailureKind.CONNECT_FAILED, FailureKind.CONNECT_TIMEOUT):
            count_connect_failure(successor.state.stats, kind)
        successor.close()

    def never_made(self, start: Start, failure: TransportFailure) -> None:
        """There is not even a socket for it."""
        count_connect_failure(start.state.stats, failure.kind)
        start.state.connection_closed(start.endpoint, start.permits)

    # --- closing connections that nobody uses --------------------------------------------------------------------------

    def spare(self, endpoint: EndpointState) -> None:
        """A call of another owner waits for the right to open a connection to this endpoint: close one that is idle."""
        connection = self._any_idle(endpoint)
        if connection is not None:
            connection.close()

    def close_idle(self) -> None:
        for connection in list(self.coming):
            connection.close()
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
        self.coming.clear()
        for connection in list(self.members):
            connection.closed = True
            connection.forget()
        self.members.clear()

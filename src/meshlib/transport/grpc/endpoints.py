"""The inner channels of one mesh channel, by endpoint.

One is made at the first use of its endpoint and closed when the endpoint has left and its calls have ended. When it was made in
another way than a connection would be made now (the configuration has changed), or its peer is trusted no longer, or its
connection was lost, calls under way end on it and new ones get another, for which they wait.

When its certificate was only renewed, nobody waits: its *successor* is opened in the background, and takes its place once that is
READY (`meshlib.engine.successor`). A call that needs a connection before, because the old one has ended, waits for the
successor as for one that it has opened itself.

The connection of a channel is counted in the cluster's permits as that of HTTP/2 is: once, however many calls wait for it.
Calls that the limits keep waiting stand in the endpoint's queue and are all served when it is open.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

from meshlib.engine.actions import Start
from meshlib.engine.counting import count_connect_failure
from meshlib.engine.events import Event, Failed, FailureKind
from meshlib.engine.program import Program
from meshlib.engine.successor import successor_of
from meshlib.runtime.clock import SystemClock
from meshlib.runtime.timers import timers
from meshlib.state import EndpointState
from meshlib.transport.grpc.endpoint import READY, InnerChannel
from meshlib.transport.grpc.target import Options, inner_options, target_of, tunnel_to
from meshlib.transport.grpc.turns import ask_others, take_part

__all__ = ["EndpointChannels"]

FORK_PATIENCE = 0.25
"""Seconds that a fork waits at most for calls under way."""

FORK_LOOK = 0.001
"""Seconds between two looks at them."""

LOOK = 0.01
"""Seconds between two looks at a successor that connects."""


class EndpointChannels:
    """The inner channels of one mesh channel, by endpoint. Thread safe.

    gate: while the process is about to fork, what calls wait on before they begin. authority: that of the calls whose route does
    not change it. make: opens a channel, given target and options, and
    credentials unless it is in plaintext. program: what is in force. tls: as for `meshlib.grpc.channel`.
    """

    __slots__ = (
        "__weakref__",
        "_authority",
        "_by_endpoint",
        "_closed",
        "_forks",
        "_lock",
        "_make",
        "_monotonic",
        "_options",
        "_others",
        "_program",
        "_retired",
        "_successors",
        "_tls",
        "gate",
    )

    def __init__(
        self,
        authority: str,
        options: Options,
        make: Callable[..., Any],
        monotonic: Callable[[], float],
        program: Callable[[], Program],
        tls: str = "tunnel",
    ) -> None:
        self._authority = authority
        self._options = tuple(options)
        self._make = make
        self._monotonic = monotonic
        self._program = program
        self._lock = threading.Lock()
        self._by_endpoint: dict[EndpointState, InnerChannel] = {}
        self._others: dict[tuple[EndpointState, str], InnerChannel] = {}
        self._successors: dict[tuple[EndpointState, str], InnerChannel] = {}
        self._retired: list[InnerChannel] = []
        self._closed = False
        self._forks = 0
        self.gate: threading.Event | None = None
        self._tls = tls
        take_part(self)

    def find(self, endpoint: EndpointState, authority: str) -> InnerChannel | None:
        """The channel of the endpoint if there is one."""
        if authority == self._authority:
            return self._by_endpoint.get(endpoint)
        return self._others.get((endpoint, authority))

    def ready(self, endpoint: EndpointState, authority: str) -> InnerChannel | None:
        """The same if a call may be sent on it now. A connection that was lost is given back to the cluster's permits."""
        inner = (
            self._by_endpoint.get(endpoint)
            if authority == self._authority
            else self.find(endpoint, authority)
        )
        if inner is None:
            return None
        try:
            if inner.check(False) == READY and inner.way is endpoint.way:
                return inner
        except ValueError:  # closed in the meantime
            pass
        if inner.way is not endpoint.way:
            self.wear_out(inner)
        elif inner.connect_by is None:
            self.uncount(inner)
        elif inner.look() is False:
            self.give_up(inner)
        return None

    def any_ready(self) -> bool:
        return any(inner.ready for inner in self._all())

    def connect(self, start: Start) -> InnerChannel:
        """The channel that is to be connected, made if need be. The engine has granted a connection for it.

        Raises ValueError when the mesh channel is closed.
        """
        self.wait_at_gate()
        with self._lock:
            if self._closed:
                start.state.connection_closed(start.endpoint, start.permits)
                raise ValueError("Cannot invoke RPC on closed channel!")
            inner = worn = self.find(start.endpoint, start.authority)
            if (
                inner is None
                or inner.failure is not None
                or inner.way is not start.endpoint.way
                or inner.spent
            ):
                if worn is not None:
                    self._forget(worn)
                inner = self._successors.pop((start.endpoint, start.authority), None) or self._open(start)
                self._install(inner)
            surplus = inner.counted is not None
            if not surplus:
                self._count(inner, start)
            inner.connecting.append(None)
        if surplus:
            start.state.connection_closed(start.endpoint, start.permits)
        inner.begin_connecting()
        if worn is not None and worn is not inner:
            worn.dispose()
        return inner

    def connected(self, inner: InnerChannel) -> None:
        """A call has seen it READY: everybody who waits for a connection to its endpoint may use it."""
        inner.connecting.pop()
        self.serve(inner)
        inner.dispose()

    def failed(self, inner: InnerChannel) -> None:
        """A call has seen its `failure`."""
        inner.connecting.pop()
        self.give_up(inner)

    def abandoned(self, inner: InnerChannel) -> None:
        """A call waits for it no longer. Those in the endpoint's queue may open their own, if nobody is left to tell them."""
        inner.connecting.pop()
        if not inner.connecting and inner.endpoint.waiters:
            self.give_up(inner)
        inner.dispose()

    def _open(self, start: Start) -> InnerChannel:
        endpoint, authority = start.endpoint, start.authority
        options = inner_options(start.cluster, authority, self._options)
        way = endpoint.way
        tunnel = tunnel_to(start, way, self._tls)
        channel = (
            self._make(target_of(endpoint), options)
            if tunnel is None
            else self._make(tunnel.target, options, tunnel.credentials())
        )
        inner = InnerChannel(
            self, endpoint, start.cluster, start.state, authority, channel, self._monotonic, way, tunnel
        )
        if tunnel is not None:  # its first attempt to connect is its only one
            tunnel.holder = weakref.ref(inner)
            inner.connect_by = self._monotonic() + start.cluster.connect_timeout
        return inner

    def _install(self, inner: InnerChannel) -> None:
        """Calls find it from now on. The caller holds the lock."""
        if inner.authority == self._authority:
            self._by_endpoint[inner.endpoint] = inner
        else:
            self._others[inner.endpoint, inner.authority] = inner

    def _count(self, inner: InnerChannel, start: Start) -> None:
        """The caller holds the lock."""
        inner.counted = start.permits
        inner.state.stats.connection_begun(multiplexed=True)

    # --- exchanging a connection ------------------------------------------------------------------------------------

    def exchange(self, inner: InnerChannel) -> None:
        """Its certificate was renewed: open its successor, or else let it wear out."""
        start = self._start_of_successor(inner)
        if start is None:
            self.wear_out(inner)
            return
        successor = self._begin(inner, start)
        if successor is None:
            start.state.connection_closed(start.endpoint, start.permits)
        else:
            successor.begin_connecting()
            self.look(successor)

    def _begin(self, inner: InnerChannel, start: Start) -> InnerChannel | None:
        """Its successor; None when it has been retired in the meantime."""
        with self._lock:
            if inner.retired or self._closed:
                return None
            successor = self._successors[inner.endpoint, inner.authority] = self._open(start)
            self._count(successor, start)
        return successor

    def _start_of_successor(self, inner: InnerChannel) -> Start | None:
        permits = inner.counted
        if permits is None or not inner.used or inner.way is not inner.endpoint.way or not inner.ready:
            return None
        return successor_of(self._program(), inner.state, inner.endpoint, permits, inner.authority)

    def look(self, successor: InnerChannel) -> None:
        """Put it in its predecessor's place when it is READY; look again later while it connects."""
        if not self._awaited(successor):  # a call has taken it, or it is closed
            return
        connected = successor.look()
        if connected is None:
            timers().later(LOOK, partial(_look_again, weakref.ref(successor)))
        elif connected:
            self._succeed(successor)
        elif self._awaited(successor):
            assert successor.failure is not None
            count_connect_failure(successor.state.stats, successor.failure)
            self.give_up(successor)

    def _awaited(self, successor: InnerChannel) -> bool:
        return self._successors.get((successor.endpoint, successor.authority)) is successor

    def _succeed(self, successor: InnerChannel) -> None:
        with self._lock:
            if not self._awaited(successor):
                return
            del self._successors[successor.endpoint, successor.authority]
            worn = self.find(successor.endpoint, successor.authority)
            self._install(successor)
            if worn is not None:
                self._forget(worn)
        self.serve(successor)
        if worn is not None:
            worn.dispose()

    # --- sharing a connection, and its end --------------------------------------------------------------------------

    def serve(self, inner: InnerChannel) -> None:
        """Hand the connection to all calls of this owner at the head of the endpoint's queue."""
        endpoint = inner.endpoint
        if inner.way is not endpoint.way:
            self.retire(inner)
        while endpoint.waiters and not inner.retired:
            waiter = inner.state.next_waiter(endpoint, self, inner)
            if waiter is None:
                return
            waiter.wake()

    def rescue(self, start: Start) -> None:
        """A call has joined the queue of this endpoint: its channel may have become READY just before."""
        inner = self.ready(start.endpoint, start.authority)
        if inner is not None:
            self.serve(inner)
        if start.endpoint.waiters:
            ask_others(self, start.endpoint)

    def spare(self, endpoint: EndpointState) -> None:
        """A call of others waits for a connection to this endpoint: close those that are idle."""
        for inner in self._all():
            if inner.endpoint is endpoint and inner.idle:
                self.give_up(inner)

    def give_up(self, inner: InnerChannel) -> None:
        """It is of no use any more: no new call takes it, and it is closed when those that it has are over. Idempotent."""
        self.retire(inner)
        self.uncount(inner)
        inner.dispose()

    def wear_out(self, inner: InnerChannel) -> None:
        """No new call takes it, and it is closed when those that it has are over. Idempotent."""
        self.retire(inner)
        inner.dispose()

    def retire(self, inner: InnerChannel) -> None:
        """No new call takes it; its connection counts until the last one is over. Idempotent."""
        with self._lock:
            self._forget(inner)

    def told(self, inner: InnerChannel, event: Event) -> None:
        """This is how one of its calls ended. C-core may call a connection that was lost READY for a moment longer."""
        if isinstance(event, Failed) and event.kind is FailureKind.TERMINATED:
            self.give_up(inner)

    def _forget(self, inner: InnerChannel) -> None:
        """The caller holds the lock."""
        key = inner.endpoint, inner.authority
        if not inner.retired:
            inner.retired = True
            self._retired = [other for other in self._retired if not other.closed]
            self._retired.append(inner)
        if self._by_endpoint.get(inner.endpoint) is inner:
            del self._by_endpoint[inner.endpoint]
        elif self._others.get(key) is inner:
            del self._others[key]
        elif self._successors.get(key) is inner:
            del self._successors[key]

    def uncount(self, inner: InnerChannel) -> None:
        """Its connection is gone. Idempotent."""
        with self._lock:
            permits, inner.counted = inner.counted, None
        if permits is not None:
            inner.state.connection_closed(inner.endpoint, permits)

    def sweep(self) -> None:
        """Let go of endpoints that have left, are connected to in another way now, or are trusted no longer. From any thread.

        Connections of certificates that were renewed are exchanged some time later. Called after every change of configuration
        and after every exchange of a certificate.
        """
        for inner in self._all():
            if inner.endpoint.departed:
                self.give_up(inner)
            elif not inner.current:
                self.wear_out(inner)
            elif inner.tunnel is not None:
                inner.tunnel.exchange()

    # --- around a fork -----------------------------------------------------------------------------------------------

    def pause(self) -> None:
        """Before a fork: let no call begin, and wait for a moment for those that have.

        grpc prepares itself for a fork only while no thread is in it; otherwise it may crash the child, and lose a call of the
        parent.
        """
        with self._lock:
            self._forks += 1
            if self.gate is None:
                self.gate = threading.Event()
        look = threading.Event()
        until = SystemClock.monotonic() + FORK_PATIENCE
        while any(not inner.idle for inner in [*self._all(), *self._retired]):
            if SystemClock.monotonic() >= until:
                return
            look.wait(FORK_LOOK)

    def resume(self) -> None:
        """After the fork, in the parent."""
        with self._lock:
            self._forks = max(self._forks - 1, 0)
            gate = self.gate
            if self._forks or gate is None:
                return
            self.gate = None
        gate.set()

    def wait_at_gate(self) -> None:
        """A call is about to begin."""
        gate = self.gate
        if gate is not None:
            gate.wait(2 * FORK_PATIENCE)

    def close_idle(self) -> None:
        """Close the channels that no call uses."""
        for inner in self._all():
            if inner.idle:
                self.give_up(inner)

    def close(self) -> None:
        """Close them all; their calls end as CANCELLED, as they do on a channel of grpcio. Idempotent."""
        with self._lock:
            self._closed = True
        for inner in [*self._all(), *self._retired]:
            self.retire(inner)
            inner.close()

    def __del__(self) -> None:
        """The mesh channel was dropped without `close`. A finalizer must not take a lock, so the next call counts them out."""
        for inner in [*self._all(), *self._retired]:
            permits, inner.counted = inner.counted, None
            if permits is not None:
                give_back = partial(inner.state.connection_closed, inner.endpoint, permits)
                inner.state.abandoned.append(give_back)

    def drop(self) -> list[InnerChannel]:
        """In a forked child: forget everything without calling into grpc. The caller keeps what is returned alive."""
        dropped = [*self._all(), *self._retired]
        self._lock = threading.Lock()
        self._by_endpoint = {}
        self._others = {}
        self._successors = {}
        self._retired = []
        self._forks, self.gate = 0, None
        for inner in dropped:
            inner.retired = inner.closed = True
        return dropped

    def _all(self) -> list[InnerChannel]:
        """With those that are to be."""
        kept = (self._by_endpoint, self._others, self._successors)
        return [inner for channels in kept for inner in list(channels.values())]

    def __len__(self) -> int:
        return len(self._by_endpoint) + len(self._others)


def _look_again(reference: weakref.ref[InnerChannel]) -> None:
    """Held weakly: a mesh channel that was dropped is not kept for it."""
    successor = reference()
    if successor is not None:
        successor.owner.look(successor)

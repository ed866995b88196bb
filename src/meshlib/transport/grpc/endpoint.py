"""Inner channels: one grpcio channel for each endpoint that is used, with one connection that all calls share.

An inner channel is made at the first use of its endpoint and closed when the endpoint has left and its calls have ended.
Whether it is connected is asked of C-core for each attempt (0.4 us); it is never subscribed to, since that costs a thread. An
attempt goes only to a channel that is READY, so what fails before is a failure to connect and nothing was sent.

C-core would wait between two attempts to connect, and fail calls meanwhile. Envoy connects whenever a request needs it. So a
channel whose connecting failed is given up, and the next request makes a new one: an endpoint that has come back serves the
next request, and one that accepts and never speaks costs exactly the cluster's connect_timeout.

An endpoint that is connected to with TLS is reached through a tunnel (`meshlib.transport.grpc.tunnel`), whose inner channel is
for one connection: once that is lost, or was made in another way than a connection would be made now (what is trusted or the
configuration changed), or some time after our certificate was renewed, calls under way end on it and new ones get another.

The connection of a channel is counted in the cluster's permits as that of HTTP/2 is: once, however many calls wait for it.
Calls that the limits keep waiting stand in the endpoint's queue and are all served when it is open.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakMethod

import grpc

from meshlib.engine.actions import Start
from meshlib.engine.events import Event, Failed, FailureKind
from meshlib.resources.cluster import Cluster
from meshlib.runtime.clock import SystemClock
from meshlib.state import ClusterState, EndpointState, Permits, Way
from meshlib.transport.grpc.target import Options, inner_options, target_of, tunnel_to
from meshlib.transport.grpc.timers import timers
from meshlib.transport.grpc.turns import ask_others, take_part

if TYPE_CHECKING:
    from meshlib.transport.grpc.target import Passage

__all__ = ["CONNECTING", "IDLE", "READY", "EndpointChannels", "InnerChannel"]

IDLE, CONNECTING, READY, TRANSIENT_FAILURE, SHUTDOWN = (
    int(state.value[0])
    for state in (
        grpc.ChannelConnectivity.IDLE,
        grpc.ChannelConnectivity.CONNECTING,
        grpc.ChannelConnectivity.READY,
        grpc.ChannelConnectivity.TRANSIENT_FAILURE,
        grpc.ChannelConnectivity.SHUTDOWN,
    )
)

_wall = SystemClock.time  # C-core takes deadlines in seconds since the epoch

SLICE = 0.05
"""Seconds that a thread watches a channel in one piece: closing a channel waits for those who watch it."""


class _GrpcThread(threading.local):
    """here: this thread is one of grpcio's, which tells that a call is over.

    It also takes the rest of that call's events, and closing a channel waits for them: it would wait for itself.
    """

    here = False


grpc_thread = _GrpcThread()


class InnerChannel:
    """A channel to one endpoint with one authority.

    calls, connecting: one entry for each call that uses it, or waits for it; appending and popping are atomic, which `+=` is
    not. way: how its connection is made; tunnel: None in plaintext. connect_by: when the attempt to connect that is under way has
    taken too long (monotonic seconds). failure, with reason and error: why connecting failed; the channel is of no use then.
    counted: where its connection is counted, None when it is not. quota: how many more requests it takes
    (max_requests_per_connection), None without limit. retired: no new call may take it. owner: is told when it has taken them
    all, and when it is closed.
    """

    __slots__ = (
        "__weakref__",
        "_joined",
        "_lock",
        "_monotonic",
        "_watch",
        "_watched",
        "authority",
        "calls",
        "channel",
        "check",
        "closed",
        "cluster",
        "connect_by",
        "connecting",
        "counted",
        "endpoint",
        "error",
        "failure",
        "owner",
        "quota",
        "reason",
        "retired",
        "state",
        "tunnel",
        "way",
    )

    def __init__(
        self,
        owner: EndpointChannels,
        endpoint: EndpointState,
        cluster: Cluster,
        state: ClusterState,
        authority: str,
        channel: Any,
        monotonic: Callable[[], float],
        way: Way,
        tunnel: Passage | None = None,
    ) -> None:
        self.owner = owner
        self.endpoint = endpoint
        self.cluster = cluster
        self.state = state
        self.authority = authority
        self.channel = channel
        self.calls: list[None] = []
        self.connecting: list[None] = []
        self.connect_by: float | None = None
        self.way = way
        self.tunnel = tunnel
        self.failure: FailureKind | None = None
        self.reason = ""
        self.error: BaseException | None = None
        self.counted: Permits | None = None
        self.quota = cluster.max_requests_per_connection or None
        self.retired = False
        self.closed = False
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._joined: list[threading.Event] = []
        self._watched = False
        core = getattr(channel, "_channel", None)
        self.check: Callable[[bool], int] = getattr(core, "check_connectivity_state", _always_ready)
        self._watch: Callable[[int, float], object] | None = getattr(core, "watch_connectivity_state", None)

    @property
    def ready(self) -> bool:
        """Whether a call may be sent now. A grpcio that does not tell is taken to be ready always: C-core connects by itself."""
        try:
            return self.check(False) == READY
        except ValueError:  # closed in the meantime
            return False

    def enter(self) -> bool:
        """A call is about to use it. False: it takes no more calls. `leave` comes after True."""
        self.calls.append(None)
        if self.retired or (self.quota is not None and not self._take_one()):
            self.leave()
            return False
        return True

    def make(self, maker: Callable[[Any], Any]) -> Any:
        """What the maker makes of the channel, which is not closed meanwhile. Raises ValueError when it is closed.

        grpcio registers the methods of generated stubs, and crashes the process when the channel is closed.
        """
        with self._lock:
            if self.closed:
                raise ValueError("Cannot invoke RPC on closed channel!")
            return maker(self.channel)

    def _take_one(self) -> bool:
        with self._lock:
            if not self.quota:
                return False
            self.quota -= 1
            used_up = not self.quota
        if used_up:
            self.owner.retire(self)
        return True

    def leave(self) -> None:
        self.calls.pop()
        if self.endpoint.waiters and not self.retired and self.idle:
            self.owner.give_up(self)
        else:
            self.dispose()

    @property
    def idle(self) -> bool:
        """Whether no call uses it or waits for it."""
        return not self.calls and not self.connecting

    def dispose(self) -> None:
        """Close it when it is retired and nobody needs it."""
        if self.retired and self.idle:
            self.close()

    def begin_connecting(self) -> None:
        """The calls that wait for the connection share one attempt, and so its connect_timeout."""
        with self._lock:
            if self.connect_by is None:
                self.connect_by = self._monotonic() + self.cluster.connect_timeout
        if self.tunnel is not None:
            self.tunnel.begin(self.cluster.connect_timeout)

    @property
    def spent(self) -> bool:
        """Whether it had its one connection."""
        return self.tunnel is not None and self.connect_by is None and not self.ready

    def look(self) -> bool | None:
        """While it connects: True when it is READY, False when `failure` says why it will not be, None otherwise."""
        if self.failure is not None:
            return False
        try:
            state = self.check(self.tunnel is None or self.tunnel.told)
        except ValueError:
            state = SHUTDOWN
        broken = None if self.tunnel is None else self.tunnel.failure
        if broken is not None:
            self.reason, self.error = broken.reason, broken.error
            self.failure = broken.kind
            return False
        if state == READY:
            self.connect_by = None
            return True
        if state in (TRANSIENT_FAILURE, SHUTDOWN):
            if self.tunnel is not None:
                self.tunnel.explain(self.channel)
                if self.tunnel.failure is not None:
                    self.reason = self.tunnel.failure.reason
            self.failure = FailureKind.CONNECT_FAILED
            return False
        if self.connect_by is not None and self._monotonic() >= self.connect_by:
            self.failure = FailureKind.CONNECT_TIMEOUT
            return False
        return None

    def await_change(self, until: float) -> None:
        """Block until `look` may have something new, at most until `until` (monotonic seconds) or for `SLICE`.

        One thread watches and tells the others: C-core may hand the event of one watcher to another.
        """
        now = self._monotonic()
        limit = min(until - now, SLICE)
        connect_by = self.connect_by
        if connect_by is not None:
            limit = min(limit, connect_by - now)
        if limit <= 0 or self._watch is None:
            return
        with self._lock:
            if self._watched:
                event = threading.Event()
                self._joined.append(event)
            else:
                self._watched = True
                event = None
        if event is not None:
            event.wait(limit)
            return
        try:
            state = self.check(False)
            if state in (IDLE, CONNECTING):
                self._watch(state, _wall() + limit)
        except ValueError:
            pass  # closed: `look` says so
        finally:
            with self._lock:
                self._watched = False
                joined, self._joined = self._joined, []
            for event in joined:
                event.set()

    def close(self) -> None:
        """Idempotent. Calls on it are cancelled. On a thread of grpcio it is done a little later, on another one."""
        with self._lock:
            if self.closed:
                return
            self.closed = True
        self.owner.uncount(self)
        if grpc_thread.here:
            timers().later(0.0, self._close)
        else:
            self._close()

    def expired(self) -> None:
        """The certificate that its connection was opened with is over, or was renewed. On a thread that must not wait."""
        timers().later(0.0, partial(self.owner.wear_out, self))

    def _close(self) -> None:
        self.channel.close()
        if self.tunnel is not None:
            self.tunnel.close()

    def failed(self, number: int) -> Failed:
        """What attempt `number`, which waited for it, is told of its `failure`. After a handshake Envoy has sent the request."""
        assert self.failure is not None
        return Failed(number, self.failure, self.failure is FailureKind.TERMINATED, self.reason)


def _always_ready(_connect: bool) -> int:
    return READY


class EndpointChannels:
    """The inner channels of one mesh channel, by endpoint. Thread safe.

    authority: that of the calls whose route does not change it. make: opens a channel, given target and options, and
    credentials unless it is in plaintext. tls: as for `meshlib.grpc.channel`.
    """

    __slots__ = (
        "__weakref__",
        "_authority",
        "_by_endpoint",
        "_closed",
        "_lock",
        "_make",
        "_monotonic",
        "_options",
        "_others",
        "_retired",
        "_tls",
    )

    def __init__(
        self,
        authority: str,
        options: Options,
        make: Callable[..., Any],
        monotonic: Callable[[], float],
        tls: str = "tunnel",
    ) -> None:
        self._authority = authority
        self._options = tuple(options)
        self._make = make
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._by_endpoint: dict[EndpointState, InnerChannel] = {}
        self._others: dict[tuple[EndpointState, str], InnerChannel] = {}
        self._retired: list[InnerChannel] = []
        self._closed = False
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
                inner = self._open(start)
            surplus = inner.counted is not None
            if not surplus:
                inner.counted = start.permits
                inner.state.stats.upstream_cx_total.value += 1
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
            tunnel.on_expiry = WeakMethod(inner.expired)
            inner.connect_by = self._monotonic() + start.cluster.connect_timeout
        if authority == self._authority:
            self._by_endpoint[endpoint] = inner
        else:
            self._others[endpoint, authority] = inner
        return inner

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
        if not inner.retired:
            inner.retired = True
            self._retired = [other for other in self._retired if not other.closed]
            self._retired.append(inner)
        if self._by_endpoint.get(inner.endpoint) is inner:
            del self._by_endpoint[inner.endpoint]
        elif self._others.get((inner.endpoint, inner.authority)) is inner:
            del self._others[inner.endpoint, inner.authority]

    def uncount(self, inner: InnerChannel) -> None:
        """Its connection is gone. Idempotent."""
        with self._lock:
            permits, inner.counted = inner.counted, None
        if permits is not None:
            inner.state.connection_closed(inner.endpoint, permits)

    def sweep(self) -> None:
        """Let go of endpoints that have left, or are connected to in another way now. From any thread.

        Connections of certificates that were renewed go some time later. Called after every change of configuration and after
        every exchange of a certificate.
        """
        for inner in self._all():
            if inner.endpoint.departed:
                self.give_up(inner)
            elif inner.way is not inner.endpoint.way:
                self.wear_out(inner)
            elif inner.tunnel is not None:
                inner.tunnel.exchange()

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
        for inner in [*self._by_endpoint.values(), *self._others.values(), *self._retired]:
            permits, inner.counted = inner.counted, None
            if permits is not None:
                give_back = partial(inner.state.connection_closed, inner.endpoint, permits)
                inner.state.abandoned.append(give_back)

    def drop(self) -> list[InnerChannel]:
        """In a forked child: forget everything without calling into grpc. The caller keeps what is returned alive."""
        dropped = [*self._by_endpoint.values(), *self._others.values(), *self._retired]
        self._lock = threading.Lock()
        self._by_endpoint = {}
        self._others = {}
        self._retired = []
        for inner in dropped:
            inner.retired = inner.closed = True
        return dropped

    def _all(self) -> list[InnerChannel]:
        return [*list(self._by_endpoint.values()), *list(self._others.values())]

    def __len__(self) -> int:
        return len(self._by_endpoint) + len(self._others)

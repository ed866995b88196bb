"""An inner channel: one grpcio channel to one endpoint, with one connection that all calls share.

Whether it is connected is asked of C-core for each attempt (0.4 us); it is never subscribed to, since that costs a thread. An
attempt goes only to a channel that is READY, so what fails before is a failure to connect and nothing was sent.

C-core would wait between two attempts to connect, and fail calls meanwhile. Envoy connects whenever a request needs it. So a
channel whose connecting failed is given up, and the next request makes a new one: an endpoint that has come back serves the
next request, and one that accepts and never speaks costs exactly the cluster's connect_timeout.

An endpoint that is connected to with TLS is reached through a tunnel (`meshlib.transport.grpc.tunnel`), whose inner channel is
for one connection: once that is lost it is of no use.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc

from meshlib.engine.events import Failed, FailureKind
from meshlib.resources.cluster import Cluster
from meshlib.runtime.clock import SystemClock
from meshlib.runtime.timers import timers
from meshlib.state import ClusterState, EndpointState, Permits, Way

if TYPE_CHECKING:
    from meshlib.transport.grpc.endpoints import EndpointChannels
    from meshlib.transport.grpc.target import Passage

__all__ = ["CONNECTING", "IDLE", "READY", "TRANSIENT_FAILURE", "InnerChannel", "grpc_thread"]

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
    (max_requests_per_connection), None without limit. used: a call has taken it. retired: no new call may take it. owner: is
    told when it has taken them all, and when it is closed.
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
        "used",
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
        self.used = False
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
        if self.owner.gate is not None:
            self.calls.pop()
            self.owner.wait_at_gate()
            self.calls.append(None)
        self.used = True
        if self.retired or (self.quota is not None and not self._take_one()):
            self.leave()
            return False
        return True

    @property
    def current(self) -> bool:
        """It is connected to as it would be now, and its peer is trusted still."""
        return self.way is self.endpoint.way and (self.tunnel is None or self.tunnel.trusted)

    def enter_ready(self) -> bool:
        """`enter`, if a call may be sent now and its connection is made as one would be made now."""
        try:
            if self.check(False) != READY:
                return False
        except ValueError:  # closed in the meantime
            return False
        return self.way is self.endpoint.way and self.enter()

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
        connect_by = self.connect_by  # another call that waits for it may be told READY meanwhile
        if connect_by is not None and self._monotonic() >= connect_by:
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

    def due(self) -> None:
        """Its connection is to be exchanged for another one. On a thread that must not wait."""
        timers().later(0.0, partial(self.owner.exchange, self))

    def expired(self) -> None:
        """Its connection takes no new calls. On a thread that must not wait."""
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

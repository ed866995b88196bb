"""One grpc.aio channel to one endpoint: one HTTP/2 connection, shared by the calls of an event loop.

It opens when a call needs it (`connect`), and everybody who needs it meanwhile joins. gRPC's own back-off never shows: an inner
channel whose connection could not be opened is thrown away, and the next call makes a new one, as Envoy opens a new
connection. One whose connection was lost is used again, unless it goes through a tunnel (TLS), which is for one connection.

`state` counts the connection from `Connect` until it is seen to be gone, which is when the next call, or the end of one, looks:
nobody watches idle channels.
"""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from meshlib.engine.actions import Start
from meshlib.engine.counting import count_connect_failure
from meshlib.engine.events import CANCELLED, Cancelled, Event, Failed, FailureKind
from meshlib.engine.successor import successor_of
from meshlib.state import ClusterState, EndpointState, Permits
from meshlib.transport.grpc.aio_inner import result_of
from meshlib.transport.grpc.target import inner_options, target_of, tunnel_to

if TYPE_CHECKING:
    from meshlib.transport.grpc.aio_home import Home
    from meshlib.transport.grpc.target import Passage
    from meshlib.transport.grpc.tunnel import TunnelFailure

__all__ = ["READY", "InnerChannel", "Lane", "Opened"]

READY = grpc.ChannelConnectivity.READY
_READY = int(READY.value[0])
_BROKEN = (grpc.ChannelConnectivity.TRANSIENT_FAILURE, grpc.ChannelConnectivity.SHUTDOWN)
_MULTICALLABLES_KEPT = 4096

Opened = Callable[[FailureKind | Cancelled | None, str], None]
"""Told when a connection is open (None), or why it could not be opened: Cancelled with everything else on its event loop."""


class Lane:
    """A channel of grpc.aio, and its multicallables, which take and give bytes. tunnel: None in plaintext."""

    __slots__ = ("_multicallables", "channel")

    tunnel: Passage | None = None

    def __init__(
        self,
        target: str,
        options: Sequence[tuple[str, Any]],
        compression: grpc.Compression | None,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        if credentials is None:
            self.channel = grpc.aio.insecure_channel(target, options=options, compression=compression)
        else:
            self.channel = grpc.aio.secure_channel(
                target, credentials, options=options, compression=compression
            )
        self._multicallables: dict[tuple[str, str], Any] = {}

    def multicallable(self, arity: str, path: str) -> Any:
        """arity: `unary_unary`, ..."""
        known = self._multicallables.get((arity, path))
        if known is None:
            if len(self._multicallables) >= _MULTICALLABLES_KEPT:
                self._multicallables.clear()
            known = self._multicallables[arity, path] = getattr(self.channel, arity)(path)
        return known

    def used(self) -> None:
        """A call starts on this connection."""

    def released(self) -> None:
        """A call on this connection is over."""

    def told(self, event: Event) -> None:
        """This is how a call on this connection ended."""

    def discard(self) -> None:
        """Close it. No call may run on it any more. Idempotent.

        The layer below grpc.aio's own `close`, which looks for calls in all tasks of the loop up to grpcio 1.82.
        """
        self._multicallables.clear()
        core = getattr(self.channel, "_channel", None)
        if core is None:
            result_of(self.channel.close())
        elif not core.closed():
            core.closing()
            core.close()


class InnerChannel(Lane):
    """key: the endpoint and the authority. calls: how many use it now. served: how many have used it.

    leaving: it takes no more calls (its endpoint left, or it served as many as it may) and closes when the last one ends.
    """

    __slots__ = (
        "__weakref__",
        "_check",
        "_counted",
        "_joined",
        "_max_calls",
        "_opening",
        "_owner",
        "_permits",
        "_state",
        "calls",
        "get_state",
        "key",
        "leaving",
        "served",
        "tunnel",
        "way",
    )

    def __init__(self, owner: Home, start: Start) -> None:
        self._owner = owner
        self.key = (start.endpoint, start.authority)
        self.way = way = start.endpoint.way
        self.tunnel = tunnel = tunnel_to(start, way, owner.tls)
        super().__init__(
            target_of(start.endpoint) if tunnel is None else tunnel.target,
            inner_options(start.cluster, start.authority, owner.options),
            owner.compression,
            None if tunnel is None else tunnel.credentials(),
        )
        if tunnel is not None:
            tunnel.holder = weakref.ref(self)
        self.get_state = self.channel.get_state
        core = getattr(self.channel, "_channel", None)  # what `get_state` asks
        self._check: Callable[[bool], int] | None = getattr(core, "check_connectivity_state", None)
        self._state: ClusterState = start.state
        self._permits: Permits = start.permits
        self._max_calls = start.cluster.max_requests_per_connection or -1
        self._counted = False
        self._joined: list[Opened] = []
        self._opening: asyncio.Task[None] | None = None
        self.calls = 0
        self.served = 0
        self.leaving = False

    @property
    def endpoint(self) -> EndpointState:
        return self.key[0]

    @property
    def idle(self) -> bool:
        """Whether no call uses it or waits until it is open."""
        return not self.calls and self._opening is None

    # --- opening -----------------------------------------------------------------------------------------------------

    def connect(self, start: Start, opened: Opened | None) -> None:
        """Open the connection, which `state` has counted for this attempt, or join the call that is opening it.

        opened: None for a successor, which no call waits for.
        """
        if self._opening is not None:
            start.state.connection_closed(start.endpoint, start.permits)
        else:
            self.lost()
            self._counted = True
            self._state, self._permits = start.state, start.permits
        self.join(start, opened)

    def join(self, start: Start, opened: Opened | None) -> None:
        """Be told when the connection is open; open it if nobody does."""
        if opened is not None:
            self._joined.append(opened)
        if self._opening is None:
            self._state.stats.connection_begun(multiplexed=True)
            opening = self._owner.loop.create_task(self._open(start.cluster.connect_timeout))
            if not opening.done():  # an eager task may be
                self._opening = opening

    async def _open(self, limit: float) -> None:
        kind: FailureKind | Cancelled | None = None
        reason = ""
        try:
            async with asyncio.timeout(limit):
                if self.tunnel is not None:
                    self.tunnel.begin(limit)
                state = self.get_state(try_to_connect=True)
                while state is not READY:
                    if state in _BROKEN or self._broken is not None:
                        kind = FailureKind.CONNECT_FAILED
                        if self.tunnel is not None and self._broken is None:
                            await self.tunnel.explain_aio(self.channel)
                        break
                    await self._owner.leaving.watch(self.channel, state)
                    state = self.get_state(try_to_connect=True)
        except TimeoutError:
            kind = FailureKind.CONNECT_TIMEOUT
        except asyncio.CancelledError:  # discarded, or the loop ends: the endpoint has not failed
            kind = CANCELLED
        broken = self._broken
        if broken is not None and kind is not CANCELLED:
            kind, reason = broken.kind, broken.reason
        self._opening = None
        joined, self._joined = self._joined, []
        if kind is None:
            self._owner.opened(self)
            self.hand_over()
        else:
            if not joined and not isinstance(kind, Cancelled):  # no attempt tells the engine
                count_connect_failure(self._state.stats, kind)
            self.discard()
        for opened in joined:
            opened(kind, reason)
        self._close_unless_needed()

    def hand_over(self) -> None:
        """Serve all calls of this loop at the head of the endpoint's queue: the connection is shared."""
        if self.way is not self.endpoint.way:
            self._retire()
        while self.endpoint.waiters and not self.leaving:
            waiter = self._state.next_waiter(self.endpoint, self._owner, self)
            if waiter is None:
                return
            waiter.wake()

    # --- the end -----------------------------------------------------------------------------------------------------

    def ready(self) -> bool:
        """Whether a call may be sent now. A connection that was lost is seen here."""
        same_way = self.way is self.key[0].way
        check = self._check
        if same_way and (self.get_state() is READY if check is None else check(False) == _READY):
            return True
        if not same_way:
            self.wear_out()
        elif self._opening is None:
            self.lost()
            if self.spent:
                self.wear_out()
        return False

    @property
    def current(self) -> bool:
        """It is connected to as it would be now, and its peer is trusted still."""
        return self.way is self.endpoint.way and (self.tunnel is None or self.tunnel.trusted)

    @property
    def spent(self) -> bool:
        """Whether it had its one connection."""
        return self.tunnel is not None and self.tunnel.begun

    @property
    def _broken(self) -> TunnelFailure | None:
        return None if self.tunnel is None else self.tunnel.failure

    def due(self) -> None:
        """Its connection is to be exchanged for another one. From any thread."""
        self._soon(self.exchange)

    def expired(self) -> None:
        """Its connection takes no new calls. From any thread."""
        self._soon(self.wear_out)

    def _soon(self, task: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # its loop is closed
            self._owner.loop.call_soon_threadsafe(task)

    def exchange(self) -> None:
        """Its certificate was renewed: have its successor opened, or else wear out."""
        start = None
        if self.served and self._counted and not self.leaving and self.ready():
            start = successor_of(
                self._owner.engine.program, self._state, self.endpoint, self._permits, self.key[1]
            )
        if start is None:
            self.wear_out()
        else:
            self._owner.succeed(start)

    @property
    def refused(self) -> BaseException | None:
        """What broke the TLS of its connection."""
        return None if self._broken is None else self._broken.error

    def wear_out(self) -> None:
        """No new call takes it, and it is closed when those that it has are over. Idempotent."""
        self._retire()
        self._close_unless_needed()

    def lost(self) -> None:
        """The connection is gone: `state` counts it no longer. Idempotent."""
        if self._counted:
            self._counted = False
            self._state.connection_closed(self.endpoint, self._permits)

    def used(self) -> None:
        self.calls += 1
        self.served += 1
        if self.served == self._max_calls:
            self._retire()

    def released(self) -> None:
        self.calls -= 1
        if not self.calls:
            self._close_unless_needed()

    def told(self, event: Event) -> None:
        """C-core may call a connection that was lost READY for a moment longer."""
        if isinstance(event, Failed) and event.kind is FailureKind.TERMINATED:
            self._retire()
            self.lost()
            self._close_unless_needed()

    def _close_unless_needed(self) -> None:
        """Close it when it is idle and takes no more calls, or when calls of others wait for its permit."""
        endpoint = self.key[0]
        if (self.leaving or endpoint.departed or endpoint.waiters) and self.idle:
            self.discard()

    def _retire(self) -> None:
        self.leaving = True
        self._owner.remove(self)

    def discard(self) -> None:
        self._retire()
        if self._opening is not None and not self._owner.loop.is_closed():
            self._opening.cancel()
        self.lost()
        super().discard()
        if self.tunnel is not None:
            self.tunnel.close()

    def drop(self) -> None:
        """The same from a finalizer, which must not take a lock: grpc.aio's own finalizer closes the channel."""
        if self._counted:
            self._counted = False
            self._state.abandoned.append(partial(self._state.connection_closed, self.endpoint, self._permits))

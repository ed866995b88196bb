"""The engine: the current Program, the calls that wait for the next one, and what every call needs."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Any, Protocol

from meshlib.engine.call import Call
from meshlib.engine.context import INBOUND
from meshlib.engine.dialect import ENVOY, Dialect
from meshlib.engine.observer import Observers
from meshlib.engine.options import CallOptions, current_options, deadline_of
from meshlib.engine.program import Compiler, Program
from meshlib.engine.rpc import RpcCall
from meshlib.errors import ConfigTimeout, ControlPlaneError
from meshlib.routing.request import KnownHeaders, RequestView
from meshlib.runtime.clock import Clock
from meshlib.snapshot import Kind, Snapshot
from meshlib.state import StateStore

if TYPE_CHECKING:
    from meshlib.observe.decision import Decision

__all__ = ["CONFIG_TIMEOUT", "ConfigSource", "ConnectionOwner", "Engine"]

CONFIG_TIMEOUT = 15.0
"""Seconds that a call waits for its first configuration, unless its own deadline is nearer (Envoy's initial_fetch_timeout)."""


class ConfigSource(Protocol):
    """Where configuration comes from: the control plane's client, or files, which know everything from the start."""

    @property
    def last_error(self) -> ControlPlaneError | None:
        """Why there is no connection to the control plane right now; None while there is one."""

    def start(self) -> None:
        """Connect, or whatever it takes to keep up to date. Cheap when that has been done; never blocks."""

    def want_listener(self, name: str) -> None:
        """Ask for a listener and all below it; asking again is cheap and keeps it alive. Never blocks."""

    def want_cluster(self, name: str) -> None:
        """Ask for a cluster that a request header names."""


class ConnectionOwner(Protocol):
    """A transport's pool that wants to know about changes of configuration."""

    def sweep(self) -> None:
        """Endpoints may have left (`EndpointState.departed`), or be connected to in another way now (`EndpointState.way`).

        Called on the thread that publishes, or that brought certificates; never blocks.
        """


class Engine:
    """One engine for each Mesh, shared by all its transports.

    envoy_headers: do what Envoy does to headers by itself. trust_request_headers: obey the application's x-envoy-* headers.
    config_timeout: seconds that a call waits for configuration. random: seeded in tests. listener_name: from the `host:port` of
    a request to the name of its Listener; server_listener_name: the same from the `ip:port` of a server. defer: runs a task on
    the publishing thread a little later, so that calls have the interpreter right after a push; None: at once. starting: called
    before the source is started. passthrough: transports send requests to unknown hosts without the mesh.
    pools: those of the HTTP transports, which share them. explainer: says why a call went where it went (`CallInfo.decision`).
    shows_connections: an access log shows what connections are like, so transports leave it in `Attempt.connection`.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        random: Random,
        store: StateStore,
        compiler: Compiler,
        envoy_headers: bool = False,
        trust_request_headers: bool = False,
        config_timeout: float = CONFIG_TIMEOUT,
    ) -> None:
        self.clock = clock
        self.random = random
        self.store = store
        self.envoy_headers = envoy_headers
        self.trust_request_headers = trust_request_headers
        self.config_timeout = config_timeout
        self.closed = False
        self.passthrough = False
        self.shows_connections = False
        self.observers = Observers()
        self.listener_name: Callable[[str], str] = str
        self.server_listener_name: Callable[[str], str] = str
        self.source: ConfigSource | None = None
        self.defer: Callable[[Callable[[], None]], None] | None = None
        self.starting: Callable[[], None] | None = None
        self.explainer: Callable[[Any], Decision] | None = None
        self.pools: object = None
        self._owners: weakref.WeakSet[ConnectionOwner] = weakref.WeakSet()
        self._unsettled: Program | None = None
        self.program: Program = compiler.empty()
        self._compiler = compiler
        self._lock = threading.Lock()
        self._waiting: dict[Callable[[], None], None] = {}
        self._dormant = True
        self.abandoned: deque[Callable[[], None]] = deque()

    def start(self) -> None:
        """Start the source: at the first call of a process, also of a forked one."""
        self._dormant = False
        if self.starting is not None:
            self.starting()
        if self.source is not None:
            self.source.start()

    def call(
        self,
        request: RequestView,
        *,
        wake: Callable[[], None],
        options: CallOptions | None = None,
        replayable: Callable[[], bool] | None = None,
        deadline: float | None = None,
        wait_for_ready: bool = False,
        dialect: Dialect = ENVOY,
    ) -> Call:
        """A new call. wake: called, from any thread, when what the call is parked for may be there.

        options: None takes those of the surrounding `meshlib.call(...)` block. replayable: whether the request can be sent
        again from its first byte; None: always. deadline: a gRPC caller's own, monotonic seconds; it ends the call in
        DEADLINE_EXCEEDED. wait_for_ready: as in gRPC, see `meshlib.engine.rpc`. dialect: of a gRPC call, see
        `meshlib.engine.dialect`. A call that is made while an inbound request is being answered ends with the deadline of that
        (`meshlib.engine.context`).
        """
        if self._dormant and not self.closed:
            self.start()
        call: Call
        if deadline is not None or wait_for_ready or dialect is not ENVOY:
            call = RpcCall(
                self,
                request,
                wake=wake,
                options=options or current_options(),
                replayable=replayable,
                deadline=deadline,
                wait_for_ready=wait_for_ready,
                dialect=dialect,
            )
        else:
            call = Call(self, request, wake=wake, options=options or current_options(), replayable=replayable)
        inbound = INBOUND.get()
        if inbound is not None:
            call.within(inbound)
        return call

    def rpc(
        self,
        target: str,
        authority: str,
        path: str,
        headers: KnownHeaders,
        channel_id: int | None,
        likeness: str | None,
        wake: Callable[[], None],
        timeout: float | None,
        wait_for_ready: bool,
        dialect: Dialect,
        replayable: Callable[[], bool] | None = None,
    ) -> Call:
        """A new gRPC call, as `call` makes them. The first six are those of its `RequestView`.

        timeout: the caller's own, in seconds; `Call.caller_deadline` is what came of it and of all else that limits the caller.
        """
        request = RequestView("POST", "http", authority, path, headers, target, channel_id)
        request.likeness = likeness
        options = current_options()
        deadline: float | None
        if timeout is None and options is None and INBOUND.get() is None:
            deadline = None
        else:
            deadline = deadline_of(timeout, self.clock.monotonic)
        return self.call(
            request,
            wake=wake,
            options=options,
            replayable=replayable,
            deadline=deadline,
            wait_for_ready=wait_for_ready,
            dialect=dialect,
        )

    def publish(self, snapshot: Snapshot) -> None:
        """Make the snapshot take effect: compile it, swap one reference, wake whoever waits. One thread at a time."""
        previous = self.program
        program = self._compiler.compile(snapshot, previous, self.defer)
        if not self.shows_connections:
            self.shows_connections = any(each.shows_connections for each in program.listeners.values())
        self.program = program
        self._wake_all()
        if self._unsettled is None:
            self._unsettled = previous
            if self.defer is None:
                self._settle()
            else:
                self.defer(self._settle)

    def _settle(self) -> None:
        """What no call waits for: tell pools which endpoints have left since the last time."""
        previous, self._unsettled = self._unsettled, None
        if previous is not None:
            self._compiler.settle(self.program, previous)
            self._sweep()

    def rotated(self) -> None:
        """Certificates, or what is trusted, were exchanged. On any thread, but not while another one publishes.

        From now on connections are made with what is in force; calls that waited for the first certificates go on.
        """
        changed = self.store.rotated()
        if changed and any(cluster.secure_by is not None for cluster in self.program.clusters.values()):
            self.publish(self.program.snapshot)
        self._sweep()

    def _sweep(self) -> None:
        with self._lock:
            owners = list(self._owners)
        for owner in owners:
            owner.sweep()

    def adopt(self, owner: ConnectionOwner) -> None:
        """Tell this pool after every push, as long as it lives, that endpoints may have left."""
        with self._lock:
            self._owners.add(owner)

    def observe(self, observer: object) -> None:
        """Tell it of calls that begin from now on; see `meshlib.engine.observer`. Nothing happens when it is told already."""
        with self._lock:
            self.observers = self.observers.plus(observer)

    def unobserve(self, observer: object) -> None:
        """Tell it only of calls that have begun. Idempotent."""
        with self._lock:
            self.observers = self.observers.minus(observer)

    def close(self) -> None:
        """Calls that wait for configuration fail now; later ones fail when they begin. Calls under way go on."""
        self.closed = True
        self._wake_all()

    def renew_locks(self) -> None:
        """In a forked child: nobody holds a lock, and none of the parent's calls is here."""
        self._lock = threading.Lock()
        self._waiting = {}
        self._dormant = True
        self._unsettled = None
        self.abandoned.clear()
        self.store.renew_locks()
        for cluster in self.program.clusters.values():
            cluster.balancer.renew_lock()

    # --- for calls ---------------------------------------------------------------------------------------------------

    def drain_abandoned(self) -> None:
        """Give back what filters held for calls that were dropped without an end."""
        while True:
            try:
                give_back = self.abandoned.popleft()
            except IndexError:  # empty, or another thread was faster
                return
            give_back()

    def late(self, what: str, seconds: float) -> ConfigTimeout:
        """The error of whoever waited that long for a resource in vain."""
        reason = self.source.last_error if self.source is not None else None
        text = f"{what} has not arrived after {seconds:.3g} s"
        return ConfigTimeout(f"{text}; {reason}" if reason is not None else f"{text} from the control plane")

    def awaits_listener(self, name: str, *, patient: bool = False) -> bool:
        """Whether a listener that the Program does not have may still come; asks for it.

        patient: also one that the control plane does not know today.
        """
        snapshot = self.program.snapshot
        if not snapshot.pending(Kind.LISTENER, name) and (snapshot.complete or not patient):
            return False
        if self.source is not None and not self.closed:
            self.source.want_listener(name)
        return True

    def awaits_cluster(self, name: str, *, patient: bool = False) -> bool:
        snapshot = self.program.snapshot
        if not snapshot.pending(Kind.CLUSTER, name) and (snapshot.complete or not patient):
            return False
        if self.source is not None and not self.closed:
            self.source.want_cluster(name)
        return True

    def await_program(self, wake: Callable[[], None], seen: Program) -> None:
        """Have `wake` called when a Program other than `seen` is published; at once when it has been already."""
        with self._lock:
            if self.program is seen and not self.closed:
                self._waiting[wake] = None
                return
        wake()

    def forget(self, wake: Callable[[], None]) -> None:
        """The call with this `wake` no longer waits."""
        with self._lock:
            self._waiting.pop(wake, None)

    def _wake_all(self) -> None:
        with self._lock:
            waiting, self._waiting = self._waiting, {}
        for wake in waiting:
            wake()

"""A transport in memory: it carries out the engine's actions by the contract, and tests say what the network does.

    mesh = FakeMesh(cluster("a", hosts=2), action=forward(retry_policy=retry("5xx")))
    call = mesh.call()
    call.answer(503)            # the response headers of the one attempt that is alive
    call.tick()                 # the clock moves to the call's next timer, which is reported
    call.answer(200)
    assert call.status == 200

Connections are counted and pooled as the real pools do it: newest first, handed over to whoever waits.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf, isfinite
from random import Random
from typing import Any

from meshlib.engine import actions as act
from meshlib.engine import events as ev
from meshlib.engine.engine import Engine
from meshlib.engine.options import CallOptions
from meshlib.engine.program import Compiler
from meshlib.errors import LocalReply, MeshError
from meshlib.policy.breaker import BreakerSet
from meshlib.policy.failure import FailureKind
from meshlib.resources.cluster import Cluster
from meshlib.resources.listener import Listener
from meshlib.resources.route import Action
from meshlib.routing.request import RequestView
from meshlib.runtime.clock import FakeClock
from meshlib.snapshot import Snapshot
from meshlib.state import ClusterState, EndpointState, Permits, Secure, StateStore, Waiter
from meshlib.stats import Registry
from tests.engine.builders import forward, listener, route_config

__all__ = ["Connection", "FakeCall", "FakeMesh", "FakePool", "request"]


def request(
    path: str = "/", method: str = "GET", headers: Sequence[tuple[str, str]] = (), authority: str = "svc"
) -> RequestView:
    return RequestView(
        method=method, scheme="http", authority=authority, path=path, headers=list(headers), target="svc:80"
    )


@dataclass(eq=False)
class Connection:
    """An open, or opening, connection to an endpoint."""

    pool: FakePool
    endpoint: EndpointState
    state: ClusterState
    permits: Permits
    closed: bool = False

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.state.connection_closed(self.endpoint, self.permits)


class FakePool:
    """What `transport.http.pool.Pool` does, without sockets."""

    def __init__(self) -> None:
        self.idle: dict[EndpointState, list[Connection]] = defaultdict(list)

    def pop(self, endpoint: EndpointState) -> Connection | None:
        return self.idle[endpoint].pop() if self.idle[endpoint] else None

    def release(self, connection: Connection) -> None:
        endpoint = connection.endpoint
        if connection.closed or endpoint.departed:
            connection.close()
            return
        waiter = connection.state.next_waiter(endpoint, self, connection)
        if waiter is not None:
            waiter.wake()
        elif endpoint.waiters:
            connection.close()
        else:
            self.idle[endpoint].append(connection)

    def close_idle(self) -> None:
        for connections in self.idle.values():
            while connections:
                connections.pop().close()


class FakeMesh:
    """An engine with a fake clock and seeded randomness, published with one listener and these clusters."""

    def __init__(
        self,
        *clusters: Cluster,
        action: Action | None = None,
        listen: Listener | None = None,
        breakers: BreakerSet | None = None,
        publish: bool = True,
        seed: int = 1,
        secure: Secure | None = None,
        **engine: Any,
    ) -> None:
        self.clock = FakeClock()
        self.registry = Registry()
        self.store = StateStore(self.registry)
        random = Random(seed)
        self.engine = Engine(
            clock=self.clock,
            random=random,
            store=self.store,
            compiler=Compiler(self.store, random, breakers, secure, self.clock),
            **engine,
        )
        self.pool = FakePool()
        self.slow = False
        self.clusters = clusters
        self.listen = listen or listener(route_config(action or forward()))
        if publish:
            self.publish()

    def publish(self, *clusters: Cluster, **fields: Any) -> None:
        """Publish the listener with these clusters (without any: those of the constructor)."""
        named = {each.name: each for each in clusters or self.clusters}
        given: dict[str, Any] = {"listeners": {self.listen.name: self.listen}, "complete": True, **fields}
        self.engine.publish(Snapshot(clusters=named, **given))

    def call(
        self,
        view: RequestView | None = None,
        *,
        complete: bool = True,
        options: CallOptions | None = None,
        replayable: Callable[[], bool] | None = None,
        pool: FakePool | None = None,
        **rpc: Any,
    ) -> FakeCall:
        """rpc: what only gRPC calls have (deadline, wait_for_ready)."""
        fake = FakeCall(self, pool or self.pool)
        fake.core = self.engine.call(
            view or request(), wake=fake.wake, options=options, replayable=replayable, **rpc
        )
        fake.handle(ev.Begin(complete))
        return fake

    def state(self, name: str = "a") -> ClusterState:
        return self.store.cluster(name)

    def stat(self, name: str, cluster: str = "a") -> float:
        return next(
            metric.value  # type: ignore[union-attr]
            for metric in self.registry
            if metric.name == f"cluster.{cluster}.{name}"
        )

    def held(self) -> dict[str, int]:
        """What is held of permits that calls must give back, by name; only what is not zero."""
        found: dict[str, int] = {}
        for state in self.store:
            for permits in (state.default, state.high):
                for name in ("pending", "requests", "retries"):
                    if count := getattr(permits, name):
                        found[f"{state.name}.{name}"] = count
            for endpoint in state.endpoints.values():
                if endpoint.active or endpoint.waiters:
                    found[f"{state.name}.{endpoint.key}"] = endpoint.active or len(endpoint.waiters)
        return found


@dataclass(eq=False)
class Live:
    """An attempt that the transport is busy with. sent: the request is on its way."""

    start: act.Start
    connection: Connection | None = None
    waiter: Waiter | None = None
    sent: bool = False


@dataclass(eq=False)
class FakeCall:
    """One call and what became of it. live: its attempts by number, mirrors among them (negative)."""

    mesh: FakeMesh
    pool: FakePool
    live: dict[int, Live] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)
    starts: list[act.Start] = field(default_factory=list)
    sides: list[act.SideCall] = field(default_factory=list)
    woken: bool = False
    cancelled: bool = False
    status: int | None = None
    headers: Sequence[tuple[str, str]] | None = None
    reply: LocalReply | None = None
    error: MeshError | None = None
    core: Any = None
    _answered: Sequence[tuple[str, str]] = ()
    _status: int = 0

    def wake(self) -> None:
        self.woken = True

    # --- the engine's side -------------------------------------------------------------------------------------------

    def handle(self, event: ev.Event) -> None:
        before = self.core.wake_at
        for action in self.core.handle(event, self.mesh.clock.monotonic()):
            self._carry_out(action)
        assert self.core.wake_at == inf or isfinite(self.core.wake_at), before

    def _carry_out(self, action: act.Action) -> None:
        number = getattr(action, "attempt", None)
        self.log.append(type(action).__name__ + (f"({number})" if number is not None else ""))
        if isinstance(action, act.Start):
            self._start(action)
        elif isinstance(action, act.Connect):
            self._connect(action)
        elif isinstance(action, act.Park):
            if action.attempt is not None:
                self.live[action.attempt].waiter = action.waiter
                idle = self.pool.pop(self.live[action.attempt].start.endpoint)
                if idle is not None:
                    self.pool.release(idle)
        elif isinstance(action, act.CancelAttempt):
            self._drop(self.live.pop(action.attempt))
        elif isinstance(action, act.Accept):
            assert self.error is None
            assert self.status is None
            self.status = self._status
            self.headers = self._answered if action.headers is None else action.headers
        elif isinstance(action, act.Mirror):
            self.live[action.start.attempt] = Live(action.start, sent=True)
        elif isinstance(action, act.SideCall):
            self.sides.append(action)
        elif isinstance(action, act.Reply):
            self.reply = action.reply
        else:
            assert isinstance(action, act.Fail)
            assert self.error is None
            self.error = action.error

    def _start(self, start: act.Start) -> None:
        self.starts.append(start)
        attempt = self.live[start.attempt] = Live(start)
        attempt.connection = self.pool.pop(start.endpoint)
        if attempt.connection is None:
            self.handle(ev.NeedConnection(start.attempt, self.pool))
        elif start.permitted:
            attempt.sent = True
        else:
            self._connected(start.attempt)

    def _connect(self, action: act.Connect) -> None:
        attempt = self.live[action.attempt]
        start = attempt.start
        if action.connection is not None:
            assert isinstance(action.connection, Connection)
            assert attempt.waiter is not None
            attempt.waiter = None
            attempt.connection = action.connection
            self._connected(action.attempt)
            return
        attempt.connection = Connection(self.pool, start.endpoint, start.state, start.permits)
        if not self.mesh.slow:
            self._connected(action.attempt)

    def _connected(self, number: int) -> None:
        self.handle(ev.Connected(number))
        if number in self.live:
            self.live[number].sent = True

    def _drop(self, attempt: Live) -> None:
        """Give an attempt up: its connection is closed, unless nothing was sent on it."""
        waiter, connection = attempt.waiter, attempt.connection
        if waiter is not None and isinstance(waiter.connection, Connection):
            self.pool.release(waiter.connection)
        if connection is not None:
            connection.close()

    # --- the network's side ------------------------------------------------------------------------------------------

    def _only(self, number: int | None) -> int:
        if number is not None:
            return number
        alive = [each for each in self.live if each > 0]
        assert len(alive) == 1, f"attempts {alive} are alive"
        return alive[0]

    def connected(self, number: int | None = None) -> None:
        self._connected(self._only(number))

    def answer(
        self,
        status: int = 200,
        headers: Sequence[tuple[str, str]] = (),
        *,
        attempt: int | None = None,
        end: bool = True,
    ) -> None:
        """Response headers arrive, with the whole body unless `end` is False."""
        number = self._only(attempt)
        self._status, self._answered = status, headers
        self.handle(ev.Headers(number, status, headers, end))
        if end:
            self._complete(number)

    def end(self, attempt: int | None = None, trailers: Sequence[tuple[str, str]] = ()) -> None:
        """The rest of the response arrives."""
        number = self._only(attempt)
        self.handle(ev.End(number, trailers))
        self._complete(number)

    def _complete(self, number: int) -> None:
        attempt = self.live.pop(number, None)
        if attempt is not None and attempt.connection is not None:
            self.pool.release(attempt.connection)

    def fail(
        self,
        kind: FailureKind = FailureKind.TERMINATED,
        *,
        attempt: int | None = None,
        sent: bool = True,
        reason: str = "",
    ) -> None:
        number = self._only(attempt)
        connection = self.live.pop(number).connection
        self.handle(ev.Failed(number, kind, sent, reason))
        if connection is not None:
            connection.close()

    def tick(self) -> float:
        """Move the clock to `wake_at` and report it. Gives the seconds that passed."""
        before = self.mesh.clock.monotonic()
        assert self.core.wake_at < inf, "nothing is to be waited for"
        self.mesh.clock.advance_to(self.core.wake_at)
        self.handle(ev.Timer())
        return self.mesh.clock.monotonic() - before

    def after(self, seconds: float) -> None:
        """Let time pass; every timer that comes due on the way is reported in time."""
        until = self.mesh.clock.monotonic() + seconds
        while self.core.wake_at <= until:
            self.tick()
        self.mesh.clock.advance_to(until)

    def attend(self) -> None:
        """Report a wake-up, if there was one."""
        if self.woken:
            self.woken = False
            self.handle(ev.Woken())

    def cancel(self) -> None:
        self.cancelled = True
        self.handle(ev.Cancelled())

    @property
    def flags(self) -> str:
        return str(self.core.info.flags)

    @property
    def details(self) -> str:
        return str(self.core.info.details)

    @property
    def over(self) -> bool:
        """Whether the application has its answer, or gave up; a body may still be on its way."""
        return self.cancelled or not (self.error is None and self.reply is None and self.status is None)

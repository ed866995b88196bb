"""What the calls of one mesh channel on one event loop share: its inner channels, and the calls that are under way.

A mesh channel has a home for each event loop that it is used on. A loop that was closed leaves nothing behind: its home is
closed when the mesh channel is used on another loop, closed or dropped.
"""

from __future__ import annotations

import asyncio
import os
import weakref
from collections import deque
from collections.abc import Callable
from math import inf
from typing import TYPE_CHECKING

import grpc

from meshlib.engine.actions import Start
from meshlib.engine.dialect import Dialect
from meshlib.state import EndpointState
from meshlib.transport.grpc.aio_endpoint import InnerChannel, Lane
from meshlib.transport.grpc.endpoint import Options

if TYPE_CHECKING:
    from meshlib.transport.grpc.aio_driver import Driver
    from meshlib.transport.grpc.sync_channel import MeshLike

__all__ = ["Home", "Wake", "running_loop"]


class Wake:
    """What the engine calls from any thread when the call may go on. Knows the driver until that is over.

    at: the deadline that `Deadlines` keeps for it.
    """

    __slots__ = ("at", "driver")

    at: float

    def __init__(self, driver: Driver) -> None:
        self.driver: Driver | None = driver

    def __call__(self) -> None:
        driver = self.driver
        if driver is not None:
            try:
                driver.home.loop.call_soon_threadsafe(driver.woken)
            except RuntimeError:  # the loop was closed with the call under way
                self.driver = None


class Deadlines:
    """Timers of calls in one queue with one timer of the loop, since most calls have the same timeout and never need it.

    Whoever comes with an earlier deadline than the last one is refused and takes a timer of its own.
    """

    __slots__ = ("_alarm", "_alarm_at", "_loop", "_monotonic", "_queue")

    def __init__(self, loop: asyncio.AbstractEventLoop, monotonic: Callable[[], float]) -> None:
        self._loop = loop
        self._monotonic = monotonic
        self._queue: deque[Wake] = deque()
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_at = inf

    def add(self, wake: Wake, at: float) -> bool:
        """Have the driver's `due` called then, unless it is over."""
        queue = self._queue
        while queue and queue[0].driver is None:
            queue.popleft()
        if queue and at < queue[-1].at:
            return False
        wake.at = at
        queue.append(wake)
        if at < self._alarm_at:
            self._set(at, self._monotonic())
        return True

    def _set(self, at: float, now: float) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm_at = at
        self._alarm = self._loop.call_later(at - now, self._ring)

    def _ring(self) -> None:
        self._alarm, self._alarm_at = None, inf
        queue, now = self._queue, self._monotonic()
        due = []
        while queue and (queue[0].driver is None or queue[0].at <= now):
            due.append(queue.popleft().driver)
        if queue:
            self._set(queue[0].at, now)
        for driver in due:
            if driver is not None:
                driver.due()

    def close(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm, self._alarm_at = None, inf


class Home:
    """The owner of connections in a cluster's queues. Only code that runs on `loop` may use it. active: calls not over yet."""

    __slots__ = (
        "__weakref__",
        "_channels",
        "_plain",
        "active",
        "compression",
        "deadlines",
        "dialect",
        "engine",
        "loop",
        "monotonic",
        "options",
        "passthrough",
        "target",
    )

    def __init__(
        self,
        mesh: MeshLike,
        target: str,
        loop: asyncio.AbstractEventLoop,
        options: Options,
        compression: grpc.Compression | None,
        dialect: Dialect,
    ) -> None:
        self.engine = engine = mesh.engine
        self.passthrough = mesh.passthrough
        self.dialect = dialect
        self.target = target
        self.loop = loop
        self.monotonic = engine.clock.monotonic
        self.options = options
        self.compression = compression
        self.active: set[Driver] = set()
        self.deadlines = Deadlines(loop, self.monotonic)
        self._plain: Lane | None = None
        self._channels: dict[tuple[EndpointState, str], InnerChannel] = {}
        _homes.add(self)
        engine.adopt(self)

    def inner(self, start: Start) -> InnerChannel:
        """The inner channel for this attempt, open or not."""
        inner = self._channels.get((start.endpoint, start.authority))
        if inner is None:
            inner = InnerChannel(self, start)
            self._channels[inner.key] = inner
        return inner

    def plain(self) -> Lane:
        """A channel to the target without the mesh."""
        if self._plain is None:
            self._plain = Lane(self.target, self.options, self.compression)
        return self._plain

    def remove(self, inner: InnerChannel) -> None:
        """It takes no more calls."""
        if self._channels.get(inner.key) is inner:
            del self._channels[inner.key]

    def sweep(self) -> None:
        """After a push, on the publishing thread: endpoints may have left."""
        if not self.loop.is_closed():
            try:
                self.loop.call_soon_threadsafe(self._sweep)
            except RuntimeError:
                return  # closed in the meantime

    def _sweep(self) -> None:
        """Close the channels of endpoints that have left; those with calls close with the last of them."""
        for inner in list(self._channels.values()):
            if inner.endpoint.departed and not inner.calls:
                inner.discard()

    def spare(self, endpoint: EndpointState) -> None:
        """A call of this home is parked: let others close an idle connection to its endpoint."""
        for home in list(_homes):
            if home is not self and home.engine is self.engine and not home.loop.is_closed():
                home.loop.call_soon_threadsafe(home.close_idle, endpoint)

    def close_idle(self, endpoint: EndpointState) -> None:
        for inner in list(self._channels.values()):
            if inner.endpoint is endpoint and not inner.calls:
                inner.discard()

    def close(self) -> None:
        """Close every connection; calls that run are cancelled first. From any thread. Idempotent."""
        if not self.loop.is_closed() and self.loop is not running_loop():
            try:
                self.loop.call_soon_threadsafe(self._close)
                return
            except RuntimeError:
                pass  # closed in the meantime
        self._close()

    def _close(self) -> None:
        for driver in list(self.active):
            driver.give_up()
        for inner in list(self._channels.values()):
            inner.discard()
        self.deadlines.close()
        plain, self._plain = self._plain, None
        if plain is not None:
            plain.discard()

    def drop(self) -> None:
        """The same from a finalizer, where there are no calls: they keep their mesh channel alive."""
        channels, self._channels = self._channels, {}
        for inner in channels.values():
            inner.drop()

    def forget(self) -> None:
        """In a forked child: let go without a call into grpc, whose connections are the parent's."""
        _inherited.append((self._channels, self._plain, self.active))
        self._plain = None
        self._channels = {}
        self.active = set()


def running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


_homes: weakref.WeakSet[Home] = weakref.WeakSet()
_inherited: list[object] = []


def _after_fork() -> None:
    for home in list(_homes):
        home.forget()


os.register_at_fork(after_in_child=_after_fork)

"""What the calls of one mesh channel on one event loop share: its inner channels, and the calls that are under way.

A connection whose certificate was renewed has a *successor*, which is opened beside it and takes its place once it is open
(`successor`). A call that needs a connection before, because the old one has ended, joins those who wait for the successor.

A mesh channel has a home for each event loop that it is used on. `asyncio.run` closes the homes of its loop before that ends: it
closes asynchronous generators, and `_until_the_end` is one. A loop that was closed in another way leaves nothing behind
either: its home is closed when the mesh channel is used on another loop, closed or dropped.
"""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

import grpc

from meshlib.engine.actions import Start
from meshlib.engine.dialect import Dialect
from meshlib.runtime import fork
from meshlib.state import EndpointState
from meshlib.transport.grpc.aio_deadlines import Deadlines
from meshlib.transport.grpc.aio_endpoint import InnerChannel, Lane
from meshlib.transport.grpc.aio_inner import result_of
from meshlib.transport.grpc.aio_leaving import Leaving
from meshlib.transport.grpc.target import Options
from meshlib.transport.grpc.turns import take_part

if TYPE_CHECKING:
    from meshlib.transport.grpc.aio_driver import Driver
    from meshlib.transport.grpc.sync_channel import MeshLike

__all__ = ["Home", "running_loop"]


class Home:
    """The owner of connections in a cluster's queues. Only code that runs on `loop` may use it. active: calls not over yet.

    leaving: what C-core has not ended yet of those that are over.
    """

    __slots__ = (
        "__weakref__",
        "_channels",
        "_end",
        "_plain",
        "_successors",
        "active",
        "compression",
        "deadlines",
        "dialect",
        "engine",
        "leaving",
        "loop",
        "monotonic",
        "options",
        "passthrough",
        "target",
        "tls",
    )

    def __init__(
        self,
        mesh: MeshLike,
        target: str,
        loop: asyncio.AbstractEventLoop,
        options: Options,
        compression: grpc.Compression | None,
        dialect: Dialect,
        tls: str = "tunnel",
    ) -> None:
        self.tls = tls
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
        self.leaving = Leaving(loop)
        self._plain: Lane | None = None
        self._channels: dict[tuple[EndpointState, str], InnerChannel] = {}
        self._successors: dict[tuple[EndpointState, str], InnerChannel] = {}
        self._end = _until_the_end(weakref.ref(self))
        result_of(anext(self._end))
        fork.register(self)
        take_part(self)
        engine.adopt(self)

    def inner(self, start: Start) -> InnerChannel:
        """The inner channel for this attempt, open or not."""
        key = (start.endpoint, start.authority)
        inner = self._channels.get(key)
        if inner is None:
            coming = self._successors.pop(key, None)
            inner = self._channels[key] = InnerChannel(self, start) if coming is None else coming
        return inner

    def succeed(self, start: Start) -> None:
        """Open a successor. It takes the place of the channel of now when it is open, unless a call has taken it before."""
        successor = InnerChannel(self, start)
        self._successors[successor.key] = successor
        successor.connect(start, None)

    def opened(self, inner: InnerChannel) -> None:
        """Its connection is open."""
        if self._successors.get(inner.key) is inner:
            del self._successors[inner.key]
            worn = self._channels.get(inner.key)
            self._channels[inner.key] = inner
            if worn is not None:
                worn.wear_out()

    def plain(self) -> Lane:
        """A channel to the target without the mesh."""
        if self._plain is None:
            self._plain = Lane(self.target, self.options, self.compression)
        return self._plain

    def remove(self, inner: InnerChannel) -> None:
        """It takes no more calls."""
        for channels in (self._channels, self._successors):
            if channels.get(inner.key) is inner:
                del channels[inner.key]

    def sweep(self) -> None:
        """After a push, or after the exchange of a certificate, on the thread that brought it."""
        with contextlib.suppress(RuntimeError):  # its loop is closed
            self.loop.call_soon_threadsafe(self._sweep)

    def _sweep(self) -> None:
        """Close the channels of endpoints that have left, are connected to in another way now, or are trusted no longer.

        Those with calls close with the last of them; those of certificates that were renewed are exchanged some time later.
        """
        for inner in self._all():
            if inner.endpoint.departed and inner.idle:
                inner.discard()
            elif not inner.current:
                inner.wear_out()
            elif inner.tunnel is not None:
                inner.tunnel.exchange()

    def spare(self, endpoint: EndpointState) -> None:
        """A call of others waits for a connection to this endpoint. From any thread."""
        with contextlib.suppress(RuntimeError):  # its loop is closed
            self.loop.call_soon_threadsafe(self.close_idle, endpoint)

    def close_idle(self, endpoint: EndpointState) -> None:
        for inner in self._all():
            if inner.endpoint is endpoint and inner.idle:
                inner.discard()

    def close(self) -> None:
        """Close every connection; calls that run are cancelled first. From any thread. Idempotent."""
        if self.loop is not running_loop():
            with contextlib.suppress(RuntimeError):  # its loop is closed
                self.loop.call_soon_threadsafe(self._close)
                return
        self._close()

    async def end(self) -> None:
        """Close, and let C-core say what became of it while somebody listens. On its own loop."""
        self._close()
        await self.leaving.gone()

    def _close(self) -> None:
        lost = self.loop.is_closed()
        for driver in list(self.active):
            if lost:
                driver.lose()
            else:
                driver.give_up()
        for inner in self._all():
            inner.discard()
        self.deadlines.close()
        plain, self._plain = self._plain, None
        if plain is not None:
            plain.discard()

    def drop(self) -> None:
        """The same from a finalizer, where there are no calls: they keep their mesh channel alive."""
        for inner in self._all():
            inner.drop()
        self._channels = {}
        self._successors = {}

    def _all(self) -> list[InnerChannel]:
        """With those that are to be."""
        return [*self._channels.values(), *self._successors.values()]

    def before_fork(self) -> None:
        """Nothing has to be closed: a child opens its own connections."""

    def after_fork_in_parent(self) -> None:
        """Nothing has changed."""

    def after_fork_in_child(self) -> None:
        """Let go without a call into grpc, whose connections are the parent's."""
        _inherited.append((self._channels, self._successors, self._plain, self.active))
        self._plain = None
        self._channels = {}
        self._successors = {}
        self.active = set()


async def _until_the_end(reference: weakref.ref[Home]) -> AsyncGenerator[None, None]:
    try:
        yield
    finally:
        home = reference()
        if home is not None and not home.loop.is_closed():
            await home.end()


def running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


_inherited: list[object] = []

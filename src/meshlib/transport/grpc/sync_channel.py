"""The channel that blocking code uses: a `grpc.Channel` whose calls go through the mesh."""

from __future__ import annotations

import contextlib
import inspect
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol

import grpc

import meshlib
from meshlib.engine.actions import Start
from meshlib.engine.dialect import ENVOY, Dialect
from meshlib.engine.engine import Engine
from meshlib.runtime import fork
from meshlib.state import EndpointState
from meshlib.transport.grpc.endpoint import InnerChannel
from meshlib.transport.grpc.endpoints import EndpointChannels
from meshlib.transport.grpc.lean import LeanUnary, lean_unary
from meshlib.transport.grpc.request import authority_of, method_path
from meshlib.transport.grpc.sync_flight import Flight
from meshlib.transport.grpc.sync_stubs import StreamStream, StreamUnary, UnaryStream, UnaryUnary
from meshlib.transport.grpc.sync_watch import Watch
from meshlib.transport.grpc.tally import Incoming, Outgoing, Tally
from meshlib.transport.grpc.waker import Waker

__all__ = ["MeshChannel", "MeshLike", "Method"]

CLOSED = "Cannot invoke RPC on closed channel!"

Serializer = Callable[[Any], bytes]
Deserializer = Callable[[bytes], Any]

_dropped: list[object] = []
"""The parent's channels, in a forked child: freeing them would call into grpc, whose threads are not here."""


class MeshLike(Protocol):
    """What a channel needs of a Mesh. passthrough: hosts that no Listener knows are called as if there were no mesh."""

    @property
    def engine(self) -> Engine: ...
    @property
    def passthrough(self) -> bool: ...


class Method:
    """One method of a service, as the multicallables of a channel know it. kind: `unary_unary`, ...

    Inner multicallables are kept, one for each inner channel. Those of client streams take messages that are serialized
    already, since they may be sent more than once.
    """

    __slots__ = (
        "_arguments",
        "_kind",
        "_known",
        "_lanes",
        "_lean",
        "_registered",
        "channel",
        "likeness",
        "path",
        "serializer",
    )

    def __init__(
        self,
        channel: MeshChannel,
        kind: str,
        path: str,
        serializer: Serializer | None,
        deserializer: Deserializer | None,
        registered: bool,
    ) -> None:
        self.channel = channel
        self.path = path
        self.serializer = serializer
        self._kind = kind
        self._arguments: dict[str, Any] = {
            "request_serializer": None if kind.startswith("stream") else serializer,
            "response_deserializer": deserializer,
        }
        self._registered = self._arguments
        if registered and _takes_registered(kind):
            self._registered = {**self._arguments, "_registered_method": True}
        self._known: dict[InnerChannel, Any] = {}
        self._lean: dict[InnerChannel, LeanUnary | None] = {}
        self._lanes: dict[EndpointState, LeanUnary] = {}
        self.likeness = f"{channel.target} {channel.authority} {path}"

    def lane(self, start: Start) -> LeanUnary | None:
        """What a blocking unary call uses where its endpoint is connected to; its inner channel has been entered then."""
        if start.path != self.path or start.authority != self.channel.authority:
            return None
        lean = self._lanes.get(start.endpoint)
        if lean is not None and lean.inner.enter_ready():
            return lean
        return self._find_lane(start)

    def _find_lane(self, start: Start) -> LeanUnary | None:
        inner = self.channel.opened()[1].ready(start.endpoint, start.authority)
        if inner is None or not inner.enter():
            return None
        lean = self.lean(inner, start.path)  # entered, so that nobody closes the channel meanwhile
        if lean is None:
            inner.leave()
            return None
        self._lanes = {
            endpoint: other for endpoint, other in list(self._lanes.items()) if not other.inner.closed
        }
        self._lanes[start.endpoint] = lean
        return lean

    def lean(self, inner: InnerChannel, path: str) -> LeanUnary | None:
        """What blocking unary calls use rather than `on`, where this grpcio allows it and the route keeps the method."""
        if path != self.path:
            return None
        try:
            return self._lean[inner]
        except KeyError:
            self._lean = {other: lean for other, lean in list(self._lean.items()) if not other.closed}
            made = self._lean[inner] = lean_unary(self.on(inner, path), inner)
            return made

    def on(self, inner: InnerChannel, path: str) -> Any:
        """The multicallable of the inner channel. path: as the route has rewritten it."""
        if path != self.path:
            return inner.make(partial(self._make, path=path, registered=False))
        known = self._known.get(inner)
        if known is None:
            for other in list(self._known):
                if other.closed:
                    self._known.pop(other, None)
            known = self._known[inner] = inner.make(self._make)
        return known

    def counted(self, inner: InnerChannel, path: str) -> tuple[Any, Tally]:
        """The same for one attempt, and what counts its messages."""
        same = path == self.path
        arguments = dict(self._registered if same else self._arguments)
        received = arguments["response_deserializer"] = Incoming(arguments["response_deserializer"])
        sent = None
        if not self._kind.startswith("stream"):
            sent = arguments["request_serializer"] = Outgoing(self.serializer)
        made = inner.make(lambda channel: getattr(channel, self._kind)(path, **arguments))
        return made, Tally(sent, received)

    def without_mesh(self) -> Any:
        """The multicallable of a plain channel to the target; None unless such targets are let through."""
        return self.channel.plain(self._make)

    def _make(self, channel: grpc.Channel, path: str | None = None, registered: bool = True) -> Any:
        """registered: as the application says. A path that a route has made is not: grpcio never forgets one."""
        arguments = self._registered if registered else self._arguments
        return getattr(channel, self._kind)(self.path if path is None else path, **arguments)


def _takes_registered(kind: str) -> bool:
    """Whether this grpcio's channels know the keyword that generated stubs pass since 1.64."""
    known = _registered.get(kind)
    if known is None:
        from grpc import _channel

        factory = getattr(getattr(_channel, "Channel", None), kind, None)
        known = factory is not None and "_registered_method" in inspect.signature(factory).parameters
        _registered[kind] = known
    return known


_registered: dict[str, bool] = {}


class MeshChannel(grpc.Channel):  # type: ignore[misc]
    """See `meshlib.grpc.channel`. Making one starts nothing. Thread safe; survives a fork."""

    def __init__(
        self,
        target: str,
        mesh: MeshLike | None,
        options: Sequence[tuple[str, Any]],
        compression: grpc.Compression | None,
        dialect: Dialect = ENVOY,
        tls: str = "tunnel",
    ) -> None:
        self.dialect = dialect
        self.channel_id = 0
        self.target = target.removeprefix("xds:///")
        self.authority = str(dict(options).get("grpc.default_authority", authority_of(self.target)))
        self._mesh = mesh
        self._options = tuple(options)
        self._compression = compression
        self._tls = tls
        self._lock = threading.Lock()
        self._opened: tuple[Engine, EndpointChannels] | None = None
        self._closed = False
        self._plain: grpc.Channel | None = None
        self._parked: set[Waker] = set()
        self.flights: set[Flight] = set()
        self._watch = Watch(self)

    # --- the four arities --------------------------------------------------------------------------------------------

    def unary_unary(
        self,
        method: str,
        request_serializer: Serializer | None = None,
        response_deserializer: Deserializer | None = None,
        _registered_method: bool | None = False,
    ) -> UnaryUnary:
        return UnaryUnary(
            self._method("unary_unary", method, request_serializer, response_deserializer, _registered_method)
        )

    def unary_stream(
        self,
        method: str,
        request_serializer: Serializer | None = None,
        response_deserializer: Deserializer | None = None,
        _registered_method: bool | None = False,
    ) -> UnaryStream:
        return UnaryStream(
            self._method(
                "unary_stream", method, request_serializer, response_deserializer, _registered_method
            )
        )

    def stream_unary(
        self,
        method: str,
        request_serializer: Serializer | None = None,
        response_deserializer: Deserializer | None = None,
        _registered_method: bool | None = False,
    ) -> StreamUnary:
        return StreamUnary(
            self._method(
                "stream_unary", method, request_serializer, response_deserializer, _registered_method
            )
        )

    def stream_stream(
        self,
        method: str,
        request_serializer: Serializer | None = None,
        response_deserializer: Deserializer | None = None,
        _registered_method: bool | None = False,
    ) -> StreamStream:
        return StreamStream(
            self._method(
                "stream_stream", method, request_serializer, response_deserializer, _registered_method
            )
        )

    def _method(
        self,
        kind: str,
        path: str | bytes,
        serializer: Serializer | None,
        deserializer: Deserializer | None,
        registered: bool | None,
    ) -> Method:
        return Method(self, kind, method_path(path), serializer, deserializer, bool(registered))

    # --- for calls ---------------------------------------------------------------------------------------------------

    def opened(self) -> tuple[Engine, EndpointChannels]:
        """The engine, and this channel's inner channels. Raises ValueError when it is closed, as grpcio does."""
        opened = self._opened
        return opened if opened is not None else self._open()

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def used(self) -> bool:
        """Whether something has been asked of it."""
        return self._opened is not None

    def _open(self) -> tuple[Engine, EndpointChannels]:
        with self._lock:
            if self._closed:
                raise ValueError(CLOSED)
            if self._opened is not None:
                return self._opened
            mesh = self._mesh
            if mesh is None:
                mesh = self._mesh = meshlib.default_mesh()
            engine = mesh.engine
            channels = EndpointChannels(
                self.authority,
                self._options,
                self._inner,
                engine.clock.monotonic,
                lambda: engine.program,
                self._tls,
            )
            engine.adopt(channels)
            self.channel_id = engine.random.getrandbits(64)
            fork.register(self)
            self._opened = engine, channels
            return self._opened

    def _inner(
        self, target: str, options: list[tuple[str, Any]], credentials: grpc.ChannelCredentials | None = None
    ) -> grpc.Channel:
        if credentials is not None:
            return grpc.secure_channel(target, credentials, options, self._compression)
        return grpc.insecure_channel(target, options, self._compression)

    def plain(self, maker: Callable[[grpc.Channel], Any]) -> Any:
        """What the maker makes of a channel to the target without the mesh, which is not closed meanwhile.

        None unless the Mesh lets hosts through that no Listener knows. Raises ValueError when the mesh channel is closed.
        """
        if self._mesh is None or not self._mesh.passthrough:
            return None
        with self._lock:
            if self._closed:
                raise ValueError(CLOSED)
            if self._plain is None:
                self._plain = self._inner(self.target, list(self._options))
            return maker(self._plain)

    @contextlib.contextmanager
    def parked(self, waker: Waker) -> Iterator[None]:
        """The call waits, and would not see that the channel is closed. Raises ValueError when it is."""
        self._parked.add(waker)
        try:
            if self._closed:
                raise ValueError(CLOSED)
            yield
        finally:
            self._parked.discard(waker)

    # --- life --------------------------------------------------------------------------------------------------------

    def subscribe(
        self, callback: Callable[[grpc.ChannelConnectivity], None], try_to_connect: bool | None = False
    ) -> None:
        """Have `callback` called, on another thread, with the connectivity now and whenever it changes."""
        self._watch.subscribe(callback, bool(try_to_connect))

    def unsubscribe(self, callback: Callable[[grpc.ChannelConnectivity], None]) -> None:
        self._watch.unsubscribe(callback)

    def close(self) -> None:
        """Close the inner channels; calls under way end as CANCELLED. Idempotent. The Mesh stays open."""
        with self._lock:
            self._closed = True
            opened, self._opened = self._opened, None
            plain, self._plain = self._plain, None
        if opened is not None:
            opened[1].close()
        if plain is not None:
            plain.close()
        for waker in list(self._parked):
            waker.wake()
        for flight in list(self.flights):
            flight.end("Channel closed!")
        self._watch.close()

    def __enter__(self) -> MeshChannel:
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        self.close()

    # --- around a fork -----------------------------------------------------------------------------------------------

    def before_fork(self) -> None:
        """Let no call run, and close what is idle.

        A child in which grpc finds the parent's connections fails its own first call now and then.
        """
        opened = self._opened
        if opened is not None:
            opened[1].pause()
            opened[1].close_idle()

    def after_fork_in_parent(self) -> None:
        """Channels are made anew when they are needed."""
        opened = self._opened
        if opened is not None:
            opened[1].resume()

    def after_fork_in_child(self) -> None:
        self._lock = threading.Lock()
        self._parked = set()
        self.flights = set()
        opened = self._opened
        if opened is not None:
            _dropped.extend(opened[1].drop())
        if self._plain is not None:
            _dropped.append(self._plain)
            self._plain = None
        self._watch.renew()

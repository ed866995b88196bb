"""The channel that asyncio code uses: a `grpc.aio.Channel` whose calls go through the mesh."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

import meshlib
from meshlib.engine.dialect import Dialect
from meshlib.runtime import fork
from meshlib.transport.grpc.aio_calls import (
    StreamStreamCall,
    StreamUnaryCall,
    UnaryStreamCall,
    UnaryUnaryCall,
)
from meshlib.transport.grpc.aio_home import Home
from meshlib.transport.grpc.aio_interceptors import Interceptors
from meshlib.transport.grpc.aio_stream import StreamDriver
from meshlib.transport.grpc.connectivity import state_of
from meshlib.transport.grpc.request import authority_of, method_path
from meshlib.transport.grpc.target import Options

if TYPE_CHECKING:
    from meshlib.transport.grpc.sync_channel import MeshLike

__all__ = ["AioMeshChannel"]

CLOSED = "Channel is closed."
_NO_OPTIONS: dict[str, Any] = {}

Serializer = Callable[[Any], bytes]
Deserializer = Callable[[bytes], Any]


def _as_it_is(message: bytes) -> bytes:
    return message


class Method:
    """One method of a service on one channel. arity: `unary_unary`, ... encoded: its path as C-core takes it. likeness: of its
    calls without metadata (`RequestView.likeness`)."""

    __slots__ = ("arity", "channel", "deserializer", "encoded", "likeness", "path", "serialize")

    def __init__(
        self,
        channel: AioMeshChannel,
        arity: str,
        path: str,
        serializer: Serializer | None,
        deserializer: Deserializer | None,
    ) -> None:
        self.channel = channel
        self.arity = arity
        self.path = path
        self.encoded = path.encode()
        self.likeness = f"{channel.target} {channel.authority} {path}"
        self.serialize: Serializer = serializer or _as_it_is
        self.deserializer = deserializer

    def called(self, path: str | bytes) -> Method:
        """The same with another name, which an interceptor may give."""
        return Method(self.channel, self.arity, method_path(path), self.serialize, self.deserializer)

    def call(
        self,
        request: Any,
        timeout: float | None,
        metadata: Any,
        credentials: grpc.CallCredentials | None,
        wait_for_ready: bool | None,
        compression: grpc.Compression | None,
    ) -> Any:
        """Start a call on the running loop.

        credentials: travel over TLS only; awaiting a call that comes to an endpoint in plaintext raises grpc.aio.UsageError.

        Raises grpc.aio.UsageError: the channel is closed. RuntimeError: no event loop runs. Whatever the serializer raises.
        """
        channel = self.channel
        home = channel.home()
        options = _NO_OPTIONS
        if credentials is not None:
            options = {"compression": compression, "credentials": credentials}
        elif compression is not None:
            options = {"compression": compression}
        if self.arity != "unary_unary":
            return self._stream(request, home, metadata, timeout, wait_for_ready, options)
        return UnaryUnaryCall(home, self, self.serialize(request), metadata, timeout, wait_for_ready, options)

    def _stream(
        self,
        request: Any,
        home: Home,
        metadata: Any,
        timeout: float | None,
        wait_for_ready: bool | None,
        options: dict[str, Any],
    ) -> Any:
        arity = self.arity
        message = self.serialize(request) if arity == "unary_stream" else None
        driver = StreamDriver(home, self, metadata, timeout, wait_for_ready, options)
        driver.request = message
        driver.begin()
        if arity == "unary_stream":
            return UnaryStreamCall(driver, self.deserializer)
        call: StreamUnaryCall | StreamStreamCall = (
            StreamUnaryCall(driver, self.deserializer)
            if arity == "stream_unary"
            else StreamStreamCall(driver, self.deserializer)
        )
        call.feed(request, self.serialize)
        return call


class _Multicallable:
    """A method, with the interceptors of its kind on top."""

    def __init__(self, method: Method) -> None:
        self._method = method
        self._interceptors = method.channel.interceptors.of(method.arity)

    def _start(
        self,
        request: Any,
        timeout: float | None,
        metadata: Any,
        credentials: grpc.CallCredentials | None,
        wait_for_ready: bool | None,
        compression: grpc.Compression | None,
    ) -> Any:
        method = self._method
        if not self._interceptors:
            return method.call(request, timeout, metadata, credentials, wait_for_ready, compression)
        return method.channel.interceptors.start(
            method, request, timeout, metadata, credentials, wait_for_ready, compression
        )


class _OneRequest(_Multicallable):
    def __call__(
        self,
        request: Any,
        *,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> Any:
        return self._start(request, timeout, metadata, credentials, wait_for_ready, compression)


class _ManyRequests(_Multicallable):
    def __call__(
        self,
        request_iterator: Any = None,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> Any:
        return self._start(request_iterator, timeout, metadata, credentials, wait_for_ready, compression)


class UnaryUnary(_Multicallable, grpc.aio.UnaryUnaryMultiCallable):  # type: ignore[misc]
    """`channel.unary_unary(...)`."""

    def __call__(
        self,
        request: Any,
        *,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> Any:
        if self._interceptors:
            return self._start(request, timeout, metadata, credentials, wait_for_ready, compression)
        method = self._method
        if credentials is not None or compression is not None:
            return method.call(request, timeout, metadata, credentials, wait_for_ready, compression)
        home = method.channel.home()
        return UnaryUnaryCall(
            home, method, method.serialize(request), metadata, timeout, wait_for_ready, _NO_OPTIONS
        )


class UnaryStream(_OneRequest, grpc.aio.UnaryStreamMultiCallable):  # type: ignore[misc]
    """`channel.unary_stream(...)`."""


class StreamUnary(_ManyRequests, grpc.aio.StreamUnaryMultiCallable):  # type: ignore[misc]
    """`channel.stream_unary(...)`."""


class StreamStream(_ManyRequests, grpc.aio.StreamStreamMultiCallable):  # type: ignore[misc]
    """`channel.stream_stream(...)`."""


class AioMeshChannel(grpc.aio.Channel):  # type: ignore[misc]
    """See `meshlib.grpc.aio_channel`. Making one starts nothing and needs no event loop. May be used on several, one after
    another or at the same time in several threads; survives a fork.
    """

    def __init__(
        self,
        target: str,
        mesh: MeshLike | None,
        options: Options,
        compression: grpc.Compression | None,
        interceptors: Sequence[Any],
        dialect: Dialect,
        tls: str = "tunnel",
    ) -> None:
        self.target = target.removeprefix("xds:///")
        self.authority = str(dict(options).get("grpc.default_authority", authority_of(self.target)))
        self.interceptors = Interceptors(interceptors)
        self.dialect = dialect
        self.channel_id: int | None = None
        self._mesh = mesh
        self._options = tuple(options)
        self._compression = compression
        self._tls = tls
        self._lock = threading.Lock()
        self._homes: dict[int, Home] = {}
        self._last: Home | None = None
        self._closed = False
        self._watchers: set[Callable[[], None]] = set()
        fork.register(self)

    def home(self) -> Home:
        """What the calls of the running loop share. Raises grpc.aio.UsageError when the channel is closed."""
        loop = asyncio.get_running_loop()
        last = self._last
        return last if last is not None and last.loop is loop else self._find_home(loop)

    def _find_home(self, loop: asyncio.AbstractEventLoop) -> Home:
        if self._closed:
            raise grpc.aio.UsageError(CLOSED)
        home = self._homes.get(id(loop))
        if home is None or home.loop is not loop:
            with self._lock:
                for key, other in list(self._homes.items()):
                    if other.loop.is_closed():
                        del self._homes[key]
                        other.close()
                home = self._homes[id(loop)] = Home(
                    self.mesh, self.target, loop, self._options, self._compression, self.dialect, self._tls
                )
        self._last = home
        return home

    @property
    def mesh(self) -> MeshLike:
        mesh = self._mesh
        if mesh is None:
            mesh = self._mesh = meshlib.default_mesh()
        if self.channel_id is None:
            self.channel_id = mesh.engine.random.getrandbits(64)
        return mesh

    # --- the four arities --------------------------------------------------------------------------------------------

    def unary_unary(
        self,
        method: str,
        request_serializer: Serializer | None = None,
        response_deserializer: Deserializer | None = None,
        _registered_method: bool | None = False,
    ) -> UnaryUnary:
        return UnaryUnary(self._method("unary_unary", method, request_serializer, response_deserializer))

    def unary_stream(
        self,
        method: str,
        request_serializer: Serializer | None = None,
        response_deserializer: Deserializer | None = None,
        _registered_method: bool | None = False,
    ) -> UnaryStream:
        return UnaryStream(self._method("unary_stream", method, request_serializer, response_deserializer))

    def stream_unary(
        self,
        method: str,
        request_serializer: Serializer | None = None,
        response_deserializer: Deserializer | None = None,
        _registered_method: bool | None = False,
    ) -> StreamUnary:
        return StreamUnary(self._method("stream_unary", method, request_serializer, response_deserializer))

    def stream_stream(
        self,
        method: str,
        request_serializer: Serializer | None = None,
        response_deserializer: Deserializer | None = None,
        _registered_method: bool | None = False,
    ) -> StreamStream:
        return StreamStream(self._method("stream_stream", method, request_serializer, response_deserializer))

    def _method(
        self,
        arity: str,
        path: str | bytes,
        serializer: Serializer | None,
        deserializer: Deserializer | None,
    ) -> Method:
        return Method(self, arity, method_path(path), serializer, deserializer)

    # --- life --------------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> AioMeshChannel:
        return self

    async def __aexit__(self, kind: object, error: object, traceback: object) -> None:
        await self.close()

    async def close(self, grace: float | None = None) -> None:
        """No new calls; those under way have `grace` seconds, then they are cancelled. Idempotent. The Mesh stays open."""
        if grace is not None and grace < 0:
            raise ValueError(f"grace must be non-negative, got {grace}.")
        with self._lock:
            self._closed = True
            self._last = None
            homes, self._homes = list(self._homes.values()), {}
        loop = asyncio.get_running_loop()
        if grace:
            active = [driver for home in homes if home.loop is loop for driver in home.active]
            if active:
                await asyncio.wait([loop.create_task(driver.wait_over()) for driver in active], timeout=grace)
        for home in homes:
            home.close()
        for wake in list(self._watchers):
            wake()
        for home in homes:
            if home.loop is loop:
                await home.leaving.gone()

    def __del__(self) -> None:
        for home in getattr(self, "_homes", {}).values():
            home.drop()

    # --- around a fork -----------------------------------------------------------------------------------------------

    def before_fork(self) -> None:
        """Nothing has to be closed."""

    def after_fork_in_parent(self) -> None:
        """Nothing has changed."""

    def after_fork_in_child(self) -> None:
        self._lock = threading.Lock()

    # --- connectivity ------------------------------------------------------------------------------------------------

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """Whether the configuration has a place for calls. try_to_connect: ask the control plane for what is missing."""
        if self._closed:
            return grpc.ChannelConnectivity.SHUTDOWN
        engine = self.mesh.engine
        return state_of(engine, self.target, engine.program, connect=try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """Until the state is another one. Looks again whenever the configuration changes, and when the channel is closed.

        Raises grpc.aio.UsageError: the last state was SHUTDOWN, which is final.
        """
        loop = asyncio.get_running_loop()
        engine = self.mesh.engine
        changed = asyncio.Event()
        wake = partial(_set_soon, loop, changed)
        self._watchers.add(wake)
        try:
            while True:
                program = engine.program
                state = grpc.ChannelConnectivity.SHUTDOWN
                if not self._closed:
                    state = state_of(engine, self.target, program, connect=False)
                if state is not last_observed_state:
                    return
                if state is grpc.ChannelConnectivity.SHUTDOWN:
                    raise grpc.aio.UsageError(CLOSED)
                changed.clear()
                engine.await_program(wake, program)
                await changed.wait()
        finally:
            self._watchers.discard(wake)
            engine.forget(wake)

    async def channel_ready(self) -> None:
        """Until the state is READY. Raises grpc.aio.UsageError when the channel, or the Mesh, is closed."""
        state = self.get_state(try_to_connect=True)
        while state is not grpc.ChannelConnectivity.READY:
            await self.wait_for_state_change(state)
            state = self.get_state(try_to_connect=True)


def _set_soon(loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
    try:
        loop.call_soon_threadsafe(event.set)
    except RuntimeError:
        return  # the loop is closed

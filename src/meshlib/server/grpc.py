"""gRPC servers in a mesh: who calls and whether it may, the caller's deadline, and a server that drains before it stops.

    inbound = Inbound(mesh, rbac="rbac.yaml")
    server = grpc.server(ThreadPoolExecutor(16), interceptors=[MeshInterceptor(inbound)])
    server = grpc.aio.server(interceptors=[AsyncMeshInterceptor(inbound)])
    port = listen(server, "0.0.0.0:8443", inbound)

Handlers call through meshlib as they would anywhere; `meshlib.call(...)` inside a handler can shorten the deadline, not
lengthen it.

The deadline is a context variable. A blocking handler runs in a copy of the context, each step of a streaming one in that same
copy: its responses are taken outside the interceptor, and on an asyncio server by a thread that serves other calls too. An
asyncio handler has a task of its own, which ends with the call.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import signal
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextvars import copy_context
from typing import Any, Protocol

import grpc

from meshlib.engine.options import call
from meshlib.runtime.clock import Clock, SystemClock
from meshlib.server.grpc_inbound import Gate, Refusal, credentials
from meshlib.server.grpc_listen import listen
from meshlib.server.inbound import Inbound

__all__ = [
    "AsyncMeshInterceptor",
    "MeshInterceptor",
    "aio_drain",
    "aio_serve",
    "credentials",
    "drain",
    "listen",
    "serve",
]

GRACE = 30.0
"""Seconds that calls under way may take after the server stopped taking new ones."""

SIGNALS = (signal.SIGINT, signal.SIGTERM)

_Behavior = Callable[..., Any]
_Enter = Callable[[Any], Refusal | None]

_FACTORIES: dict[tuple[bool, bool], tuple[str, Callable[..., Any]]] = {
    (False, False): ("unary_unary", grpc.unary_unary_rpc_method_handler),
    (False, True): ("unary_stream", grpc.unary_stream_rpc_method_handler),
    (True, False): ("stream_unary", grpc.stream_unary_rpc_method_handler),
    (True, True): ("stream_stream", grpc.stream_stream_rpc_method_handler),
}
"""By (request_streaming, response_streaming): the attribute with the application's function, and what makes a handler of it."""


class MeshInterceptor(grpc.ServerInterceptor):  # type: ignore[misc]
    """For `grpc.server(interceptors=[...])`: outgoing calls of a handler end when its caller's deadline does.

    A caller without a deadline sets none. inbound: who may call; `meshlib.current_peer()` says in a handler who does, and
    whoever may not gets PERMISSION_DENIED. clock: that of the Mesh, when a test has given it one.
    """

    def __init__(self, inbound: Inbound | None = None, *, clock: Clock | None = None) -> None:
        self._door = _Door(inbound, clock)

    def intercept_service(self, continuation: Callable[[Any], Any], handler_call_details: Any) -> Any:
        enter = functools.partial(self._door.enter, handler_call_details.method)
        found = continuation(self._door.details(handler_call_details, _Details))
        return _wrapped(found, functools.partial(_blocking, enter))


class AsyncMeshInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """For `grpc.aio.server(interceptors=[...])`: what MeshInterceptor does. Handlers may be coroutines, asynchronous
    generators, or blocking functions, which grpc.aio runs in threads."""

    def __init__(self, inbound: Inbound | None = None, *, clock: Clock | None = None) -> None:
        self._door = _Door(inbound, clock)

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any
    ) -> Any:
        enter = functools.partial(self._door.enter, handler_call_details.method)
        cls = type(handler_call_details)  # grpc.aio takes no other
        found = await continuation(self._door.details(handler_call_details, cls))
        return _wrapped(found, functools.partial(_asynchronous, enter))


class _Details(grpc.HandlerCallDetails):  # type: ignore[misc]
    def __init__(self, method: str, invocation_metadata: Any) -> None:
        self.method = method
        self.invocation_metadata = invocation_metadata


class _Door:
    """What happens before a handler, in the context that belongs to its call alone."""

    def __init__(self, inbound: Inbound | None, clock: Clock | None) -> None:
        self._clock = clock or SystemClock()
        self._gate = None if inbound is None else Gate(inbound)

    def details(self, sent: Any, cls: Callable[[str, Any], Any]) -> Any:
        """What the handler is looked up by: the normal path of the method, where the Listener asks for that."""
        method = sent.method if self._gate is None else self._gate.method(sent.method)
        return sent if method == sent.method else cls(method, sent.invocation_metadata)

    def enter(self, method: str, context: Any) -> Refusal | None:
        _cap(context, self._clock)
        return None if self._gate is None else self._gate.enter(method, context)


# --- draining --------------------------------------------------------------------------------------------------------


class Health(Protocol):
    """`grpc_health.v1.health.HealthServicer` is one."""

    def enter_graceful_shutdown(self) -> None:
        """Report every service as NOT_SERVING from now on."""


class AsyncHealth(Protocol):
    """`grpc_health.v1.health.aio.HealthServicer` is one."""

    async def enter_graceful_shutdown(self) -> None:
        """Report every service as NOT_SERVING from now on."""


def drain(
    server: grpc.Server, health: Health | None = None, *, notice: float = 0.0, grace: float = GRACE
) -> None:
    """Stop a server so that its callers lose nothing; returns when it has stopped.

    First `health` reports NOT_SERVING. For `notice` seconds the server goes on taking calls, so that callers learn of it
    and go elsewhere. Then it takes no more, and calls under way have `grace` seconds to end before they are cancelled.
    """
    if health is not None:
        health.enter_graceful_shutdown()
    if notice > 0:
        threading.Event().wait(notice)
    server.stop(grace).wait()


async def aio_drain(
    server: grpc.aio.Server, health: AsyncHealth | None = None, *, notice: float = 0.0, grace: float = GRACE
) -> None:
    """drain() for `grpc.aio`."""
    if health is not None:
        await health.enter_graceful_shutdown()
    if notice > 0:
        await asyncio.sleep(notice)
    await server.stop(grace)


def serve(
    server: grpc.Server,
    health: Health | None = None,
    *,
    notice: float = 0.0,
    grace: float = GRACE,
    signals: Iterable[signal.Signals] = SIGNALS,
) -> None:
    """Start the server, wait for one of the signals, drain. A second signal has its usual effect.

    Raises:
        ValueError: not called in the main thread, where alone signals can be waited for.
    """
    told = threading.Event()
    before = {number: signal.signal(number, lambda *_: told.set()) for number in signals}
    try:
        server.start()
        told.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    drain(server, health, notice=notice, grace=grace)


async def aio_serve(
    server: grpc.aio.Server,
    health: AsyncHealth | None = None,
    *,
    notice: float = 0.0,
    grace: float = GRACE,
    signals: Iterable[signal.Signals] = SIGNALS,
) -> None:
    """serve() for `grpc.aio`."""
    told, loop, numbers = asyncio.Event(), asyncio.get_running_loop(), tuple(signals)
    for number in numbers:
        loop.add_signal_handler(number, told.set)
    try:
        await server.start()
        await told.wait()
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
    await aio_drain(server, health, notice=notice, grace=grace)


# --- before a handler ----------------------------------------------------------------------------------------------------


def _cap(context: Any, clock: Clock) -> None:
    """Make the inbound deadline that of the calls made in this context, which belongs to one inbound call."""
    remaining = context.time_remaining()
    if (
        remaining is None or remaining > threading.TIMEOUT_MAX
    ):  # the blocking server has no None: without a deadline
        return  # it gives some 10**18 seconds
    call(deadline=clock.monotonic() + remaining).__enter__()


def _wrapped(handler: Any, wrap: Callable[[_Behavior, bool], _Behavior]) -> Any:
    """The handler with its function wrapped; None, for a method that does not exist, stays None."""
    if handler is None:
        return None
    name, factory = _FACTORIES[bool(handler.request_streaming), bool(handler.response_streaming)]
    behavior = wrap(getattr(handler, name), bool(handler.response_streaming))
    return factory(behavior, handler.request_deserializer, handler.response_serializer)


def _blocking(enter: _Enter, behavior: _Behavior, streams: bool) -> _Behavior:
    @functools.wraps(behavior)
    def answer(request: Any, context: Any, *more: Any) -> Any:
        own = copy_context()
        if (refusal := own.run(enter, context)) is not None:
            context.abort(*refusal)
        return own.run(behavior, request, context, *more)

    @functools.wraps(behavior)
    def answers(request: Any, context: Any, *more: Any) -> Iterator[Any]:
        own = copy_context()
        if (refusal := own.run(enter, context)) is not None:
            _end(context, refusal)
            return
        responses = own.run(lambda: iter(behavior(request, context, *more)))
        try:
            while (response := own.run(next, responses, _END)) is not _END:
                yield response
        finally:
            if (close := getattr(responses, "close", None)) is not None:
                own.run(close)

    # A non-blocking handler (an experiment of grpcio) sends by a function that it is given, and returns nothing.
    return answers if streams and not getattr(behavior, "experimental_non_blocking", False) else answer


_END: Any = object()


def _end(context: Any, refusal: Refusal) -> None:
    """`abort` for a blocking generator: raised inside of one, an asyncio server's thread waits for its loop for ever (1.85)."""
    code, details = refusal
    context.set_code(code)
    context.set_details(details)


def _asynchronous(enter: _Enter, behavior: _Behavior, streams: bool) -> _Behavior:
    if inspect.isasyncgenfunction(behavior):
        return _generating(enter, behavior)
    if inspect.iscoroutinefunction(behavior):
        return _awaiting(enter, behavior)
    return _blocking(enter, behavior, streams)


def _awaiting(enter: _Enter, behavior: _Behavior) -> _Behavior:
    @functools.wraps(behavior)
    async def answer(request: Any, context: Any) -> Any:
        if (refusal := enter(context)) is not None:
            await context.abort(*refusal)
        return await behavior(request, context)

    return answer


def _generating(enter: _Enter, behavior: _Behavior) -> _Behavior:
    @functools.wraps(behavior)
    async def answers(request: Any, context: Any) -> Any:
        if (refusal := enter(context)) is not None:
            await context.abort(*refusal)
        async for response in behavior(request, context):
            yield response

    return answers

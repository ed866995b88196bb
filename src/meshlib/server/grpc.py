"""gRPC servers in a mesh: who calls and whether it may, the caller's deadline, and a server that drains before it stops.

    inbound = Inbound(mesh, rbac="rbac.yaml")
    server = grpc.server(ThreadPoolExecutor(16), interceptors=[MeshInterceptor(inbound)])
    server = grpc.aio.server(interceptors=[AsyncMeshInterceptor(inbound)])
    port = listen(server, "0.0.0.0:8443", inbound)

Handlers call through meshlib as they would anywhere; `meshlib.call(...)` inside a handler can shorten the deadline, not
lengthen it.

What calls inherit (deadline, x-request-id; `meshlib.engine.context`) is a context variable; `meshlib.server.grpc_handlers` says
which context a handler has.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import signal
import threading
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Protocol

import grpc

from meshlib.runtime.clock import Clock, SystemClock
from meshlib.runtime.signals import Signals
from meshlib.server.grpc_handlers import asynchronous, blocking, wrapped
from meshlib.server.grpc_inbound import Gate, credentials, headers_of
from meshlib.server.grpc_listen import listen
from meshlib.server.grpc_messages import AsyncMessages, Messages
from meshlib.server.inbound import Admission, Inbound
from meshlib.server.peer import NOBODY
from meshlib.server.visit import Visit, inherited

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

_ANYBODY = Admission(NOBODY, None, "", None)
"""Nothing is asked of callers."""


class MeshInterceptor(grpc.ServerInterceptor):  # type: ignore[misc]
    """For `grpc.server(interceptors=[...])`: outgoing calls of a handler end when its caller's deadline does, and have its id.

    A caller without a deadline sets none. inbound: who may call; `meshlib.current_peer()` says in a handler who does, and
    whoever may not gets PERMISSION_DENIED. clock: that of the Mesh, when a test has given it one.
    """

    def __init__(self, inbound: Inbound | None = None, *, clock: Clock | None = None) -> None:
        self._door = _Door(inbound, clock, Messages)

    def intercept_service(self, continuation: Callable[[Any], Any], handler_call_details: Any) -> Any:
        enter = functools.partial(self._door.enter, handler_call_details.method)
        found = continuation(self._door.details(handler_call_details, _Details))
        return wrapped(found, functools.partial(blocking, enter), self._door.count)


class AsyncMeshInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """For `grpc.aio.server(interceptors=[...])`: what MeshInterceptor does. Handlers may be coroutines, asynchronous
    generators, or blocking functions, which grpc.aio runs in threads."""

    def __init__(self, inbound: Inbound | None = None, *, clock: Clock | None = None) -> None:
        self._door = _Door(inbound, clock, AsyncMessages)

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any
    ) -> Any:
        enter = functools.partial(self._door.enter, handler_call_details.method)
        cls = type(handler_call_details)  # grpc.aio takes no other
        found = await continuation(self._door.details(handler_call_details, cls))
        return wrapped(found, functools.partial(asynchronous, enter), self._door.count)


class _Details(grpc.HandlerCallDetails):  # type: ignore[misc]
    def __init__(self, method: str, invocation_metadata: Any) -> None:
        self.method = method
        self.invocation_metadata = invocation_metadata


class _Door:
    """What happens before a handler, in the context that belongs to its call alone. count: None where no call is recorded."""

    def __init__(self, inbound: Inbound | None, clock: Clock | None, count: type[Messages]) -> None:
        self.count = None if inbound is None else count
        self._clock = clock or (SystemClock() if inbound is None else inbound.clock)
        self._gate = None if inbound is None else Gate(inbound)

    def details(self, sent: Any, cls: Callable[[str, Any], Any]) -> Any:
        """What the handler is looked up by: the normal path of the method, where the Listener asks for that."""
        method = sent.method if self._gate is None else self._gate.method(sent.method)
        return sent if method == sent.method else cls(method, sent.invocation_metadata)

    def enter(self, method: str, context: Any) -> Visit:
        if self._gate is not None:
            return self._gate.enter(method, context)
        now = self._clock.monotonic()
        inherits = inherited(headers_of(context.invocation_metadata()), now, context.time_remaining())
        return Visit(_ANYBODY, inherits, None, self._clock, ())


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
    with contextlib.closing(Signals(signals)) as told:
        server.start()
        told.next()
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

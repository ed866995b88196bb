"""What a call inherits from the request that is being answered while it is made.

The middleware of `meshlib.server` sets `INBOUND` around the application; the engine reads it once for each call. Context
variables carry it through coroutines, tasks, `asyncio.to_thread` and generators, so that the application copies no header. A
thread that the application starts by itself begins without it: `in_context`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar, copy_context
from functools import wraps
from typing import Any, TypeVar, cast

__all__ = ["ARRIVAL", "FILTER_CHAIN", "INBOUND", "InboundContext", "in_context"]

ARRIVAL = "arrival"
"""Under this key `InboundCall.context` has the request as the server's adapter brought it (`server.arrival.Arrival`)."""

FILTER_CHAIN = "filter chain"
"""And under this one the name of the Listener's filter chain that it came by, empty for none."""


class InboundContext:
    """One inbound request, as its outgoing calls see it.

    deadline: when its caller stops waiting, monotonic seconds, None for never. It caps every call. When the request has been
    answered it is taken away, so that what goes on in the background is not cut. request_id: x-request-id, which goes on with
    every call that has none of its own; None when there is none. forced: x-envoy-force-trace, or a caller that asked for a
    trace by other means: sample, whatever the configuration says.
    """

    __slots__ = ("deadline", "forced", "request_id")

    def __init__(
        self, deadline: float | None = None, request_id: str | None = None, forced: bool = False
    ) -> None:
        self.deadline = deadline
        self.request_id = request_id
        self.forced = forced

    def answered(self) -> None:
        """The caller has its answer, and waits no longer."""
        self.deadline = None

    def __repr__(self) -> str:
        return f"<InboundContext deadline={self.deadline} request_id={self.request_id}>"


INBOUND: ContextVar[InboundContext | None] = ContextVar("meshlib_inbound", default=None)
"""The request that is being answered; None outside of one."""

_Function = TypeVar("_Function", bound=Callable[..., Any])


def in_context(function: _Function) -> _Function:
    """The same function, to be called on another thread as if it were called here and now.

        pool.submit(meshlib.in_context(fetch), url)
        pool.map(meshlib.in_context(fetch), urls)

    Threads that an application starts by itself (`ThreadPoolExecutor.submit`, `threading.Thread`) begin without context
    variables: without the deadline and the request id of the request that is being answered, its trace, `meshlib.current_peer()`
    and `meshlib.call(...)` around it. `asyncio.to_thread` and asyncio's tasks have them anyway. Each call runs in a copy of its
    own, so it may be used by several threads at once.
    """
    context = copy_context()

    @wraps(function)
    def run(*args: Any, **named: Any) -> Any:
        return context.copy().run(function, *args, **named)

    return cast("_Function", run)

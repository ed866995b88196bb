"""Who is told of calls, and how: spans, metrics, access logs and recent calls are observers.

An observer is told on the thread, and in the context (contextvars), in which the engine handles the event. That is the
application's own for `begun`; later, and always where several attempts or timers drive a call, it may be any thread. Hooks are
short, never block and make no calls of their own. What one raises is logged once and goes no further.

    begun          the call starts; nothing is known but the request
    routed         its route is known, or that there is none, or that it ends before that
    attempt_begun  an endpoint has been picked, nothing has been sent
    attempt_over   the attempt has failed or was given up; of the accepted one: its response is complete
    over           exactly once for each call that began, however it ended; each attempt was told of before

A call keeps the observers of its beginning, so that who subscribes later hears of later calls only, and who leaves still hears
the end of what it saw begin. A call that the application drops without an end is told of when the next call begins: a finalizer
must not run other people's code.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from meshlib.runtime.ahead import mypyc_attr

if TYPE_CHECKING:
    from meshlib.engine.attempt import Attempt
    from meshlib.engine.call import Call
    from meshlib.resources.listener import HttpConnectionManager

__all__ = ["CallObserver", "InboundCall", "InboundObserver", "Observers", "report", "tell"]

logger = logging.getLogger("meshlib.engine")

Hook = Callable[..., object]


@mypyc_attr(allow_interpreted_subclasses=True)
class CallObserver:
    """Told of outgoing calls. A subclass is subscribed to the methods that it defines, and to no others.

    now: monotonic seconds of the Mesh's clock. What `begun`, `routed` and `attempt_begun` put into `call.headers_to_add` or
    `attempt.headers_to_add` goes out with the request; names are lower-case and must not be among the headers already.
    """

    def begun(self, call: Call, now: float) -> None: ...

    def routed(self, call: Call, now: float) -> None: ...

    def attempt_begun(self, call: Call, attempt: Attempt, now: float) -> None: ...

    def attempt_over(self, call: Call, attempt: Attempt, now: float) -> None: ...

    def over(self, call: Call, now: float) -> None: ...


@dataclass(slots=True, kw_only=True)
class InboundCall:
    """A request that a server of this process answers. Facts of its arrival first; the rest is known in `over`.

    scheme, authority, path (with the query), headers (lower-case names, without pseudo headers): as they arrived, with the
    x-request-id that counts. protocol: as in `HTTP/1.1`. remote: the other end of the connection, `ip:port`. client: the caller's
    IP address, which is that of x-forwarded-for where the Listener believes it. forced: the caller asked for a trace
    (x-envoy-force-trace). peer, own: the principals of an mTLS connection, None without. secure: the connection is TLS. started,
    ended: monotonic seconds; epoch: seconds since 1970, of the start. operation: the framework's route, or
    `/package.Service/Method`, empty where nothing says. listener, manager: of the configuration that it was judged by, None
    without.

    status: 0 when none was sent. details: Envoy's response code details. error: what the application raised. bytes: of the
    bodies, 0 where nobody tells. context: whatever an observer keeps, by observer. undo: what is to be called when the
    application's code has ended, in the context of `inbound_begun`: an observer that sets a context variable there adds what
    resets it. Not called where that context ends with the request.
    """

    method: str
    scheme: str
    authority: str
    path: str
    headers: Sequence[tuple[str, str]]
    protocol: str
    remote: str
    started: float
    epoch: float
    peer: str | None = None
    own: str | None = None
    secure: bool = False
    operation: str = ""
    listener: str = ""
    manager: HttpConnectionManager | None = None
    client: str = ""
    forced: bool = False
    ended: float = 0.0
    status: int = 0
    grpc_status: str | None = None
    details: str = ""
    flags: tuple[str, ...] = ()
    error: BaseException | None = None
    bytes_received: int = 0
    bytes_sent: int = 0
    messages_received: int = 0
    messages_sent: int = 0
    response_headers: Sequence[tuple[str, str]] = ()
    response_trailers: Sequence[tuple[str, str]] = ()
    context: dict[object, Any] = field(default_factory=dict)
    undo: list[Callable[[], object]] = field(default_factory=list)

    def first(self, name: str) -> str | None:
        """The first request header of this lower-case name."""
        return next((value for key, value in self.headers if key == name), None)


@mypyc_attr(allow_interpreted_subclasses=True)
class InboundObserver:
    """Told of requests that arrive at a server of this process, in the context in which the application runs."""

    def inbound_begun(self, record: InboundCall) -> None: ...

    def inbound_over(self, record: InboundCall) -> None: ...


class Observers:
    """All that are subscribed, hook by hook. Immutable; replaced as a whole. outbound, inbound: whether there are any."""

    __slots__ = (
        "attempt_begun",
        "attempt_over",
        "begun",
        "inbound",
        "inbound_begun",
        "inbound_over",
        "members",
        "outbound",
        "over",
        "routed",
    )

    def __init__(self, members: tuple[object, ...] = ()) -> None:
        self.members = members
        self.begun = _hooks(members, "begun")
        self.routed = _hooks(members, "routed")
        self.attempt_begun = _hooks(members, "attempt_begun")
        self.attempt_over = _hooks(members, "attempt_over")
        self.over = _hooks(members, "over")
        self.inbound_begun = _hooks(members, "inbound_begun")
        self.inbound_over = _hooks(members, "inbound_over")
        self.outbound = bool(
            self.begun or self.routed or self.attempt_begun or self.attempt_over or self.over
        )
        self.inbound = bool(self.inbound_begun or self.inbound_over)

    def plus(self, member: object) -> Observers:
        """The same and this one, which is told last. One that is there already stays where it is."""
        return self if member in self.members else Observers((*self.members, member))

    def minus(self, member: object) -> Observers:
        """The same without this one."""
        return Observers(tuple(other for other in self.members if other is not member))


_BASES = (CallObserver, InboundObserver)


def _hooks(members: tuple[object, ...], name: str) -> tuple[Hook, ...]:
    """The bound methods of this name that somebody has defined."""
    found: list[Hook] = []
    for member in members:
        defined = getattr(type(member), name, None)
        if defined is not None and all(defined is not getattr(base, name, None) for base in _BASES):
            found.append(getattr(member, name))
    return tuple(found)


_told: set[tuple[str, type[BaseException]]] = set()


def tell(hooks: tuple[Hook, ...], *arguments: object) -> None:
    """Call each of them; what one raises is logged, once for each kind."""
    for hook in hooks:
        try:
            hook(*arguments)
        except Exception as error:  # noqa: BLE001 - nothing that watches a call may break it
            report(hook, error)


def report(hook: Hook, error: Exception) -> None:
    """Log what a hook raised, once for each hook and class of error."""
    owner = getattr(hook, "__self__", None)
    name = f"{type(owner).__qualname__}.{getattr(hook, '__name__', hook)}"
    key = (name, type(error))
    if key not in _told:
        _told.add(key)
        logger.error("%s failed; what it observes is incomplete", name, exc_info=error)

"""One inbound request from its arrival to its end, whatever the framework: what it hands down to outgoing calls, and its record.

Every adapter does the same three things, in the context (contextvars) that belongs to the request:

    visit = inbound.receive(arrival, "HTTP/1.1")     # may it pass? who watches is told that it has begun
    visit.enter()                                     # around the application: who calls, deadline, request id
    visit.over()                                      # once the response is complete, or will never be

What the adapter learns meanwhile (status, bytes) it writes into `visit.record`, which is None when nobody watches.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from contextvars import Token
from random import Random
from threading import TIMEOUT_MAX
from typing import TYPE_CHECKING, Any

from meshlib.engine.context import ARRIVAL, FILTER_CHAIN, INBOUND, InboundContext
from meshlib.engine.headers import EXPECTED_TIMEOUT, REQUEST_ID, new_request_id
from meshlib.engine.observer import InboundCall, tell
from meshlib.policy.timeouts import parse_grpc_timeout
from meshlib.routing.numbers import parse_unsigned
from meshlib.routing.request import Headers
from meshlib.server.arrival import Arrival, told_address
from meshlib.server.callers import principal_of
from meshlib.server.peer import CURRENT, InboundPeer

if TYPE_CHECKING:
    from meshlib.resources.inbound import FilterChain
    from meshlib.runtime.clock import Clock
    from meshlib.server.inbound import Admission

__all__ = [
    "DISCONNECTED",
    "VIA_UPSTREAM",
    "Tokens",
    "Visit",
    "content_length",
    "inherited",
    "recorded",
    "request_id",
]

VIA_UPSTREAM = "via_upstream"
"""Envoy's details of a response that came from the application."""

DISCONNECTED = "downstream_remote_disconnect"
"""Envoy's details of a request whose caller went away."""

FORCE_TRACE = "x-envoy-force-trace"
Tokens = tuple[Token[InboundPeer], Token[InboundContext | None]]
"""What `Visit.enter` has set, for `Visit.leave`."""


def inherited(headers: Headers, now: float, remaining: float | None = None) -> InboundContext:
    """What calls inherit from a request with these headers that arrived at `now`, monotonic seconds.

    Its deadline is the earliest of what grpc-timeout (gRPC) and x-envoy-expected-rq-timeout-ms (Envoy's router; 0 is none) say,
    and of remaining: seconds, for a server that has read the header itself. What is no number is ignored.
    """
    left, identity, forced = remaining, None, False
    for name, value in headers:
        told: float | None = None
        if name == EXPECTED_TIMEOUT:
            milliseconds = parse_unsigned(value)
            told = milliseconds / 1000 if milliseconds else None
        elif name == "grpc-timeout":
            told = parse_grpc_timeout(value)
        elif name == REQUEST_ID:
            identity = identity or value or None
        elif name == FORCE_TRACE:
            forced = True
        if told is not None and (left is None or told < left):
            left = told
    if left is not None and left > TIMEOUT_MAX:  # as good as none, and too long for a lock to wait
        left = None
    return InboundContext(None if left is None else now + left, identity, forced)


def request_id(given: str | None, chain: FilterChain | None, *, envoy: bool, random: Random) -> str | None:
    """The x-request-id that counts, as Envoy's HttpConnectionManager has it.

    given: that of the request. It is not believed at the edge of the mesh (use_remote_address), unless
    preserve_external_request_id says so. A new one is made where generate_request_id asks for it; chain None: where envoy does.
    """
    if chain is None:
        return new_request_id(random) if given is None and envoy else given
    manager = chain.http
    edge = chain.downstream.use_remote_address and not manager.preserve_external_request_id
    if not manager.generate_request_id or (given is not None and not edge):
        return given
    return new_request_id(random)


class Visit:
    """admission: whether it may pass. context: what calls inherit. record: None when nobody watches."""

    __slots__ = ("_clock", "_hooks", "_open", "admission", "context", "record")

    def __init__(
        self,
        admission: Admission,
        context: InboundContext,
        record: InboundCall | None,
        clock: Clock,
        hooks: tuple[Callable[..., object], ...],
    ) -> None:
        self.admission = admission
        self.context = context
        self.record = record
        self._clock = clock
        self._hooks = hooks
        self._open = True

    @property
    def is_watched(self) -> bool:
        """Whether the response matters to anybody."""
        return self.record is not None or self.context.deadline is not None or self.echoed is not None

    @property
    def echoed(self) -> str | None:
        """The x-request-id that the response gets (always_set_request_id_in_response); None for none."""
        chain = self.admission.chain
        asked = chain is not None and chain.http.always_set_request_id_in_response
        return self.context.request_id if asked else None

    def enter(self) -> Tokens:
        """The application's code begins, in this context."""
        return CURRENT.set(self.admission.peer), INBOUND.set(self.context)

    def leave(self, tokens: Tokens) -> None:
        """It has ended. For adapters that have no context of their own."""
        record = self.record
        if record is not None:
            undo, record.undo = record.undo, []
            for each in reversed(undo):
                tell((each,))
        peer, context = tokens
        with suppress(ValueError):  # closed by the garbage collector, in some other context
            CURRENT.reset(peer)
            INBOUND.reset(context)

    def over(self, *, answered: bool = True) -> None:
        """The response is complete, or, answered False, it never will be. Later calls change nothing."""
        if not self._open:
            return
        self._open = False
        if answered:
            self.context.answered()
        record = self.record
        if record is not None:
            if not record.details:
                record.details = VIA_UPSTREAM
            record.ended = self._clock.monotonic()
            tell(self._hooks, record)

    def lost(self) -> None:
        """The caller went away before the response was complete."""
        record = self.record
        if record is not None and self._open:
            record.flags, record.details = ("DC",), DISCONNECTED
        self.over(answered=False)

    def failed(self, error: BaseException) -> None:
        """The application raised this, and the server makes something of it: a 500 where no status has been sent."""
        record = self.record
        if record is not None and self._open:
            record.error = error
            record.status = record.status or 500
        self.over(answered=False)

    def refused(self) -> None:
        """The request got the answer of the admission."""
        reply, record = self.admission.refusal, self.record
        if record is not None and reply is not None and self._open:
            record.details = self.admission.details
            record.status = record.status or reply.status
            record.response_headers = record.response_headers or list(reply.headers)
            if record.grpc_status is None:  # gRPC has it in the status
                record.bytes_sent = len(reply.body)
        self.over()


def recorded(
    arrival: Arrival,
    admission: Admission,
    protocol: str,
    operation: str,
    listener: str,
    clock: Clock,
    now: float,
) -> InboundCall:
    """The record of a request that has just arrived."""
    connection = arrival.connection
    own = connection.own_uris
    chain = admission.chain
    told = None if chain is None else told_address(chain.downstream, arrival)
    return InboundCall(
        method=arrival.method,
        scheme=arrival.scheme,
        authority=arrival.authority or "",
        path=arrival.path,
        headers=arrival.headers,
        protocol=protocol,
        remote=_address(arrival.remote or "", arrival.remote_port),
        started=now,
        epoch=clock.time(),
        peer=principal_of(connection),
        own=own[0] if own else None,
        secure=connection.tls or arrival.scheme in ("https", "wss"),
        operation=operation,
        listener=listener,
        manager=None if chain is None else chain.http,
        client=arrival.remote or "" if told is None else str(told),
        context={ARRIVAL: arrival, FILTER_CHAIN: "" if chain is None else chain.name},
    )


def _address(host: str, port: int) -> str:
    if not port:
        return host
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def content_length(headers: Any) -> int:
    """What content-length says; 0 for none."""
    for name, value in headers:
        if name == "content-length":
            return parse_unsigned(value) or 0
    return 0

"""What the loops that carry out a call have in common, sync and asyncio, whatever the host library.

An exchange is one call on its way: it owns the engine's `Call`, at most a few attempts, and the request body. Its loop is

    actions = call.handle(event)  ->  carry out each action  ->  the next event: at once, or by waiting for it

An attempt goes through the stages below. Which events follow from which action is the engine's contract (engine/actions.py).

    PARKED      in its endpoint's queue; Woken is reported when it has been served
    CONNECTING  its connection opens; Connected or Failed is reported
    READY       it has a connection and the engine's consent: the request is sent next
    SENT        the request has begun to leave; Headers or Failed is reported
    ANSWERED    Headers was reported
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import Enum
from math import inf
from typing import Any, overload

from meshlib.engine.actions import Start
from meshlib.engine.call import Call, CallInfo
from meshlib.engine.events import (
    BEGIN,
    BEGIN_STREAMED,
    CANCELLED,
    TIMER,
    WOKEN,
)
from meshlib.errors import LocalReply, MeshError
from meshlib.routing.request import Headers as HeaderList
from meshlib.routing.request import RequestView
from meshlib.state import Waiter
from meshlib.transport.http.failure import InvalidRequest
from meshlib.transport.http.interned import blocks
from meshlib.transport.http.message import OutgoingRequest, RawHeaders, Response, pairs

__all__ = [
    "BEGIN",
    "BEGIN_STREAMED",
    "CANCELLED",
    "TIMER",
    "WOKEN",
    "Answer",
    "Attempt",
    "ImpatienceError",
    "Instead",
    "LazyHeaders",
    "Leave",
    "OriginalRequest",
    "Patience",
    "Phase",
    "SecureSchemeError",
    "Stage",
    "UnsupportedActionError",
    "decode_headers",
    "encode_fields",
    "encode_headers",
    "give_up",
]


class Stage(Enum):
    """Where an attempt is."""

    PARKED = "parked"
    CONNECTING = "connecting"
    READY = "ready"
    SENT = "sent"
    ANSWERED = "answered"


class Phase(Enum):
    """What the host library's own timeouts are about."""

    READ = "read"
    WRITE = "write"
    POOL = "pool"


class ImpatienceError(Exception):
    """One of the host library's own timeouts passed. The call is over; the engine saw a cancellation."""

    def __init__(self, phase: Phase, seconds: float, info: CallInfo) -> None:
        super().__init__(f"{phase.value} timeout of {seconds:g} s passed")
        self.phase = phase
        self.info = info


class SecureSchemeError(Exception):
    """An https:// URL to a host of the mesh."""

    def __init__(self, target: str) -> None:
        super().__init__(
            f"{target} belongs to the mesh: use an http:// URL. The mesh decides by the cluster's transport socket whether "
            "the connection is encrypted; it never sends an https:// request in plaintext."
        )


class UnsupportedActionError(Exception):
    """The engine asked for something that this transport does not do."""

    def __init__(self, action: object) -> None:
        super().__init__(f"the HTTP transport cannot carry out {type(action).__name__}")


class Patience:
    """The host library's own timeouts, in seconds; inf where it gave none."""

    __slots__ = ("connect", "pool", "read", "write")

    def __init__(self, timeout: Mapping[str, float | None]) -> None:
        self.connect = _seconds(timeout.get("connect"))
        self.read = _seconds(timeout.get("read"))
        self.write = _seconds(timeout.get("write"))
        self.pool = _seconds(timeout.get("pool"))


def _seconds(value: float | None) -> float:
    return inf if value is None else value


_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+").fullmatch
_methods: dict[str, bytes] = {}
_METHODS_KEPT = 64
_patiences: dict[tuple[tuple[str, float | None], ...], Patience] = {}
_PATIENCES_KEPT = 64
_NO_TIMEOUT: Mapping[str, float | None] = {}


def _method(name: str) -> bytes:
    """As it goes out. Raises InvalidRequest for what is not a token, and for CONNECT, which would need a tunnel."""
    if not _TOKEN(name):
        raise InvalidRequest(f"not a method: {name!r}")
    if name == "CONNECT":
        raise InvalidRequest("the mesh does not tunnel: CONNECT is not supported")
    method = name.encode()
    if len(_methods) < _METHODS_KEPT:
        _methods[name] = method
    return method


def _patience(timeout: Mapping[str, float | None]) -> Patience:
    """Clients have few sets of timeouts: one object for all requests with the same."""
    given = tuple(timeout.items())
    patience = _patiences.get(given)
    if patience is None:
        patience = Patience(timeout)
        if len(_patiences) < _PATIENCES_KEPT:
            _patiences[given] = patience
    return patience


class OriginalRequest(OutgoingRequest):
    """The application's request, which is also what goes out when the route changes nothing in it.

    timeout: the host library's own, in seconds, None or absent for none.
    """

    __slots__ = ("_host", "_patience", "_target", "timeout", "view")

    def __init__(
        self,
        method: str,
        scheme: str,
        target: str,
        authority: bytes,
        path: bytes,
        headers: RawHeaders,
        body: bytes | None,
        timeout: Mapping[str, float | None] | None,
    ) -> None:
        self.method = _methods.get(method) or _method(method)
        self.path = path
        self.authority = authority
        self.block = block = blocks[tuple(headers)]
        self.body = body
        self.extra = ()
        self.timeout = timeout or _NO_TIMEOUT
        self._patience: Patience | None = None
        self._host = host = authority.decode("utf-8", "surrogateescape")
        self._target = wanted = path.decode("utf-8", "surrogateescape")
        self.view = RequestView(method, scheme, host, wanted, block, target)

    @property
    def patience(self) -> Patience:
        patience = self._patience
        if patience is None:
            patience = self._patience = _patience(self.timeout)
        return patience

    def outgoing(self, start: Start) -> OutgoingRequest:
        """What one attempt sends. Raises SecureSchemeError when the application asked for https."""
        view = self.view
        if view.scheme == "https":
            raise SecureSchemeError(view.target)
        extra = start.extra
        if start.headers is None and start.path is self._target and start.authority is self._host:
            if not extra:
                return self
            return OutgoingRequest(
                self.method, self.path, self.authority, self.block, self.body, encode_headers(extra)
            )
        return OutgoingRequest(
            self.method,
            start.path.encode("utf-8", "surrogateescape"),
            start.authority.encode("utf-8", "surrogateescape"),
            self.block if start.headers is None else encode_headers(start.headers),
            self.body,
            encode_headers(extra) if extra else (),
        )


class Attempt:
    """One attempt. connection: None while it is parked. accepted: its response is the application's."""

    __slots__ = ("connect_by", "connection", "number", "outgoing", "stage", "start", "waiter")

    def __init__(self, start: Start) -> None:
        self.number = start.attempt
        self.start = start
        self.stage = Stage.READY
        self.connection: Any = None
        self.waiter: Waiter | None = None
        self.connect_by = inf
        self.outgoing: OutgoingRequest | None = None


class LazyHeaders(Sequence[tuple[str, str]]):
    """Response headers as the engine sees them, decoded when it looks."""

    __slots__ = ("_decoded", "_response")

    def __init__(self, response: Response) -> None:
        self._response = response
        self._decoded: HeaderList | None = None

    def _all(self) -> HeaderList:
        if self._decoded is None:
            self._decoded = decode_headers(self._response.headers)
        return self._decoded

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._response.fields) // 2

    @overload
    def __getitem__(self, index: int) -> tuple[str, str]: ...
    @overload
    def __getitem__(self, index: slice) -> HeaderList: ...
    def __getitem__(self, index: int | slice) -> tuple[str, str] | HeaderList:
        return self._all()[index]


def decode_headers(headers: RawHeaders) -> HeaderList:
    """As the engine sees them: lower-case names; bytes that are not UTF-8 survive the way back."""
    return [
        (name.decode("ascii", "replace").lower(), value.decode("utf-8", "surrogateescape"))
        for name, value in headers
    ]


def encode_headers(headers: Iterable[tuple[str, str]]) -> RawHeaders:
    return [
        (name.encode("ascii", "replace"), value.encode("utf-8", "surrogateescape")) for name, value in headers
    ]


def encode_fields(headers: Iterable[tuple[str, str]]) -> list[bytes]:
    """The same, as `Response.fields` has them."""
    return [part for header in encode_headers(headers) for part in header]


Instead = Callable[[MeshError, CallInfo], "Answer | None"]
"""What the application gets instead of an answer: None when it is to go without the mesh. Raises the error, or another."""


class Leave:
    """Send the request without the mesh, with these headers besides its own (trace context): no Listener knows the host."""

    __slots__ = ("headers",)

    def __init__(self, headers: Iterable[tuple[str, str]]) -> None:
        self.headers = encode_headers(headers)


def give_up(call: Call, now: float) -> None:
    """Tell the engine that nobody waits for this call any more, when there is nothing left to carry out."""
    call.handle(CANCELLED, now)


class Answer:
    """What the application gets.

    fields: the headers as in `Response`. content: the whole body; None when `stream` has to be read for it.
    """

    __slots__ = ("content", "fields", "info", "reason", "status", "stream", "version")

    def __init__(
        self,
        status: int,
        fields: Sequence[bytes],
        info: CallInfo,
        *,
        content: bytes | None,
        stream: Any = None,
        reason: bytes | None = None,
        version: bytes = b"HTTP/1.1",
    ) -> None:
        self.status = status
        self.fields = fields
        self.info = info
        self.content = content
        self.stream = stream
        self.reason = reason
        self.version = version

    @classmethod
    def local(cls, reply: LocalReply, info: CallInfo) -> Answer:
        """An answer that nobody upstream gave."""
        return cls(reply.status, encode_fields(reply.headers), info, content=reply.body)

    @property
    def headers(self) -> RawHeaders:
        """In order."""
        return pairs(self.fields)

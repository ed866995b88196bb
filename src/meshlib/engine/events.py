"""What a transport tells the engine. One small class for each thing that can happen to a call."""

from __future__ import annotations

from collections.abc import Sequence

from meshlib.policy.failure import FailureKind

__all__ = [
    "BEGIN",
    "BEGIN_STREAMED",
    "CANCELLED",
    "TIMER",
    "WOKEN",
    "Begin",
    "Cancelled",
    "Connected",
    "End",
    "Event",
    "Failed",
    "FailureKind",
    "Headers",
    "Message",
    "NeedConnection",
    "RequestComplete",
    "Sent",
    "SideResult",
    "Succeeded",
    "Timer",
    "Woken",
]


class Begin:
    """The call starts. complete: the whole request body is known already (there is none, or it is buffered)."""

    __slots__ = ("complete",)

    def __init__(self, complete: bool = True) -> None:
        self.complete = complete


class NeedConnection:
    """The pool has no free connection for this attempt, or the one that it was given takes no more requests."""

    __slots__ = ("attempt", "owner")

    def __init__(self, attempt: int, owner: object | None = None) -> None:
        self.attempt = attempt
        self.owner = owner


class Connected:
    """The attempt has its connection after NeedConnection (opened or handed over) and is about to send."""

    __slots__ = ("attempt",)

    def __init__(self, attempt: int) -> None:
        self.attempt = attempt


class Sent:
    """Bytes of the request have left. Needed once for each attempt, before a failure is reported."""

    __slots__ = ("attempt", "count")

    def __init__(self, attempt: int, count: int) -> None:
        self.attempt = attempt
        self.count = count


class RequestComplete:
    """The last byte of a streamed request body has been read from the application: the route timeout starts."""

    __slots__ = ()


class Headers:
    """The response headers of an attempt. end: nothing follows (no body, or all of it is here already).

    headers: lower-case names, in order; of a gRPC response that is over already with its grpc-status.
    """

    __slots__ = ("attempt", "end", "headers", "status")

    def __init__(
        self, attempt: int, status: int, headers: Sequence[tuple[str, str]], end: bool = False
    ) -> None:
        self.attempt = attempt
        self.status = status
        self.headers = headers
        self.end = end


class Succeeded(Headers):
    """The whole response of an attempt, from a gRPC server: one message, status OK in its trailers. status is 200, end true.

    The same as Headers, but who looks for an error in the headers need not look.
    """

    __slots__ = ()


class Message:
    """A message (gRPC), or a piece of the body, of an attempt arrived."""

    __slots__ = ("attempt",)

    def __init__(self, attempt: int) -> None:
        self.attempt = attempt


class End:
    """The response of an attempt is complete. trailers: lower-case names, in order."""

    __slots__ = ("attempt", "trailers")

    def __init__(self, attempt: int, trailers: Sequence[tuple[str, str]] = ()) -> None:
        self.attempt = attempt
        self.trailers = trailers


class Failed:
    """The attempt broke. bytes_sent: whether any byte of the request may have reached the endpoint. reason: for people."""

    __slots__ = ("attempt", "bytes_sent", "kind", "reason")

    def __init__(self, attempt: int, kind: FailureKind, bytes_sent: bool, reason: str = "") -> None:
        self.attempt = attempt
        self.kind = kind
        self.bytes_sent = bytes_sent
        self.reason = reason


class Timer:
    """`Call.wake_at` has been reached."""

    __slots__ = ()


class Woken:
    """The `wake` of the call was called: what it was parked for may be there."""

    __slots__ = ()


class SideResult:
    """The answer to a SideCall. result is what the filter that asked understands; error: why there is none."""

    __slots__ = ("error", "result", "side")

    def __init__(self, side: int, result: object = None, error: BaseException | None = None) -> None:
        self.side = side
        self.result = result
        self.error = error


class Cancelled:
    """The application gave the call up, or closed the response before its end."""

    __slots__ = ()


Event = (
    Begin
    | NeedConnection
    | Connected
    | Sent
    | RequestComplete
    | Headers
    | Succeeded
    | Message
    | End
    | Failed
    | Timer
    | Woken
    | SideResult
    | Cancelled
)

# Events that say nothing but that they happened: one object for all calls.
BEGIN = Begin(complete=True)
BEGIN_STREAMED = Begin(complete=False)
CANCELLED = Cancelled()
TIMER = Timer()
WOKEN = Woken()

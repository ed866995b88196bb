"""The endings of a call that are not an upstream's answer, as one table: error class, status, body, flag and details.

Texts and numbers are Envoy's, byte for byte (seen on 1.40.0). A request with a gRPC content type gets the gRPC form of the
same reply: HTTP 200, trailers-only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar
from urllib.parse import quote

from meshlib.errors import (
    AttemptRecord,
    BreakerOpen,
    CircuitFull,
    ConnectFailed,
    ConnectTimedOut,
    DeadlineExceeded,
    FaultInjected,
    LocalReply,
    MeshError,
    NoCluster,
    NoHealthyEndpoint,
    NoRoute,
    ProtocolViolation,
    StreamReset,
    UnknownHost,
)
from meshlib.policy.failure import FailureKind
from meshlib.routing.request import RequestView

__all__ = [
    "Ending",
    "Endings",
    "broken_off",
    "describe",
    "for_failure",
    "grpc_form",
    "plain_reply",
    "told",
    "without_envoy_headers",
]

TEXT = ("content-type", "text/plain")
OVERLOADED = ("x-envoy-overloaded", "true")
RESET = "upstream connect error or disconnect/reset before headers. "
RETRIED = "retried and the latest "


@dataclass(frozen=True, slots=True)
class Ending:
    """One row. flag and details as in Envoy's access log; message is for people and ends up in the exception's text.

    grpc_status: in the gRPC form; None for what Envoy makes of the HTTP status.
    """

    error: type[MeshError]
    status: int
    body: str
    flag: str
    details: str
    message: str
    headers: tuple[tuple[str, str], ...] = ()
    grpc_status: int | None = None


class Endings:
    """The rows that need no parameter."""

    NO_ROUTE: ClassVar = Ending(NoRoute, 404, "", "NR", "route_not_found", "no virtual host or route matches")
    NO_HEALTHY_UPSTREAM: ClassVar = Ending(
        NoHealthyEndpoint, 503, "no healthy upstream", "UH", "no_healthy_upstream", "no healthy endpoint"
    )
    ROUTE_TIMEOUT: ClassVar = Ending(
        DeadlineExceeded,
        504,
        "upstream request timeout",
        "UT",
        "response_timeout",
        "the call's timeout passed",
    )
    PER_TRY_TIMEOUT: ClassVar = Ending(
        DeadlineExceeded,
        504,
        "upstream request timeout",
        "UT",
        "upstream_per_try_timeout",
        "the attempt's timeout passed",
    )
    CALLER_DEADLINE: ClassVar = Ending(
        DeadlineExceeded,
        504,
        "Deadline Exceeded",
        "DC",
        "downstream_remote_disconnect",
        "the caller's own deadline passed",
        grpc_status=4,
    )
    MAX_STREAM_DURATION: ClassVar = Ending(
        DeadlineExceeded,
        504,
        "downstream duration timeout",
        "",
        "max_duration_timeout",
        "the route's max_stream_duration passed",
        grpc_status=4,
    )
    UPSTREAM_MAX_STREAM_DURATION: ClassVar = Ending(
        DeadlineExceeded,
        504,
        "upstream max stream duration reached",
        "UMSDR",
        "upstream_max_stream_duration_reached",
        "the cluster's max_stream_duration passed",
    )
    STREAM_IDLE: ClassVar = Ending(
        DeadlineExceeded,
        504,
        "stream timeout",
        "SI",
        "stream_idle_timeout",
        "nothing moved for stream_idle_timeout",
    )
    PATH_NORMALIZATION_FAILED: ClassVar = Ending(
        NoRoute,
        400,
        "",
        "",
        "path_normalization_failed",
        "the path holds a '#', or what its normalization refuses",
        (("connection", "close"),),
    )

    @staticmethod
    def overflow(*, retried: bool) -> Ending:
        """A circuit-breaker limit refused an attempt. retried: it was not the first."""
        return Ending(
            CircuitFull,
            503,
            RESET + (RETRIED if retried else "") + "reset reason: overflow",
            "UO",
            "upstream_reset_before_response_started{overflow}",
            "a circuit-breaker limit is reached",
            (OVERLOADED,),
        )

    @staticmethod
    def no_cluster(status: int) -> Ending:
        return Ending(NoCluster, status, "", "NC", "cluster_not_found", "the route's cluster does not exist")

    @staticmethod
    def unknown_host(target: str) -> Ending:
        """No Listener has this name. Envoy has no such case; a request that no listener takes gets the same 404."""
        return Ending(UnknownHost, 404, "", "NR", "route_not_found", f"no Listener is named {target!r}")

    @staticmethod
    def fault(status: int, grpc_status: int | None) -> Ending:
        """Fault injection aborts the call. grpc_status: None for what Envoy makes of the HTTP status."""
        return Ending(
            FaultInjected,
            status,
            "fault filter abort",
            "FI",
            "fault_filter_abort",
            f"fault injection aborts the call with {told(status, grpc_status)}",
            grpc_status=grpc_status,
        )

    @staticmethod
    def breaker_open(cluster: str) -> Ending:
        """The application's own breaker, which Envoy does not have; told apart from its limits by the details."""
        message = f"the application's breaker of cluster {cluster!r} is open"
        return Ending(BreakerOpen, 503, "breaker open", "UO", "breaker_open", message, (OVERLOADED,))


def told(status: int, grpc_status: int | None) -> str:
    """The status of an abort, for people."""
    return f"HTTP status {status}" if grpc_status is None else f"gRPC status {grpc_status}"


_FAILURES: dict[FailureKind, tuple[type[MeshError], int, str]] = {
    FailureKind.CONNECT_FAILED: (ConnectFailed, 503, "UF"),
    FailureKind.CONNECT_TIMEOUT: (ConnectTimedOut, 503, "UF"),
    FailureKind.TERMINATED: (StreamReset, 503, "UC"),
    FailureKind.REMOTE_RESET: (StreamReset, 503, "UR"),
    FailureKind.REFUSED_STREAM: (StreamReset, 503, "UR"),
    FailureKind.PROTOCOL_ERROR: (ProtocolViolation, 502, "UPE"),
}


def for_failure(kind: FailureKind, reason: str, *, retried: bool, started: bool) -> Ending:
    """The ending of an attempt that broke and is not tried again.

    reason: the transport's own text, for example `delayed connect error: Connection refused`; Envoy's details have it only
    for a connection that could not be opened. retried: there were attempts before it. started: the response headers were
    passed on already, so that only the body is cut.
    """
    error, status, flag = _FAILURES[kind]
    prefix = (RETRIED if retried else "") + "reset reason: "
    phase = "after" if started else "before"
    told = reason if kind is FailureKind.CONNECT_FAILED else ""
    inner = f"{kind.value}|{told}" if told else kind.value
    details = f"upstream_reset_{phase}_response_started{{{inner.replace(' ', '_')}}}"
    return Ending(error, status, RESET + prefix + kind.value, flag, details, reason or kind.value)


def broken_off(ending: Ending) -> Ending:
    """The same ending of a gRPC call after its response began: Envoy can only reset the stream then, which its caller sees as
    INTERNAL. The caller's own deadline stays what it is.
    """
    if ending.details == Endings.CALLER_DEADLINE.details:
        return ending
    return replace(ending, grpc_status=13, body=f"the response broke off: {ending.message}")


def describe(
    ending: Ending,
    request: RequestView,
    cluster: str | None,
    flags: Sequence[str],
    attempts: Sequence[AttemptRecord],
) -> str:
    """The exception's text: what was asked, what failed, and each attempt. cluster: None before the route is known."""
    where = f"{request.method} {request.authority}{request.path}"
    if cluster is not None:
        where += f" (cluster {cluster or 'not named'})"
    text = f"{where}: {ending.message} [{','.join(flags) or '-'} {ending.details}]"
    tried = "; ".join(
        f"attempt {number}: {attempt.endpoint} {attempt.failure or attempt.status}"
        for number, attempt in enumerate(attempts, 1)
    )
    return f"{text}; {tried}" if tried else text


def without_envoy_headers(ending: Ending) -> Ending:
    """As the router's suppress_envoy_headers has it."""
    return replace(
        ending, headers=tuple(pair for pair in ending.headers if not pair[0].startswith("x-envoy-"))
    )


def plain_reply(ending: Ending) -> LocalReply:
    """The HTTP form: `content-length` always, `content-type: text/plain` when there is a body."""
    body = ending.body.encode()
    length = ("content-length", str(len(body)))
    return LocalReply(
        ending.status, (length, TEXT, *ending.headers) if body else (length, *ending.headers), body
    )


_GRPC_STATUS = {400: 13, 401: 16, 403: 7, 404: 12, 429: 14, 502: 14, 503: 14, 504: 14}


def grpc_form(reply: LocalReply, grpc_status: int | None = None) -> LocalReply:
    """The reply as a gRPC client gets it: 200, trailers-only, the body percent-encoded in grpc-message."""
    status = _GRPC_STATUS.get(reply.status, 2) if grpc_status is None else grpc_status
    kept = [pair for pair in reply.headers if pair[0] not in ("content-length", "content-type")]
    headers = [("content-type", "application/grpc"), ("grpc-status", str(status))]
    if reply.body:
        # Envoy encodes `~` too, which urllib never does.
        message = quote(reply.body, safe=" !\"#$&'()*+,-./:;<=>?@[\\]^_`{|}").replace("~", "%7E")
        headers.append(("grpc-message", message))
    return LocalReply(200, (*headers, *kept))

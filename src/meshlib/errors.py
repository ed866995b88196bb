"""Every error that meshlib raises: whose fault it is, in which phase, for which resource, and what Envoy would have said.

Errors of a call carry Envoy's response flags and response code details, the attempts that were made, and the local reply
(status, headers, body) that Envoy would have answered with. Host libraries get subclasses that are also their own class
(`httpx.ConnectError`, `grpc.RpcError`); those are made at the transport's boundary, never here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from meshlib.observe.decision import Decision

__all__ = [
    "AttemptRecord",
    "BreakerOpen",
    "CircuitFull",
    "ConfigError",
    "ConfigTimeout",
    "ConnectFailed",
    "ConnectTimedOut",
    "ControlPlaneError",
    "DeadlineExceeded",
    "FaultInjected",
    "IdentityError",
    "LimitError",
    "LocalReply",
    "MeshClosed",
    "MeshError",
    "NoCluster",
    "NoHealthyEndpoint",
    "NoRoute",
    "ProtocolViolation",
    "ResourceError",
    "RoutingError",
    "StreamReset",
    "UnknownHost",
    "UpstreamError",
]


@dataclass(frozen=True, slots=True)
class LocalReply:
    """The answer that Envoy gives by itself: status, headers (lower-case names, in order) and body."""

    status: int
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class AttemptRecord:
    """One attempt of a call: where it went and how it ended.

    endpoint: `ip:port`. status: HTTP status of the response, None when there was none. failure: the reset reason in
    Envoy's words, None when a response came. duration: seconds from the start of the attempt to its verdict.
    """

    endpoint: str
    status: int | None
    failure: str | None
    duration: float


class MeshError(Exception):
    """Base of every error of meshlib.

    flags: Envoy's response flags, comma-joined in the order they were set, `-` when none (`%RESPONSE_FLAGS%`).
    details: Envoy's response code details (`%RESPONSE_CODE_DETAILS%`), empty when the error is not about a call.
    attempts: what was tried, in order. local_reply: Envoy's own answer in this situation, None when it has none.
    """

    _decide: Callable[[], Decision | None] | None = None

    def __init__(
        self,
        message: str,
        *,
        flags: str = "-",
        details: str = "",
        attempts: tuple[AttemptRecord, ...] = (),
        local_reply: LocalReply | None = None,
    ) -> None:
        super().__init__(message)
        self.flags = flags
        self.details = details
        self.attempts = attempts
        self.local_reply = local_reply

    @property
    def message(self) -> str:
        return str(self.args[0]) if self.args else ""

    @property
    def decision(self) -> Decision | None:
        """Why the call went where it went, with every attempt; None for an error that is not about a call of a Mesh.

        It is put together when it is asked for. A copy that was pickled has none.
        """
        return None if self._decide is None else self._decide()

    def decided_by(self, decide: Callable[[], Decision | None]) -> None:
        """What `decision` asks. The engine says so."""
        self._decide = decide

    def __reduce__(self) -> tuple[object, ...]:
        state = {name: value for name, value in self.__dict__.items() if name != "_decide"}
        return _rebuild, (type(self), self.args, state)


def _rebuild(cls: type[MeshError], args: tuple[object, ...], state: dict[str, object]) -> MeshError:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class ConfigError(MeshError):
    """The user's own input (a bootstrap, an option, a file) is wrong. Raised before anything is sent."""


class ResourceError(MeshError):
    """An xDS resource is wrong; the text goes into the NACK. The last good version stays in force.

    type_url and name say which resource (either may be empty while it is not known yet); path is the place of the field
    in proto field names, for example `virtual_hosts[2].routes[0].match.safe_regex.regex`, empty for the resource itself.
    """

    def __init__(self, path: str, reason: str, *, type_url: str = "", name: str = "") -> None:
        super().__init__(f"{path}: {reason}" if path else reason)
        self.path = path
        self.reason = reason
        self.type_url = type_url
        self.name = name


class ControlPlaneError(MeshError):
    """The control plane could not be reached or broke the protocol."""


class ConfigTimeout(ControlPlaneError):
    """No configuration arrived in the time that the call could wait (at most min(its deadline, 15 s))."""


class MeshClosed(MeshError):
    """The Mesh, or the transport, has been closed."""


class RoutingError(MeshError):
    """The configuration gives no place to send the request to. Nothing was sent."""


class UnknownHost(RoutingError):
    """No Listener has this name; the control plane, or the files, say that it does not exist."""


class NoRoute(RoutingError):
    """No virtual host or no route matches (NR, 404)."""


class NoCluster(RoutingError):
    """The route names a cluster that does not exist (NC, 503 by default)."""


class UpstreamError(MeshError):
    """An endpoint, or the way to it, failed, and retries (if any) did not help."""


class NoHealthyEndpoint(UpstreamError):
    """The cluster has no endpoint that may be used (UH, 503)."""


class ConnectFailed(UpstreamError):
    """The connection could not be opened; no byte of the request was sent (UF, 503)."""


class ConnectTimedOut(ConnectFailed):
    """The cluster's connect_timeout passed before the connection was open (UF, 503)."""


class IdentityError(ConnectFailed):
    """TLS to, or from, a peer can't be trusted: its certificate is refused, or there is none of our own to show (UF, 503).

    No byte of a request was sent, nor one of a response. expected: what would have been accepted, in words. got: what was
    there instead. trust_domain: the one that the decision was about. not_after: the end of the certificate's life, seconds
    since the epoch. Each is None when it plays no part. reason: what Envoy says of the same failure, in its own words.
    """

    def __init__(
        self,
        message: str,
        *,
        expected: str | None = None,
        got: str | None = None,
        trust_domain: str | None = None,
        not_after: float | None = None,
        reason: str = "",
        flags: str = "UF",
        details: str = "",
        attempts: tuple[AttemptRecord, ...] = (),
        local_reply: LocalReply | None = None,
    ) -> None:
        super().__init__(message, flags=flags, details=details, attempts=attempts, local_reply=local_reply)
        self.expected = expected
        self.got = got
        self.trust_domain = trust_domain
        self.not_after = not_after
        self.reason = reason


class StreamReset(UpstreamError):
    """The connection ended, or the stream was reset, before the response was complete (UC, UR)."""


class ProtocolViolation(UpstreamError):
    """The endpoint broke the protocol (UPE, 502)."""


class DeadlineExceeded(UpstreamError):
    """The route's timeout, the per-try timeout or the caller's deadline passed (UT, 504)."""


class FaultInjected(UpstreamError):
    """The configuration's fault injection aborted the call (FI). Nothing was sent; it stands for a failure of the endpoint."""


class LimitError(MeshError):
    """A limit refused the call. Nothing was sent, and the endpoint's record is not touched."""


class CircuitFull(LimitError):
    """A circuit-breaker limit of the cluster is reached (UO, 503)."""


class BreakerOpen(LimitError):
    """The application-level breaker of the cluster is open."""

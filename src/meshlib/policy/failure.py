"""How an attempt can fail without a response."""

from __future__ import annotations

from enum import Enum

__all__ = ["FailureKind"]


class FailureKind(Enum):
    """The value is Envoy's reset reason, as it stands in the body of the local reply.

    LOCAL_RESET: given up by us, which is what a per-try timeout is. OVERFLOW: a circuit-breaker limit refused the attempt.
    """

    CONNECT_FAILED = "remote connection failure"
    CONNECT_TIMEOUT = "connection timeout"
    TERMINATED = "connection termination"
    REMOTE_RESET = "remote reset"
    REFUSED_STREAM = "remote refused stream reset"
    PROTOCOL_ERROR = "protocol error"
    LOCAL_RESET = "local reset"
    OVERFLOW = "overflow"

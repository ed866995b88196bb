"""What goes wrong below the engine, as the connections report it."""

from __future__ import annotations

import os

from meshlib.engine.events import FailureKind

__all__ = [
    "BodyLengthError",
    "InvalidRequest",
    "TransportFailure",
    "connect_failure",
    "protocol_failure",
    "terminated",
]


class TransportFailure(Exception):
    """An attempt broke. kind: the reset reason; reason: for people, the transport's own words."""

    def __init__(self, kind: FailureKind, reason: str = "") -> None:
        super().__init__(reason or kind.value)
        self.kind = kind
        self.reason = reason


class BodyLengthError(Exception):
    """The application's body is longer or shorter than the Content-Length that it declared."""


class InvalidRequest(Exception):
    """The application's request cannot be written as HTTP without changing what it says."""


def connect_failure(error: OSError) -> TransportFailure:
    """The connection could not be opened. The words are those that Envoy puts into its details."""
    text = os.strerror(error.errno) if error.errno else str(error)
    return TransportFailure(FailureKind.CONNECT_FAILED, f"delayed connect error: {text}")


def protocol_failure(reason: str) -> TransportFailure:
    return TransportFailure(FailureKind.PROTOCOL_ERROR, reason)


def terminated(error: OSError | None = None) -> TransportFailure:
    """The peer closed or reset the connection."""
    return TransportFailure(
        FailureKind.TERMINATED, str(error) if error is not None and error.errno is None else ""
    )

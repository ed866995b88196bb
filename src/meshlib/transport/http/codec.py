"""What a connection asks of a protocol, for one request at a time."""

from __future__ import annotations

from typing import Protocol

from meshlib.transport.http.failure import TransportFailure
from meshlib.transport.http.message import OutgoingRequest, Response

__all__ = ["Codec"]


class Codec(Protocol):
    """Bytes in, one response after the other out; no I/O.

    response: the one to the current request. reusable: valid once it is complete. survives_input: what arrives while no
    request is under way may be the protocol's own business (HTTP/2) and is no reason to close. blocked: take no more of
    the body, the peer does not accept it now. outgoing: `take_outgoing` has bytes that nobody asked for.
    """

    @property
    def response(self) -> Response: ...
    @property
    def reusable(self) -> bool: ...
    @property
    def survives_input(self) -> bool: ...
    @property
    def blocked(self) -> bool: ...
    @property
    def outgoing(self) -> bool: ...

    def start(self, request: OutgoingRequest, *, inline: bool = True) -> bytes:
        """The bytes that begin the request, with `inline` also those of its body. Raises InvalidRequest, TransportFailure."""

    def body(self, data: bytes) -> bytes:
        """The bytes of one piece of the body that may go out now."""

    def end_body(self) -> bytes:
        """The bytes that end the body."""

    def feed(self, data: bytes) -> None:
        """Take what arrived. Raises TransportFailure."""

    def end(self) -> None:
        """The peer closed its side. Raises TransportFailure unless that completes the response."""

    def abort(self) -> TransportFailure:
        """The connection was reset; what that means for the response."""

    def consumed(self, count: int) -> None:
        """So many bytes of the response body have been read by the application."""

    def take_outgoing(self) -> bytes:
        """Bytes of the protocol's own that have to be sent."""

    def close(self) -> None:
        """The connection is closed; nothing more is asked."""

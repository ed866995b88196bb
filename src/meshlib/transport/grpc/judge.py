"""How an attempt ended, told to the engine.

grpcio reports every ending as a status, whoever made it. A status of the peer is a response: its headers and trailers go to
the engine, which may retry it. A status that C-core made on this side stands for a failure below HTTP (no connection, a reset,
a time that passed), and C-core says which only in its text. `CAUSES` is that text, read as a table; it has been seen on
grpcio 1.85, and older releases say the same without the frame of `Stream removed (...)`. They mark what the peer sent in
the debug string instead. docs/differences.md lists what cannot be told apart.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import Enum

from meshlib.engine.events import Cancelled, End, Event, Failed, FailureKind, Headers, Timer
from meshlib.transport.grpc.metadata import Metadata, encode_message, to_headers

__all__ = ["EARLY", "PREFIX", "Ended", "Local", "end_of_stream", "judge", "local_cause"]

PREFIX = 5
"""Bytes before each message on the wire."""

EARLY = 0.005
"""Seconds by which C-core may see a deadline pass before our clock does."""


class Local(Enum):
    """Endings on this side that are no failure of the endpoint."""

    DEADLINE = "the deadline that the attempt was sent with passed"
    APPLICATION = "the application's side ended or broke the call"


Cause = FailureKind | Local

CAUSES: tuple[tuple[re.Pattern[str], Cause], ...] = tuple(
    (re.compile(pattern), cause)
    for pattern, cause in (
        (r"Deadline Exceeded", Local.DEADLINE),
        (r"(?:Received )?RST_STREAM.*error code 7\b", FailureKind.REFUSED_STREAM),
        (r"(?:Received )?RST_STREAM.*error code \d+", FailureKind.REMOTE_RESET),
        (r"GOAWAY received", FailureKind.REFUSED_STREAM),
        (r"(?:Socket closed|recvmsg:|sendmsg:|Broken pipe|Connection reset|Transport closed|keepalive|ping timeout)",
         FailureKind.TERMINATED),
        (r"failed to connect to all addresses; last error: .*(?:timed out|Timeout)", FailureKind.CONNECT_TIMEOUT),
        (r"failed to connect to all addresses", FailureKind.CONNECT_FAILED),
        (r"(?:Failed parsing HTTP/2|Expected SETTINGS|frame of size|Error parsing)", FailureKind.PROTOCOL_ERROR),
        (r"Channel closed!|Channel deallocated!|Locally cancelled|Cancelled upon garbage|Call cancelled in fork",
         Local.APPLICATION),
        (r"CLIENT: |(?:Received|Sent) message larger than max", Local.APPLICATION),
        (r"Established channel does not have a sufficient security level", Local.APPLICATION),
        (r"Getting metadata from plugin failed|Illegal metadata", Local.APPLICATION),
    )
)  # fmt: skip
"""The beginning of C-core's text, outermost frame removed."""

_FRAME = "Stream removed ("
_HTTP_STATUS = re.compile(r"Received http2 header with status: (\d{3})$")
_NOT_GRPC = "Data frame with END_STREAM"  # an answer, though not one of gRPC
_FROM_PEER = "Error received from peer"


class Ended:
    """The ending of an inner call as grpcio reports it. code: of google.rpc.Code. debug: None or empty when C-core was not asked.

    initial, trailing: metadata as the application would see it. message: a message had come, though the application of a
    unary call does not get it.
    """

    __slots__ = ("code", "debug", "details", "initial", "message", "trailing")

    def __init__(
        self,
        code: int,
        details: str,
        debug: str | None,
        initial: Metadata | None,
        trailing: Metadata | None,
        *,
        message: bool = False,
    ) -> None:
        self.message = message
        self.code = code
        self.details = details
        self.debug = debug
        self.initial: Metadata = initial or ()
        self.trailing: Metadata = trailing or ()

    def trailers(self) -> list[tuple[str, str]]:
        """With the status, as on the wire."""
        headers = [("grpc-status", str(self.code))]
        if self.details:
            headers.append(("grpc-message", encode_message(self.details)))
        return [*headers, *to_headers(self.trailing)]


def local_cause(ended: Ended) -> Cause | None:
    """Who ended the call on this side, and why; None: the peer did."""
    debug, text = ended.debug, ended.details
    if not debug:
        return Local.APPLICATION  # grpcio's Python part, without asking C-core
    if _FROM_PEER in debug:
        return None
    framed = text.startswith(_FRAME)
    if framed:
        text = text[len(_FRAME) :]
        text = text.removeprefix("RST_STREAM (")
    for pattern, cause in CAUSES:
        if pattern.match(text):
            return cause
    return FailureKind.TERMINATED if framed and not text.startswith(_NOT_GRPC) else None


def judge(number: int, ended: Ended, *, answered: bool, now: float, wake_at: float) -> tuple[Event, float]:
    """The event for attempt `number`, not accepted yet, and the moment to report it at.

    answered: a message of it has been seen. An ending whose headers came apart from its trailers is reported as
    `Headers(end=False)`; once the engine has accepted that, `end_of_stream` gives the rest.
    """
    if ended.code == 0:
        return Headers(number, 200, _response(ended.initial), end=True), now
    http = _HTTP_STATUS.match(ended.details)
    if http is not None:
        return Headers(number, int(http[1]), to_headers(ended.trailing), end=True), now
    cause = local_cause(ended)
    if cause is Local.DEADLINE and now >= wake_at - EARLY:
        return Timer(), max(now, wake_at)
    if isinstance(cause, Local):  # a deadline of the surroundings (a server's own call) is the application's
        return Cancelled(), now
    if answered or ended.message or ended.initial:
        return Headers(number, 200, _response(ended.initial), end=False), now
    if cause is None:
        if ended.code == 4 and now >= wake_at - EARLY:
            return Timer(), max(now, wake_at)  # the peer's clock was faster: it is the same deadline
        return Headers(number, 200, _response(()) + ended.trailers(), end=True), now
    return _failed(number, cause, ended), now


def end_of_stream(number: int, ended: Ended, *, now: float, wake_at: float) -> tuple[Event, float]:
    """The same for the accepted attempt."""
    cause = None if ended.code == 0 else local_cause(ended)
    if (cause is Local.DEADLINE or ended.code == 4) and now >= wake_at - EARLY:
        return Timer(), max(now, wake_at)
    if isinstance(cause, Local):
        return Cancelled(), now
    if cause is None:
        return End(number, ended.trailers()), now
    return _failed(number, cause, ended), now


def _failed(number: int, cause: FailureKind, ended: Ended) -> Failed:
    unsent = cause in (FailureKind.CONNECT_FAILED, FailureKind.CONNECT_TIMEOUT, FailureKind.REFUSED_STREAM)
    return Failed(number, cause, not unsent, ended.details)


def _response(metadata: Sequence[tuple[str, str | bytes]]) -> list[tuple[str, str]]:
    return [("content-type", "application/grpc"), *to_headers(metadata)]

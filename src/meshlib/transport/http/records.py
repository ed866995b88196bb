"""TLS as bytes in and bytes out: plaintext into records and back, and the codec that speaks through them.

The records pass through two memory buffers, so that the connections go on sending and receiving by themselves, with the
deadlines and the few system calls that they have in plaintext. (Over a socket, `ssl` would retry a read that the kernel's own
timeout has ended for ever, or ask the kernel twice for each answer.)

A TLS record may hold no plaintext at all (a session ticket, a key update): `open` gives nothing for it then, and there may be
something to send.

The end: a peer that has said goodbye (`close_notify`) has `ended` orderly. Without that, the end of the stream may be an
attacker's: to the codec it is a reset, never the end of a body.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import Any

from meshlib.transport.http.codec import Codec
from meshlib.transport.http.failure import TransportFailure
from meshlib.transport.http.handshakes import Count, count_failed
from meshlib.transport.http.message import OutgoingRequest, Response

__all__ = ["Records", "TlsCodec"]

RECORD = 16 * 1024
"""The most plaintext that one record holds (RFC 8446, 5.1): a read of that size leaves nothing of it behind."""

_NOTHING = Response()
_NOTHING.complete = True


class Records:
    """Two memory buffers with an `ssl` object between them.

    incoming: what arrived. outgoing: the records that have to be sent. over: nothing more can be read. ended: because the peer
    said goodbye; otherwise because a record was wrong, or an alert.
    """

    __slots__ = ("_count", "_read", "_write", "ended", "incoming", "outgoing", "over")

    def __init__(
        self, tls: ssl.SSLObject, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, count: Count
    ) -> None:
        # What ssl.SSLObject wraps does the same without a frame of Python around it.
        engine: Any = getattr(tls, "_sslobj", None) or tls
        self._read: Callable[[int], bytes] = engine.read
        self._write: Callable[[bytes], int] = engine.write
        self._count = count
        self.incoming, self.outgoing = incoming, outgoing
        self.over = self.ended = False

    def take(self) -> bytes:
        """The records that have to be sent."""
        return self.outgoing.read()

    def seal(self, data: bytes) -> bytes:
        """The records that carry it, and whatever else has to be sent. Raises ssl.SSLError."""
        if data:
            self._write(data)
        return self.outgoing.read()

    def open(self, data: bytes) -> bytes:
        """The plaintext that has become complete with `data`; empty when none has."""
        incoming, read = self.incoming, self._read
        incoming.write(data)
        parts: list[bytes] = []
        try:
            while part := read(RECORD):
                if not incoming.pending:
                    if not parts:
                        return part
                    parts.append(part)
                    break
                parts.append(part)
            else:
                self.over = self.ended = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            self.over = True
            count_failed(self._count, error)
        return b"".join(parts)


class TlsCodec:
    """A codec whose bytes are the records of a session."""

    __slots__ = ("_codec", "_records", "response")

    survives_input = True

    def __init__(self, codec: Codec, records: Records) -> None:
        self._codec = codec
        self._records = records
        self.response = _NOTHING

    @property
    def reusable(self) -> bool:
        return self._codec.reusable

    @property
    def blocked(self) -> bool:
        return self._codec.blocked

    @property
    def outgoing(self) -> bool:
        return self._records.outgoing.pending > 0 or self._codec.outgoing

    def start(self, request: OutgoingRequest, *, inline: bool = True) -> bytes:
        codec = self._codec
        data = codec.start(request, inline=inline)
        self.response = codec.response
        try:
            return self._records.seal(data)
        except ssl.SSLError:
            raise codec.abort() from None

    def body(self, data: bytes) -> bytes:
        return self._seal(self._codec.body(data))

    def end_body(self) -> bytes:
        return self._seal(self._codec.end_body())

    def _seal(self, data: bytes) -> bytes:
        try:
            return self._records.seal(data)
        except ssl.SSLError:
            raise self._codec.abort() from None

    def feed(self, data: bytes) -> None:
        records = self._records
        plain = records.open(data)
        if plain:
            self._codec.feed(plain)
        if records.over:
            if records.ended:
                self._codec.end()
            else:
                self._broken_off()

    def end(self) -> None:
        if not self._records.ended:
            self._broken_off()

    def _broken_off(self) -> None:
        """The stream ended, and nobody vouches for its end."""
        failure = self._codec.abort()
        if not self.response.complete:
            raise failure

    def abort(self) -> TransportFailure:
        return self._codec.abort()

    def consumed(self, count: int) -> None:
        self._codec.consumed(count)

    def take_outgoing(self) -> bytes:
        return self._seal(self._codec.take_outgoing())

    def close(self) -> None:
        self._codec.close()

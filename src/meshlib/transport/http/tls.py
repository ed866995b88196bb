"""TLS as bytes in and bytes out: one session, and the codec that speaks through it.

The records pass through two memory buffers, so that the connections go on sending and receiving by themselves, with the
deadlines and the few system calls that they have in plaintext. (Over a socket, `ssl` would retry a read that the kernel's own
timeout has ended for ever, or ask the kernel twice for each answer.)

A session begins with the handshake: `shake` takes what arrived, `take` gives what has to be sent. The peer is verified before
`shake` says that it is over, so no byte of a request can leave before. Afterwards `seal` and `open` turn plaintext into records
and back. A TLS record may hold no plaintext at all (a session ticket, a key update): `open` gives nothing for it then, and
there may be something to send.

The end: a peer that has said goodbye (`close_notify`) has `ended` orderly. Without that, the end of the stream may be an
attacker's: to the codec it is a reset, never the end of a body.
"""

from __future__ import annotations

import os
import ssl
from contextlib import suppress

from meshlib.engine.events import FailureKind
from meshlib.errors import IdentityError
from meshlib.resources.cluster import HttpProtocol
from meshlib.state import EndpointState, Handshake, Security, Way
from meshlib.transport.http.codec import Codec
from meshlib.transport.http.description import TlsDescription
from meshlib.transport.http.failure import TransportFailure
from meshlib.transport.http.handshakes import Count, count_done, count_failed
from meshlib.transport.http.message import OutgoingRequest, Response

__all__ = ["TlsCodec", "TlsSession", "begin", "cut_short"]

RECORD = 16 * 1024
"""The most plaintext that one record holds (RFC 8446, 5.1): a read of that size leaves nothing of it behind."""

ALPN = {HttpProtocol.HTTP1: ("http/1.1",), HttpProtocol.HTTP2: ("h2",)}
"""What is offered when the cluster's configuration names nothing. What the peer picks changes nothing, as in Envoy."""

_SYSTEM = 2 << 24
"""BoringSSL's number of errors of the operating system."""

_NOTHING = Response()
_NOTHING.complete = True


def begin(way: Way, endpoint: EndpointState, authority: str, count: Count) -> TlsSession:
    """A session with the material of now; nothing is sent yet. Raises TransportFailure when there is none that may be used."""
    assert way.security is not None
    try:
        handshake = way.security.handshake(
            authority=authority, hostname=endpoint.hostname, alpn=ALPN[way.protocol]
        )
        return TlsSession(handshake, count, way.security)
    except (IdentityError, ssl.SSLError, ValueError) as error:
        from meshlib.identity.failure import transport_failure  # needs cryptography, which plaintext does not

        raise TransportFailure(FailureKind.CONNECT_FAILED, transport_failure(error)) from error


def cut_short(error: OSError | None = None) -> TransportFailure:
    """The peer closed the connection in the middle of the handshake, or, with an error, reset it."""
    reason = ""
    if error is not None and error.errno:
        words = os.strerror(error.errno).replace(" ", "_")
        reason = f"TLS_error:|{_SYSTEM + error.errno}:system_library:OPENSSL_internal:{words}:TLS_error_end"
    return TransportFailure(FailureKind.CONNECT_FAILED, reason)


class TlsSession:
    """over: nothing more can be read. ended: because the peer said goodbye; otherwise because a record was wrong, or an alert.

    not_after: of our own certificate, wall seconds. outgoing: the records that have to be sent.
    """

    __slots__ = (
        "_count",
        "_handshake",
        "_incoming",
        "_read",
        "_security",
        "_tls",
        "_write",
        "ended",
        "not_after",
        "outgoing",
        "over",
    )

    def __init__(self, handshake: Handshake, count: Count, security: Security) -> None:
        self._handshake = handshake
        self._security = security
        self._count = count
        self._incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = handshake.context.wrap_bio(
            self._incoming, self.outgoing, server_hostname=handshake.server_hostname
        )
        self._read, self._write = self._tls.read, self._tls.write
        self.not_after = handshake.not_after
        self.over = self.ended = False

    def superseded(self) -> tuple[int, float] | None:
        """There was a rotation since the handshake began: the epoch of now, and `not_after`."""
        epoch = self._security.epoch
        return None if epoch == self._handshake.epoch else (epoch, self.not_after)

    def shake(self, data: bytes = b"") -> bool:
        """Go on with the handshake. True when it is over and the peer is verified.

        Raises TransportFailure; then `take` may have an alert for the peer.
        """
        self._incoming.write(data)
        tls = self._tls
        try:
            tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLError as error:
            count_failed(self._count, error)
            raise self._refused(error) from error
        try:
            self._handshake.verify(tls)
        except (IdentityError, ValueError) as error:
            self.take()  # the peer does not even learn that the handshake succeeded, where it does not know yet
            count_failed(self._count, error)
            raise self._refused(error) from error
        count_done(self._count, tls)
        return True

    def describe(self) -> TlsDescription:
        """After the handshake: what access logs show of it."""
        from meshlib.identity.peer import presented_chain  # needs cryptography, which plaintext does not

        tls, handshake = self._tls, self._handshake
        cipher = tls.cipher()
        return TlsDescription(
            version=tls.version() or "",
            cipher="" if cipher is None else cipher[0],
            engine=tls,
            server_name=handshake.server_hostname or "",
            peer=presented_chain(tls),
            own=handshake.own,
        )

    def _refused(self, error: Exception) -> TransportFailure:
        return TransportFailure(FailureKind.CONNECT_FAILED, self._handshake.text(error, self._tls))

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
        incoming, read = self._incoming, self._read
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

    def farewell(self) -> bytes:
        """Say goodbye: the last record, empty when that is not possible."""
        with suppress(ssl.SSLError, ValueError):
            self._tls.unwrap()
        return self.outgoing.read()


class TlsCodec:
    """A codec whose bytes are the records of a session."""

    __slots__ = ("_codec", "_records", "_session", "response")

    survives_input = True

    def __init__(self, codec: Codec, session: TlsSession) -> None:
        self._codec = codec
        self._session = session
        self._records = session.outgoing
        self.response = _NOTHING

    @property
    def reusable(self) -> bool:
        return self._codec.reusable

    @property
    def blocked(self) -> bool:
        return self._codec.blocked

    @property
    def outgoing(self) -> bool:
        return self._records.pending > 0 or self._codec.outgoing

    def start(self, request: OutgoingRequest, *, inline: bool = True) -> bytes:
        codec = self._codec
        data = codec.start(request, inline=inline)
        self.response = codec.response
        try:
            return self._session.seal(data)
        except ssl.SSLError:
            raise codec.abort() from None

    def body(self, data: bytes) -> bytes:
        return self._seal(self._codec.body(data))

    def end_body(self) -> bytes:
        return self._seal(self._codec.end_body())

    def _seal(self, data: bytes) -> bytes:
        try:
            return self._session.seal(data)
        except ssl.SSLError:
            raise self._codec.abort() from None

    def feed(self, data: bytes) -> None:
        session = self._session
        plain = session.open(data)
        if plain:
            self._codec.feed(plain)
        if session.over:
            if session.ended:
                self._codec.end()
            else:
                self._broken_off()

    def end(self) -> None:
        if not self._session.ended:
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

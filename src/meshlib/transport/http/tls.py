"""A TLS session of an HTTP connection: its handshake, and what is known of it. Afterwards calls need nothing but its `records`.

`shake` takes what arrived, `take` gives what has to be sent. The peer is verified before `shake` says that the handshake is
over, so no byte of a request can leave before.
"""

from __future__ import annotations

import os
import ssl
from contextlib import suppress

from meshlib.engine.events import FailureKind
from meshlib.errors import IdentityError
from meshlib.resources.cluster import HttpProtocol
from meshlib.state import EndpointState, Handshake, Security, Way
from meshlib.transport.http.description import TlsDescription
from meshlib.transport.http.failure import TransportFailure
from meshlib.transport.http.handshakes import Count, count_done, count_failed
from meshlib.transport.http.records import Records

__all__ = ["TlsSession", "begin", "cut_short"]

ALPN = {HttpProtocol.HTTP1: ("http/1.1",), HttpProtocol.HTTP2: ("h2",)}
"""What is offered when the cluster's configuration names nothing. What the peer picks changes nothing, as in Envoy."""

_SYSTEM = 2 << 24
"""BoringSSL's number of errors of the operating system."""


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
    """not_after: of our own certificate, wall seconds. records: what the peer and we say, before and after the handshake."""

    __slots__ = (
        "_count",
        "_handshake",
        "_security",
        "_tls",
        "not_after",
        "records",
    )

    def __init__(self, handshake: Handshake, count: Count, security: Security) -> None:
        self._handshake = handshake
        self._security = security
        self._count = count
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = handshake.context.wrap_bio(incoming, outgoing, server_hostname=handshake.server_hostname)
        self.records = Records(self._tls, incoming, outgoing, count)
        self.not_after = handshake.not_after

    @property
    def trusted(self) -> bool:
        """The authority that the peer was verified by has not been withdrawn."""
        return self._handshake.trusted

    def superseded(self) -> tuple[int, float] | None:
        """There was a rotation since the handshake began: the epoch of now, and `not_after`."""
        epoch = self._security.epoch
        return None if epoch == self._handshake.epoch else (epoch, self.not_after)

    def shake(self, data: bytes = b"") -> bool:
        """Go on with the handshake. True when it is over and the peer is verified.

        Raises TransportFailure; then `take` may have an alert for the peer.
        """
        self.records.incoming.write(data)
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
        return self.records.take()

    def farewell(self) -> bytes:
        """Say goodbye: the last record, empty when that is not possible."""
        with suppress(ssl.SSLError, ValueError):
            self._tls.unwrap()
        return self.records.take()

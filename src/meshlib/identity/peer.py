"""Who is at the other end of a connection, as its certificate says."""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from cryptography import x509

from meshlib.errors import IdentityError
from meshlib.identity.names import Name, values
from meshlib.identity.spiffe import SpiffeId
from meshlib.identity.subject import one_line
from meshlib.resources.tls import SanType

__all__ = ["Peer", "describe", "presented_chain", "verified_chain"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A verified peer.

    spiffe_id: None when the certificate has not exactly one URI SAN that is a SPIFFE id. uri_sans, dns_sans: in the
    certificate's order. subject: RFC 2253, `CN=cli,O=lab`. serial: hexadecimal. not_after: seconds since the epoch.
    certificate_der: the leaf. chain_der: as the peer sent it, leaf first. sha256: of the leaf's DER, lower-case hexadecimal.
    authority_der: the certificate that the chain was verified by, of those that the configuration trusts; empty when no chain is
    verified, or when it was by one of the machine's own.
    """

    spiffe_id: SpiffeId | None
    uri_sans: tuple[str, ...]
    dns_sans: tuple[str, ...]
    subject: str
    issuer: str
    serial: str
    not_after: float
    certificate_der: bytes = field(repr=False)
    chain_der: tuple[bytes, ...] = field(repr=False)
    sha256: str = field(repr=False)
    authority_der: bytes = field(default=b"", repr=False)


def describe(
    chain: Sequence[bytes], leaf: x509.Certificate, names: Sequence[Name], authority: bytes = b""
) -> Peer:
    uris = values(names, SanType.URI)
    return Peer(
        spiffe_id=_spiffe_id(uris),
        uri_sans=uris,
        dns_sans=values(names, SanType.DNS),
        subject=one_line(leaf.subject),
        issuer=one_line(leaf.issuer),
        serial=f"{leaf.serial_number:x}",
        not_after=leaf.not_valid_after_utc.timestamp(),
        certificate_der=chain[0],
        chain_der=tuple(chain),
        sha256=hashlib.sha256(chain[0]).hexdigest(),
        authority_der=authority,
    )


def presented_chain(tls: ssl.SSLObject | ssl.SSLSocket) -> tuple[bytes, ...]:
    """The certificates that the peer sent, DER, leaf first; empty when it sent none. Also after a failed handshake."""
    found = _chain(tls, "get_unverified_chain")
    if found:
        return found
    try:
        leaf = tls.getpeercert(binary_form=True)
    except ValueError:  # the handshake is not over
        return ()
    return () if leaf is None else (leaf,)


def verified_chain(tls: ssl.SSLObject | ssl.SSLSocket) -> tuple[bytes, ...]:
    """The path that OpenSSL has verified, DER, leaf first, trusted certificate last; empty when it has not verified any."""
    return _chain(tls, "get_verified_chain")


def _chain(tls: Any, name: str) -> tuple[bytes, ...]:
    # Public from Python 3.13 on, but there it fails for a server whose caller has shown no certificate; the object below it has
    # the method in all versions, with a None in the list in that case.
    method = getattr(getattr(tls, "_sslobj", None), name, None) or getattr(tls, name, None)
    if method is None:
        return ()
    found = (item for item in method() or () if item is not None)
    return tuple(item if isinstance(item, bytes) else item.public_bytes(_DER) for item in found)


_DER = 2
"""_ssl.ENCODING_DER."""


def _spiffe_id(uris: Sequence[str]) -> SpiffeId | None:
    if len(uris) != 1:
        return None
    try:
        return SpiffeId.parse(uris[0])
    except IdentityError:
        return None

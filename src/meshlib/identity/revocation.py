"""Certificate revocation lists (RFC 5280, section 5), checked after the handshake: `ssl` can take none from memory."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Sequence

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding

from meshlib.errors import IdentityError
from meshlib.identity.refusal import refuse_chain

__all__ = ["RevocationList", "check_revocation", "crls_from_pem"]

CHECK_FAILED = "certificate revocation check against provided CRLs failed: "
"""What Envoy puts before OpenSSL's words."""

_BEGIN, _END = b"-----BEGIN X509 CRL-----", b"-----END X509 CRL-----"
_KNOWN = frozenset((x509.CRLNumber.oid, x509.AuthorityKeyIdentifier.oid))


class RevocationList:
    """One CRL. Immutable, equal to one of the same bytes."""

    __slots__ = ("der", "parsed")

    def __init__(self, parsed: x509.CertificateRevocationList) -> None:
        self.parsed = parsed
        self.der = parsed.public_bytes(Encoding.DER)

    def __eq__(self, other: object) -> bool:
        return self.der == other.der if isinstance(other, RevocationList) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.der)


def crls_from_pem(pem: bytes) -> tuple[RevocationList, ...]:
    """Every CRL of a PEM text, in order; certificates between them are skipped; may be none.

    Raises:
        IdentityError: one can't be read.
    """
    found = []
    start = pem.find(_BEGIN)
    while start >= 0:
        end = pem.find(_END, start)
        try:
            found.append(RevocationList(x509.load_pem_x509_crl(pem[start : end + len(_END)])))
        except (ValueError, UnsupportedAlgorithm):
            raise IdentityError("a certificate revocation list can't be read") from None
        start = pem.find(_BEGIN, end)
    return tuple(found)


def check_revocation(
    path: Sequence[x509.Certificate], crls: Iterable[RevocationList], now: float, *, leaf_only: bool
) -> None:
    """Refuse a path (leaf first, trusted root last) of which a certificate is revoked, or not covered by a valid CRL.

    As OpenSSL's CRL_CHECK (leaf_only) and CRL_CHECK_ALL: each certificate that is looked at needs a CRL of its issuer
    that is signed by it and in force. now: seconds since the epoch.

    Raises:
        IdentityError: with Envoy's text.
    """
    # The root is covered too, by a CRL that it signs itself.
    looked_at = path[:1] if leaf_only else path
    moment = dt.datetime.fromtimestamp(now, dt.UTC)
    lists = tuple(crls)
    for depth, certificate in enumerate(looked_at):
        issuer = path[min(depth + 1, len(path) - 1)]
        _check_one(certificate, issuer, depth, lists, moment)


def _check_one(
    certificate: x509.Certificate,
    issuer: x509.Certificate,
    depth: int,
    crls: tuple[RevocationList, ...],
    moment: dt.datetime,
) -> None:
    candidates = [item.parsed for item in crls if item.parsed.issuer == certificate.issuer]
    if not candidates:
        raise _refuse("unable to get certificate CRL", depth, "a CRL of its issuer", _title(certificate))
    problem = "CRL signature failure"
    for crl in candidates:
        if not _signed_by(crl, issuer):
            continue
        if crl.last_update_utc > moment:
            problem = "CRL is not yet valid"
        elif crl.next_update_utc is not None and crl.next_update_utc < moment:
            problem = "CRL has expired"
        elif any(extension.critical and extension.oid not in _KNOWN for extension in crl.extensions):
            problem = "unhandled critical CRL extension"
        elif crl.get_revoked_certificate_by_serial_number(certificate.serial_number) is not None:
            raise _refuse(
                "certificate revoked",
                depth,
                "a certificate that is not revoked",
                _title(certificate),
            )
        else:
            return
    raise _refuse(problem, depth, "a valid CRL of its issuer", _title(certificate))


def _refuse(problem: str, depth: int, expected: str, got: str) -> IdentityError:
    return refuse_chain(CHECK_FAILED + problem, depth, expected, got)


def _signed_by(crl: x509.CertificateRevocationList, issuer: x509.Certificate) -> bool:
    try:
        return crl.is_signature_valid(issuer.public_key())  # type: ignore[arg-type]
    except (InvalidSignature, UnsupportedAlgorithm, TypeError, ValueError):
        return False


def _title(certificate: x509.Certificate) -> str:
    return f"the certificate with serial number {certificate.serial_number:x}"

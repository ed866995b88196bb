"""What access logs show of certificates: each is read once, when it is asked for."""

from __future__ import annotations

import hashlib
import ssl
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import quote

from cryptography import x509

from meshlib.errors import IdentityError
from meshlib.identity.names import Name, names_of
from meshlib.identity.subject import one_line
from meshlib.resources.tls import SanType

__all__ = ["NOTHING", "ShownCertificate", "escaped_pem", "read"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownCertificate:
    """subject, issuer: RFC 2253. serial: hexadecimal, two digits for each byte. not_before, not_after: seconds since the epoch;
    None of what can't be read. sha256, sha1: fingerprints, hexadecimal."""

    names: tuple[Name, ...] = ()
    subject: str = ""
    issuer: str = ""
    serial: str = ""
    not_before: float | None = None
    not_after: float | None = None
    sha256: str = ""
    sha1: str = ""

    def sans(self, kind: SanType) -> str:
        """All of one type, with commas between them; empty for none."""
        return ",".join([name.text for name in self.names if name.kind is kind])


NOTHING = ShownCertificate()


@lru_cache(maxsize=1024)
def read(der: bytes) -> ShownCertificate:
    """NOTHING for what is none."""
    try:
        found = x509.load_der_x509_certificate(der)
        serial = f"{found.serial_number:x}"
        return ShownCertificate(
            names=_names(found),
            subject=one_line(found.subject),
            issuer=one_line(found.issuer),
            serial=serial if len(serial) % 2 == 0 else f"0{serial}",
            not_before=found.not_valid_before_utc.timestamp(),
            not_after=found.not_valid_after_utc.timestamp(),
            sha256=hashlib.sha256(der).hexdigest(),
            sha1=hashlib.sha1(der, usedforsecurity=False).hexdigest(),
        )
    except ValueError:
        return NOTHING


def _names(certificate: x509.Certificate) -> tuple[Name, ...]:
    try:
        return names_of(certificate)
    except IdentityError:
        return ()


@lru_cache(maxsize=256)
def escaped_pem(der: bytes) -> str:
    """PEM with percent signs for all that is no letter, digit or one of `-_.~`."""
    return quote(ssl.DER_cert_to_PEM_cert(der), safe="")

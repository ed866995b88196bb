"""What the development CA hands out: an X.509-SVID with its key."""

from __future__ import annotations

from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from meshlib.controlplane.ca import certificates, keys

__all__ = ["IssuedSvid", "der"]


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuedSvid:
    """A leaf certificate, the intermediates up to but without the root, and the leaf's key, which no repr shows.

    spiffe_id: its URI SAN; empty for one that was made without, or with several. issued_at, not_after: seconds since the epoch.
    """

    spiffe_id: str
    chain: tuple[x509.Certificate, ...]
    key: keys.PrivateKey = field(repr=False)
    issued_at: float
    not_after: float
    hint: str = ""

    @property
    def leaf(self) -> x509.Certificate:
        return self.chain[0]

    @property
    def serial(self) -> int:
        return self.chain[0].serial_number

    @property
    def renew_at(self) -> float:
        """Half of its life: from then on a new one should take its place (SPIRE's rule, too)."""
        return self.issued_at + (self.not_after - self.issued_at) / 2

    def chain_pem(self) -> bytes:
        return certificates.to_pem(self.chain)

    def chain_der(self) -> bytes:
        """The certificates one after the other, leaf first, as the Workload API carries them."""
        return der(self.chain)

    def key_pem(self) -> bytes:
        return keys.to_pem(self.key)

    def key_der(self) -> bytes:
        return keys.to_der(self.key)


def der(chain: tuple[x509.Certificate, ...]) -> bytes:
    """Certificates in DER, one after the other."""
    return b"".join(certificate.public_bytes(Encoding.DER) for certificate in chain)

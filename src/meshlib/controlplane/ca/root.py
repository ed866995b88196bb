"""One root of a trust domain: its certificate, the intermediate that may sign for it, what they revoked, and a key for JWTs."""

from __future__ import annotations

from dataclasses import dataclass, field

from cryptography import x509

from meshlib.controlplane.ca import certificates, keys
from meshlib.controlplane.ca.certificates import Template

__all__ = ["BACKDATE", "CRL_LIFE", "Root", "make_root"]

BACKDATE = 10.0
"""Seconds that a certificate is valid before it was made, for clocks that go a little late (as SPIRE does)."""

CRL_LIFE = 24 * 3600.0
"""Seconds that a revocation list is in force; it is made anew at half of that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Root:
    """A root and all that signs in its name. Keys are in no repr.

    number: 1 for a trust domain's first root. intermediate: None when the root itself signs leaves.
    """

    number: int
    certificate: x509.Certificate
    key: keys.PrivateKey = field(repr=False)
    intermediate: x509.Certificate | None = None
    intermediate_key: keys.PrivateKey | None = field(default=None, repr=False)
    jwt_key: keys.PrivateKey = field(repr=False)

    @property
    def not_after(self) -> float:
        """Seconds since the epoch; nothing that it signs lives longer."""
        return self.certificate.not_valid_after_utc.timestamp()

    @property
    def signer(self) -> tuple[x509.Certificate, keys.PrivateKey]:
        """The CA certificate that signs leaves, and its key."""
        if self.intermediate is not None and self.intermediate_key is not None:
            return self.intermediate, self.intermediate_key
        return self.certificate, self.key

    def sign(self, template: Template, key: keys.PrivateKey) -> tuple[x509.Certificate, ...]:
        """The chain of a new leaf: itself, and the intermediate if there is one."""
        issuer, issuer_key = self.signer
        leaf = certificates.sign(template, key, issuer=issuer, issuer_key=issuer_key)
        return (leaf,) if self.intermediate is None else (leaf, self.intermediate)

    def revocation_lists(
        self, revoked: tuple[tuple[int, float], ...], now: float
    ) -> tuple[x509.CertificateRevocationList, ...]:
        """One list for each CA certificate of this root, since a verifier that has one wants one of every CA in a chain."""
        until = min(now + CRL_LIFE, self.not_after)
        authorities = [self.signer]
        if self.intermediate is not None:
            authorities.append((self.certificate, self.key))
        return tuple(
            certificates.revocation_list(ca, key, revoked if index == 0 else (), now=now, until=until)
            for index, (ca, key) in enumerate(authorities)
        )


def make_root(
    trust_domain: str, number: int, *, key_type: str, now: float, ttl: float, intermediate: bool
) -> Root:
    """A new root with keys of this type, valid from now for `ttl` seconds."""
    not_before, not_after = now - BACKDATE, now + ttl
    key = keys.generate(key_type)
    template = Template.authority(
        trust_domain, f"{trust_domain} root {number}", not_before=not_before, not_after=not_after
    )
    certificate = certificates.sign(template, key, issuer=None, issuer_key=key)
    signer = signer_key = None
    if intermediate:
        signer_key = keys.generate(key_type)
        template = Template.authority(
            trust_domain,
            f"{trust_domain} intermediate {number}",
            path_length=0,
            not_before=not_before,
            not_after=not_after,
        )
        signer = certificates.sign(template, signer_key, issuer=certificate, issuer_key=key)
    return Root(
        number=number,
        certificate=certificate,
        key=key,
        intermediate=signer,
        intermediate_key=signer_key,
        jwt_key=keys.generate("ecdsa-p256"),
    )

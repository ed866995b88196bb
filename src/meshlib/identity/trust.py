"""What a peer's certificate has to be: a CertificateValidation with everything in it loaded and parsed."""

from __future__ import annotations

from dataclasses import dataclass, replace

from meshlib.identity.material import BundleSet
from meshlib.identity.revocation import RevocationList
from meshlib.resources.tls import SanMatch, SanType

__all__ = ["Trust"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """Equal when the same peers are trusted.

    bundles: the chain is verified against the bundle of the peer's own trust domain; None where SPIFFE's rules are not in
    force. roots: DER, for any peer; None when no chain is verified; `bundles` and `roots` exclude each other. system_roots: the
    machine's CAs count too. crls: their issuers' certificates are checked for revocation; leaf_crl_only: the leaf's only.
    partial_chain: a trusted certificate need not be self-signed. match_sans, certificate_hashes, certificate_spkis (SHA-256
    digests), allow_expired, accept_untrusted, max_verify_depth: as in CertificateValidation.
    """

    bundles: BundleSet | None = None
    roots: tuple[bytes, ...] | None = None
    system_roots: bool = False
    partial_chain: bool = True
    match_sans: tuple[SanMatch, ...] = ()
    certificate_hashes: frozenset[bytes] = frozenset()
    certificate_spkis: frozenset[bytes] = frozenset()
    crls: tuple[RevocationList, ...] = ()
    leaf_crl_only: bool = False
    allow_expired: bool = False
    accept_untrusted: bool = False
    max_verify_depth: int | None = None

    @property
    def verifies_chain(self) -> bool:
        return self.bundles is not None or self.roots is not None or self.system_roots

    def covers(self, other: Trust) -> bool:
        """Whoever `other` trusts is trusted: they differ at most in authorities, of which this one has more."""
        if self != replace(other, bundles=self.bundles, roots=self.roots):
            return False
        if self.bundles is None or other.bundles is None:
            return self.bundles is other.bundles and _has_all(self.roots, other.roots)
        return all(
            domain in self.bundles and _has_all(self.bundles[domain].authorities, bundle.authorities)
            for domain, bundle in other.bundles.items()
        )

    @property
    def anchors(self) -> tuple[bytes, ...]:
        """All certificates that a chain may end at, whoever's they are."""
        return self.bundles.authorities() if self.bundles is not None else self.roots or ()

    @property
    def wants_certificate(self) -> bool:
        """There is more to look at than the chain of a certificate that may be there."""
        return bool(
            self.bundles is not None or self.match_sans or self.certificate_hashes or self.certificate_spkis
        )

    @property
    def wants_one_uri(self) -> bool:
        """SPIFFE's rules for the names apply: the peer is known by a URI."""
        return self.bundles is not None or any(_by_uri(match) for match in self.match_sans)


def _has_all(these: tuple[bytes, ...] | None, those: tuple[bytes, ...] | None) -> bool:
    if these is None or those is None:
        return these is those
    return set(these) >= set(those)


def _by_uri(match: SanMatch) -> bool:
    if match.san_type is None:
        return match.match.value.startswith("spiffe:")
    return match.san_type is SanType.URI

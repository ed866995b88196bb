"""What a peer's certificate has to be: a CertificateValidation with everything in it loaded and parsed."""

from __future__ import annotations

from dataclasses import dataclass, replace

from meshlib.identity.material import BundleSet
from meshlib.identity.peer import Peer
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

    def alike(self, other: Trust) -> bool:
        """They differ at most in authorities."""
        return (
            self == replace(other, bundles=self.bundles, roots=self.roots)
            and (self.bundles is None) is (other.bundles is None)
            and (self.roots is None) is (other.roots is None)
        )

    def covers(self, other: Trust) -> bool:
        """Whoever `other` trusts is trusted: they are alike, and this one has all authorities of the other."""
        if not self.alike(other):
            return False
        if self.bundles is None or other.bundles is None:
            return set(self.anchors) >= set(other.anchors)
        return all(
            domain in self.bundles and set(self.bundles[domain].authorities) >= set(bundle.authorities)
            for domain, bundle in other.bundles.items()
        )

    def still_trusts(self, peer: Peer) -> bool:
        """Of a peer that was verified by a Trust that is `alike`: the authority that it was verified by is still one."""
        authority, bundles = peer.authority_der, self.bundles
        if not authority:
            return True
        if bundles is None:
            return authority in self.anchors
        bundle = None if peer.spiffe_id is None else bundles.get(peer.spiffe_id.trust_domain)
        return bundle is not None and authority in bundle.authorities

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


def _by_uri(match: SanMatch) -> bool:
    if match.san_type is None:
        return match.match.value.startswith("spiffe:")
    return match.san_type is SanType.URI

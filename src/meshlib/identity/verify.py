"""Whether a peer is whom the configuration allows, decided right after the handshake, before a byte of a call moves.

OpenSSL has verified the chain against everything that is trusted (where there is something to verify it against). What is
left to do here, in this order:

1. SPIFFE's own rules, where a SPIFFE bundle is in force: no CA as a leaf, exactly one URI SAN, a well-formed id, and a chain to
   the bundle of *the id's own* trust domain. Envoy's SPIFFE validator takes the first of several URIs, else it does the same.
2. Revocation and the length of the chain, along that path.
3. Names: the SNI, where it is to be found in the certificate; else the matchers. A peer that is matched by URI has exactly one,
   and if that is a SPIFFE id, the rules for SVIDs hold as well.
4. Pins.

Every refusal is an IdentityError with Envoy's words for it.
"""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID

from meshlib.errors import IdentityError
from meshlib.identity import chain as chains
from meshlib.identity.names import Name, compile_match, dns_match, names_of, values
from meshlib.identity.peer import Peer, describe
from meshlib.identity.refusal import refuse, refuse_chain
from meshlib.identity.revocation import check_revocation
from meshlib.identity.spiffe import SpiffeId
from meshlib.identity.trust import Trust
from meshlib.resources.matching import StringMatch
from meshlib.resources.tls import SanType

__all__ = ["Peer", "Verifier"]

KEPT, KEPT_FOR = 1024, 300.0
"""How many accepted chains are remembered, and for how many seconds, less when a certificate ends before."""

SHOWN = 512
"""Characters of a peer's names in a message."""


@dataclass(frozen=True, slots=True)
class _Presented:
    chain: tuple[bytes, ...]
    certificates: tuple[x509.Certificate, ...]
    names: tuple[Name, ...]

    @property
    def leaf(self) -> x509.Certificate:
        return self.certificates[0]

    def titles(self) -> str:
        return ", ".join(name.text for name in self.names)[:SHOWN]


_Question = tuple[tuple[bytes, ...], tuple[bytes, ...], str, str]


@dataclass(frozen=True, slots=True)
class _Accepted:
    """An answer that stays the same from `since` until `until`, seconds since the epoch."""

    peer: Peer
    since: float
    until: float


class Verifier:
    """Holds what can be prepared of a Trust. server: we are the server, and the peer is a client.

    A peer that was accepted, and shows the very same chain again, is not examined again for a while, unless there are
    revocation lists. OpenSSL has verified its signatures in this handshake as in every other; another Trust has another Verifier.
    """

    def __init__(self, trust: Trust, *, server: bool, rsa_usage: bool = False) -> None:
        """rsa_usage: the keyUsage of an RSA key must allow signatures (enforce_rsa_key_usage)."""
        self.trust = trust
        self._rsa_usage = rsa_usage
        self._purpose = ExtendedKeyUsageOID.CLIENT_AUTH if server else ExtendedKeyUsageOID.SERVER_AUTH
        self._matchers = tuple(
            compile_match(match)
            for match in trust.match_sans
            if trust.bundles is None or match.san_type in (None, SanType.URI)
        )
        self._expected = " or ".join(_words(match.match) for match in trust.match_sans) or "any name"
        self._bundles = {
            name: chains.load(bundle.authorities) for name, bundle in (trust.bundles or {}).items()
        }
        self._roots = chains.load(trust.roots or ())
        self._accepted: dict[_Question, _Accepted] = {}

    def check(
        self,
        chain: Sequence[bytes],
        verified: Sequence[bytes],
        now: float,
        *,
        sni: str = "",
        host: str = "",
    ) -> Peer:
        """The peer, when it may be talked to.

        chain: as it sent it, DER, leaf first. verified: the path that OpenSSL has found, empty when it has not been asked. now:
        seconds since the epoch. sni: a DNS name that the certificate must have (auto_sni_san_validation), host: any name that it
        must have (auto_san_validation); both take the place of the matchers.

        Raises:
            IdentityError: it may not.
        """
        question = (tuple(chain), tuple(verified), sni, host)
        known = self._accepted.get(question)
        if known is not None and known.since <= now < known.until:
            return known.peer
        peer, path = self._examine(chain, verified, now, sni, host)
        if not self.trust.crls:
            ends = [each.not_valid_after_utc.timestamp() for each in path]
            if len(self._accepted) >= KEPT:
                self._accepted.clear()
            self._accepted[question] = _Accepted(peer, now, min([now + KEPT_FOR, peer.not_after, *ends]))
        return peer

    def _examine(
        self, chain: Sequence[bytes], verified: Sequence[bytes], now: float, sni: str, host: str
    ) -> tuple[Peer, Sequence[x509.Certificate]]:
        """The peer, and the path that its chain was verified by."""
        if not chain:
            raise refuse("the peer has shown no certificate", "empty cert chain", expected="a certificate")
        trust = self.trust
        presented = self._read(chain)
        path: Sequence[x509.Certificate] = ()
        if self._rsa_usage:
            _check_rsa_usage(presented.leaf)
        if not trust.accept_untrusted:
            if trust.verifies_chain:
                path = self._path(presented, verified, now)
                self._check_path(path, now)
            self._check_names(presented, sni, host)
            self._check_pins(presented)
        authority = self._authority(path)
        return describe(presented.chain, presented.leaf, presented.names, authority), path

    def explain(
        self, error: ssl.SSLCertVerificationError, chain: Sequence[bytes], now: float
    ) -> ssl.SSLCertVerificationError | IdentityError:
        """Why a chain that OpenSSL has refused would have been refused here, where SPIFFE's rules say more than it can."""
        if self.trust.bundles is None or not chain:
            return error
        try:
            self.check(chain, (), now)
        except IdentityError as refused:
            return refused
        return error

    def _read(self, chain: Sequence[bytes]) -> _Presented:
        certificates = chains.load(chain)
        try:
            names = names_of(certificates[0])
        except IdentityError as error:
            raise refuse(str(error), "cert precheck") from None
        return _Presented(tuple(chain), certificates, names)

    # The chain

    def _path(
        self, presented: _Presented, verified: Sequence[bytes], now: float
    ) -> Sequence[x509.Certificate]:
        trust = self.trust
        domain, anchors, authorities = None, self._roots, trust.roots or ()
        others = trust.system_roots
        if trust.bundles is not None:
            domain, others = self._trust_domain(presented), False
            anchors, authorities = self._bundles[domain], trust.bundles[domain].authorities
        # OpenSSL knows all trust domains, and more may have been trusted when the handshake began.
        if verified and (others or verified[-1] in authorities):
            return chains.load(verified)
        if others:
            raise refuse("the chain has not been verified", "X509_verify_cert")
        return chains.find_path(
            presented.certificates,
            anchors,
            now=None if trust.allow_expired else now,
            purpose=self._purpose,
            partial=trust.partial_chain,
            trust_domain=domain,
        )

    def _authority(self, path: Sequence[x509.Certificate]) -> bytes:
        """The end of a path, DER, if it is one of those that the configuration names; else empty."""
        der = path[-1].public_bytes(Encoding.DER) if path else b""
        return der if der in self.trust.anchors else b""

    def _trust_domain(self, presented: _Presented) -> str:
        """The one whose bundle decides. Raises: IdentityError: there is none, or the certificate is not an SVID."""
        _check_leaf(presented.leaf)
        found = _only_id(presented, "no trust bundle store")
        bundles = self.trust.bundles
        assert bundles is not None
        if found.trust_domain not in bundles:
            raise refuse(
                f"the peer's trust domain {found.trust_domain!r} is not trusted here",
                "no trust bundle store",
                expected=f"a member of {', '.join(sorted(bundles)) or 'no trust domain at all'}"[:SHOWN],
                got=str(found),
                trust_domain=found.trust_domain,
            )
        return found.trust_domain

    def _check_path(self, path: Sequence[x509.Certificate], now: float) -> None:
        trust = self.trust
        leaf = path[0]
        if not trust.allow_expired and leaf.not_valid_after_utc.timestamp() < now:
            # A session that is resumed verifies nothing again.
            raise refuse_chain(
                "certificate has expired",
                0,
                "a certificate in force",
                "one that is over",
                not_after=leaf.not_valid_after_utc.timestamp(),
            )
        if trust.crls:
            check_revocation(path, trust.crls, now, leaf_only=trust.leaf_crl_only)
        if trust.max_verify_depth is not None and len(path) - 1 > max(trust.max_verify_depth, 1):
            most = max(trust.max_verify_depth, 1)
            raise refuse_chain(
                "certificate chain too long", most + 1, f"at most {most} above the leaf", str(len(path) - 1)
            )

    # The names

    def _check_names(self, presented: _Presented, sni: str, host: str) -> None:
        trust = self.trust
        if host:
            if not any(_is_host(name, host) for name in presented.names):
                raise self._wrong_name(presented, host, "verify SAN list")
        elif sni:
            if not any(name.kind is SanType.DNS and dns_match(sni, name.text) for name in presented.names):
                raise self._wrong_name(presented, sni, "SAN matcher")
        elif self._matchers:
            if not any(matches(name) for name in presented.names for matches in self._matchers):
                raise self._wrong_name(presented, self._expected, "SAN matcher")
            if trust.wants_one_uri and any(name.kind is SanType.URI for name in presented.names):
                self._check_uri(presented)

    def _check_uri(self, presented: _Presented) -> None:
        uris = values(presented.names, SanType.URI)
        if len(uris) != 1 or uris[0].lower().startswith("spiffe:"):
            _only_id(presented, "SAN matcher")
            _check_leaf(presented.leaf)

    def _wrong_name(self, presented: _Presented, expected: str, reason: str) -> IdentityError:
        if self.trust.bundles is not None and reason == "SAN matcher":
            reason = "SAN match"
        elif reason == "SAN matcher":
            reason = f"SAN matcher, certificate SANs are [{presented.titles()}]"
        uris = values(presented.names, SanType.URI)
        return refuse(
            f"the peer is not who was expected: {expected}; its certificate names {presented.titles() or 'nobody'}",
            reason,
            expected=expected,
            got=presented.titles() or "no name",
            trust_domain=_domain_of(uris),
            not_after=presented.leaf.not_valid_after_utc.timestamp(),
        )

    # The pins

    def _check_pins(self, presented: _Presented) -> None:
        trust = self.trust
        if not trust.certificate_hashes and not trust.certificate_spkis:
            return
        if hashlib.sha256(presented.chain[0]).digest() in trust.certificate_hashes:
            return
        if trust.certificate_spkis and _spki_digest(presented.leaf) in trust.certificate_spkis:
            return
        raise refuse(
            "the peer's certificate is not one of those that are pinned",
            "cert hash and spki",
            expected="a pinned certificate or key",
            got=f"SHA-256 {hashlib.sha256(presented.chain[0]).hexdigest()}",
        )


def _only_id(presented: _Presented, reason: str) -> SpiffeId:
    """The SPIFFE id of a certificate that has exactly one URI SAN. Raises: IdentityError: it is not so."""
    uris = values(presented.names, SanType.URI)
    if reason == "SAN matcher":
        reason = f"SAN matcher, certificate SANs are [{presented.titles()}]"
    if len(uris) != 1:
        raise refuse(
            f"the peer's certificate has {len(uris) or 'no'} URI names, an X.509-SVID has exactly one",
            reason,
            expected="one SPIFFE id",
            got=", ".join(uris)[:SHOWN] or "no URI name",
        )
    try:
        found = SpiffeId.parse(uris[0])
    except IdentityError as error:
        raise refuse(
            f"the peer's certificate has no valid SPIFFE id: {error}",
            reason,
            expected="one SPIFFE id",
            got=uris[0][:SHOWN],
        ) from None
    if not found.path:
        raise refuse(
            f"{found} names a trust domain, not a workload",
            reason,
            expected="a SPIFFE id with a path",
            got=str(found),
            trust_domain=found.trust_domain,
        )
    return found


def _check_leaf(leaf: x509.Certificate) -> None:
    if not _is_leaf(leaf):
        raise refuse(
            "the peer's certificate is one of a certificate authority",
            "cert precheck",
            expected="a leaf with the key usage digitalSignature",
            got="a certificate that may sign certificates or revocation lists",
        )


def _is_leaf(certificate: x509.Certificate) -> bool:
    """X.509-SVID, section 5.2: neither a CA nor allowed to sign certificates or revocation lists."""
    try:
        extensions = certificate.extensions
    except (ValueError, x509.DuplicateExtension):
        return False
    for extension in extensions:
        value = extension.value
        if isinstance(value, x509.BasicConstraints) and value.ca:
            return False
        if isinstance(value, x509.KeyUsage) and (value.key_cert_sign or value.crl_sign):
            return False
    return True


def _check_rsa_usage(leaf: x509.Certificate) -> None:
    if not isinstance(leaf.public_key(), rsa.RSAPublicKey):
        return
    try:
        usage = leaf.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        return
    if not usage.digital_signature:
        raise IdentityError(
            "the keyUsage of the peer's certificate does not allow what TLS uses its key for",
            expected="digitalSignature",
            got="an RSA key that may not sign",
            reason="KEY_USAGE_BIT_INCORRECT",
        )


def _is_host(name: Name, host: str) -> bool:
    return dns_match(host, name.text) if name.kind is SanType.DNS else name.text == host


def _domain_of(uris: Sequence[str]) -> str | None:
    try:
        return SpiffeId.parse(uris[0]).trust_domain if len(uris) == 1 else None
    except IdentityError:
        return None


def _spki_digest(certificate: x509.Certificate) -> bytes:
    public = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(public).digest()


def _words(match: StringMatch) -> str:
    return match.value if match.kind.value == "exact" else f"{match.kind.value} {match.value!r}"

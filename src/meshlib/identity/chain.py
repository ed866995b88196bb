"""A path from a certificate to a trusted one: RFC 5280 as far as chains of workloads need it.

OpenSSL has verified a peer's chain against everything that is trusted, before this is asked; here it is found again with
the authorities of one trust domain only, since a bundle that merges several lets each of them speak for all. It also serves
where there is no `ssl` at all (grpc's server hands out certificates, not verdicts). So it is strict: each
certificate above the leaf must be a CA that may sign, in its validity, within its path length, and none may have a
critical extension that is not understood (name constraints among them).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa

from meshlib.errors import IdentityError
from meshlib.identity.refusal import refuse_chain

__all__ = ["find_path", "load"]

E = TypeVar("E", bound=x509.ExtensionType)

LONGEST = 20
"""Certificates of a path at most. OpenSSL's limit is 100; nobody has that many."""

TRIES = 200
"""Signatures that are looked at for one peer at most: a chain can be made so that paths multiply."""

_UNDERSTOOD = frozenset(
    (
        x509.BasicConstraints.oid,
        x509.KeyUsage.oid,
        x509.ExtendedKeyUsage.oid,
        x509.SubjectAlternativeName.oid,
        x509.AuthorityKeyIdentifier.oid,
        x509.SubjectKeyIdentifier.oid,
    )
)


def load(certificates: Sequence[bytes]) -> tuple[x509.Certificate, ...]:
    """DER certificates, parsed.

    Raises:
        IdentityError: one can't be read.
    """
    try:
        return tuple(_load(der) for der in certificates)
    except (ValueError, UnsupportedAlgorithm, x509.InvalidVersion):
        raise IdentityError(
            "a certificate of the peer can't be read", reason="verify cert failed: cert precheck"
        ) from None


def _load(der: bytes) -> x509.Certificate:
    certificate = x509.load_der_x509_certificate(der)
    _ = certificate.subject, certificate.issuer  # read late otherwise, where nothing is prepared for an error
    return certificate


def find_path(
    chain: Sequence[x509.Certificate],
    anchors: Sequence[x509.Certificate],
    *,
    now: float | None,
    purpose: x509.ObjectIdentifier,
    partial: bool = True,
    trust_domain: str | None = None,
) -> tuple[x509.Certificate, ...]:
    """Leaf first, trusted certificate last. chain: as the peer sent it, leaf first. anchors: what is trusted.

    now: seconds since the epoch; None: validity is not looked at. purpose: serverAuth or clientAuth, of which an
    extendedKeyUsage of the leaf must have one. partial: an anchor need not be self-signed.

    Raises:
        IdentityError: there is no path; the text says what is wrong with the best one.
    """
    search = _Search(chain[1:], anchors, now, partial, trust_domain)
    leaf = chain[0]
    search.check(leaf, 0)
    _check_leaf(leaf, purpose, search)
    found = search.extend((leaf,))
    if found is None:
        raise search.problem or search.error("unable to get local issuer certificate", len(chain) - 1, leaf)
    return found


class _Search:
    def __init__(
        self,
        offered: Sequence[x509.Certificate],
        anchors: Sequence[x509.Certificate],
        now: float | None,
        partial: bool,
        trust_domain: str | None,
    ) -> None:
        self._offered = offered
        self._anchors = anchors
        self._now = now
        self._partial = partial
        self._trust_domain = trust_domain
        self._tries = 0
        self.problem: IdentityError | None = None

    def error(self, problem: str, depth: int, certificate: x509.Certificate) -> IdentityError:
        whose = f"a chain to the bundle of {self._trust_domain}" if self._trust_domain else "a trusted chain"
        return refuse_chain(
            problem,
            depth,
            whose,
            f"a certificate issued by {certificate.issuer.rfc4514_string() or 'nobody'}",
            trust_domain=self._trust_domain,
            not_after=certificate.not_valid_after_utc.timestamp(),
        )

    def extend(self, path: tuple[x509.Certificate, ...]) -> tuple[x509.Certificate, ...] | None:
        """The path up to an anchor, None when there is none. Trusted issuers are tried first, as OpenSSL does."""
        last = path[-1]
        if last in self._anchors and (self._partial or _self_issued(last)):
            return path
        if len(path) >= LONGEST:
            return None
        for issuer in (*self._anchors, *self._offered):
            if issuer.subject != last.issuer or issuer in path or not self._signed(last, issuer):
                continue
            try:
                self._check_issuer(issuer, path)
            except IdentityError as error:
                self.problem = self.problem or error
                continue
            found = self.extend((*path, issuer))
            if found is not None:
                return found
        return None

    def check(self, certificate: x509.Certificate, depth: int) -> None:
        """What holds for every certificate of a path."""
        if self._now is not None:
            if certificate.not_valid_before_utc.timestamp() > self._now:
                raise self.error("certificate is not yet valid", depth, certificate)
            if certificate.not_valid_after_utc.timestamp() < self._now:
                raise self.error("certificate has expired", depth, certificate)
        try:
            critical = [item.oid for item in certificate.extensions if item.critical]
        except (ValueError, x509.DuplicateExtension):
            raise self.error("invalid or inconsistent certificate extension", depth, certificate) from None
        if not _UNDERSTOOD.issuperset(critical):
            raise self.error("unhandled critical extension", depth, certificate)
        if not _strong(certificate):
            raise self.error(
                "EE certificate key too weak" if depth == 0 else "CA certificate key too weak",
                depth,
                certificate,
            )

    def _check_issuer(self, issuer: x509.Certificate, path: tuple[x509.Certificate, ...]) -> None:
        depth = len(path)
        self.check(issuer, depth)
        constraints = _extension(issuer, x509.BasicConstraints)
        if constraints is None or not constraints.ca:
            raise self.error("invalid CA certificate", depth, issuer)
        usage = _extension(issuer, x509.KeyUsage)
        if usage is not None and not usage.key_cert_sign:
            raise self.error("key usage does not include certificate signing", depth, issuer)
        below = sum(1 for item in path[1:] if not _self_issued(item))
        if constraints.path_length is not None and below > constraints.path_length:
            raise self.error("path length constraint exceeded", depth, issuer)

    def _signed(self, certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
        self._tries += 1
        if self._tries > TRIES:
            return False
        try:
            certificate.verify_directly_issued_by(issuer)
        except (InvalidSignature, UnsupportedAlgorithm, ValueError, TypeError):
            return False
        return True


def _check_leaf(leaf: x509.Certificate, purpose: x509.ObjectIdentifier, search: _Search) -> None:
    usages = _extension(leaf, x509.ExtendedKeyUsage)
    if usages is not None and purpose not in usages:
        raise search.error("unsupported certificate purpose", 0, leaf)
    usage = _extension(leaf, x509.KeyUsage)
    if usage is not None and not usage.digital_signature:
        raise search.error("unsupported certificate purpose", 0, leaf)


def _extension(certificate: x509.Certificate, kind: type[E]) -> E | None:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _self_issued(certificate: x509.Certificate) -> bool:
    return certificate.subject == certificate.issuer


def _strong(certificate: x509.Certificate) -> bool:
    try:
        key = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm):
        return False
    if isinstance(key, rsa.RSAPublicKey):
        return key.key_size >= 2048
    if isinstance(key, ec.EllipticCurvePublicKey):
        return isinstance(key.curve, (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1))
    return isinstance(key, (ed25519.Ed25519PublicKey, ed448.Ed448PublicKey))

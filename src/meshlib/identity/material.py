"""What identities are made of: SVIDs with their private keys, and the bundles that say whom to trust."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NoReturn

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_private_key,
    load_pem_private_key,
)

from meshlib.errors import IdentityError
from meshlib.identity.spiffe import SpiffeId, check_trust_domain

__all__ = ["BundleSet", "PrivateKey", "Svid", "TrustBundle", "certificates_from_pem", "to_pem"]

_SMALLEST_RSA = 2048
_CURVES = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)


_UNPROVEN: dict[str, Any] = {"unsafe_skip_rsa_key_validation": True}
"""Whether the primes of an RSA key are primes takes 150 ms of the interpreter. Who gives a workload its key could give it any."""


class PrivateKey:
    """A private key that shows itself to nobody who does not ask by name: not in repr, str, pickle, copies of dataclasses.

    Two keys are equal when their text is.
    """

    __slots__ = ("_pem",)

    def __init__(self, pem: bytes) -> None:
        self._pem = pem

    def reveal(self) -> bytes:
        """The key as unencrypted PKCS#8 PEM. For a TLS library, and nothing else."""
        return self._pem

    def __repr__(self) -> str:
        return "<private key>"

    def __eq__(self, other: object) -> bool:
        return self._pem == other._pem if isinstance(other, PrivateKey) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._pem)

    def __copy__(self) -> PrivateKey:
        return self

    def __deepcopy__(self, memo: object) -> PrivateKey:
        return self

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a private key can't be pickled")


class Svid:
    """An X.509-SVID, or any certificate with its key: what a workload shows to its peers. Immutable.

    chain: DER, the leaf first. uri_sans: of the leaf, in order. spiffe_id: None when that is not exactly one, a SPIFFE id.
    not_before, not_after: of the leaf, seconds since the epoch. hint: the Workload API's, empty otherwise.
    """

    __slots__ = ("chain", "hint", "not_after", "not_before", "private_key", "spiffe_id", "uri_sans")

    def __init__(self, chain: tuple[bytes, ...], private_key: PrivateKey, *, hint: str = "") -> None:
        """Use `from_pem` or `from_der`, which look at what they are given."""
        leaf = x509.load_der_x509_certificate(chain[0])
        self.chain = chain
        self.private_key = private_key
        self.uri_sans = _uri_sans(leaf)
        self.spiffe_id = _spiffe_id(self.uri_sans)
        self.not_before = leaf.not_valid_before_utc.timestamp()
        self.not_after = leaf.not_valid_after_utc.timestamp()
        self.hint = hint

    @classmethod
    def from_pem(cls, chain: bytes, key: bytes, password: bytes | None = None, *, hint: str = "") -> Svid:
        """From PEM texts, the leaf first; the key in any of PKCS#8, PKCS#1 and SEC1.

        Raises:
            IdentityError: one of them can't be read, the key has a type or size that is not accepted (RSA below 2048 bits,
                curves other than P-256, P-384 and P-521), or it does not belong to the leaf. Never shows any of the key.
        """
        load = functools.partial(load_pem_private_key, key, password, **_UNPROVEN)
        return cls._checked(certificates_from_pem(chain), load, hint)

    @classmethod
    def from_der(cls, chain: bytes | Iterable[bytes], key: bytes, *, hint: str = "") -> Svid:
        """From DER, as the Workload API gives it: certificates one after the other (or apart), the key as PKCS#8.

        Raises:
            IdentityError: as for `from_pem`.
        """
        parts = split_der(chain) if isinstance(chain, bytes) else tuple(chain)
        return cls._checked(parts, functools.partial(load_der_private_key, key, None, **_UNPROVEN), hint)

    @classmethod
    def _checked(cls, chain: tuple[bytes, ...], load: functools.partial[Any], hint: str) -> Svid:
        if not chain:
            raise IdentityError("there is no certificate in the chain")
        try:
            key = load()
        except (ValueError, TypeError, UnsupportedAlgorithm):
            # The library's own text could quote what it was given.
            raise IdentityError("the private key can't be read, or its password is wrong") from None
        _check_key(key)
        try:
            leaf = x509.load_der_x509_certificate(chain[0])
            public = leaf.public_key()
        except (ValueError, UnsupportedAlgorithm) as error:
            raise IdentityError(f"the certificate can't be read: {error}") from None
        if _spki(public) != _spki(key.public_key()):
            raise IdentityError("the private key does not belong to the certificate")
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return cls(chain, PrivateKey(pem), hint=hint)

    @property
    def leaf(self) -> bytes:
        """The certificate itself, DER."""
        return self.chain[0]

    def chain_pem(self) -> bytes:
        return to_pem(self.chain)

    def __repr__(self) -> str:
        return f"<Svid {self.spiffe_id or 'without SPIFFE id'} not_after={self.not_after:.0f}>"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Svid):
            return NotImplemented
        return self.chain == other.chain and self.private_key == other.private_key

    def __hash__(self) -> int:
        return hash(self.chain)

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("an Svid can't be pickled: it holds a private key")

    def __copy__(self) -> Svid:
        return self

    def __deepcopy__(self, memo: object) -> Svid:
        return self


class TrustBundle:
    """The certificate authorities of one trust domain. Immutable.

    trust_domain: a valid name. authorities: DER, in the order given, without duplicates; may be empty: then nobody of
    the domain is trusted. version: the publisher's sequence number, 0 when there is none.
    """

    __slots__ = ("authorities", "trust_domain", "version")

    def __init__(self, trust_domain: str, authorities: Iterable[bytes], version: int = 0) -> None:
        """Raises: IdentityError: the name is not one of a trust domain, or a certificate can't be read."""
        self.trust_domain = check_trust_domain(trust_domain)
        self.authorities = tuple(dict.fromkeys(authorities))
        self.version = version
        _readable(self.authorities)

    @classmethod
    def from_pem(cls, trust_domain: str, pem: bytes, version: int = 0) -> TrustBundle:
        return cls(trust_domain, certificates_from_pem(pem), version)

    def __repr__(self) -> str:
        return f"<TrustBundle {self.trust_domain} with {len(self.authorities)} authorities>"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TrustBundle):
            return NotImplemented
        return self.trust_domain == other.trust_domain and self.authorities == other.authorities

    def __hash__(self) -> int:
        return hash((self.trust_domain, self.authorities))


class BundleSet(Mapping[str, TrustBundle]):
    """Bundles by trust domain: one's own and the federated ones. Immutable; two are equal when their bundles are."""

    __slots__ = ("_bundles",)

    def __init__(self, bundles: Iterable[TrustBundle] = ()) -> None:
        """Of two bundles of one trust domain the later one counts."""
        self._bundles = {bundle.trust_domain: bundle for bundle in bundles}

    def __getitem__(self, trust_domain: str) -> TrustBundle:
        return self._bundles[trust_domain]

    def __iter__(self) -> Iterator[str]:
        return iter(self._bundles)

    def __len__(self) -> int:
        return len(self._bundles)

    def authorities(self) -> tuple[bytes, ...]:
        """All of them, DER, without duplicates. Never enough to accept a peer: see `meshlib.identity.verify`."""
        return tuple(dict.fromkeys(der for bundle in self._bundles.values() for der in bundle.authorities))

    def __repr__(self) -> str:
        return f"<BundleSet {', '.join(sorted(self._bundles))}>"

    def __hash__(self) -> int:
        return hash(frozenset(self._bundles.values()))


def certificates_from_pem(pem: bytes) -> tuple[bytes, ...]:
    """The certificates of a PEM text as DER, in order; text between them is skipped.

    Raises:
        IdentityError: one can't be read, or there is none.
    """
    try:
        found = x509.load_pem_x509_certificates(pem)
    except (ValueError, UnsupportedAlgorithm):
        raise IdentityError("there is no readable PEM certificate") from None
    return tuple(item.public_bytes(Encoding.DER) for item in found)


def to_pem(certificates: Iterable[bytes]) -> bytes:
    """DER certificates as one PEM text."""
    return b"".join(x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM) for der in certificates)


def split_der(data: bytes) -> tuple[bytes, ...]:
    """Certificates that stand one after the other (as in X509SVID.x509_svid of the Workload API) apart.

    Raises:
        IdentityError: the lengths do not add up.
    """
    found = []
    while data:
        size = _der_length(data)
        if size > len(data):
            raise IdentityError("a DER certificate is cut short")
        found.append(data[:size])
        data = data[size:]
    _readable(found)
    return tuple(found)


def _der_length(data: bytes) -> int:
    if len(data) < 2 or data[0] != 0x30:
        raise IdentityError("expected a DER certificate")
    first = data[1]
    if first < 0x80:
        return 2 + first
    count = first & 0x7F
    if not 1 <= count <= 4 or len(data) < 2 + count:
        raise IdentityError("expected a DER certificate")
    return 2 + count + int.from_bytes(data[2 : 2 + count], "big")


def _readable(certificates: Iterable[bytes]) -> None:
    for der in certificates:
        try:
            x509.load_der_x509_certificate(der)
        except (ValueError, UnsupportedAlgorithm) as error:
            raise IdentityError(f"a certificate can't be read: {error}") from None


def _check_key(key: object) -> None:
    if isinstance(key, rsa.RSAPrivateKey):
        if key.key_size < _SMALLEST_RSA:
            raise IdentityError(
                f"an RSA key of {key.key_size} bits is too short: {_SMALLEST_RSA} are the least"
            )
    elif isinstance(key, ec.EllipticCurvePrivateKey):
        if not isinstance(key.curve, _CURVES):
            raise IdentityError(f"the curve {key.curve.name} is not one of P-256, P-384 and P-521")
    elif not isinstance(key, (ed25519.Ed25519PrivateKey, ed448.Ed448PrivateKey)):
        raise IdentityError("the private key is neither RSA, ECDSA nor Ed25519")


def _spki(public: Any) -> bytes:
    found: bytes = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return found


def _uri_sans(leaf: x509.Certificate) -> tuple[str, ...]:
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return tuple(names.get_values_for_type(x509.UniformResourceIdentifier))
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        return ()


def _spiffe_id(uris: tuple[str, ...]) -> SpiffeId | None:
    try:
        return SpiffeId.parse(uris[0]) if len(uris) == 1 else None
    except IdentityError:
        return None

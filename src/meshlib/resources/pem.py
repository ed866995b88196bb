"""Is it a certificate, is it its key: the checks that Envoy makes when it loads material, before a resource is accepted.

cryptography is loaded by the first resource that holds material. Nothing that is read here is kept, and no text of an error
holds any of it.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Any

__all__ = [
    "MaterialError",
    "check_authorities",
    "check_bundle_map",
    "check_certificate",
    "check_crl",
    "has_crl",
]

_CURVES = ("secp256r1", "secp384r1", "secp521r1")
_CRL = b"-----BEGIN X509 CRL-----"


class MaterialError(ValueError):
    """What is wrong, without the material itself."""

    @property
    def reason(self) -> str:
        return str(self)


def check_certificate(chain: bytes, private_key: bytes, password: bytes | None) -> None:
    """PEM of a chain, leaf first, and of the leaf's key. Raises MaterialError."""
    from cryptography.hazmat.primitives.asymmetric import ec, rsa

    leaf = _certificates(chain)[0]
    public = _guarded(leaf.public_key, "the certificate's public key is of no known kind")
    if isinstance(public, rsa.RSAPublicKey) and public.key_size < 2048:
        raise MaterialError("an RSA key must have 2048 bits or more")
    if isinstance(public, ec.EllipticCurvePublicKey) and public.curve.name not in _CURVES:
        raise MaterialError("an ECDSA key must be on P-256, P-384 or P-521")
    private = _private_key(private_key, password)
    if _encoded(private.public_key()) != _encoded(public):
        raise MaterialError("the private key is not that of the certificate")
    if isinstance(private, rsa.RSAPrivateKey) and not _is_consistent(private.private_numbers()):
        raise MaterialError("the private key's parts do not fit each other")


def check_authorities(pem: bytes) -> None:
    """PEM with at least one certificate. Raises MaterialError."""
    _certificates(pem)


def check_crl(pem: bytes) -> None:
    """PEM of certificate revocation lists. Raises MaterialError."""
    from cryptography import x509

    blocks = pem.split(_CRL)[1:]
    if not blocks:
        raise MaterialError("holds no certificate revocation list")
    for block in blocks:
        _guarded(lambda block=block: x509.load_pem_x509_crl(_CRL + block), "a revocation list can't be read")


def has_crl(pem: bytes) -> bool:
    return _CRL in pem


def check_bundle_map(text: bytes) -> None:
    """A SPIFFE bundle map: {"trust_domains": {NAME: {"keys": [{"use": "x509-svid", "x5c": [BASE64]}]}}}. Raises MaterialError."""
    from cryptography import x509

    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        raise MaterialError("is not JSON") from None
    domains = document.get("trust_domains") if isinstance(document, Mapping) else None
    if not isinstance(domains, Mapping) or not domains:
        raise MaterialError("has no trust_domains")
    for name, bundle in domains.items():
        for der in _authorities_of(name, bundle):
            _guarded(
                lambda der=der: x509.load_der_x509_certificate(der),
                f"a certificate of the trust domain {name!r} can't be read",
            )


def _authorities_of(name: str, bundle: Any) -> list[bytes]:
    keys = bundle.get("keys") if isinstance(bundle, Mapping) else None
    if not isinstance(keys, list) or not keys:
        raise MaterialError(f"the trust domain {name!r} has no keys")
    found: list[bytes] = []
    for key in keys:
        if not isinstance(key, Mapping) or key.get("use") != "x509-svid":
            raise MaterialError(f"a key of the trust domain {name!r} is not for x509-svid")
        certificates = key.get("x5c")
        if not isinstance(certificates, list) or not certificates:
            raise MaterialError(f"a key of the trust domain {name!r} has no x5c")
        for each in certificates:
            try:
                found.append(base64.b64decode(each, validate=True))
            except (binascii.Error, ValueError, TypeError):
                raise MaterialError(f"an x5c of the trust domain {name!r} is not base64") from None
    return found


def _certificates(pem: bytes) -> list[Any]:
    from cryptography import x509

    found: list[Any] = _guarded(
        lambda: x509.load_pem_x509_certificates(pem), "holds no certificate that can be read"
    )
    return found


def _private_key(pem: bytes, password: bytes | None) -> Any:
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    if password is not None and b"ENCRYPTED" not in pem:
        password = None  # OpenSSL does not ask for it then
    return _guarded(
        # Whether its primes are primes takes 150 ms of the interpreter.
        lambda: load_pem_private_key(pem, password or None, unsafe_skip_rsa_key_validation=True),
        "the private key can't be read"
        if password is None
        else "the private key can't be read with the password",
    )


def _is_consistent(key: Any) -> bool:
    """What BoringSSL asks of an RSA key; whether p and q are primes takes long, and it does not ask either."""
    p, q, d = key.p, key.q, key.d
    public = key.public_numbers
    return bool(
        p > 1
        and q > 1
        and p * q == public.n
        and d * public.e % (p - 1) == 1
        and d * public.e % (q - 1) == 1
        and key.dmp1 == d % (p - 1)
        and key.dmq1 == d % (q - 1)
        and key.iqmp * q % p == 1
    )


def _encoded(public_key: Any) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    encoded: bytes = public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return encoded


def _guarded(function: Any, reason: str) -> Any:
    from cryptography.exceptions import UnsupportedAlgorithm

    try:
        return function()
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise MaterialError(reason) from None

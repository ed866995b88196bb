"""Private keys of the development CA and of what it issues."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from meshlib.errors import ConfigError

__all__ = [
    "DEFAULT_KEY_TYPE",
    "KEY_TYPES",
    "PrivateKey",
    "generate",
    "load_pem",
    "signature_hash",
    "to_der",
    "to_pem",
]

PrivateKey: TypeAlias = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey

DEFAULT_KEY_TYPE = "ecdsa-p256"

_GENERATORS: dict[str, Callable[[], PrivateKey]] = {
    "ecdsa-p256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "ecdsa-p384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "rsa-2048": lambda: rsa.generate_private_key(65537, 2048),
    "rsa-4096": lambda: rsa.generate_private_key(65537, 4096),
    "ed25519": ed25519.Ed25519PrivateKey.generate,
}

KEY_TYPES = tuple(_GENERATORS)


def generate(key_type: str = DEFAULT_KEY_TYPE) -> PrivateKey:
    """A new key of one of KEY_TYPES.

    Raises:
        ConfigError: there is no such type.
    """
    if key_type not in _GENERATORS:
        raise ConfigError(f"unknown key type {key_type!r}: one of {', '.join(KEY_TYPES)}")
    return _GENERATORS[key_type]()


def signature_hash(key: PrivateKey) -> hashes.SHA256 | hashes.SHA384 | None:
    """The hash of a signature made with this key; None for Ed25519, which has its own."""
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return None
    wide = isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.key_size > 256
    return hashes.SHA384() if wide else hashes.SHA256()


def to_der(key: PrivateKey) -> bytes:
    """PKCS#8, not encrypted, as the Workload API carries it."""
    return key.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def to_pem(key: PrivateKey) -> bytes:
    """PKCS#8 in PEM, not encrypted."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def load_pem(data: bytes) -> PrivateKey:
    """The key in a PEM text that this module wrote.

    Raises:
        ConfigError: it is not a PEM key of a known type.
    """
    try:
        key = serialization.load_pem_private_key(data, None)
    except (ValueError, TypeError):
        raise ConfigError("not a private key in PEM") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey):
        raise ConfigError(f"a {type(key).__name__} is no key that the development CA uses")
    return key

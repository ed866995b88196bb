"""JWT-SVIDs and their bundles (SPIFFE JWT-SVID): ES256 only, made and checked with `cryptography` alone."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Mapping
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from meshlib.controlplane.ca.root import Root
from meshlib.errors import IdentityError
from meshlib.identity.spiffe import SpiffeId

__all__ = ["DEFAULT_TTL", "jwks", "make", "validate"]

DEFAULT_TTL = 300.0
"""Seconds that a JWT-SVID lives (SPIRE's default)."""

_SIZE = 32
"""Bytes of a coordinate and of each half of a signature on P-256."""


def make(root: Root, spiffe_id: str, audience: Iterable[str], *, now: float, ttl: float = DEFAULT_TTL) -> str:
    """A token for this id and audience, signed by the root's JWT key."""
    header = {"alg": "ES256", "kid": key_id(root), "typ": "JWT"}
    claims = {"aud": list(audience), "exp": int(now + ttl), "iat": int(now), "sub": spiffe_id}
    signed = f"{_encode(_json(header))}.{_encode(_json(claims))}"
    r, s = decode_dss_signature(_key(root).sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
    return f"{signed}.{_encode(r.to_bytes(_SIZE, 'big') + s.to_bytes(_SIZE, 'big'))}"


def jwks(roots: Iterable[Root]) -> bytes:
    """The JWK set of the roots' JWT keys, the bundle of their trust domain."""
    found = []
    for root in roots:
        numbers = _key(root).public_key().public_numbers()
        found.append(
            {
                "kty": "EC",
                "crv": "P-256",
                "kid": key_id(root),
                "x": _encode(numbers.x.to_bytes(_SIZE, "big")),
                "y": _encode(numbers.y.to_bytes(_SIZE, "big")),
            }
        )
    return _json({"keys": found})


def validate(
    token: str, roots: Iterable[Root], audience: str, *, now: float
) -> tuple[SpiffeId, Mapping[str, Any]]:
    """The id and the claims of a token that one of these roots signed for this audience.

    Raises:
        IdentityError: not such a token, or it has expired.
    """
    header, claims, signed, signature = _parse(token)
    if header.get("alg") != "ES256":
        raise IdentityError(f"the token's algorithm is {header.get('alg')!r}, expected ES256")
    root = next((root for root in roots if key_id(root) == header.get("kid")), None)
    if root is None:
        raise IdentityError(f"no key {header.get('kid')!r} in the bundle")
    r, s = (int.from_bytes(signature[at : at + _SIZE], "big") for at in (0, _SIZE))
    try:
        _key(root).public_key().verify(encode_dss_signature(r, s), signed, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        raise IdentityError("the token's signature is wrong") from None
    expires = claims.get("exp")
    if not isinstance(expires, int | float) or now >= expires:
        raise IdentityError("the token has expired")
    meant_for = claims.get("aud")
    if audience not in (meant_for if isinstance(meant_for, list) else [meant_for]):
        raise IdentityError(f"the token is for the audience {meant_for!r}, not {audience!r}")
    return SpiffeId.parse(str(claims.get("sub"))), claims


def key_id(root: Root) -> str:
    """The `kid` of a root's JWT key."""
    return f"{root.certificate.serial_number:x}"


def _key(root: Root) -> ec.EllipticCurvePrivateKey:
    assert isinstance(root.jwt_key, ec.EllipticCurvePrivateKey)
    return root.jwt_key


def _parse(token: str) -> tuple[dict[str, Any], dict[str, Any], bytes, bytes]:
    signed, _, signature = token.rpartition(".")
    try:
        header, claims = (json.loads(_decode(part)) for part in signed.split("."))
        raw = _decode(signature)
    except (ValueError, binascii.Error):
        raise IdentityError("not a JWT") from None
    if not (isinstance(header, dict) and isinstance(claims, dict) and len(raw) == 2 * _SIZE):
        raise IdentityError("not a JWT")
    return header, claims, signed.encode(), raw


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)

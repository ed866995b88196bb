"""SVIDs in files, replaced as Kubernetes replaces those of a mounted secret.

The files stand in a folder of their own, `..data` points to it, and the visible names are links through `..data`; so one rename
changes all of them at once, and nobody reads a key beside another key's certificate.

    tls.crt   the SVID and its intermediates, PEM        ca.crt        the roots of the SVID's trust domain, PEM
    tls.key   its private key, PKCS#8 PEM, mode 0600     bundles.json  the roots of every trust domain (SPIFFE bundle map)
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from meshlib.controlplane.ca import certificates
from meshlib.controlplane.ca.svid import IssuedSvid
from meshlib.errors import ConfigError

__all__ = ["bundle_map", "replace_files", "svid_files", "write_new"]


def svid_files(
    svid: IssuedSvid, bundles: Mapping[str, Iterable[x509.Certificate]], sequence: int
) -> dict[str, bytes]:
    """File name -> content. bundles: the SVID's own trust domain first."""
    own = next(iter(bundles.values()))
    return {
        "tls.crt": svid.chain_pem(),
        "tls.key": svid.key_pem(),
        "ca.crt": certificates.to_pem(own),
        "bundles.json": bundle_map(bundles, sequence),
    }


def bundle_map(bundles: Mapping[str, Iterable[x509.Certificate]], sequence: int) -> bytes:
    """The SPIFFE bundle map that Envoy's `trust_bundles` and gRPC's `spiffe_trust_bundle_map_file` (gRFC A87) read."""
    domains = {
        domain: {
            "spiffe_sequence": sequence,
            "keys": [_jwk(root) for root in roots],
        }
        for domain, roots in bundles.items()
    }
    return json.dumps({"trust_domains": domains}, indent=1).encode() + b"\n"


def replace_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Make these the files of the folder, all at once. The folder is made if it is missing; other files stay.

    Raises:
        ConfigError: one of the names is there already and is not ours.
        OSError: the folder can't be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / "..data"
    for name in files:
        path = folder / name
        if path.exists() and not path.is_symlink():
            raise ConfigError(f"{path} exists and was not written by meshlib; choose another folder")
    old = folder / data.readlink() if data.is_symlink() else None
    new = Path(tempfile.mkdtemp(prefix="..", dir=folder))
    new.chmod(0o755)
    for name, content in files.items():
        write_new(new / name, content, 0o600 if name.endswith(".key") else 0o644)
    draft = folder / "..data_new"
    draft.unlink(missing_ok=True)
    draft.symlink_to(new.name)
    draft.replace(data)
    for name in files:
        path = folder / name
        if not path.is_symlink():
            path.symlink_to(Path("..data") / name)
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)


def write_new(path: Path, content: bytes, mode: int) -> None:
    """Make a file that is not there yet, with this mode from its first moment on."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)


def _jwk(certificate: x509.Certificate) -> dict[str, Any]:
    """A root as a JWK (SPIFFE Trust Domain and Bundle, section 4): its public key and, in x5c, the certificate."""
    key = certificate.public_key()
    fields: dict[str, str] = {}
    if isinstance(key, ec.EllipticCurvePublicKey):
        size = (key.curve.key_size + 7) // 8
        numbers = key.public_numbers()
        curve = {"secp256r1": "P-256", "secp384r1": "P-384", "secp521r1": "P-521"}[key.curve.name]
        fields = {"kty": "EC", "crv": curve, "x": _number(numbers.x, size), "y": _number(numbers.y, size)}
    elif isinstance(key, rsa.RSAPublicKey):
        public = key.public_numbers()
        fields = {"kty": "RSA", "n": _number(public.n, key.key_size // 8), "e": _number(public.e, 3)}
    elif isinstance(key, ed25519.Ed25519PublicKey):
        fields = {"kty": "OKP", "crv": "Ed25519", "x": _url(key.public_bytes_raw())}
    encoded = base64.b64encode(certificate.public_bytes(Encoding.DER)).decode()
    return {"use": "x509-svid", **fields, "x5c": [encoded]}


def _number(value: int, size: int) -> str:
    return _url(value.to_bytes(size, "big"))


def _url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

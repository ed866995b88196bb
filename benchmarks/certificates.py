"""Short-lived certificates with SPIFFE ids for the two sidecars, from a CA that lives for one run."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

TRUST_DOMAIN = "bench.example"
_LIFETIME = dt.timedelta(hours=2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """One workload's SPIFFE id and the PEM files that prove it."""

    spiffe_id: str
    chain: Path
    key: Path
    bundle: Path


def _builder(common_name: str, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(minutes=5))
        .not_valid_after(now + _LIFETIME)
    )


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    path.chmod(0o600)


def issue(directory: Path, *workloads: str) -> dict[str, Identity]:
    """Makes a CA and one P-256 certificate for each workload, `spiffe://bench.example/WORKLOAD`."""
    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "benchmark CA")])
    ca = (
        _builder("benchmark CA", ca_key)
        .issuer_name(ca_name)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    bundle = directory / "bundle.pem"
    bundle.write_bytes(ca.public_bytes(serialization.Encoding.PEM))
    identities = {}
    for workload in workloads:
        key = ec.generate_private_key(ec.SECP256R1())
        spiffe_id = f"spiffe://{TRUST_DOMAIN}/{workload}"
        leaf = (
            _builder(workload, key)
            .issuer_name(ca_name)
            .add_extension(
                x509.SubjectAlternativeName([x509.UniformResourceIdentifier(spiffe_id)]), critical=False
            )
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]),
                critical=False,
            )
            .sign(ca_key, hashes.SHA256())
        )
        chain = directory / f"{workload}.pem"
        chain.write_bytes(leaf.public_bytes(serialization.Encoding.PEM))
        key_path = directory / f"{workload}.key"
        _write_key(key_path, key)
        identities[workload] = Identity(spiffe_id=spiffe_id, chain=chain, key=key_path, bundle=bundle)
    return identities

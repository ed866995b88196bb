"""A certificate authority for tests: makes every kind of good and of bad certificate.

    ca = TestCA("td.example")
    svid = ca.issue("spiffe://td.example/ns/a/sa/srv", dns=["srv.example"])
    svid.chain, svid.key                         # PEM
    ca.pem                                       # the root
    ca.crl(svid)                                 # PEM, revokes it

Everything is a parameter, so that a certificate can be wrong in exactly one way.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

__all__ = ["CLIENT", "SERVER", "Issued", "Key", "TestCA", "make_key", "serial_pem", "usage"]

Key: TypeAlias = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey

SERVER = ExtendedKeyUsageOID.SERVER_AUTH
CLIENT = ExtendedKeyUsageOID.CLIENT_AUTH

SKEW = dt.timedelta(minutes=5)


def now() -> dt.datetime:
    return dt.datetime.now(dt.UTC).replace(microsecond=0)


def make_key(kind: str = "p256") -> Key:
    """kind: p256, p384, p521, rsa2048, rsa1024, rsa3072, ed25519, k1 (a curve that nobody should take)."""
    curves: dict[str, type[ec.EllipticCurve]] = {
        "p256": ec.SECP256R1,
        "p384": ec.SECP384R1,
        "p521": ec.SECP521R1,
        "k1": ec.SECP256K1,
    }
    if kind in curves:
        return ec.generate_private_key(curves[kind]())
    if kind.startswith("rsa"):
        return rsa.generate_private_key(public_exponent=65537, key_size=int(kind[3:]))
    assert kind == "ed25519"
    return ed25519.Ed25519PrivateKey.generate()


def usage(*names: str) -> x509.KeyUsage:
    """A KeyUsage with exactly these: digital_signature, key_cert_sign, crl_sign, key_encipherment, ..."""
    known = (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    )
    assert set(names) <= set(known)
    return x509.KeyUsage(**{name: name in names for name in known})


LEAF_USAGE = usage("digital_signature")
CA_USAGE = usage("key_cert_sign", "crl_sign")


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """A certificate with its key. chain: PEM, the leaf first, then intermediates (never the root)."""

    certificate: x509.Certificate
    private: Key = field(repr=False)
    intermediates: tuple[x509.Certificate, ...] = ()

    @property
    def chain(self) -> bytes:
        return b"".join(item.public_bytes(Encoding.PEM) for item in (self.certificate, *self.intermediates))

    @property
    def chain_der(self) -> tuple[bytes, ...]:
        return tuple(item.public_bytes(Encoding.DER) for item in (self.certificate, *self.intermediates))

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)

    @property
    def key(self) -> bytes:
        return self.key_as(PrivateFormat.PKCS8)

    def key_as(self, form: PrivateFormat, password: bytes | None = None) -> bytes:
        encryption: KeySerializationEncryption = (
            NoEncryption() if password is None else BestAvailableEncryption(password)
        )
        return self.private.private_bytes(Encoding.PEM, form, encryption)

    @property
    def not_after(self) -> float:
        return self.certificate.not_valid_after_utc.timestamp()


class TestCA:
    """A root, or (made by `intermediate`) a CA below it.

    subject: None for `CN=<trust domain> CA <serial>`; two CAs of one subject are a case of their own. ski: whether subject and
    authority key identifiers are written.
    """

    __test__ = False
    certificate: x509.Certificate

    def __init__(
        self,
        trust_domain: str = "td.example",
        *,
        kind: str = "p256",
        subject: str | None = None,
        lifetime: float = 86_400.0,
        starts: float = -86_400.0,
        ski: bool = True,
        key_usage: x509.KeyUsage | None = CA_USAGE,
        ca: bool = True,
        path_length: int | None = None,
        extensions: Iterable[tuple[x509.ExtensionType, bool]] = (),
        key: Key | None = None,
        parent: TestCA | None = None,
    ) -> None:
        self.trust_domain = trust_domain
        self.key = key or make_key(kind)
        self.ski = ski
        self.parent = parent
        serial = x509.random_serial_number()
        name = _name(subject or f"{trust_domain} CA {serial % 10_000}")
        issuer = parent.certificate.subject if parent else name
        builder = _builder(name, issuer, self.key, starts, lifetime, serial)
        builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=path_length), critical=True)
        if key_usage is not None:
            builder = builder.add_extension(key_usage, critical=True)
        uri = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"spiffe://{trust_domain}")])
        builder = builder.add_extension(uri, critical=False)
        builder = _identifiers(builder, self.key, parent.key if parent else self.key, ski)
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical)
        self.certificate = _sign(builder, parent.key if parent else self.key)

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)

    @property
    def subject(self) -> str:
        return str(self.certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)

    def intermediate(self, **options: object) -> TestCA:
        """A CA below this one; takes the constructor's parameters."""
        return TestCA(self.trust_domain, parent=self, **options)  # type: ignore[arg-type]

    def issue(
        self,
        *uris: str,
        dns: Sequence[str] = (),
        ips: Sequence[str] = (),
        emails: Sequence[str] = (),
        others: Sequence[tuple[str, bytes]] = (),
        kind: str = "p256",
        key: Key | None = None,
        subject: str | None = "workload",
        starts: float = -300.0,
        lifetime: float = 3600.0,
        key_usage: x509.KeyUsage | None = LEAF_USAGE,
        eku: Sequence[x509.ObjectIdentifier] | None = (SERVER, CLIENT),
        ca: bool | None = False,
        extensions: Iterable[tuple[x509.ExtensionType, bool]] = (),
        signer: Key | None = None,
    ) -> Issued:
        """A leaf with these URI SANs (any text), DNS names, addresses, mail addresses and other names (OID, DER value).

        subject: the common name, None for an empty subject. starts: of its validity, seconds from now. lifetime: seconds from
        now. key_usage, eku, ca: None leaves the extension out. signer: another key than the CA's signs: a forgery.
        """
        private = key or make_key(kind)
        names: list[x509.GeneralName] = [_uri(uri) for uri in uris]
        names += [x509.DNSName(name) for name in dns]
        names += [x509.IPAddress(ipaddress.ip_address(ip)) for ip in ips]
        names += [x509.RFC822Name(mail) for mail in emails]
        names += [x509.OtherName(x509.ObjectIdentifier(oid), value) for oid, value in others]
        builder = _builder(
            _name(subject) if subject else x509.Name([]),
            self.certificate.subject,
            private,
            starts,
            lifetime,
            x509.random_serial_number(),
        )
        if ca is not None:
            builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        if key_usage is not None:
            builder = builder.add_extension(key_usage, critical=True)
        if eku is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage(list(eku)), critical=False)
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=not subject)
        builder = _identifiers(builder, private, self.key, self.ski)
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical)
        certificate = _sign(builder, signer or self.key)
        return Issued(certificate=certificate, private=private, intermediates=self.chain())

    def chain(self) -> tuple[x509.Certificate, ...]:
        """This CA and those above it, without the root."""
        return () if self.parent is None else (self.certificate, *self.parent.chain())

    def crl(
        self,
        *revoked: Issued | TestCA,
        starts: float = -300.0,
        lifetime: float = 3600.0,
        signer: Key | None = None,
    ) -> bytes:
        """A CRL of this CA, PEM. starts, lifetime: last and next update, seconds from now."""
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(now() + dt.timedelta(seconds=starts))
            .next_update(now() + dt.timedelta(seconds=lifetime))
        )
        for item in revoked:
            builder = builder.add_revoked_certificate(
                x509.RevokedCertificateBuilder()
                .serial_number(item.certificate.serial_number)
                .revocation_date(now() - SKEW)
                .build()
            )
        key = signer or self.key
        return builder.sign(key, _digest(key)).public_bytes(Encoding.PEM)


def serial_pem(*parts: bytes) -> bytes:
    """Several PEM texts as one file."""
    return b"".join(parts)


def _uri(text: str) -> x509.UniformResourceIdentifier:
    return x509.UniformResourceIdentifier(text)


def _name(common: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "lab"),
            x509.NameAttribute(NameOID.COMMON_NAME, common),
        ]
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: Key, starts: float, lifetime: float, serial: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(now() + dt.timedelta(seconds=starts))
        .not_valid_after(now() + dt.timedelta(seconds=lifetime))
    )


def _identifiers(
    builder: x509.CertificateBuilder, key: Key, issuer: Key, ski: bool
) -> x509.CertificateBuilder:
    if not ski:
        return builder
    own = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    above = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.public_key())
    return builder.add_extension(own, critical=False).add_extension(above, critical=False)


def _digest(key: Key) -> hashes.SHA256 | None:
    return None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()


def _sign(builder: x509.CertificateBuilder, key: Key) -> x509.Certificate:
    return builder.sign(key, _digest(key))

"""X.509 certificates and revocation lists, as pure functions of a template, keys and the time.

A Template says everything about a certificate but its keys. Its defaults make a correct X.509-SVID (SPIFFE X509-SVID, sections 2
to 4); tests of those who must refuse a certificate change one field and get exactly that flaw.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from meshlib.controlplane.ca.keys import PrivateKey, signature_hash

__all__ = ["Template", "moment", "name", "revocation_list", "sign", "to_pem"]

_USAGES = (
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

ORGANIZATION = "meshlib development CA"

_DEFAULT_USAGES = frozenset({"digital_signature"})
_BOTH_SIDES = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """What a certificate says. Times are seconds since the epoch; X.509 keeps whole seconds.

    uris: the URI SANs; an SVID has exactly one, its SPIFFE ID. Written as they are, valid or not.
    key_usage: names of RFC 5280 in cryptography's spelling. An RSA leaf gets key_encipherment too, for TLS 1.2's RSA suites.
    extended_key_usage: empty leaves the extension out. path_length: of a CA, None is without limit.
    """

    uris: tuple[str, ...] = ()
    dns_names: tuple[str, ...] = ()
    common_name: str = ""
    not_before: float
    not_after: float
    ca: bool = False
    path_length: int | None = None
    key_usage: frozenset[str] = _DEFAULT_USAGES
    extended_key_usage: tuple[x509.ObjectIdentifier, ...] = _BOTH_SIDES

    @classmethod
    def authority(
        cls,
        trust_domain: str,
        common_name: str,
        *,
        not_before: float,
        not_after: float,
        path_length: int | None = None,
    ) -> Template:
        """The template of a signing certificate of this trust domain."""
        return cls(
            uris=(f"spiffe://{trust_domain}",),
            common_name=common_name,
            not_before=not_before,
            not_after=not_after,
            ca=True,
            path_length=path_length,
            key_usage=frozenset({"key_cert_sign", "crl_sign"}),
            extended_key_usage=(),
        )


def sign(
    template: Template, key: PrivateKey, *, issuer: x509.Certificate | None, issuer_key: PrivateKey
) -> x509.Certificate:
    """A certificate for `key`, signed by `issuer_key`; without an issuer it is self-signed."""
    subject = name(template.common_name)
    public_key = key.public_key()
    usages = set(template.key_usage)
    if isinstance(key, rsa.RSAPrivateKey) and not template.ca and "digital_signature" in usages:
        usages.add("key_encipherment")
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.subject if issuer is not None else subject)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(moment(template.not_before))
        .not_valid_after(moment(template.not_after))
        .add_extension(x509.BasicConstraints(ca=template.ca, path_length=template.path_length), critical=True)
        .add_extension(x509.KeyUsage(**{usage: usage in usages for usage in _USAGES}), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False
        )
    )
    if template.extended_key_usage:
        builder = builder.add_extension(x509.ExtendedKeyUsage(template.extended_key_usage), critical=False)
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri) for uri in template.uris]
    names += [x509.DNSName(dns) for dns in template.dns_names]
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(issuer_key, signature_hash(issuer_key))


def revocation_list(
    issuer: x509.Certificate,
    issuer_key: PrivateKey,
    serials: Iterable[tuple[int, float]],
    *,
    now: float,
    until: float,
) -> x509.CertificateRevocationList:
    """The CRL of one CA: (serial number, time of revocation) of what it revoked, in force from `now` `until`."""
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.subject)
        .last_update(moment(now))
        .next_update(moment(until))
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False
        )
    )
    for serial, at in sorted(serials):
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(moment(at)).build()
        builder = builder.add_revoked_certificate(entry)
    return builder.sign(issuer_key, signature_hash(issuer_key))


def name(common_name: str = "") -> x509.Name:
    """A subject: the CA's organization, and a common name if there is one."""
    attributes = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, ORGANIZATION)]
    if common_name:
        attributes.append(x509.NameAttribute(NameOID.COMMON_NAME, common_name[:64]))
    return x509.Name(attributes)


def moment(seconds: float) -> datetime:
    """Seconds since the epoch, in whole seconds, as X.509 writes it."""
    return datetime.fromtimestamp(int(seconds), UTC)


def to_pem(certificates: Iterable[x509.Certificate]) -> bytes:
    """The certificates one after the other, in PEM."""
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)

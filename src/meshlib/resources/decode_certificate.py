"""TlsCertificate and CertificateValidationContext, in a context or in a Secret: from protobuf to dataclasses."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable
from pathlib import Path

from meshlib.errors import ResourceError
from meshlib.resources.decode_common import data_source
from meshlib.resources.decode_matching import string_match
from meshlib.resources.decode_san import san_match
from meshlib.resources.pem import (
    MaterialError,
    check_authorities,
    check_bundle_map,
    check_certificate,
    check_crl,
    has_crl,
)
from meshlib.resources.reader import Reader
from meshlib.resources.tls import (
    CertificateValidation,
    FilePath,
    Material,
    ProviderInstance,
    SanMatch,
    TlsCertificate,
    TrustDomainBundle,
    validation_problem,
)

__all__ = ["certificate_validation", "check_validation", "provider_instance", "tls_certificate"]

_SPIFFE = "envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig"
_FINGERPRINT = re.compile(r"[0-9a-fA-F]{64}")
_COLONS = 95
"""Characters of a fingerprint with a colon between any two octets."""


def tls_certificate(reader: Reader) -> TlsCertificate | None:
    """TlsCertificate; None for an empty one, which Envoy passes over. Raises ResourceError."""
    for field in ("pkcs12", "private_key_provider"):
        if reader.has(field):
            raise reader.fail(field, "is not implemented; give certificate_chain and private_key")
    if not reader.has("certificate_chain") and not reader.has("private_key"):
        return None
    chain, chain_bytes = _required(reader, "certificate_chain")
    key, key_bytes = _required(reader, "private_key")
    password, password_bytes = _optional(reader, "password")
    _check(reader, "", lambda: check_certificate(chain_bytes, key_bytes, password_bytes))
    return TlsCertificate(chain=chain, private_key=key, password=password, watched_directory=_watched(reader))


def certificate_validation(reader: Reader) -> CertificateValidation:
    """CertificateValidationContext, which may be one part of a combined one. Raises ResourceError."""
    if reader.boxed("require_signed_certificate_timestamp"):
        raise reader.fail("require_signed_certificate_timestamp", "is not implemented")
    trusted, trusted_bytes = _optional(reader, "trusted_ca")
    if trusted_bytes is not None:
        _check(reader, "trusted_ca", lambda: check_authorities(trusted_bytes))
    provider = reader.child("ca_certificate_provider_instance")
    roots = reader.child("system_root_certs")
    spiffe, bundle_map = _custom_validator(reader)
    return CertificateValidation(
        trusted_ca=trusted,
        ca_provider=None if provider is None else provider_instance(provider),
        system_roots=roots is not None,
        match_sans=_match_sans(reader),
        certificate_hashes=_hashes(reader),
        certificate_spkis=_spkis(reader),
        crl=_crl(reader, trusted, trusted_bytes),
        leaf_crl_only=reader.flag("only_verify_leaf_cert_crl"),
        allow_expired=reader.flag("allow_expired_certificate"),
        accept_untrusted=reader.enum("trust_chain_verification", {0: False, 1: True}),
        max_verify_depth=reader.boxed("max_verify_depth"),
        spiffe=spiffe,
        spiffe_bundle_map=bundle_map,
        watched_directory=_watched(reader),
    )


def check_validation(reader: Reader, validation: CertificateValidation) -> None:
    """Refuse a context that is complete and checks less than it seems to. Raises ResourceError."""
    problem = validation_problem(validation)
    if problem is not None:
        raise reader.fail("", problem)


def provider_instance(reader: Reader) -> ProviderInstance:
    """CertificateProviderPluginInstance, and its predecessor in CommonTlsContext."""
    return ProviderInstance(
        instance_name=reader.text("instance_name"), certificate_name=reader.text("certificate_name")
    )


def _match_sans(reader: Reader) -> tuple[SanMatch, ...]:
    typed = tuple(san_match(each) for each in reader.items("match_typed_subject_alt_names"))
    if typed:
        reader.leave("match_subject_alt_names")  # Envoy does not look at them then
        return typed
    return tuple(
        SanMatch(san_type=None, match=string_match(each)) for each in reader.items("match_subject_alt_names")
    )


def _hashes(reader: Reader) -> tuple[str, ...]:
    found = []
    for index, text in enumerate(reader.values("verify_certificate_hash")):
        plain = text.replace(":", "") if len(text) == _COLONS else text
        if not _FINGERPRINT.fullmatch(plain):
            raise reader.fail(
                f"verify_certificate_hash[{index}]", "is not the SHA-256 of a certificate in hex"
            )
        found.append(plain.lower())
    return tuple(found)


def _spkis(reader: Reader) -> tuple[str, ...]:
    values = reader.values("verify_certificate_spki")
    for index, text in enumerate(values):
        try:
            size = len(base64.b64decode(text, validate=True))
        except (binascii.Error, ValueError):
            size = 0
        if size != 32:
            raise reader.fail(
                f"verify_certificate_spki[{index}]", "is not the SHA-256 of a public key in base64"
            )
    return values


def _crl(reader: Reader, trusted: Material | None, trusted_bytes: bytes | None) -> Material | None:
    """The revocation lists. Those that stand among the authorities count too, as in Envoy."""
    crl, crl_bytes = _optional(reader, "crl")
    if crl_bytes is not None:
        _check(reader, "crl", lambda: check_crl(crl_bytes))
    if trusted_bytes is None or not has_crl(trusted_bytes):
        return crl
    if crl is None:
        return trusted
    if isinstance(crl, bytes) and isinstance(trusted, bytes):
        return crl + b"\n" + trusted
    raise reader.fail("crl", "trusted_ca holds revocation lists too; put all of them into one of the two")


def _custom_validator(
    reader: Reader,
) -> tuple[tuple[TrustDomainBundle, ...] | None, Material | None]:
    config = reader.child("custom_validator_config")
    if config is None:
        return None, None
    config.leave("name")
    content = config.required("typed_config").unpacked(checked=False)  # as in Envoy
    if content.type_name != _SPIFFE:
        raise config.fail("typed_config", f"the validator {content.type_name} is not implemented")
    if content.has("trust_bundles"):
        bundles, text = _required(content, "trust_bundles")
        content.leave("trust_domains")  # Envoy does not look at them then
        _check(content, "trust_bundles", lambda: check_bundle_map(text))
        return (), bundles
    domains: list[TrustDomainBundle] = []
    for entry in content.items("trust_domains"):
        name = entry.text("name")
        if name in (each.name for each in domains):
            raise entry.fail("name", f"the trust domain {name!r} stands twice")
        bundle, pem = _required(entry, "trust_bundle")
        _check(entry, "trust_bundle", lambda pem=pem: check_authorities(pem))  # type: ignore[misc]
        domains.append(TrustDomainBundle(name=name, bundle=bundle))
    return tuple(domains), None


def _watched(reader: Reader) -> str:
    directory = reader.child("watched_directory")
    if directory is None:
        return ""
    path = directory.text("path")
    if not Path(path).is_dir():
        raise directory.fail("path", f"there is no folder {path!r}")
    return path


def _required(reader: Reader, field: str) -> tuple[Material, bytes]:
    material, content = _material(reader.required(field))
    if not content:
        raise reader.fail(field, "must not be empty")
    return material, content


def _optional(reader: Reader, field: str) -> tuple[Material | None, bytes | None]:
    child = reader.child(field)
    if child is None:
        return None, None
    material, content = _material(child)
    return (material, content) if content else (None, None)


def _material(reader: Reader) -> tuple[Material, bytes]:
    """What a DataSource stands for, and what it holds now. Raises ResourceError."""
    content = data_source(reader)
    watched = _watched(reader)
    if reader.which("specifier") != "filename":
        return content, content
    return FilePath(path=reader.text("filename"), watched_directory=watched), content


def _check(reader: Reader, field: str, check: Callable[[], None]) -> None:
    try:
        check()
    except MaterialError as error:
        raise ResourceError(reader.at(field) if field else reader.path, error.reason) from None

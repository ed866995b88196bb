"""UpstreamTlsContext and DownstreamTlsContext: from protobuf to dataclasses.

What is not implemented and would weaken the connection when it is left out is an error, never a report: signature algorithms,
compliance policies, custom handshakers and validators, private key providers, stapling that must be.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from meshlib.resources.decode_certificate import (
    certificate_validation,
    check_validation,
    provider_instance,
    tls_certificate,
)
from meshlib.resources.decode_sds import secret_ref
from meshlib.resources.reader import Reader
from meshlib.resources.tls import (
    CertificateValidation,
    CommonTls,
    DownstreamTls,
    ProviderInstance,
    SecretRef,
    TlsCertificate,
    TlsVersion,
    UpstreamTls,
)

__all__ = ["decode_downstream_tls", "decode_upstream_tls"]

_VERSIONS = {version.value: version for version in TlsVersion}
_MUST_STAPLE = 2


def decode_upstream_tls(reader: Reader) -> UpstreamTls:
    """UpstreamTlsContext. Raises ResourceError."""
    common = _common(reader)
    if len(common.certificates) + len(common.certificate_secrets) > 1:
        raise reader.fail("common_tls_context", "a client has one certificate at most")
    sni = reader.text("sni")
    if "\0" in sni:
        raise reader.fail("sni", "must not hold a NUL")
    matches_sni = reader.flag("auto_sni_san_validation")
    if matches_sni and not _verifies(common):
        reason = "needs a validation context with a trusted CA"
        raise reader.fail("auto_sni_san_validation", reason)
    reader.leave("max_session_keys")  # every connection makes a full handshake
    return UpstreamTls(
        common=common,
        sni=sni,
        auto_host_sni=reader.flag("auto_host_sni"),
        auto_sni_san_validation=matches_sni,
        enforce_rsa_key_usage=reader.boxed("enforce_rsa_key_usage") is not False,
    )


def decode_downstream_tls(reader: Reader) -> DownstreamTls:
    """DownstreamTlsContext. Raises ResourceError."""
    common = _common(reader)
    given = (common.certificates, common.certificate_secrets, common.certificate_provider)
    if not any(given):
        raise reader.fail("common_tls_context", "a server needs a certificate")
    if common.certificates and common.certificate_secrets:
        raise reader.fail("common_tls_context", "certificates in place and from SDS may not be mixed")
    if reader.number("ocsp_staple_policy") == _MUST_STAPLE:
        raise reader.fail("ocsp_staple_policy", "OCSP stapling is not implemented")
    if reader.boxed("require_sni"):
        raise reader.fail("require_sni", "is not implemented, in Envoy neither")
    # About the resumption of sessions: there is none.
    reader.leave("session_ticket_keys", "session_ticket_keys_sds_secret_config", "session_timeout")
    reader.leave("disable_stateless_session_resumption", "disable_stateful_session_resumption")
    return DownstreamTls(
        common=common,
        require_client_certificate=bool(reader.boxed("require_client_certificate")),
        prefer_client_ciphers=reader.flag("prefer_client_ciphers"),
    )


def _common(parent: Reader) -> CommonTls:
    reader = parent.child("common_tls_context")
    if reader is None:
        return CommonTls()
    for field in ("custom_handshaker", "custom_tls_certificate_selector"):
        if reader.has(field):
            raise reader.fail(field, "is not implemented")
    if reader.has("tls_certificate_certificate_provider"):
        raise reader.fail("tls_certificate_certificate_provider", "is not implemented; use an instance")
    parameters = reader.child("tls_params")
    validation, secret = _validation(reader)
    alpn = reader.values("alpn_protocols")
    for index, protocol in enumerate(alpn):
        if not 0 < len(protocol.encode()) < 256:
            raise reader.fail(f"alpn_protocols[{index}]", "must have 1 .. 255 bytes")
    certificates, secrets, provider = _certificates(reader)
    return CommonTls(
        **({} if parameters is None else _parameters(parameters)),
        alpn=alpn,
        certificates=certificates,
        certificate_secrets=secrets,
        certificate_provider=provider,
        validation=validation,
        validation_secret=secret,
    )


def _parameters(reader: Reader) -> dict[str, Any]:
    for field in ("signature_algorithms", "compliance_policies"):
        if reader.has(field):
            raise reader.fail(field, "can't be enforced by Python's ssl")
    minimum = reader.enum("tls_minimum_protocol_version", _VERSIONS)
    maximum = reader.enum("tls_maximum_protocol_version", _VERSIONS)
    if minimum and maximum and minimum > maximum:
        raise reader.fail("tls_minimum_protocol_version", "is later than tls_maximum_protocol_version")
    return {
        "minimum": minimum,
        "maximum": maximum,
        "cipher_suites": reader.values("cipher_suites"),
        "curves": reader.values("ecdh_curves"),
    }


def _certificates(
    reader: Reader,
) -> tuple[tuple[TlsCertificate, ...], tuple[SecretRef, ...], ProviderInstance | None]:
    """In place, from SDS, from a provider. The provider counts for those who know it, before the others (gRFC A29)."""
    provider = None
    for field in ("tls_certificate_provider_instance", "tls_certificate_certificate_provider_instance"):
        child = reader.child(field)
        if child is not None and provider is None:
            provider = provider_instance(child)
    in_place = tuple(filter(None, (tls_certificate(each) for each in reader.items("tls_certificates"))))
    secrets = tuple(secret_ref(each) for each in reader.items("tls_certificate_sds_secret_configs"))
    return (in_place, secrets, None) if provider is None else ((), (), provider)


def _validation(reader: Reader) -> tuple[CertificateValidation | None, SecretRef | None]:
    kind = reader.which("validation_context_type")
    if kind is None:
        return None, None
    child = reader.required(kind)
    if kind == "validation_context":
        validation = certificate_validation(child)
        check_validation(child, validation)
        return validation, None
    if kind == "validation_context_sds_secret_config":
        return None, secret_ref(child)
    if kind == "validation_context_certificate_provider_instance":
        return CertificateValidation(ca_provider=provider_instance(child)), None
    if kind == "validation_context_certificate_provider":
        raise reader.fail(kind, "is not implemented; use an instance")
    return _combined(child)


def _combined(reader: Reader) -> tuple[CertificateValidation, SecretRef | None]:
    if reader.has("validation_context_certificate_provider"):
        raise reader.fail("validation_context_certificate_provider", "is not implemented; use an instance")
    default = certificate_validation(reader.required("default_validation_context"))
    instance = reader.child("validation_context_certificate_provider_instance")
    secret = reader.child("validation_context_sds_secret_config")
    if instance is not None:
        merged = dataclasses.replace(default, ca_provider=provider_instance(instance))
        return merged, None if secret is None else secret_ref(secret)
    if secret is None:
        check_validation(reader, default)
    return default, None if secret is None else secret_ref(secret)


def _verifies(common: CommonTls) -> bool:
    """Whether a chain is verified, as far as that is known now."""
    validation = common.validation
    if common.validation_secret is not None:
        return True
    return validation is not None and (
        validation.trusted_ca is not None or validation.ca_provider is not None or validation.system_roots
    )

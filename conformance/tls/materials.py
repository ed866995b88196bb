"""The certificates of the TLS cases, made anew for each run, and the TLS contexts of a case as xDS says them.

`Materials` turns the names that cases.yaml uses into PEM; `upstream` and `downstream` give an UpstreamTlsContext and a
DownstreamTlsContext as JSON, which Envoy and meshlib both read.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ObjectIdentifier

from meshlib.controlplane.ca import Authority, IssuedSvid, Template
from meshlib.controlplane.ca.certificates import to_pem
from meshlib.controlplane.ca.root import BACKDATE

if TYPE_CHECKING:
    from collections.abc import Mapping

TYPE = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3."
VALIDATOR = "envoy.tls.cert_validator.spiffe"

_USES = {"server": "1.3.6.1.5.5.7.3.1", "client": "1.3.6.1.5.5.7.3.2"}


class Materials:
    """Authorities and certificates by name, made when they are first asked for.

    authorities: name -> trust domain; certificates: name -> what cases.yaml says about it.
    """

    def __init__(self, authorities: Mapping[str, str], certificates: Mapping[str, Mapping[str, Any]]) -> None:
        self._authorities = {name: Authority(domain, ttl=3600) for name, domain in authorities.items()}
        self._certificates = certificates
        self._made: dict[str, IssuedSvid] = {}

    def authority(self, name: str) -> Authority:
        return self._authorities[name]

    def certificate(self, name: str) -> IssuedSvid:
        """The certificate of this name; `revoked` ones are on their authority's list from now on."""
        if name not in self._made:
            spec = self._certificates[name]
            authority = self._authorities[spec["authority"]]
            self._made[name] = made = _make(authority, spec)
            if spec.get("revoked"):
                authority.revoke(made)
        return self._made[name]

    def roots(self, names: list[str]) -> str:
        return b"".join(to_pem(self._authorities[name].bundle) for name in names).decode()

    def revocation_lists(self, names: list[str]) -> str:
        """The lists of these authorities. All certificates are made first, so that the revoked ones are on them."""
        for name in self._certificates:
            self.certificate(name)
        lists = [crl for name in names for crl in self._authorities[name].revocation_lists()]
        return b"".join(crl.public_bytes(Encoding.PEM) for crl in lists).decode()


def _make(authority: Authority, spec: Mapping[str, Any]) -> IssuedSvid:
    now = authority.clock.time()
    template = Template(
        uris=tuple(spec.get("uris", ())),
        dns_names=tuple(spec.get("dns", ())),
        common_name=spec.get("common_name", ""),
        not_before=now + spec.get("from", -BACKDATE),
        not_after=now + spec.get("to", 3600),
    )
    if "extended_key_usage" in spec:
        uses = tuple(ObjectIdentifier(_USES[use]) for use in spec["extended_key_usage"])
        template = replace(template, extended_key_usage=uses)
    if "key_usage" in spec:
        template = replace(template, key_usage=frozenset(spec["key_usage"]))
    if spec.get("self_signed"):
        authority = Authority(authority.trust_domain)
    return authority.issue_from(template, key_type=spec.get("key_type"))


def upstream(side: Mapping[str, Any], materials: Materials) -> dict[str, Any]:
    """The transport socket of a cluster: `certificate`, `roots` and so on of a case's `client`."""
    context: dict[str, Any] = {
        "@type": TYPE + "UpstreamTlsContext",
        "common_tls_context": _common(side, materials),
    }
    for field in ("sni", "auto_host_sni", "auto_sni_san_validation"):
        if field in side:
            context[field] = side[field]
    return {"name": "envoy.transport_sockets.tls", "typed_config": context}


def downstream(side: Mapping[str, Any], materials: Materials) -> dict[str, Any]:
    """The transport socket of a filter chain, of a case's `server`."""
    context = {
        "@type": TYPE + "DownstreamTlsContext",
        "common_tls_context": _common(side, materials),
        "require_client_certificate": side.get("require", False),
    }
    return {"name": "envoy.transport_sockets.tls", "typed_config": context}


def _common(side: Mapping[str, Any], materials: Materials) -> dict[str, Any]:
    common: dict[str, Any] = {}
    if "certificate" in side:
        svid = materials.certificate(side["certificate"])
        common["tls_certificates"] = [
            {"certificate_chain": _inline(svid.chain_pem()), "private_key": _inline(svid.key_pem())}
        ]
    validation = _validation(side, materials)
    if validation:
        common["validation_context"] = validation
    if "alpn" in side:
        common["alpn_protocols"] = side["alpn"]
    parameters = {
        name: side[field]
        for field, name in (
            ("min", "tls_minimum_protocol_version"),
            ("max", "tls_maximum_protocol_version"),
            ("curves", "ecdh_curves"),
        )
        if field in side
    }
    if parameters:
        common["tls_params"] = parameters
    return common


def _validation(side: Mapping[str, Any], materials: Materials) -> dict[str, Any]:
    validation: dict[str, Any] = dict(side.get("validation", {}))
    if "roots" in side:
        validation["trusted_ca"] = {"inline_string": materials.roots(side["roots"])}
    if "crl" in side:
        validation["crl"] = {"inline_string": materials.revocation_lists(side["crl"])}
    if "sans" in side:
        validation["match_typed_subject_alt_names"] = [
            {"san_type": kind, "matcher": matcher} for san in side["sans"] for kind, matcher in san.items()
        ]
    if "spiffe" in side:
        domains = [
            {"name": domain, "trust_bundle": {"inline_string": materials.roots([authority])}}
            for domain, authority in side["spiffe"].items()
        ]
        config = {"@type": TYPE + "SPIFFECertValidatorConfig", "trust_domains": domains}
        validation["custom_validator_config"] = {"name": VALIDATOR, "typed_config": config}
    return validation


@functools.cache
def _text(data: bytes) -> str:
    return data.decode()


def _inline(data: bytes) -> dict[str, str]:
    return {"inline_string": _text(data)}

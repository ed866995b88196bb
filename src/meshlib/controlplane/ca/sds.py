"""Secrets for Envoy, under the names that SPIRE's agent gives them, and the two protocols that carry them.

    spiffe://td/path   the SVID with this id           default   the caller's first SVID
    spiffe://td        the roots of this trust domain  ROOTCA    the roots of the CA's own trust domain
                                                       ALL       those of every trust domain, federated ones too

Roots come as Envoy's SPIFFE validator, which checks a chain against the roots of the peer's own trust domain; a client whose
node metadata says `disable_spiffe_cert_validation: true` gets a plain `trusted_ca`, and the revocation lists with it, which that
validator does not read. An unknown name ends a state-of-the-world stream with INVALID_ARGUMENT (as SPIRE does); a delta stream is
told that the name is removed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from meshlib import proto
from meshlib.controlplane.ca import certificates
from meshlib.controlplane.ca.identities import View
from meshlib.controlplane.ca.svid import IssuedSvid
from meshlib.proto import Message

__all__ = [
    "ALL_BUNDLES",
    "DEFAULT_BUNDLE",
    "DEFAULT_SVID",
    "SERVICE",
    "TYPE_URL",
    "DeltaStream",
    "SecretAnswer",
    "SotwStream",
    "UnknownSecret",
    "plain_roots",
    "secret",
]

SERVICE = "envoy.service.secret.v3.SecretDiscoveryService"
TYPE_URL = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
DEFAULT_SVID, DEFAULT_BUNDLE, ALL_BUNDLES = "default", "ROOTCA", "ALL"
PLAIN_ROOTS = "disable_spiffe_cert_validation"

_TLS = "envoy.extensions.transport_sockets.tls.v3."
_VALIDATOR = "envoy.tls.cert_validator.spiffe"


class UnknownSecret(LookupError):
    """The caller may have no secret of these names."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = tuple(sorted(names))
        quoted = " ".join(f'"{name}"' for name in self.names)
        super().__init__(f"workload is not authorized for the requested identities [{quoted}]")


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretAnswer:
    """A client's ACK (`error` empty) or NACK of a response. version: of the response; empty on a delta stream."""

    names: tuple[str, ...]
    version: str
    error: str


def secret(view: View, name: str, *, plain: bool = False) -> Message | None:
    """The Secret of this name, None when the caller may have none. plain: roots as `trusted_ca`."""
    for index, svid in enumerate(view.svids):
        if svid.spiffe_id == name or (name == DEFAULT_SVID and index == 0):
            return _certificate(name, svid)
    if name == ALL_BUNDLES:
        return None if plain else _validation(name, view.bundles)
    domain = view.trust_domain if name == DEFAULT_BUNDLE else name.removeprefix("spiffe://")
    if domain not in view.bundles or name == domain:
        return None
    roots = view.bundles[domain]
    if plain:
        return _trusted_ca(name, roots, view.revocation_lists if domain == view.trust_domain else ())
    return _validation(name, {domain: roots})


def plain_roots(node: Message) -> bool:
    """Whether this xDS node wants roots as `trusted_ca`."""
    fields = node.metadata.fields
    value = fields.get(PLAIN_ROOTS)
    return value is not None and (value.bool_value or value.string_value.lower() in ("1", "t", "true"))


def all_names(view: View) -> tuple[str, ...]:
    """What a client that names nothing gets."""
    return (*(f"spiffe://{domain}" for domain in view.bundles), *(svid.spiffe_id for svid in view.svids))


class SotwStream:
    """One state-of-the-world stream, without I/O: requests in, the response that is due out."""

    def __init__(self) -> None:
        self._names: tuple[str, ...] | None = None
        self._plain = False
        self._nonce = 0
        self._sent: tuple[tuple[str, ...], bytes] | None = None
        self._sent_version = ""

    def receive(self, request: Message) -> SecretAnswer | None:
        """Take a DiscoveryRequest: the names that are wanted now, and what became of the last response."""
        if self._nonce and request.response_nonce != str(self._nonce):
            return None
        if self._names is None:
            self._plain = plain_roots(request.node)
        self._names = tuple(name for name in request.resource_names if name)
        if not request.response_nonce:
            return None
        return SecretAnswer(names=self._names, version=self._sent_version, error=request.error_detail.message)

    def due(self, view: View) -> Message | None:
        """The DiscoveryResponse to send now, None when the client has it all.

        Raises:
            UnknownSecret: the stream is to end.
        """
        if self._names is None:
            return None
        resources = fetch(view, self._names, plain=self._plain)
        content = b"".join(resource.SerializeToString(deterministic=True) for resource in resources)
        if self._sent == (self._names, content):
            return None
        self._sent = (self._names, content)
        self._sent_version = str(view.version)
        self._nonce += 1
        return response(self._sent_version, resources, nonce=str(self._nonce))


class DeltaStream:
    """One delta stream, without I/O."""

    def __init__(self) -> None:
        self._wanted: set[str] | None = None
        self._all = False
        self._plain = False
        self._nonce = 0
        self._versions: dict[str, str] = {}

    def receive(self, request: Message) -> SecretAnswer | None:
        """Take a DeltaDiscoveryRequest: names that are wanted, or no longer, and what became of a response."""
        subscribed = set(request.resource_names_subscribe)
        if self._wanted is None:
            self._wanted = set()
            self._plain = plain_roots(request.node)
            self._all = not subscribed
            self._versions = dict(request.initial_resource_versions)
        self._all = (self._all or "*" in subscribed) and "*" not in request.resource_names_unsubscribe
        self._wanted |= subscribed - {"*"}
        self._wanted -= set(request.resource_names_unsubscribe)
        for name in subscribed | set(request.resource_names_unsubscribe):
            if name not in request.initial_resource_versions:
                self._versions.pop(name, None)  # subscribing again asks for it again
        if not self._all:
            self._versions = {name: has for name, has in self._versions.items() if name in self._wanted}
        if not request.response_nonce:
            return None
        return SecretAnswer(names=tuple(sorted(self._wanted)), version="", error=request.error_detail.message)

    def due(self, view: View) -> Message | None:
        """The DeltaDiscoveryResponse to send now: what has changed since the last one, None when nothing has."""
        if self._wanted is None:
            return None
        result = proto.message("envoy.service.discovery.v3.DeltaDiscoveryResponse")(
            type_url=TYPE_URL, system_version_info=str(view.version)
        )
        names = dict.fromkeys((*(all_names(view) if self._all else ()), *sorted(self._wanted)))
        gone = [name for name in self._versions if self._versions[name] and name not in names]
        for name in (*names, *gone):
            found = secret(view, name, plain=self._plain) if name in names else None
            if found is None:
                if self._versions.get(name) != "":
                    result.removed_resources.append(name)
                    self._versions[name] = ""
                continue
            packed = proto.pack(found)
            version = hashlib.sha256(packed.value).hexdigest()[:16]
            if self._versions.get(name) != version:
                self._versions[name] = version
                result.resources.add(name=name, version=version, resource=packed)
        if not (result.resources or result.removed_resources):
            return None
        self._nonce += 1
        result.nonce = str(self._nonce)
        return result


def fetch(view: View, names: Iterable[str], *, plain: bool = False) -> list[Message]:
    """The secrets of these names, each in an Any; of no names, everything that the caller may have.

    Raises:
        UnknownSecret: it may not have one of them.
    """
    wanted = tuple(dict.fromkeys(names)) or all_names(view)
    found = {name: secret(view, name, plain=plain) for name in wanted}
    unknown = [name for name, message in found.items() if message is None]
    if unknown:
        raise UnknownSecret(unknown)
    return [proto.pack(message) for message in found.values()]


def response(version: str, resources: list[Message], *, nonce: str = "") -> Message:
    """A DiscoveryResponse with these secrets."""
    return proto.message("envoy.service.discovery.v3.DiscoveryResponse")(
        type_url=TYPE_URL, version_info=version, resources=resources, nonce=nonce
    )


def _certificate(name: str, svid: IssuedSvid) -> Message:
    message = proto.message(f"{_TLS}Secret")(name=name)
    message.tls_certificate.certificate_chain.inline_bytes = svid.chain_pem()
    message.tls_certificate.private_key.inline_bytes = svid.key_pem()
    return message


def _trusted_ca(
    name: str, roots: Iterable[x509.Certificate], lists: Iterable[x509.CertificateRevocationList]
) -> Message:
    message = proto.message(f"{_TLS}Secret")(name=name)
    message.validation_context.trusted_ca.inline_bytes = certificates.to_pem(roots)
    crl = b"".join(each.public_bytes(Encoding.PEM) for each in lists)
    if crl:
        message.validation_context.crl.inline_bytes = crl
    return message


def _validation(name: str, bundles: Mapping[str, Iterable[x509.Certificate]]) -> Message:
    validator = proto.message(f"{_TLS}SPIFFECertValidatorConfig")()
    for domain, roots in sorted(bundles.items()):
        validator.trust_domains.add(name=domain).trust_bundle.inline_bytes = certificates.to_pem(roots)
    message = proto.message(f"{_TLS}Secret")(name=name)
    custom = message.validation_context.custom_validator_config
    custom.name = _VALIDATOR
    custom.typed_config.CopyFrom(proto.pack(validator))
    return message


Stream = SotwStream | DeltaStream
STREAMS: Mapping[str, tuple[Callable[[], Stream], str]] = {
    "StreamSecrets": (SotwStream, "envoy.service.discovery.v3.DiscoveryRequest"),
    "DeltaSecrets": (DeltaStream, "envoy.service.discovery.v3.DeltaDiscoveryRequest"),
}
"""Method -> its state machine and the type of its requests."""

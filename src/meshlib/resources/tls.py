"""TLS of a connection as configuration asks for it (extensions.transport_sockets.tls.v3). Durations are seconds.

Nothing here holds a parsed certificate: material is PEM (or a file that holds it), and `identity` makes contexts of it. A
private key or a password never appears in a `repr`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import TYPE_CHECKING, TypeAlias

from meshlib.resources.matching import StringMatch
from meshlib.resources.metadata import NO_METADATA, Scalar, SocketMetadata, contains

if TYPE_CHECKING:
    from meshlib.resources.cluster import Cluster

__all__ = [
    "AdsSource",
    "CertificateValidation",
    "CommonTls",
    "DownstreamTls",
    "FilePath",
    "Material",
    "PathSource",
    "ProviderInstance",
    "SanMatch",
    "SanType",
    "SecretRef",
    "SecretSource",
    "ServerSource",
    "TlsCertificate",
    "TlsVersion",
    "TransportSocketMatch",
    "TrustDomainBundle",
    "UpstreamTls",
    "merge_validation",
    "select_tls",
    "validation_problem",
]


class TlsVersion(IntEnum):
    """TlsParameters.TlsProtocol. TLS_AUTO: 1.2 as a minimum; as a maximum 1.2 for a client and 1.3 for a server, as in Envoy."""

    TLS_AUTO = 0
    TLSv1_0 = 1
    TLSv1_1 = 2
    TLSv1_2 = 3
    TLSv1_3 = 4


class SanType(Enum):
    """SubjectAltNameMatcher.SanType."""

    EMAIL = 1
    DNS = 2
    URI = 3
    IP_ADDRESS = 4
    OTHER_NAME = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class FilePath:
    """A DataSource that names a file. It was readable when the resource was decoded.

    watched_directory: replaced as a whole when the content changes (DataSource.watched_directory); empty when not given.
    """

    path: str
    watched_directory: str = ""


Material: TypeAlias = bytes | FilePath
"""What a DataSource holds: the bytes (inline, or of an environment variable), or the file to read them from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SanMatch:
    """SubjectAltNameMatcher. san_type None: a name of any type (the deprecated match_subject_alt_names).

    oid: of the OTHER_NAME, empty for every other type. A DNS name of the certificate may hold a wildcard, which an EXACT
    match honours.
    """

    san_type: SanType | None
    match: StringMatch
    oid: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderInstance:
    """CertificateProviderPluginInstance: a key of the bootstrap's `certificate_providers` (gRFC A29).

    certificate_name: opaque to everybody but the provider; file_watcher does not look at it.
    """

    instance_name: str
    certificate_name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdsSource:
    """The secret comes over the stream that this resource came over; for files, it is in the files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSource:
    """An SDS server of its own (ApiConfigSource of type GRPC).

    target: of gRPC (`host:port`, `unix:/run/x.sock`, `unix-abstract:...`); empty when `cluster` names it. cluster: of an
    envoy_grpc service, one with a load assignment of its own or one that the bootstrap names. root_certificates, and
    private_key with certificate_chain: PEM for a TLS channel; `tls` False for an insecure one. metadata: sent with the stream.
    """

    target: str = ""
    cluster: str = ""
    tls: bool = False
    root_certificates: Material | None = None
    certificate_chain: Material | None = None
    private_key: Material | None = field(default=None, repr=False)
    metadata: tuple[tuple[str, str], ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class PathSource:
    """A file with the Secret, in the form of a file subscription.

    Read again when the file is replaced, or, when it is given, when something is moved into watched_directory.
    """

    path: str
    watched_directory: str = ""


SecretSource: TypeAlias = AdsSource | ServerSource | PathSource


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretRef:
    """SdsSecretConfig. initial_fetch_timeout: after so many seconds without an answer the secret counts as missing; 0: never."""

    name: str
    source: SecretSource
    initial_fetch_timeout: float = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsCertificate:
    """TlsCertificate. chain: PEM, leaf first. password: of the private key. watched_directory: empty when not given."""

    chain: Material
    private_key: Material = field(repr=False)
    password: Material | None = field(default=None, repr=False)
    watched_directory: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustDomainBundle:
    """SPIFFECertValidatorConfig.TrustDomain: name, without `spiffe://`, and the PEM of its authorities."""

    name: str
    bundle: Material


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateValidation:
    """CertificateValidationContext: what the peer's certificate must be.

    Without trusted_ca, ca_provider, system_roots, spiffe and spiffe_bundle_map no chain is verified, as in Envoy. match_sans:
    one of them must match a name of the certificate; empty: names are not looked at. certificate_hashes, certificate_spkis: the
    certificate must have one of all these (lower-case hex of SHA-256 of the DER; base64 of SHA-256 of the SPKI).
    spiffe: the chain is verified against the bundle of the peer's own trust domain, and nothing but match_sans (of type URI) and
    allow_expired counts besides; None when the SPIFFE validator is not in force. spiffe_bundle_map: the bundles as a document
    (SPIFFE bundle map, JSON), in the place of those in spiffe, which is then empty. accept_untrusted: a failed verification is
    only counted. max_verify_depth: intermediates between leaf and root, None for the default (100).
    """

    trusted_ca: Material | None = None
    ca_provider: ProviderInstance | None = None
    system_roots: bool = False
    match_sans: tuple[SanMatch, ...] = ()
    certificate_hashes: tuple[str, ...] = ()
    certificate_spkis: tuple[str, ...] = ()
    crl: Material | None = None
    leaf_crl_only: bool = False
    allow_expired: bool = False
    accept_untrusted: bool = False
    max_verify_depth: int | None = None
    spiffe: tuple[TrustDomainBundle, ...] | None = None
    spiffe_bundle_map: Material | None = None
    watched_directory: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommonTls:
    """CommonTlsContext.

    cipher_suites, curves: OpenSSL's names, in order; empty for the defaults. alpn: in order. certificates, certificate_secrets
    and certificate_provider: at most one of them is given; none for a client that shows no certificate. validation and
    validation_secret: both for a combined context, whose parts are merged (`merge_validation`).
    """

    minimum: TlsVersion = TlsVersion.TLS_AUTO
    maximum: TlsVersion = TlsVersion.TLS_AUTO
    cipher_suites: tuple[str, ...] = ()
    curves: tuple[str, ...] = ()
    alpn: tuple[str, ...] = ()
    certificates: tuple[TlsCertificate, ...] = ()
    certificate_secrets: tuple[SecretRef, ...] = ()
    certificate_provider: ProviderInstance | None = None
    validation: CertificateValidation | None = None
    validation_secret: SecretRef | None = None

    @property
    def secrets(self) -> tuple[SecretRef, ...]:
        """Every secret that the context needs."""
        if self.validation_secret is None:
            return self.certificate_secrets
        return (*self.certificate_secrets, self.validation_secret)


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamTls:
    """UpstreamTlsContext, and what upstream_http_protocol_options of its cluster add.

    Which name is sent as SNI, first that applies: with `auto_sni` that of the request, unless it is an IP address; with
    `auto_host_sni` the hostname of the endpoint; `sni`. The name of the request is the value of override_auto_sni_header,
    without it or when it is empty the authority, in both cases without a port.
    auto_sni_san_validation: the certificate must hold the SNI that was sent as a DNS name, instead of match_sans.
    auto_san_validation: one of the certificate's names must be the name of the request, instead of match_sans.
    enforce_rsa_key_usage: the keyUsage of an RSA certificate must allow what TLS uses it for; Envoy's default, too.
    """

    common: CommonTls = CommonTls()
    sni: str = ""
    auto_host_sni: bool = False
    auto_sni_san_validation: bool = False
    auto_sni: bool = False
    auto_san_validation: bool = False
    override_auto_sni_header: str = ""
    enforce_rsa_key_usage: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class DownstreamTls:
    """DownstreamTlsContext. require_client_certificate False: one that is shown is still verified.

    session_timeout and the rest about session resumption have no place here: no tickets are issued.
    """

    common: CommonTls = CommonTls()
    require_client_certificate: bool = False
    prefer_client_ciphers: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TransportSocketMatch:
    """Cluster.TransportSocketMatch: endpoints whose metadata has all of `match` are connected to with `tls`.

    tls None: in plaintext, because the configuration says so.
    """

    name: str
    match: Mapping[str, Scalar]
    tls: UpstreamTls | None


def select_tls(cluster: Cluster, metadata: Mapping[str, Scalar] = NO_METADATA) -> UpstreamTls | None:
    """How an endpoint with this metadata (`Endpoint.transport_socket_metadata`) is connected to; None: in plaintext.

    The first of transport_socket_matches that matches the endpoint's own metadata decides, then the first that matches its
    locality's, else the cluster's own transport socket.
    """
    candidates = cluster.transport_socket_matches
    if not candidates:
        return cluster.tls
    for labels in (metadata, metadata.locality if isinstance(metadata, SocketMetadata) else NO_METADATA):
        for candidate in candidates:
            if contains(labels, candidate.match):
                return candidate.tls
    return cluster.tls


def merge_validation(default: CertificateValidation, dynamic: CertificateValidation) -> CertificateValidation:
    """The two parts of a combined validation context as Envoy merges them (protobuf's MergeFrom).

    What the secret sets counts; lists are joined, the default's first; a flag that either sets is set.
    """
    spiffe = dynamic if dynamic.spiffe is not None else default
    return CertificateValidation(
        trusted_ca=default.trusted_ca if dynamic.trusted_ca is None else dynamic.trusted_ca,
        ca_provider=dynamic.ca_provider or default.ca_provider,
        system_roots=default.system_roots or dynamic.system_roots,
        match_sans=default.match_sans + dynamic.match_sans,
        certificate_hashes=default.certificate_hashes + dynamic.certificate_hashes,
        certificate_spkis=default.certificate_spkis + dynamic.certificate_spkis,
        crl=default.crl if dynamic.crl is None else dynamic.crl,
        leaf_crl_only=default.leaf_crl_only or dynamic.leaf_crl_only,
        allow_expired=default.allow_expired or dynamic.allow_expired,
        accept_untrusted=default.accept_untrusted or dynamic.accept_untrusted,
        max_verify_depth=(
            default.max_verify_depth if dynamic.max_verify_depth is None else dynamic.max_verify_depth
        ),
        spiffe=spiffe.spiffe,
        spiffe_bundle_map=spiffe.spiffe_bundle_map,
        watched_directory=dynamic.watched_directory or default.watched_directory,
    )


def validation_problem(validation: CertificateValidation) -> str | None:
    """Why a complete validation context is refused, as Envoy refuses it; None when it may be used."""
    if (
        validation.trusted_ca is not None
        or validation.ca_provider is not None
        or validation.system_roots
        or validation.spiffe is not None
    ):
        return None
    if validation.crl is not None:
        return "a CRL without a trusted CA has no effect"
    if validation.match_sans:
        return "matching subject alternative names without a trusted CA is insecure and not allowed"
    if validation.allow_expired:
        return "the validity period is never looked at without a trusted CA"
    return None

"""Short forms of TLS configurations for tests."""

from __future__ import annotations

import ssl
from typing import Any

from meshlib.identity.client import ClientSecurity
from meshlib.identity.contexts import ContextSpec, build
from meshlib.identity.material import Svid
from meshlib.identity.server import ServerSecurity
from meshlib.identity.store import IdentityStore
from meshlib.resources.matching import StringKind, StringMatch
from meshlib.resources.tls import (
    CertificateValidation,
    CommonTls,
    DownstreamTls,
    SanMatch,
    SanType,
    TlsCertificate,
    TlsVersion,
    TrustDomainBundle,
    UpstreamTls,
)
from tests.identity.ca import Issued, TestCA

__all__ = ["bare_client", "bare_server", "certificate", "client", "match", "roots", "server", "spiffe"]


def certificate(issued: Issued) -> TlsCertificate:
    return TlsCertificate(chain=issued.chain, private_key=issued.key)


def match(
    text: str,
    san_type: SanType | None = SanType.URI,
    kind: StringKind = StringKind.EXACT,
    oid: str = "",
) -> SanMatch:
    return SanMatch(san_type=san_type, match=StringMatch(kind=kind, value=text), oid=oid)


def roots(*cas: TestCA, sans: tuple[SanMatch, ...] = (), **options: Any) -> CertificateValidation:
    """Trust in these CAs, whatever a peer's trust domain."""
    return CertificateValidation(trusted_ca=b"".join(ca.pem for ca in cas), match_sans=sans, **options)


def spiffe(*cas: TestCA, sans: tuple[SanMatch, ...] = (), **options: Any) -> CertificateValidation:
    """The SPIFFE validator with the CAs' trust domains; several CAs of one domain form one bundle."""
    bundles: dict[str, bytes] = {}
    for ca in cas:
        bundles[ca.trust_domain] = bundles.get(ca.trust_domain, b"") + ca.pem
    return CertificateValidation(
        spiffe=tuple(TrustDomainBundle(name=name, bundle=pem) for name, pem in bundles.items()),
        match_sans=sans,
        **options,
    )


def client(
    validation: CertificateValidation | None,
    issued: Issued | None = None,
    *,
    version: TlsVersion = TlsVersion.TLS_AUTO,
    store: IdentityStore | None = None,
    **options: Any,
) -> ClientSecurity:
    common = CommonTls(
        certificates=() if issued is None else (certificate(issued),),
        validation=validation,
        minimum=version,
        maximum=version,
    )
    return (store or IdentityStore()).client(UpstreamTls(common=common, **options))


def server(
    validation: CertificateValidation | None,
    issued: Issued,
    *,
    required: bool = True,
    version: TlsVersion = TlsVersion.TLS_AUTO,
    store: IdentityStore | None = None,
) -> ServerSecurity:
    common = CommonTls(
        certificates=(certificate(issued),), validation=validation, minimum=version, maximum=version
    )
    return (store or IdentityStore()).server(
        DownstreamTls(common=common, require_client_certificate=required)
    )


def bare_server(issued: Issued, version: TlsVersion) -> ssl.SSLContext:
    """Shows what it has, and takes anybody."""
    return build(
        ContextSpec(
            server=True, svids=(_svid(issued),), verify=ssl.CERT_NONE, minimum=version, maximum=version
        )
    )


def bare_client(issued: Issued | None, version: TlsVersion) -> ssl.SSLContext:
    """The same from the other side."""
    svids = () if issued is None else (_svid(issued),)
    return build(
        ContextSpec(server=False, svids=svids, verify=ssl.CERT_NONE, minimum=version, maximum=version)
    )


def _svid(issued: Issued) -> Svid:
    return Svid.from_pem(issued.chain, issued.key)

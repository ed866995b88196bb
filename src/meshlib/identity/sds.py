"""The secrets that the workload's own identity can stand in for, by the names that SPIRE's agent gives them over SDS.

| name | secret |
|---|---|
| `default` | the workload's first SVID |
| `spiffe://trust-domain/path` | the SVID with this id |
| `ROOTCA` | trust in the authorities of the workload's own trust domain |
| `spiffe://trust-domain` | trust in the authorities of that trust domain |
| `ALL` | SPIFFE's validator with all bundles, federated ones too |
"""

from __future__ import annotations

from meshlib.errors import IdentityError
from meshlib.identity.material import Svid, TrustBundle, to_pem
from meshlib.identity.source import IdentityUpdate
from meshlib.identity.spiffe import SpiffeId
from meshlib.resources.secret import Secret
from meshlib.resources.tls import CertificateValidation, TlsCertificate, TrustDomainBundle

__all__ = ["secret_named"]


def secret_named(update: IdentityUpdate, name: str) -> Secret | None:
    """None when the name means nothing here, or nothing yet."""
    if name == "default":
        return _certificate(name, update.svids[0]) if update.svids else None
    if name == "ROOTCA":
        return _own_roots(name, update)
    if name == "ALL":
        return _all(name, update)
    try:
        wanted = SpiffeId.parse(name)
    except IdentityError:
        return None
    if not wanted.path:
        bundle = update.bundles.get(wanted.trust_domain)
        return None if bundle is None else _roots(name, bundle)
    svid = next((svid for svid in update.svids if svid.spiffe_id == wanted), None)
    return None if svid is None else _certificate(name, svid)


def _certificate(name: str, svid: Svid) -> Secret:
    return Secret(
        name=name,
        certificate=TlsCertificate(chain=svid.chain_pem(), private_key=svid.private_key.reveal()),
    )


def _own_roots(name: str, update: IdentityUpdate) -> Secret | None:
    if update.roots:
        return Secret(name=name, validation=CertificateValidation(trusted_ca=to_pem(update.roots)))
    own = update.svids[0].spiffe_id if update.svids else None
    bundle = None if own is None else update.bundles.get(own.trust_domain)
    return None if bundle is None else _roots(name, bundle)


def _roots(name: str, bundle: TrustBundle) -> Secret | None:
    if not bundle.authorities:
        return None
    return Secret(name=name, validation=CertificateValidation(trusted_ca=to_pem(bundle.authorities)))


def _all(name: str, update: IdentityUpdate) -> Secret | None:
    if not update.bundles:
        return None
    bundles = tuple(
        TrustDomainBundle(name=bundle.trust_domain, bundle=to_pem(bundle.authorities))
        for bundle in update.bundles.values()
        if bundle.authorities
    )
    return Secret(name=name, validation=CertificateValidation(spiffe=bundles)) if bundles else None

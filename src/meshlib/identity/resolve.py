"""From a CommonTls, which says where material comes from, to the material itself: own certificates, and whom to trust."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from meshlib.errors import IdentityError
from meshlib.identity.material import BundleSet, Svid, TrustBundle, certificates_from_pem
from meshlib.identity.revocation import RevocationList, crls_from_pem
from meshlib.identity.source import IdentityUpdate
from meshlib.identity.trust import Trust
from meshlib.resources.secret import Secret
from meshlib.resources.tls import (
    CertificateValidation,
    CommonTls,
    Material,
    ProviderInstance,
    SecretRef,
    TlsCertificate,
    merge_validation,
    validation_problem,
)

__all__ = ["NOT_SUPPLIED", "Materials", "Memo", "Resolved", "bundle_map", "resolve", "resolve_default"]

NOT_SUPPLIED = "Secret is not supplied by SDS"
"""Envoy's words when a secret, or a provider's first material, has not come."""

T = TypeVar("T")


class Materials(Protocol):
    """Where the pieces are."""

    def secret(self, ref: SecretRef) -> Secret | None:
        """None while it has not come."""

    def provider(self, instance: ProviderInstance) -> IdentityUpdate | None:
        """None while there is nothing of it."""

    def read(self, material: Material) -> bytes:
        """Raises: IdentityError: the file can't be read."""


class Memo:
    """What has been parsed, by the bytes it was parsed from: for as long as each pass over all configurations uses it."""

    def __init__(self) -> None:
        self._now: dict[object, Any] = {}
        self._before: dict[object, Any] = {}

    def next_pass(self) -> None:
        self._before, self._now = self._now, {}

    def get(self, key: object, make: Callable[[], T]) -> T:
        found = self._now.get(key) or self._before.get(key)
        if found is None:
            found = make()
        self._now[key] = found
        result: T = found
        return result


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """Equal when nothing has changed for the connections that are made with it."""

    svids: tuple[Svid, ...]
    trust: Trust

    def keeps(self, before: Resolved) -> bool:
        """The certificates are the same, and trust differs at most in authorities.

        A connection of before is as good as one that is made now, as long as its peer is trusted (`Trust.still_trusts`).
        """
        return self.svids == before.svids and self.trust.alike(before.trust)

    def renews(self, before: Resolved) -> bool:
        """The certificates are others, for the same SPIFFE ids; trust differs at most in authorities."""
        names = [svid.spiffe_id for svid in self.svids]
        known = [svid.spiffe_id for svid in before.svids]
        return names == known and None not in names and self.trust.alike(before.trust)


def resolve(common: CommonTls, materials: Materials, memo: Memo) -> Resolved:
    """Find and parse all that a configuration needs.

    Raises:
        IdentityError: something is missing or can't be read; `reason` has Envoy's words.
    """
    return Resolved(
        svids=_svids(common, materials, memo), trust=_trust(_validation(common, materials), materials, memo)
    )


def resolve_default(update: IdentityUpdate | None) -> Resolved:
    """The workload's own identity, and trust in its bundles: what a server uses when no configuration says otherwise.

    Raises:
        IdentityError: there is none yet.
    """
    if update is None or not update.svids:
        raise _missing("the workload's identity", update)
    trust = Trust(bundles=update.bundles) if update.bundles else Trust(roots=update.roots)
    return Resolved(svids=update.svids[:1], trust=trust)


def _svids(common: CommonTls, materials: Materials, memo: Memo) -> tuple[Svid, ...]:
    if common.certificate_provider is not None:
        update = materials.provider(common.certificate_provider)
        if update is None or not update.svids:
            raise _missing(f"certificate provider {common.certificate_provider.instance_name!r}", update)
        return update.svids[:1]
    certificates = list(common.certificates)
    for ref in common.certificate_secrets:
        secret = materials.secret(ref)
        if secret is None or secret.certificate is None:
            raise _missing(f"secret {ref.name!r}", None)
        certificates.append(secret.certificate)
    return tuple(_svid(item, materials, memo) for item in certificates)


def _svid(certificate: TlsCertificate, materials: Materials, memo: Memo) -> Svid:
    chain = materials.read(certificate.chain)
    key = materials.read(certificate.private_key)
    password = None if certificate.password is None else materials.read(certificate.password)
    return memo.get((chain, key, password), lambda: Svid.from_pem(chain, key, password))


def _validation(common: CommonTls, materials: Materials) -> CertificateValidation | None:
    if common.validation_secret is None:
        return common.validation
    secret = materials.secret(common.validation_secret)
    if secret is None or secret.validation is None:
        raise _missing(f"secret {common.validation_secret.name!r}", None)
    found = secret.validation
    if common.validation is not None:
        found = merge_validation(common.validation, found)
    problem = validation_problem(found)
    if problem is not None:
        what = f"secret {common.validation_secret.name!r}"
        raise IdentityError(
            f"{what} can't be used: {problem}", reason=NOT_SUPPLIED, expected=what, got="an insecure one"
        )
    return found


def _trust(validation: CertificateValidation | None, materials: Materials, memo: Memo) -> Trust:
    if validation is None:
        return Trust()
    bundles, roots, crls = _anchors(validation, materials, memo)
    if validation.crl is not None:
        crls += _crls(materials.read(validation.crl), memo)
    return Trust(
        bundles=bundles,
        roots=roots,
        system_roots=validation.system_roots,
        partial_chain=validation.spiffe is None and validation.spiffe_bundle_map is None,
        match_sans=validation.match_sans,
        certificate_hashes=frozenset(bytes.fromhex(item) for item in validation.certificate_hashes),
        certificate_spkis=frozenset(base64.b64decode(item) for item in validation.certificate_spkis),
        crls=crls,
        leaf_crl_only=validation.leaf_crl_only,
        allow_expired=validation.allow_expired,
        accept_untrusted=validation.accept_untrusted,
        max_verify_depth=validation.max_verify_depth,
    )


Anchors = tuple[BundleSet | None, tuple[bytes, ...] | None, tuple[RevocationList, ...]]


def _anchors(validation: CertificateValidation, materials: Materials, memo: Memo) -> Anchors:
    if validation.spiffe_bundle_map is not None:
        text = materials.read(validation.spiffe_bundle_map)
        return memo.get(("map", text), lambda: bundle_map(text)), None, ()
    if validation.spiffe is not None:
        crls: tuple[RevocationList, ...] = ()
        bundles = []
        for item in validation.spiffe:
            pem = materials.read(item.bundle)
            bundles.append(TrustBundle(item.name, _certificates(pem, memo)))
            crls += _crls(pem, memo)
        return BundleSet(bundles), None, crls
    if validation.ca_provider is not None:
        update = materials.provider(validation.ca_provider)
        if update is None or not (update.bundles or update.roots):
            raise _missing(f"certificate provider {validation.ca_provider.instance_name!r}", update)
        return (update.bundles, None, ()) if update.bundles else (None, update.roots, ())
    if validation.trusted_ca is not None:
        pem = materials.read(validation.trusted_ca)
        return None, _certificates(pem, memo), _crls(pem, memo)
    return None, () if validation.system_roots else None, ()


def _certificates(pem: bytes, memo: Memo) -> tuple[bytes, ...]:
    return memo.get(("certificates", pem), lambda: certificates_from_pem(pem))


def _crls(pem: bytes, memo: Memo) -> tuple[RevocationList, ...]:
    return memo.get(("crls", pem), lambda: crls_from_pem(pem))


def bundle_map(text: bytes) -> BundleSet:
    """A SPIFFE bundle map: `{"trust_domains": {NAME: {"spiffe_sequence": N, "keys": [{"use": "x509-svid", "x5c": [...]}]}}}`.

    Keys for other uses (`jwt-svid`) are skipped.

    Raises:
        IdentityError: it is not that, or a trust domain has no X.509 authority.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        raise IdentityError("the SPIFFE bundle map is not JSON") from None
    domains = document.get("trust_domains") if isinstance(document, Mapping) else None
    if not isinstance(domains, Mapping) or not domains:
        raise IdentityError("the SPIFFE bundle map has no trust_domains")
    return BundleSet(_bundle(str(name), value) for name, value in domains.items())


def _bundle(name: str, value: object) -> TrustBundle:
    keys = value.get("keys") if isinstance(value, Mapping) else None
    if not isinstance(keys, list):
        raise IdentityError(f"the SPIFFE bundle of {name!r} has no keys")
    authorities = []
    for key in keys:
        if not isinstance(key, Mapping) or key.get("use") != "x509-svid":
            continue
        certificates = key.get("x5c")
        if not isinstance(certificates, list) or len(certificates) != 1:
            # The SPIFFE bundle format allows exactly one certificate in each key.
            raise IdentityError(
                f"a key of the SPIFFE bundle of {name!r} has not exactly one certificate in x5c"
            )
        try:
            authorities.append(base64.b64decode(certificates[0], validate=True))
        except (binascii.Error, TypeError, ValueError):
            raise IdentityError(f"a certificate of the SPIFFE bundle of {name!r} is not base64") from None
    if not authorities:
        raise IdentityError(f"the SPIFFE bundle of {name!r} has no X.509 authority")
    sequence = value.get("spiffe_sequence", 0) if isinstance(value, Mapping) else 0
    return TrustBundle(name, authorities, sequence if isinstance(sequence, int) else 0)


def _missing(what: str, update: IdentityUpdate | None) -> IdentityError:
    because = f": {update.error}" if update is not None and update.error else ""
    return IdentityError(f"{what} has not come{because}", reason=NOT_SUPPLIED, expected=what, got="nothing")

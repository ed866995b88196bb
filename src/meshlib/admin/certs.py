"""Certificates in use, without keys: `/certs` in Envoy's shape (envoy.admin.v3.Certificates), and for the page."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from math import floor
from typing import TYPE_CHECKING, Any, NamedTuple

from cryptography import x509
from cryptography.x509.oid import NameOID

from meshlib.admin.config_dump import timestamp

if TYPE_CHECKING:
    from meshlib.identity.resolve import Resolved
    from meshlib.mesh import Mesh

__all__ = ["Certificate", "certificates", "certs", "read"]

_DAY = 86400.0


class Certificate(NamedTuple):
    """What is said of a certificate. not_before, not_after: seconds since 1970. sans: (kind, name), kind `uri`, `dns` or `ip`."""

    serial: str
    subject: str
    issuer: str
    not_before: float
    not_after: float
    sans: tuple[tuple[str, str], ...]

    @property
    def name(self) -> str:
        """The URI (a SPIFFE id), else the first name, else the subject."""
        return next(
            (name for kind, name in self.sans if kind == "uri"),
            self.sans[0][1] if self.sans else self.subject,
        )


def certs(mesh: Mesh) -> dict[str, Any]:
    """One entry for each different set of own certificates and of what is trusted beside them."""
    now = mesh.clock.time()
    return {
        "certificates": [
            {
                "ca_cert": [_details(der, now) for der in resolved.trust.anchors],
                "cert_chain": [_details(svid.leaf, now) for svid in resolved.svids],
            }
            for resolved in in_use(mesh)
        ]
    }


def certificates(mesh: Mesh) -> list[dict[str, Any]]:
    """Each certificate once: own ones first, then CAs; those that end first come first."""
    now = mesh.clock.time()
    own: dict[bytes, None] = {}
    trusted: dict[bytes, str] = {}
    for resolved in in_use(mesh):
        own.update((svid.leaf, None) for svid in resolved.svids)
        for domain, bundle in (resolved.trust.bundles or {}).items():
            trusted.update((der, domain) for der in bundle.authorities)
        for der in resolved.trust.roots or ():
            trusted.setdefault(der, "")
    found = [_for_page("own", der, "", now) for der in own]
    found += [_for_page("ca", der, domain, now) for der, domain in trusted.items()]
    return sorted(found, key=lambda entry: (entry["kind"] != "own", entry["not_after"]))


def in_use(mesh: Mesh) -> Iterable[Resolved]:
    """What the identities of the Mesh are made of now. Nothing is made or started for it."""
    store = mesh.identity_in_use
    return () if store is None else store.in_use()


def _for_page(kind: str, der: bytes, trust_domain: str, now: float) -> dict[str, Any]:
    found = read(der)
    return {
        "kind": kind,
        "name": found.name,
        "trust_domain": trust_domain,
        "issuer": found.issuer,
        "serial": found.serial,
        "not_before": found.not_before,
        "not_after": found.not_after,
        "expires_in": round(found.not_after - now, 1),
    }


def _details(der: bytes, now: float) -> dict[str, Any]:
    found = read(der)
    return {
        "path": "<inline>",
        "serial_number": found.serial,
        "subject_alt_names": [{_ENVOYS[kind]: name} for kind, name in found.sans],
        "days_until_expiration": str(max(0, floor((found.not_after - now) / _DAY))),
        "valid_from": timestamp(found.not_before),
        "expiration_time": timestamp(found.not_after),
    }


_ENVOYS = {"uri": "uri", "dns": "dns", "ip": "ip_address"}


@lru_cache(1024)
def read(der: bytes) -> Certificate:
    """A certificate that has been read before, so that nothing can be wrong with it."""
    certificate = x509.load_der_x509_certificate(der)
    return Certificate(
        serial=f"{certificate.serial_number:x}",
        subject=certificate.subject.rfc4514_string(),
        issuer=_common_name(certificate.issuer),
        not_before=certificate.not_valid_before_utc.timestamp(),
        not_after=certificate.not_valid_after_utc.timestamp(),
        sans=_names(certificate),
    )


def _common_name(name: x509.Name) -> str:
    found = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(found[0].value) if found else name.rfc4514_string()


def _names(certificate: x509.Certificate) -> tuple[tuple[str, str], ...]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        return ()
    found: list[tuple[str, str]] = []
    found += [("uri", name) for name in names.get_values_for_type(x509.UniformResourceIdentifier)]
    found += [("dns", name) for name in names.get_values_for_type(x509.DNSName)]
    found += [("ip", str(address)) for address in names.get_values_for_type(x509.IPAddress)]
    return tuple(found)

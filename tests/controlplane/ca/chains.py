"""Checks of chains by `cryptography`'s own verifier."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from meshlib.controlplane.ca import IssuedSvid


def trusted(svid: IssuedSvid, roots: Sequence[x509.Certificate], at: float) -> bool:
    """Whether a server would take the SVID's chain at this time."""
    verifier = (
        PolicyBuilder()
        .store(Store(list(roots)))
        .time(datetime.fromtimestamp(at, UTC))
        .build_client_verifier()
    )
    try:
        verifier.verify(svid.leaf, list(svid.chain[1:]))
    except VerificationError:
        return False
    return True


def uris(certificate: x509.Certificate) -> list[str]:
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return names.get_values_for_type(x509.UniformResourceIdentifier)


def dns_names(certificate: x509.Certificate) -> list[str]:
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return names.get_values_for_type(x509.DNSName)

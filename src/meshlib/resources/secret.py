"""Secret (extensions.transport_sockets.tls.v3), as it comes over SDS."""

from __future__ import annotations

from dataclasses import dataclass

from meshlib.resources.tls import CertificateValidation, TlsCertificate

__all__ = ["Secret"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Secret:
    """At most one of certificate and validation is given; both None for a type that is not used (reported as unsupported)."""

    name: str
    certificate: TlsCertificate | None = None
    validation: CertificateValidation | None = None

"""Who is calling: what application code sees of the other end, in WSGI, ASGI and gRPC handlers alike."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from meshlib.identity.spiffe import SpiffeId
    from meshlib.server.xfcc import XfccElement

__all__ = ["CURRENT", "NOBODY", "InboundPeer", "current_peer"]


@dataclass(frozen=True, slots=True, kw_only=True)
class InboundPeer:
    """The caller of a request, as its connection says it.

    spiffe_id: None without a certificate, or when that has not exactly one URI SAN that is a SPIFFE id. uri_sans, dns_sans,
    subject (RFC 2253): of the certificate. certificate: its DER, empty without one. sha256: of that, lower-case hexadecimal.
    tls: whether the connection is encrypted; True with no certificate where none is asked for. address: the IP address that the
    connection comes from, empty for a Unix socket. forwarded: x-forwarded-client-cert, the first hop first; empty unless this
    very caller is trusted to say who called it.
    """

    spiffe_id: SpiffeId | None = None
    uri_sans: tuple[str, ...] = ()
    dns_sans: tuple[str, ...] = ()
    subject: str = ""
    certificate: bytes = field(default=b"", repr=False)
    sha256: str = ""
    tls: bool = False
    address: str = ""
    forwarded: tuple[XfccElement, ...] = ()


NOBODY = InboundPeer()
"""What is known of the caller where nothing is: outside of a handler, too."""

CURRENT: ContextVar[InboundPeer] = ContextVar("meshlib_current_peer", default=NOBODY)


def current_peer() -> InboundPeer:
    """The caller of the request that is being handled.

        if meshlib.current_peer().spiffe_id == SpiffeId.parse("spiffe://prod/ns/shop/sa/web"): ...

    Never None. Outside of a handler, and where no middleware of `meshlib.server` is in front of it, nothing is known: then
    spiffe_id is None and tls is False.
    """
    return CURRENT.get()

"""Who calls: what a connection says, and what x-forwarded-client-cert adds to that where it is believed."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

from meshlib.resources.inbound import DownstreamHttp
from meshlib.runtime.logs import Once, about
from meshlib.server import xfcc
from meshlib.server.arrival import Arrival
from meshlib.server.peer import NOBODY, InboundPeer
from meshlib.server.tls import Connection

__all__ = ["Forwarding", "peer_of", "principal_of"]

logger = logging.getLogger("meshlib.server")


def peer_of(arrival: Arrival) -> InboundPeer:
    """The caller, as its connection says it."""
    connection = arrival.connection
    address = arrival.remote or ""
    peer = connection.peer
    if peer is None:
        if not address and not connection.tls:
            return NOBODY
        return InboundPeer(tls=connection.tls, address=address)
    return InboundPeer(
        spiffe_id=peer.spiffe_id,
        uri_sans=peer.uri_sans,
        dns_sans=peer.dns_sans,
        subject=peer.subject,
        certificate=peer.certificate_der,
        sha256=peer.sha256,
        tls=True,
        address=address,
    )


def principal_of(connection: Connection) -> str | None:
    """Under which name the caller is known: the SPIFFE id, else what the certificate has first."""
    peer = connection.peer
    if peer is None:
        return None
    if peer.spiffe_id is not None:
        return str(peer.spiffe_id)
    return next((name for names in (peer.uri_sans, peer.dns_sans) for name in names), peer.subject or None)


class Forwarding:
    """trusted: whose header is believed. mode, details: what the application is to see, unless the Listener says it; mode None:
    the header of trusted callers as it is."""

    def __init__(
        self, trusted: xfcc.TrustedPeers, mode: xfcc.Mode | None, details: tuple[xfcc.Detail, ...]
    ) -> None:
        self._trusted = trusted
        self._wrong = Once()
        self._mode = mode
        self._details = details

    def apply(
        self, arrival: Arrival, peer: InboundPeer, http: DownstreamHttp | None
    ) -> tuple[InboundPeer, str | None]:
        """The peer with what it is trusted to say about callers before it, and the header for the application."""
        seen = ",".join(value for name, value in arrival.headers if name == xfcc.HEADER) or None
        if seen is None and http is None and self._mode is None:
            return peer, None
        spiffe_id = None if peer.spiffe_id is None else str(peer.spiffe_id)
        trusted = self._trusted.trusts(spiffe_id, arrival.remote or None)
        if trusted and seen is not None:
            try:
                peer = replace(peer, forwarded=xfcc.parse(seen))
            except xfcc.XfccError as error:
                if self._wrong(spiffe_id):
                    logger.warning(
                        "a trusted peer sent a wrong %s: %s", xfcc.HEADER, error, extra=about(peer=spiffe_id)
                    )
                seen = None
        mode, details = self._mode, self._details
        if http is not None:
            mode = cast("xfcc.Mode", http.forward_client_cert.name)
            told = http.client_cert_details
            details = tuple(name for name in xfcc.DETAILS if getattr(told, name))
        if mode is None:
            return peer, seen if trusted else None
        return peer, xfcc.forwarded(mode, seen, _element(arrival.connection, details))


def _element(connection: Connection, details: Sequence[xfcc.Detail]) -> xfcc.XfccElement | None:
    peer = connection.peer
    if peer is None:
        return None
    chain = [ssl.DER_cert_to_PEM_cert(der) for der in peer.chain_der] if details else []
    return xfcc.describe(
        peer,
        own_uris=connection.own_uris,
        details=details,
        cert=chain[0] if chain else "",
        chain="".join(chain),
    )

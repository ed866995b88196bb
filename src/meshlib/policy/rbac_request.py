"""A request as authorization sees it: what it says, and what is known of the connection that it came over.

A server may not tell everything. What it does not tell is *unknown*, by the names below, which is not the same as absent: a rule
that looks at it has no answer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from meshlib.resources.address import IpAddress, ip_address
from meshlib.resources.tls import SanMatch
from meshlib.routing.request import Headers, RequestView

__all__ = [
    "AUTHORITY",
    "CERTIFICATE",
    "DESTINATION_IP",
    "DESTINATION_PORT",
    "DIRECT_IP",
    "NOTHING",
    "REMOTE_IP",
    "SERVER_NAME",
    "SOURCE_PORT",
    "TLS",
    "Caller",
    "InboundRequest",
    "forwarded_address",
    "header_property",
]

AUTHORITY = "the authority"
TLS = "whether the connection is TLS"
CERTIFICATE = "the caller's certificate"
SERVER_NAME = "the requested server name"
DESTINATION_IP = "the destination address"
DESTINATION_PORT = "the destination port"
DIRECT_IP = "the caller's address"
SOURCE_PORT = "the caller's port"
REMOTE_IP = "the address that the request comes from"
NOTHING: frozenset[str] = frozenset()
"""Of what is unknown: nothing."""


def header_property(name: str) -> str:
    """What is unknown when this header is. name: lower case."""
    return AUTHORITY if name in (":authority", "host") else f"the header {name}"


def _no_name(match: SanMatch) -> bool:
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """The connection's other end.

    tls: the connection is TLS. certified: the caller showed a certificate, and it was verified. uri_sans, dns_sans, subject (RFC
    2253): of that certificate. server_name: the SNI, empty without one. local, local_port: where the connection came to; direct:
    where it physically comes from; None for a Unix socket. san_matches: whether a name of the certificate matches.
    """

    tls: bool = False
    certified: bool = False
    uri_sans: tuple[str, ...] = ()
    dns_sans: tuple[str, ...] = ()
    subject: str = ""
    server_name: str = ""
    local: IpAddress | None = None
    local_port: int = 0
    direct: IpAddress | None = None
    san_matches: Callable[[SanMatch], bool] = _no_name


class InboundRequest(RequestView):
    """One request that a server got. remote: the caller's address as `remote_ip` sees it; the direct one by default.

    unknown: properties that nobody here knows; what stands in their place means nothing.
    """

    def __init__(
        self,
        method: str,
        scheme: str,
        authority: str,
        path: str,
        headers: Headers,
        caller: Caller,
        remote: IpAddress | None = None,
        unknown: frozenset[str] = NOTHING,
    ) -> None:
        super().__init__(method, scheme, authority, path, headers)
        self.caller = caller
        self.remote = caller.direct if remote is None else remote
        self.unknown = unknown


def forwarded_address(values: list[str], skip: int) -> IpAddress | None:
    """The address in x-forwarded-for that stands so many places before the last one; None when there is none.

    values: of the header, one for each time that it stands in the request. A part that is no address gives None, as in Envoy:
    what stands before it was not written by somebody who is trusted.
    """
    parts = [part.strip() for value in values for part in value.split(",")]
    if skip >= len(parts):
        return None
    return ip_address(parts[-1 - skip])

"""A request in the form that every adapter brings it, and what authorization makes of it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from meshlib.policy.rbac_request import (
    AUTHORITY,
    CERTIFICATE,
    DESTINATION_IP,
    DESTINATION_PORT,
    DIRECT_IP,
    NOTHING,
    REMOTE_IP,
    SERVER_NAME,
    TLS,
    Caller,
    InboundRequest,
    forwarded_address,
)
from meshlib.resources.address import IpAddress
from meshlib.resources.address import ip_address as parse_address
from meshlib.resources.inbound import DownstreamHttp
from meshlib.routing.request import Headers
from meshlib.server import xfcc
from meshlib.server.tls import UNKNOWN, Connection

__all__ = [
    "UNESCAPED",
    "Arrival",
    "connection_view",
    "inbound_request",
    "is_grpc",
    "told_address",
    "unknown_of",
]

UNESCAPED = "/:@!$&'()*+,;=~-._"
"""What is taken to have stood in a path as it is, besides letters and digits, where a server tells only the decoded path."""

_UNSPECIFIED = "0.0.0.0"  # noqa: S104 - stands for an address that is not known, never bound
_ENDED_ELSEWHERE = frozenset((TLS, CERTIFICATE, SERVER_NAME))


@dataclass(slots=True)
class Arrival:
    """One request as an adapter has it. None: the server does not tell.

    path: as it was sent, with the query; latin-1. headers: lower-case names, in order, without pseudo headers. remote, local: IP
    addresses of the connection, empty for a Unix socket; local_port: where the server listens. unknown: what else the server does
    not tell, by the names of `policy.rbac_request`. forwarded_for: x-forwarded-for, where the headers have parts of it twice.
    remote_port: for logs only, 0 where it is not told.
    """

    method: str
    scheme: str
    authority: str | None
    path: str
    headers: Headers
    connection: Connection
    remote: str | None
    local: str | None = ""
    local_port: int | None = 0
    unknown: frozenset[str] = NOTHING
    forwarded_for: str | None = None
    remote_port: int = 0


def unknown_of(arrival: Arrival) -> frozenset[str]:
    """What rules may ask for and nobody here knows.

    An address that is none, or that stands for any (where a server listens at `0.0.0.0`), is unknown. So is who is there when TLS
    was ended by something that does not say.
    """
    found = set(arrival.unknown)
    if arrival.authority is None:
        found.add(AUTHORITY)
    if _is_unknown(arrival.local):
        found.add(DESTINATION_IP)
    if arrival.local != "" and not arrival.local_port:
        found.add(DESTINATION_PORT)
    if _is_unknown(arrival.remote):
        found.add(DIRECT_IP)
    if arrival.connection is UNKNOWN and arrival.scheme in ("https", "wss"):
        found |= _ENDED_ELSEWHERE
    return frozenset(found) if found else NOTHING


def _is_unknown(text: str | None) -> bool:
    if not text:
        return text is None
    address = _address(text)
    return address is None or address.is_unspecified


def is_grpc(headers: Headers) -> bool:
    """By the content type."""
    kind = next((value for name, value in headers if name == "content-type"), "")
    return kind == "application/grpc" or kind.startswith("application/grpc+")


def inbound_request(
    arrival: Arrival, http: DownstreamHttp | None, shown: str | None, unknown: frozenset[str]
) -> InboundRequest:
    """The request as RBAC sees it. http: says how far x-forwarded-for counts; None: not at all. shown: the
    x-forwarded-client-cert that goes to the application, in place of the one that came. unknown: as `unknown_of` says."""
    headers = arrival.headers
    if any(name == xfcc.HEADER for name, _ in headers):
        headers = [pair for pair in headers if pair[0] != xfcc.HEADER]
    if shown is not None:
        headers = [*headers, (xfcc.HEADER, shown)]
    caller = _caller(arrival)
    told = None if http is None else told_address(http, arrival)
    if told is None and DIRECT_IP in unknown:
        unknown |= {REMOTE_IP}
    return InboundRequest(
        arrival.method,
        arrival.scheme,
        arrival.authority or "",
        arrival.path,
        headers,
        caller,
        told,
        unknown,
    )


def connection_view(arrival: Arrival, unknown: frozenset[str]) -> InboundRequest:
    """Its connection as network filters see it: without headers and path, and nobody has forwarded it."""
    if DIRECT_IP in unknown:
        unknown |= {REMOTE_IP}
    return InboundRequest("", arrival.scheme, "", "", [], _caller(arrival), None, unknown)


@lru_cache(maxsize=4096)
def _address(text: str) -> IpAddress | None:
    found = parse_address(text)
    mapped = getattr(found, "ipv4_mapped", None)
    return found if mapped is None else mapped


def _caller(arrival: Arrival) -> Caller:
    connection = arrival.connection
    local = _address(arrival.local or (_UNSPECIFIED if arrival.local_port else ""))
    direct = _address(arrival.remote or "")
    peer = connection.peer
    if peer is None:
        return Caller(
            tls=connection.tls,
            server_name=connection.server_name,
            local=local,
            local_port=arrival.local_port or 0,
            direct=direct,
        )
    return Caller(
        tls=True,
        certified=True,
        uri_sans=peer.uri_sans,
        dns_sans=peer.dns_sans,
        subject=peer.subject,
        server_name=connection.server_name,
        local=local,
        local_port=arrival.local_port or 0,
        direct=direct,
        san_matches=connection.san_matches,
    )


def told_address(http: DownstreamHttp, arrival: Arrival) -> IpAddress | None:
    """The caller's address by Envoy's rules for x-forwarded-for (use_remote_address, xff_num_trusted_hops).

    None: the direct one counts.
    """
    skip = http.xff_num_trusted_hops
    if http.use_remote_address:
        if skip == 0:
            return None
        skip -= 1
    values = [value for name, value in arrival.headers if name == "x-forwarded-for"]
    if arrival.forwarded_for is not None:
        values = [arrival.forwarded_for]
    return forwarded_address(values, skip)

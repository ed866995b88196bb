"""A request in the form that every adapter brings it, and what authorization makes of it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from meshlib.policy.rbac_request import Caller, InboundRequest, forwarded_address
from meshlib.resources.address import IpAddress
from meshlib.resources.address import ip_address as parse_address
from meshlib.resources.inbound import DownstreamHttp
from meshlib.routing.request import Headers
from meshlib.server import xfcc
from meshlib.server.tls import Connection

__all__ = ["Arrival", "inbound_request"]

_UNSPECIFIED = "0.0.0.0"  # noqa: S104 - compared with, never bound


@dataclass(slots=True)
class Arrival:
    """One request as an adapter has it.

    path: as it was sent, with the query. headers: lower-case names, in order, without pseudo headers. remote, local: IP
    addresses of the connection, empty for a Unix socket; local_port: where the server listens.
    """

    method: str
    scheme: str
    authority: str
    path: str
    headers: Headers
    connection: Connection
    remote: str
    local: str = ""
    local_port: int = 0


def inbound_request(arrival: Arrival, http: DownstreamHttp | None, shown: str | None) -> InboundRequest:
    """The request as RBAC sees it. http: says how far x-forwarded-for counts; None: not at all. shown: the
    x-forwarded-client-cert that goes to the application, in place of the one that came."""
    headers = arrival.headers
    if any(name == xfcc.HEADER for name, _ in headers):
        headers = [pair for pair in headers if pair[0] != xfcc.HEADER]
    if shown is not None:
        headers = [*headers, (xfcc.HEADER, shown)]
    caller = _caller(arrival)
    return InboundRequest(
        arrival.method,
        arrival.scheme,
        arrival.authority,
        arrival.path,
        headers,
        caller,
        caller.direct if http is None else _remote(http, headers, caller.direct),
    )


@lru_cache(maxsize=4096)
def _address(text: str) -> IpAddress | None:
    found = parse_address(text)
    mapped = getattr(found, "ipv4_mapped", None)
    return found if mapped is None else mapped


def _caller(arrival: Arrival) -> Caller:
    connection = arrival.connection
    local = _address(arrival.local or (_UNSPECIFIED if arrival.local_port else ""))
    direct = _address(arrival.remote)
    peer = connection.peer
    if peer is None:
        return Caller(
            tls=connection.tls,
            server_name=connection.server_name,
            local=local,
            local_port=arrival.local_port,
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
        local_port=arrival.local_port,
        direct=direct,
        san_matches=connection.san_matches,
    )


def _remote(http: DownstreamHttp, headers: Headers, direct: IpAddress | None) -> IpAddress | None:
    """The caller's address by Envoy's rules for x-forwarded-for (use_remote_address, xff_num_trusted_hops)."""
    skip = http.xff_num_trusted_hops
    if http.use_remote_address:
        if skip == 0:
            return direct
        skip -= 1
    values = [value for name, value in headers if name == "x-forwarded-for"]
    return forwarded_address(values, skip) or direct

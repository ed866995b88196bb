"""Operators of connections: their ends, TLS, and the certificates that were shown.

UPSTREAM_ is the connection to the endpoint, which the transport describes where a log asks for it
(`transport.http.description`); DOWNSTREAM_ the one that an inbound request came over. An outgoing call has none of these: the
caller is this process.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from meshlib.observe.access_log.addresses import address_operators, endpoint_id
from meshlib.resources.format import Operator
from meshlib.resources.tls import SanType
from meshlib.routing.authority import without_port
from meshlib.routing.format import Factory, Read, Value, first, plain
from meshlib.routing.start_time import compile_time

if TYPE_CHECKING:
    from meshlib.observe.access_log.certificates import ShownCertificate
    from meshlib.transport.http.description import TlsDescription

__all__ = ["OPERATORS"]

Side = Callable[[Any], "TlsDescription | None"]

_upstream: Side = attrgetter("upstream_tls")
_downstream: Side = attrgetter("downstream_tls")


def _tls(side: Side, read: Callable[[TlsDescription], str]) -> Factory:
    """What the connection says; empty is none."""

    def find(facts: Any) -> Value:
        tls = side(facts)
        return None if tls is None else read(tls) or None

    return plain(find)


def _certificate(der: bytes) -> ShownCertificate:
    from meshlib.observe.access_log.certificates import read  # needs cryptography, which plaintext does not

    return read(der)


def _escaped_pem(der: bytes) -> str:
    from meshlib.observe.access_log.certificates import escaped_pem

    return escaped_pem(der)


Show = Callable[["ShownCertificate"], str]


def _peer(side: Side, show: Show) -> Factory:
    return _tls(side, lambda tls: show(_certificate(tls.peer[0])) if tls.peer else "")


def _own(side: Side, show: Show) -> Factory:
    return _tls(side, lambda tls: show(_certificate(tls.own)) if tls.own else "")


def _issuer(side: Side, show: Show) -> Factory:
    """Of the certificate that follows the peer's in the chain."""
    return _tls(side, lambda tls: show(_certificate(tls.peer[1])) if len(tls.peer) > 1 else "")


def _chain(side: Side, show: Show) -> Factory:
    return _tls(side, lambda tls: ",".join([show(_certificate(der)) for der in tls.peer]))


def _moment(side: Side, moment: Callable[[ShownCertificate], float | None]) -> Factory:
    def factory(operator: Operator) -> Read:
        render = compile_time(operator.argument)

        def read(facts: Any) -> Value:
            tls = side(facts)
            at = None if tls is None or not tls.peer else moment(_certificate(tls.peer[0]))
            return None if at is None else render(at)

        return read

    return factory


def _sans(side: Side, whose: str, of: Callable[[Side, Show], Factory], *kinds: str) -> dict[str, Factory]:
    types = {
        "URI": SanType.URI,
        "DNS": SanType.DNS,
        "IP": SanType.IP_ADDRESS,
        "EMAIL": SanType.EMAIL,
        "OTHERNAME": SanType.OTHER_NAME,
    }
    return {f"{whose}_{kind}_SAN": of(side, lambda shown, san=types[kind]: shown.sans(san)) for kind in kinds}  # type: ignore[misc]


def _side(name: str, side: Side) -> dict[str, Factory]:
    """What there is on both."""
    return {
        f"{name}_PEER_CERT": _tls(side, lambda tls: _escaped_pem(tls.peer[0]) if tls.peer else ""),
        f"{name}_PEER_CERT_V_END": _moment(side, lambda shown: shown.not_after),
        f"{name}_PEER_CERT_V_START": _moment(side, lambda shown: shown.not_before),
        f"{name}_PEER_ISSUER": _peer(side, lambda shown: shown.issuer),
        f"{name}_PEER_SUBJECT": _peer(side, lambda shown: shown.subject),
        f"{name}_TLS_CIPHER": _tls(side, attrgetter("cipher")),
        f"{name}_TLS_SESSION_ID": _tls(side, attrgetter("session_id")),
        f"{name}_TLS_VERSION": _tls(side, attrgetter("version")),
    }


def _server_name(operator: Operator) -> Read:
    """`(SNI_FIRST:HOST)`: what may stand for the SNI, the host of the request as it came or as it is."""
    choice, _, rest = operator.argument.partition(":")
    which = rest.partition(":")[0] or "ORIG_OR_HOST"
    headers = {
        "HOST": (":authority", ""),
        "ORIG": ("x-envoy-original-host", ""),
        "ORIG_OR_HOST": ("x-envoy-original-host", ":authority"),
    }[which]

    def sni(facts: Any) -> Value:
        tls = facts.downstream_tls
        return None if tls is None else tls.server_name or None

    def host(facts: Any) -> Value:
        found = first(facts.request, *headers)
        return without_port(found) or None if found else None

    if choice == "SNI_FIRST":
        return lambda facts: sni(facts) or host(facts)
    if choice == "HOST_FIRST":
        return lambda facts: host(facts) or sni(facts)
    return sni


OPERATORS: dict[str, Factory] = {
    **address_operators("UPSTREAM_LOCAL", attrgetter("upstream_local")),
    **address_operators("DOWNSTREAM_LOCAL", attrgetter("local")),
    **address_operators("DOWNSTREAM_DIRECT_LOCAL", attrgetter("local")),
    **address_operators("DOWNSTREAM_REMOTE", attrgetter("remote")),
    **address_operators("DOWNSTREAM_DIRECT_REMOTE", attrgetter("direct")),
    **_side("UPSTREAM", _upstream),
    **_side("DOWNSTREAM", _downstream),
    **_sans(_upstream, "UPSTREAM_PEER", _peer, "URI", "DNS", "IP"),
    **_sans(_upstream, "UPSTREAM_LOCAL", _own, "URI", "DNS", "IP"),
    **_sans(_downstream, "DOWNSTREAM_PEER", _peer, "URI", "DNS", "IP", "EMAIL", "OTHERNAME"),
    **_sans(_downstream, "DOWNSTREAM_LOCAL", _own, "URI", "DNS", "IP", "EMAIL", "OTHERNAME"),
    "DOWNSTREAM_DIRECT_LOCAL_ADDRESS_ENDPOINT_ID": endpoint_id(attrgetter("local")),
    "DOWNSTREAM_LOCAL_ADDRESS_ENDPOINT_ID": endpoint_id(attrgetter("local")),
    "DOWNSTREAM_LOCAL_SUBJECT": _own(_downstream, lambda shown: shown.subject),
    "DOWNSTREAM_PEER_CHAIN_FINGERPRINTS_1": _chain(_downstream, lambda shown: shown.sha1),
    "DOWNSTREAM_PEER_CHAIN_FINGERPRINTS_256": _chain(_downstream, lambda shown: shown.sha256),
    "DOWNSTREAM_PEER_CHAIN_SERIALS": _chain(_downstream, lambda shown: shown.serial),
    "DOWNSTREAM_PEER_FINGERPRINT_1": _peer(_downstream, lambda shown: shown.sha1),
    "DOWNSTREAM_PEER_FINGERPRINT_256": _peer(_downstream, lambda shown: shown.sha256),
    "DOWNSTREAM_PEER_ISSUER_FINGERPRINT_256": _issuer(_downstream, lambda shown: shown.sha256),
    "DOWNSTREAM_PEER_ISSUER_SERIAL": _issuer(_downstream, lambda shown: shown.serial),
    "DOWNSTREAM_PEER_SERIAL": _peer(_downstream, lambda shown: shown.serial),
    "REQUESTED_SERVER_NAME": _server_name,
    "UPSTREAM_CONNECTION_ID": plain(attrgetter("upstream_connection")),
    "UPSTREAM_SERVER_NAME": _tls(_upstream, attrgetter("server_name")),
}
"""By Envoy's names."""

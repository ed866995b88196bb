"""A Listener as a server sees it: who may connect, how, and what is asked of each request.

The same message as a client's Listener (config.listener.v3.Listener); gRPC servers and `meshlib.server` ask for it by the name
that the bootstrap's `server_listener_resource_name_template` gives (gRFC A36).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

from meshlib.resources.address import CidrRange, IpAddress, ip_address
from meshlib.resources.listener import HttpConnectionManager
from meshlib.resources.rbac import Rbac
from meshlib.resources.tls import DownstreamTls, SecretRef

__all__ = [
    "ClientCertDetails",
    "ClientCertForwarding",
    "ConnectionInfo",
    "DownstreamHttp",
    "FilterChain",
    "FilterChainMatch",
    "InboundListener",
    "SourceType",
    "find_filter_chain",
]


class SourceType(Enum):
    """FilterChainMatch.ConnectionSourceType."""

    ANY = 0
    SAME_IP_OR_LOOPBACK = 1
    EXTERNAL = 2


class ClientCertForwarding(Enum):
    """HttpConnectionManager.ForwardClientCertDetails: what happens to x-forwarded-client-cert."""

    SANITIZE = 0
    FORWARD_ONLY = 1
    APPEND_FORWARD = 2
    SANITIZE_SET = 3
    ALWAYS_FORWARD_ONLY = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientCertDetails:
    """set_current_client_cert_details: what is told of the client's certificate, besides By and Hash."""

    subject: bool = False
    cert: bool = False
    chain: bool = False
    dns: bool = False
    uri: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DownstreamHttp:
    """What the HttpConnectionManager says about the caller's side of the connection.

    use_remote_address, xff_num_trusted_hops: how the caller's address is found (x-forwarded-for).
    """

    forward_client_cert: ClientCertForwarding = ClientCertForwarding.SANITIZE
    client_cert_details: ClientCertDetails = ClientCertDetails()
    use_remote_address: bool = False
    xff_num_trusted_hops: int = 0
    skip_xff_append: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterChainMatch:
    """FilterChainMatch. Empty fields and None match everything. server_names: lower case, `*.` for a wildcard."""

    destination_port: int | None = None
    prefix_ranges: tuple[CidrRange, ...] = ()
    server_names: tuple[str, ...] = ()
    transport_protocol: str = ""
    application_protocols: tuple[str, ...] = ()
    direct_source_prefix_ranges: tuple[CidrRange, ...] = ()
    source_type: SourceType = SourceType.ANY
    source_prefix_ranges: tuple[CidrRange, ...] = ()
    source_ports: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterChain:
    """FilterChain. tls None: plaintext. network_rbac: network RBAC filters before the HttpConnectionManager, in order.

    http: its http_filters may hold `rbac.Rbac`; the router is last.
    """

    name: str = ""
    match: FilterChainMatch = FilterChainMatch()
    tls: DownstreamTls | None = None
    network_rbac: tuple[Rbac, ...] = ()
    http: HttpConnectionManager
    downstream: DownstreamHttp = DownstreamHttp()


@dataclass(frozen=True, slots=True, kw_only=True)
class InboundListener:
    """A socket Listener. address: `ip:port` (`[ip]:port`), empty when none is given.

    filter_chains, default_filter_chain: at least one is there. See `find_filter_chain`.
    """

    name: str
    address: str = ""
    filter_chains: tuple[FilterChain, ...] = ()
    default_filter_chain: FilterChain | None = None

    @property
    def chains(self) -> tuple[FilterChain, ...]:
        """All of them, the default one last."""
        default = self.default_filter_chain
        return self.filter_chains if default is None else (*self.filter_chains, default)

    @property
    def secrets(self) -> tuple[SecretRef, ...]:
        """Every secret that its transport sockets need, as often as it is named."""
        return tuple(
            ref for chain in self.chains if chain.tls is not None for ref in chain.tls.common.secrets
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionInfo:
    """What a filter chain is chosen by. Addresses are texts, empty for a Unix socket; server_name as the client sent it.

    transport_protocol: `tls` or `raw_buffer`. application_protocols: what the client offers by ALPN, in order.
    source: the peer; direct_source: the peer without regard to a PROXY header, `source` when not given.
    """

    destination: str = ""
    destination_port: int = 0
    source: str = ""
    source_port: int = 0
    direct_source: str = ""
    server_name: str = ""
    transport_protocol: str = "raw_buffer"
    application_protocols: tuple[str, ...] = ()


_Rank = Callable[[FilterChainMatch], int | None]
"""How specifically a match fits, more is better; None when it does not."""


def find_filter_chain(listener: InboundListener, connection: ConnectionInfo) -> FilterChain | None:
    """The filter chain for a connection; None: it is closed.

    Envoy's rule: the criteria are looked at one after the other, in a fixed order, and after each only the chains that fit
    most specifically stay. There is no way back: when they fit no later criterion, the default filter chain takes the
    connection, even if a less specific chain would have fitted all.
    """
    chains: Sequence[FilterChain] = listener.filter_chains
    for rank in _ranks(connection):
        best: int | None = None
        kept: list[FilterChain] = []
        for chain in chains:
            value = rank(chain.match)
            if value is None or (best is not None and value < best):
                continue
            if best is None or value > best:
                best = value
                kept.clear()
            kept.append(chain)
        chains = kept
    return chains[0] if chains else listener.default_filter_chain


def _ranks(connection: ConnectionInfo) -> tuple[_Rank, ...]:
    destination, source = ip_address(connection.destination), ip_address(connection.source)
    direct = ip_address(connection.direct_source) if connection.direct_source else source
    local = source is not None and (source == destination or source.is_loopback)
    name = connection.server_name.lower()
    offered = connection.application_protocols
    return (
        lambda match: _exact(match.destination_port, connection.destination_port),
        lambda match: _prefix(match.prefix_ranges, destination),
        lambda match: _server_name(match.server_names, name),
        lambda match: _exact(match.transport_protocol or None, connection.transport_protocol),
        lambda match: _application_protocol(match.application_protocols, offered),
        lambda match: _prefix(match.direct_source_prefix_ranges, direct),
        lambda match: _source_type(match.source_type, local=local),
        lambda match: _prefix(match.source_prefix_ranges, source),
        lambda match: (
            0 if not match.source_ports else 1 if connection.source_port in match.source_ports else None
        ),
    )


def _exact(wanted: object, given: object) -> int | None:
    if wanted is None:
        return 0
    return 1 if wanted == given else None


def _prefix(ranges: tuple[CidrRange, ...], address: IpAddress | None) -> int | None:
    if not ranges:
        return -1  # less specific than a prefix of no bits
    return max((each.length for each in ranges if each.contains(address)), default=None)


def _server_name(names: tuple[str, ...], name: str) -> int | None:
    if not names:
        return 0
    if name in names and not name.startswith("*."):
        return 1_000
    labels = [
        len(each) for each in names if each.startswith("*.") and name.endswith(each[1:]) and name != each[1:]
    ]
    return max(labels, default=None)


def _application_protocol(protocols: tuple[str, ...], offered: tuple[str, ...]) -> int | None:
    if not protocols:
        return 0
    return max(
        (len(offered) - index for index, each in enumerate(offered) if each in protocols), default=None
    )


def _source_type(kind: SourceType, *, local: bool) -> int | None:
    if kind is SourceType.ANY:
        return 0
    return 1 if local == (kind is SourceType.SAME_IP_OR_LOOPBACK) else None

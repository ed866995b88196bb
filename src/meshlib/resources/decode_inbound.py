"""A Listener as a server sees it: filter chains, what chooses among them, their TLS, their RBAC."""

from __future__ import annotations

from meshlib.errors import ResourceError
from meshlib.resources.address import CidrRange
from meshlib.resources.decode_http import HTTP_CONNECTION_MANAGER, decode_http_connection_manager
from meshlib.resources.decode_rbac import cidr_range, decode_network_rbac
from meshlib.resources.decode_transport_socket import downstream_socket
from meshlib.resources.filters import CHAIN, INBOUND_CHAIN
from meshlib.resources.inbound import (
    ClientCertDetails,
    ClientCertForwarding,
    DownstreamHttp,
    FilterChain,
    FilterChainMatch,
    InboundListener,
    SourceType,
)
from meshlib.resources.listener import HttpConnectionManager
from meshlib.resources.rbac import Rbac
from meshlib.resources.reader import Reader

__all__ = ["decode_inbound", "decode_plain_chain"]

_NETWORK_RBAC = "envoy.extensions.filters.network.rbac.v3.RBAC"
_LISTENER_FILTERS = frozenset(
    f"envoy.extensions.filters.listener.{name}"
    for name in (
        "tls_inspector.v3.TlsInspector",
        "http_inspector.v3.HttpInspector",
        "original_dst.v3.OriginalDst",
    )
)
"""They find out what a server knows anyway. Others change what a filter chain is chosen by."""

_SOURCE_TYPES = {each.value: each for each in SourceType}
_FORWARDING = {each.value: each for each in ClientCertForwarding}


def decode_inbound(reader: Reader, chains: list[Reader], default: Reader | None) -> InboundListener:
    """A Listener that only a server can use. Raises ResourceError."""
    unknown = _unknown_listener_filter(reader)
    if unknown is not None:
        raise unknown
    found = tuple(_chain(each) for each in chains)
    _check_overlaps(reader, found)
    return InboundListener(
        name=reader.text("name"),
        address=_address(reader),
        filter_chains=found,
        default_filter_chain=None if default is None else _chain(default),
    )


def decode_plain_chain(
    reader: Reader, chain: Reader, *, default: bool
) -> tuple[InboundListener | None, HttpConnectionManager]:
    """A Listener with one plaintext filter chain, which clients use too; None when only they can.

    default: it is the default filter chain. What tells connections apart means nothing to a client. Raises ResourceError.
    """
    tls = downstream_socket(chain)
    assert tls is None
    match = chain.child("filter_chain_match")
    _, http, downstream = _filters(chain, client=True)
    only = FilterChain(
        name=chain.text("name"),
        match=FilterChainMatch() if match is None else _match(match),
        http=http,
        downstream=downstream,
    )
    if _unknown_listener_filter(reader) is not None or chain.boxed("use_proxy_proto"):
        return None, http
    listener = InboundListener(
        name=reader.text("name"),
        address=_address(reader),
        filter_chains=() if default else (only,),
        default_filter_chain=only if default else None,
    )
    return listener, http


def _chain(reader: Reader) -> FilterChain:
    if reader.boxed("use_proxy_proto"):
        raise reader.fail("use_proxy_proto", "the PROXY protocol is not implemented")
    match = reader.child("filter_chain_match")
    rbac, http, downstream = _filters(reader, client=False)
    return FilterChain(
        name=reader.text("name"),
        match=FilterChainMatch() if match is None else _match(match),
        tls=downstream_socket(reader),
        network_rbac=rbac,
        http=http,
        downstream=downstream,
    )


def _filters(
    chain: Reader, *, client: bool
) -> tuple[tuple[Rbac, ...], HttpConnectionManager, DownstreamHttp]:
    filters = chain.items("filters")
    rbac: list[Rbac] = []
    for index, entry in enumerate(filters):
        name = entry.text("name")
        kind = entry.message.typed_config.type_url.rpartition("/")[2]
        last = index == len(filters) - 1
        if kind == HTTP_CONNECTION_MANAGER and last:
            content = entry.required("typed_config").unpacked()
            http = decode_http_connection_manager(content, CHAIN if client else INBOUND_CHAIN)
            return tuple(rbac), http, _downstream(content)
        if kind == _NETWORK_RBAC and not last:
            rbac.append(decode_network_rbac(entry.required("typed_config").unpacked()))
        elif kind in (HTTP_CONNECTION_MANAGER, _NETWORK_RBAC):
            break
        else:
            reason = f"the network filter {name!r} ({kind or 'no type'}) is not implemented"
            raise chain.fail(f"filters[{index}]", reason)
    raise chain.fail(
        "filters", "the last filter must be the HttpConnectionManager, and there must be only one"
    )


def _downstream(reader: Reader) -> DownstreamHttp:
    details = reader.child("set_current_client_cert_details")
    return DownstreamHttp(
        forward_client_cert=reader.enum("forward_client_cert_details", _FORWARDING),
        client_cert_details=ClientCertDetails() if details is None else _details(details),
        use_remote_address=bool(reader.boxed("use_remote_address")),
        xff_num_trusted_hops=reader.number("xff_num_trusted_hops"),
        skip_xff_append=reader.flag("skip_xff_append"),
    )


def _details(reader: Reader) -> ClientCertDetails:
    return ClientCertDetails(
        subject=bool(reader.boxed("subject")),
        cert=reader.flag("cert"),
        chain=reader.flag("chain"),
        dns=reader.flag("dns"),
        uri=reader.flag("uri"),
    )


def _match(reader: Reader) -> FilterChainMatch:
    for field in ("address_suffix", "suffix_len"):
        if reader.has(field):
            raise reader.fail(field, "is not implemented, in Envoy neither")
    names = tuple(name.lower() for name in reader.values("server_names"))
    for index, name in enumerate(names):
        if "*" in name and not name.startswith("*."):
            raise reader.fail(f"server_names[{index}]", f"{name!r}: only *. in front is a wildcard")
    return FilterChainMatch(
        destination_port=reader.boxed("destination_port") or None,
        prefix_ranges=_ranges(reader, "prefix_ranges"),
        server_names=names,
        transport_protocol=reader.text("transport_protocol"),
        application_protocols=reader.values("application_protocols"),
        direct_source_prefix_ranges=_ranges(reader, "direct_source_prefix_ranges"),
        source_type=reader.enum("source_type", _SOURCE_TYPES),
        source_prefix_ranges=_ranges(reader, "source_prefix_ranges"),
        source_ports=reader.values("source_ports"),
    )


def _ranges(reader: Reader, field: str) -> tuple[CidrRange, ...]:
    return tuple(cidr_range(each) for each in reader.items(field))


def _check_overlaps(reader: Reader, chains: tuple[FilterChain, ...]) -> None:
    """Two filter chains must not be equally good for the same connection."""
    keys = [_keys(chain.match) for chain in chains]
    for index, own in enumerate(keys):
        sizes = (len(values) for values in own)
        if any(size != given for size, given in zip(sizes, _sizes(chains[index].match))):
            raise reader.fail(f"filter_chains[{index}].filter_chain_match", "a value stands twice")
        for other in range(index):
            if not any(mine.isdisjoint(theirs) for mine, theirs in zip(own, keys[other])):
                reason = f"matches the same connections as filter_chains[{other}]"
                raise reader.fail(f"filter_chains[{index}].filter_chain_match", reason)


def _keys(match: FilterChainMatch) -> tuple[frozenset[object], ...]:
    values: tuple[tuple[object, ...], ...] = (
        match.prefix_ranges,
        match.server_names,
        match.application_protocols,
        match.direct_source_prefix_ranges,
        match.source_prefix_ranges,
        match.source_ports,
    )
    single = (match.destination_port, match.transport_protocol, match.source_type)
    return (*(frozenset(each or (None,)) for each in values), *(frozenset((each,)) for each in single))


def _sizes(match: FilterChainMatch) -> tuple[int, ...]:
    values: tuple[tuple[object, ...], ...] = (
        match.prefix_ranges,
        match.server_names,
        match.application_protocols,
        match.direct_source_prefix_ranges,
        match.source_prefix_ranges,
        match.source_ports,
    )
    return (*(len(each) or 1 for each in values), 1, 1, 1)


def _unknown_listener_filter(reader: Reader) -> ResourceError | None:
    for index, entry in enumerate(reader.message.listener_filters):
        kind = entry.typed_config.type_url.rpartition("/")[2]
        if kind not in _LISTENER_FILTERS:
            return ResourceError(
                reader.at(f"listener_filters[{index}]"),
                f"the listener filter {entry.name!r} ({kind or 'no type'}) is not implemented",
            )
    return None


def _address(reader: Reader) -> str:
    """`ip:port` of the socket; empty when there is none, or it is no IP socket."""
    address = reader.message.address
    if address.WhichOneof("address") != "socket_address":
        return ""
    socket = address.socket_address
    host = f"[{socket.address}]" if ":" in socket.address else socket.address
    return f"{host}:{socket.port_value}"

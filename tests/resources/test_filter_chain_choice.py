"""The choice of a filter chain against the tables that Envoy builds: one map in another, without a way back."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from meshlib.resources.address import CidrRange, ip_address
from meshlib.resources.inbound import (
    ConnectionInfo,
    FilterChain,
    FilterChainMatch,
    InboundListener,
    SourceType,
    find_filter_chain,
)
from meshlib.resources.listener import HttpConnectionManager
from tests.snapshot.builders import ROUTER

HTTP = HttpConnectionManager(route_config_name="r", http_filters=(ROUTER,))
DEFAULT = FilterChain(name="default", http=HTTP)


@dataclass
class Table:
    """One level: what a chain wants, to the next level; a chain's name at the end."""

    entries: dict[Any, Any] = field(default_factory=dict)


LEVELS = 9


def wants(match: FilterChainMatch) -> list[tuple[Any, ...]]:
    """The keys of a match at each level; None stands for no requirement."""
    return [
        (match.destination_port,),
        match.prefix_ranges or (None,),
        match.server_names or (None,),
        (match.transport_protocol or None,),
        match.application_protocols or (None,),
        match.direct_source_prefix_ranges or (None,),
        (match.source_type,),
        match.source_prefix_ranges or (None,),
        match.source_ports or (None,),
    ]


def build(chains: Iterable[FilterChain]) -> Table | None:
    """None: two chains overlap."""
    root = Table()
    for chain in chains:
        places = [root]
        for level, keys in enumerate(wants(chain.match)):
            following = []
            for place in places:
                for key in keys:
                    if level == LEVELS - 1:
                        if key in place.entries:
                            return None
                        place.entries[key] = chain
                    else:
                        following.append(place.entries.setdefault(key, Table()))
            places = following
    return root


def candidates(connection: ConnectionInfo) -> list[Callable[[Table], Iterator[Any]]]:
    """For each level, the keys to try in order; the first that is there decides."""
    destination, source = ip_address(connection.destination), ip_address(connection.source)
    local = source is not None and (source == destination or source.is_loopback)

    def by_prefix(address: Any) -> Callable[[Table], Iterator[Any]]:
        def keys(table: Table) -> Iterator[Any]:
            found = [key for key in table.entries if key is not None and key.contains(address)]
            yield from sorted(found, key=lambda key: -key.length)
            yield None

        return keys

    def by_name(table: Table) -> Iterator[Any]:
        name = connection.server_name
        if name and not name.startswith("*."):
            yield name
        place = name.find(".", 1)
        while place != -1 and place < len(name) - 1:
            yield "*" + name[place:]
            place = name.find(".", place + 1)
        yield None

    return [
        lambda table: iter((connection.destination_port, None)),
        by_prefix(destination),
        by_name,
        lambda table: iter((connection.transport_protocol, None)),
        lambda table: iter((*connection.application_protocols, None)),
        by_prefix(source),
        lambda table: iter(
            (SourceType.SAME_IP_OR_LOOPBACK if local else SourceType.EXTERNAL, SourceType.ANY)
        ),
        by_prefix(source),
        lambda table: iter((connection.source_port, None)),
    ]


def look_up(root: Table, connection: ConnectionInfo) -> FilterChain:
    place: Any = root
    for keys in candidates(connection):
        for key in keys(place):
            if key in place.entries:
                place = place.entries[key]
                break
        else:
            return DEFAULT
    assert isinstance(place, FilterChain)
    return place


PORTS = st.sampled_from([None, 80, 443])
PREFIXES = st.lists(
    st.sampled_from(["10.0.0.0/8", "10.1.0.0/16", "10.1.1.1/32", "::/0", "fd00::/8", "127.0.0.0/8"]),
    max_size=2,
    unique=True,
).map(lambda found: tuple(CidrRange(ipaddress.ip_network(text)) for text in found))
NAMES = st.lists(st.sampled_from(["a.b.c", "b.c", "*.b.c", "*.c", "x"]), max_size=2, unique=True).map(tuple)
MATCHES = st.fixed_dictionaries(
    {},
    optional={
        "destination_port": PORTS,
        "prefix_ranges": PREFIXES,
        "server_names": NAMES,
        "transport_protocol": st.sampled_from(["tls", "raw_buffer"]),
        "application_protocols": st.sampled_from([("h2",), ("http/1.1",), ("h2", "http/1.1")]),
        "direct_source_prefix_ranges": PREFIXES,
        "source_type": st.sampled_from(SourceType),
        "source_prefix_ranges": PREFIXES,
        "source_ports": st.sampled_from([(1,), (2,), (1, 2)]),
    },
).map(lambda fields: FilterChainMatch(**fields))
ADDRESSES = st.sampled_from(["10.1.1.1", "10.1.2.3", "10.9.9.9", "127.0.0.1", "fd00::1", "::1", "192.0.2.1"])
CONNECTIONS = st.builds(
    ConnectionInfo,
    destination=ADDRESSES,
    destination_port=st.sampled_from([80, 443, 9]),
    source=ADDRESSES,
    source_port=st.sampled_from([1, 2, 3]),
    server_name=st.sampled_from(["", "a.b.c", "z.b.c", "b.c", "q.c", "x", "c"]),
    transport_protocol=st.sampled_from(["tls", "raw_buffer"]),
    application_protocols=st.lists(st.sampled_from(["h2", "http/1.1"]), max_size=2, unique=True).map(tuple),
)


@given(st.lists(MATCHES, min_size=1, max_size=6), CONNECTIONS)
@settings(max_examples=500)
def test_as_envoy_chooses(matches: list[FilterChainMatch], connection: ConnectionInfo) -> None:
    chains = [FilterChain(name=str(n), match=match, http=HTTP) for n, match in enumerate(matches)]
    table = build(chains)
    if table is None:
        return
    listener = InboundListener(name="l", filter_chains=tuple(chains), default_filter_chain=DEFAULT)
    assert find_filter_chain(listener, connection) is look_up(table, connection)

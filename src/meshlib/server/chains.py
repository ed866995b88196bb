"""A server's Listener at the moment of a snapshot: which filter chain takes a connection, and what that asks of its requests."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

from meshlib.errors import LocalReply
from meshlib.policy.rbac_request import (
    DESTINATION_IP,
    DESTINATION_PORT,
    DIRECT_IP,
    NOTHING,
    SERVER_NAME,
    SOURCE_PORT,
    TLS,
)
from meshlib.resources.inbound import ConnectionInfo, FilterChainMatch, SourceType, find_filter_chain
from meshlib.routing.path import PathAction, compile_path, redirect_to
from meshlib.routing.request import Headers
from meshlib.server.arrival import Arrival, is_grpc
from meshlib.server.authorization import ChainAuthorization
from meshlib.snapshot import Snapshot
from meshlib.stats import Registry

if TYPE_CHECKING:
    from meshlib.resources.inbound import FilterChain, InboundListener

__all__ = ["BAD_PATH", "PATH_NORMALIZATION_FAILED", "CompiledChain", "CompiledListener"]

PATH_NORMALIZATION_FAILED = "path_normalization_failed"
"""Envoy's details of a path that is refused, and of a redirect to the normal one."""

BAD_PATH = LocalReply(400, (("content-length", "0"),))
_OF_GRPC = [("content-type", "application/grpc")]

_ALWAYS_UNKNOWN = frozenset((SOURCE_PORT,))


class CompiledChain:
    """rules None: nothing is asked of requests. waits: for the RouteConfiguration, which may ask for more. normalise: what is
    done to the path first; None when nothing."""

    __slots__ = ("chain", "http", "normalise", "routes", "rules", "waits")

    rules: ChainAuthorization | None

    def __init__(
        self,
        chain: FilterChain,
        snapshot: Snapshot,
        before: CompiledChain | None,
        stats: Registry,
        random: Random,
    ) -> None:
        self.chain = chain
        self.http = chain.downstream
        name = chain.http.route_config_name
        self.routes = chain.http.route_config if name is None else snapshot.routes.get(name)
        self.waits = name is not None and self.routes is None
        self.normalise = compile_path(chain.http, "latin-1")
        if before is not None and before.chain is chain and before.routes is self.routes:
            self.rules = before.rules
            return
        made = ChainAuthorization(chain, self.routes, stats, random)
        self.rules = None if made.asks_for_nothing else made

    def enter(self, path: str, headers: Headers) -> tuple[str, LocalReply | None]:
        """The path that counts from here on; the answer, when the request goes no further for it.

        headers: of the request; a caller of gRPC follows no redirect.
        """
        if "#" in path:
            return path, BAD_PATH
        if self.normalise is None:
            return path, None
        path, action = self.normalise(path)
        if action is PathAction.CONTINUE:
            return path, None
        redirects = action is PathAction.REDIRECT and not is_grpc(headers)
        return path, redirect_to(path) if redirects else BAD_PATH


class CompiledListener:
    """A listener at the moment of a snapshot; chains that are the same keep what was compiled of them."""

    def __init__(
        self,
        listener: InboundListener,
        snapshot: Snapshot,
        before: CompiledListener | None,
        stats: Registry,
        random: Random,
    ) -> None:
        self.snapshot = snapshot
        self._listener = listener
        old = {} if before is None else before.chains
        self.chains: dict[int, CompiledChain] = {
            id(chain): CompiledChain(chain, snapshot, old.get(id(chain)), stats, random)
            for chain in listener.chains
        }
        only = listener.chains
        anything = len(only) == 1 and only[0].match == FilterChainMatch()
        self._only = self.chains[id(only[0])] if anything else None
        self._chosen_by = NOTHING.union(*(_properties(chain.match) for chain in only))

    def method(self, sent: str) -> str:
        """The normal path of a gRPC method, where all filter chains say the same; else as it was sent."""
        found = {chain.enter(sent, _OF_GRPC) for chain in self.chains.values()}
        (path, refusal), *others = found
        return sent if others or refusal is not None else path

    def find(self, arrival: Arrival, unknown: frozenset[str]) -> CompiledChain | frozenset[str] | None:
        """The filter chain that takes the connection, None when none does; or what would have to be known to say so."""
        if self._only is not None:
            return self._only
        missing = self._chosen_by & (unknown | _ALWAYS_UNKNOWN)
        if missing:
            return missing
        connection = arrival.connection
        found = find_filter_chain(
            self._listener,
            ConnectionInfo(
                destination=arrival.local or "",
                destination_port=arrival.local_port or 0,
                source=arrival.remote or "",
                server_name=connection.server_name,
                transport_protocol="tls" if connection.tls else "raw_buffer",
                application_protocols=connection.application_protocols,
            ),
        )
        return None if found is None else self.chains[id(found)]


def _properties(match: FilterChainMatch) -> frozenset[str]:
    """What this match looks at, of all that may be unknown."""
    looks_at: tuple[tuple[bool, tuple[str, ...]], ...] = (
        (match.destination_port is not None, (DESTINATION_PORT,)),
        (bool(match.prefix_ranges), (DESTINATION_IP,)),
        (bool(match.server_names), (SERVER_NAME,)),
        (bool(match.transport_protocol or match.application_protocols), (TLS,)),
        (bool(match.direct_source_prefix_ranges or match.source_prefix_ranges), (DIRECT_IP,)),
        (match.source_type is not SourceType.ANY, (DIRECT_IP, DESTINATION_IP)),
        (bool(match.source_ports), (SOURCE_PORT,)),
    )
    return frozenset(name for looks, names in looks_at if looks for name in names)

"""Kinds of clients and servers, and every case through a client of one kind to a server of another."""

from __future__ import annotations

import contextlib
import functools
import socket
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from conformance.tls.case import SILENT, TlsCase
from conformance.tls.envoy import EnvoyClients, EnvoyServers, TlsOutcome
from conformance.tls.grpc import EnvoyGrpcClients, EnvoyGrpcServers, MeshGrpcClients, MeshGrpcServers
from conformance.tls.mesh import MeshClients
from conformance.tls.mesh_servers import MeshServers

if TYPE_CHECKING:
    from conformance.tls.materials import Materials

ORACLE = "envoy-envoy"


class Clients(Protocol):
    def send(self, case: TlsCase) -> TlsOutcome:
        """One request of a case, on a connection of its own."""


class Servers(Protocol):
    @property
    def ports(self) -> Mapping[str, int]:
        """Of all cases but the silent ones."""

    def seen(self, case: TlsCase) -> Mapping[str, Any]:
        """Attributes of an outcome that the server knows."""


@dataclass(frozen=True, slots=True)
class Side:
    """One kind. fields: what it alone can say of an outcome. without: what it does not say of what all others do."""

    make: Any
    fields: frozenset[str] = frozenset()
    without: frozenset[str] = frozenset()


_COMMON = frozenset({"status", "flags", "details", "body", "transport", "client_stats", "uri_san", "xfcc"})

CLIENTS: Mapping[str, Side] = {
    "envoy": Side(EnvoyClients),
    "envoy.grpc": Side(EnvoyGrpcClients),
    "httpx": Side(MeshClients),
    "httpx.async": Side(functools.partial(MeshClients, on_asyncio=True)),
    "grpc": Side(MeshGrpcClients),
    "grpc.aio": Side(functools.partial(MeshGrpcClients, on_asyncio=True)),
}
SERVERS: Mapping[str, Side] = {
    "envoy": Side(EnvoyServers, frozenset({"server_stats", "server_transport"})),
    "envoy.grpc": Side(EnvoyGrpcServers, frozenset({"server_stats", "server_transport"})),
    "asgi": Side(MeshServers),
    "grpc": Side(MeshGrpcServers, without=frozenset({"xfcc"})),
}

PAIRS = (
    ORACLE,
    "httpx-envoy",
    "httpx.async-envoy",
    "envoy-asgi",
    "httpx-asgi",
    "httpx.async-asgi",
    "envoy.grpc-envoy.grpc",
    "grpc-envoy.grpc",
    "grpc.aio-envoy.grpc",
    "envoy.grpc-grpc",
    "grpc-grpc",
    "grpc.aio-grpc",
)
"""CLIENT-SERVER. The first is what the others are held against."""


def fields(pair: str) -> frozenset[str]:
    """What is compared of this pair's outcomes."""
    client, _, server = pair.partition("-")
    sides = CLIENTS[client], SERVERS[server]
    return (_COMMON | sides[0].fields | sides[1].fields) - sides[0].without - sides[1].without


def run(pair: str, cases: Iterable[TlsCase], materials: Materials) -> list[tuple[TlsCase, TlsOutcome]]:
    """Every case by this pair. Raises EnvoyError."""
    client, _, server = pair.partition("-")
    cases = list(cases)
    with contextlib.ExitStack() as stack:
        servers: Servers = stack.enter_context(SERVERS[server].make(cases, materials))
        ports = {**servers.ports, **stack.enter_context(silent_servers(cases))}
        clients: Clients = stack.enter_context(CLIENTS[client].make(cases, materials, ports))
        found = []
        for case in cases:
            outcome = clients.send(case)
            if case.server != SILENT:
                outcome = replace(outcome, **servers.seen(case))
            found.append((case, outcome))
        return found


@contextlib.contextmanager
def silent_servers(cases: Iterable[TlsCase]) -> Iterator[dict[str, int]]:
    """A port that accepts and never says a word, for each case that wants one."""
    with contextlib.ExitStack() as stack:
        ports = {}
        for case in cases:
            if case.server == SILENT:
                listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
                ports[case.name] = listener.getsockname()[1]
        yield ports

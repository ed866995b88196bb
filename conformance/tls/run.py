"""Runs of the TLS cases: clients of one kind against servers of another."""

from __future__ import annotations

import contextlib
import socket
from dataclasses import replace
from typing import TYPE_CHECKING

from conformance.tls.case import SILENT, TlsCase
from conformance.tls.envoy import EnvoyClients, EnvoyServers, TlsOutcome

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from conformance.tls.materials import Materials


def envoy_to_envoy(cases: Iterable[TlsCase], materials: Materials) -> list[tuple[TlsCase, TlsOutcome]]:
    """Every case through an Envoy to an Envoy, with what both say. Raises EnvoyError."""
    cases = list(cases)
    with contextlib.ExitStack() as stack:
        servers = stack.enter_context(EnvoyServers(cases, materials))
        ports = {**servers.ports, **stack.enter_context(silent_servers(cases))}
        clients = stack.enter_context(EnvoyClients(cases, materials, ports))
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

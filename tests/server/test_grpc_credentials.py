"""What C-core is told of rotations."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from cryptography import x509

from meshlib.identity.material import BundleSet, TrustBundle
from meshlib.identity.source import IdentityUpdate
from meshlib.server.grpc import credentials
from meshlib.server.inbound import Inbound
from tests.identity.ca import TestCA
from tests.server.identities import CLIENT, Identities, client_context, identities


def test_c_core_is_told_once_of_each_rotation(monkeypatch: pytest.MonkeyPatch) -> None:
    """It frees the certificate that it had, whoever uses it: telling it at each handshake crashed servers."""
    asked: list[Callable[[], object]] = []
    monkeypatch.setattr(
        grpc, "dynamic_ssl_server_credentials", lambda _first, changed, _require: asked.append(changed)
    )
    with identities() as known:
        credentials(Inbound(known.mesh))
        (changed,) = asked
        assert changed() is None
        known.source.turn(known.update())
        assert isinstance(changed(), grpc.ServerCertificateConfiguration)
        assert changed() is None


def test_c_core_is_told_of_trust_in_more_peers(tmp_path: Path) -> None:
    new = TestCA("td.example")
    with identities() as known, ThreadPoolExecutor(1) as executor:
        server = grpc.server(executor)
        port = server.add_secure_port("127.0.0.1:0", credentials(Inbound(known.mesh)))
        server.start()
        own = known.update().svids
        accepted = []
        for roots in ((known.ca,), (known.ca, new)):
            bundle = TrustBundle("td.example", [root.der for root in roots])
            known.source.turn(IdentityUpdate(svids=own, bundles=BundleSet([bundle])))
            accepted.append(_accepts(port, new, known.ca, tmp_path))
        assert accepted == [False, True]
        server.stop(None).wait()


def _accepts(port: int, issuer: TestCA, roots: TestCA, folder: Path) -> bool:
    """Whether the port takes a caller with a certificate of this issuer."""
    context = client_context(folder, roots, issuer.issue(CLIENT))
    context.set_alpn_protocols(["h2"])
    with socket.create_connection(("127.0.0.1", port), timeout=10) as raw:
        try:
            with context.wrap_socket(raw) as secure:
                return bool(secure.recv(1))  # its settings
        except (ssl.SSLError, ConnectionResetError):
            return False


def shown(port: int, known: Identities, folder: Path) -> int:
    """The serial number of the certificate that the port shows."""
    context = client_context(folder, known.ca, known.ca.issue(CLIENT))
    context.set_alpn_protocols(["h2"])
    with socket.create_connection(("127.0.0.1", port), timeout=10) as raw:
        with context.wrap_socket(raw) as secure:
            der = secure.getpeercert(binary_form=True)
    assert der is not None
    return x509.load_der_x509_certificate(der).serial_number


def check_rotation(ports: list[int], known: Identities, folder: Path) -> None:
    """Every port shows the new certificate, whichever is asked first."""
    for order in (ports, ports[::-1]):
        before = {shown(port, known, folder) for port in order}
        assert len(before) == 1
        known.source.turn(known.update())
        after = [shown(port, known, folder) for port in order]
        assert len(set(after)) == 1
        assert before.isdisjoint(after)


def test_the_same_credentials_for_several_ports_and_servers(tmp_path: Path) -> None:
    with identities() as known, ThreadPoolExecutor(1) as executor:
        shared = credentials(Inbound(known.mesh))
        servers = [grpc.server(executor) for _ in range(2)]
        ports = [server.add_secure_port("127.0.0.1:0", shared) for server in servers for _ in range(2)]
        for server in servers:
            server.start()
        check_rotation(ports, known, tmp_path)
        for server in servers:
            server.stop(None).wait()


def test_the_same_credentials_for_two_ports_of_an_asyncio_server(tmp_path: Path) -> None:
    async def run(known: Identities) -> None:
        shared = credentials(Inbound(known.mesh))
        server = grpc.aio.server()
        ports = [server.add_secure_port("127.0.0.1:0", shared) for _ in range(2)]
        await server.start()
        await asyncio.to_thread(check_rotation, ports, known, tmp_path)
        await server.stop(None)

    with identities() as known:
        asyncio.run(run(known))

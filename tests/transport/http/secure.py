"""TLS for these tests: an identity, clusters that want it, and servers that speak it."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from meshlib.identity.material import BundleSet, Svid, TrustBundle
from meshlib.identity.source import IdentityUpdate
from meshlib.identity.store import IdentityStore
from meshlib.resources.matching import StringKind, StringMatch
from meshlib.resources.tls import (
    CertificateValidation,
    CommonTls,
    SanMatch,
    SanType,
    TlsCertificate,
    TlsVersion,
    UpstreamTls,
)
from tests.identity.ca import Issued, TestCA
from tests.transport.http.support import (
    OK,
    FakeMesh,
    Script,
    Server,
    mesh_for,
    read_request,
    serve,
)

__all__ = ["CLIENT", "SERVER", "Source", "World", "again_until", "server_context"]

SERVER = "spiffe://td.example/ns/a/sa/srv"
CLIENT = "spiffe://td.example/ns/a/sa/cli"


def again_until(call: Callable[[], Any], condition: Callable[[], bool]) -> None:
    """Call again and again, until it is so: what happens in the background of asyncio happens during calls."""
    pause = threading.Event()
    for _ in range(2000):
        call()
        if condition():
            return
        pause.wait(0.005)
    raise AssertionError("it does not become true")


class Source:
    """An IdentitySource that gives what it is told to give."""

    def __init__(self) -> None:
        self.tell: Callable[[IdentityUpdate], None] | None = None
        self.closed = False

    def start(self, on_update: Callable[[IdentityUpdate], None]) -> None:
        self.tell = on_update

    def close(self) -> None:
        self.closed = True

    def give(self, own: Issued, *authorities: TestCA) -> None:
        assert self.tell is not None
        svid = Svid.from_pem(own.chain, own.key)
        bundle = TrustBundle("td.example", tuple(each.der for each in authorities), 1)
        self.tell(IdentityUpdate(svids=(svid,), bundles=BundleSet([bundle])))


def server_context(
    ca: TestCA,
    issued: Issued,
    *,
    alpn: Sequence[str] = (),
    maximum: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
    verify: ssl.VerifyMode = ssl.CERT_REQUIRED,
) -> ssl.SSLContext:
    """What a server needs that wants to see a certificate of the CA."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with TemporaryDirectory() as name:
        path = Path(name, "pem")
        path.write_bytes(issued.key + issued.chain)
        context.load_cert_chain(path)
    context.load_verify_locations(cadata=ca.pem.decode())
    context.verify_mode = verify
    context.maximum_version = maximum
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context


@dataclass
class Seen:
    """What a server has seen: application bytes, and how its handshakes failed. peers: the certificates (DER) of clients."""

    data: list[bytes] = field(default_factory=list)
    failures: list[Exception] = field(default_factory=list)
    peers: list[bytes | None] = field(default_factory=list)
    names: list[str | None] = field(default_factory=list)
    protocols: list[str | None] = field(default_factory=list)
    failed: threading.Event = field(default_factory=threading.Event)


@dataclass
class World:
    """A trust domain with a client and a server in it.

    gate: while it is not set, servers do not go on with handshakes. refuses: they end them.
    """

    ca: TestCA = field(default_factory=TestCA)
    seen: Seen = field(default_factory=Seen)
    gate: threading.Event = field(default_factory=threading.Event)
    refuses: bool = False

    def __post_init__(self) -> None:
        self.gate.set()
        self.client = self.ca.issue(CLIENT)
        self.server = self.ca.issue(SERVER)
        self.store = IdentityStore()

    def tls(
        self,
        *,
        san: str = SERVER,
        roots: bytes | None = None,
        certificate: Issued | None = None,
        shows: bool = True,
        maximum: TlsVersion = TlsVersion.TLS_AUTO,
        alpn: tuple[str, ...] = (),
        **options: Any,
    ) -> UpstreamTls:
        """A client's configuration that trusts the CA, expects the name and shows the client's certificate."""
        own = certificate or self.client
        return UpstreamTls(
            common=CommonTls(
                maximum=maximum,
                alpn=alpn,
                certificates=(TlsCertificate(chain=own.chain, private_key=own.key),) if shows else (),
                validation=CertificateValidation(
                    trusted_ca=roots or self.ca.pem,
                    match_sans=(
                        SanMatch(san_type=SanType.URI, match=StringMatch(kind=StringKind.EXACT, value=san)),
                    ),
                ),
            ),
            **options,
        )

    def mesh(self, *ports: int, tls: UpstreamTls | None = None, **options: Any) -> FakeMesh:
        return mesh_for(ports, tls=tls or self.tls(), secure=self.store.client, **options)

    @contextmanager
    def serve(
        self, script: Script | bytes = OK, context: ssl.SSLContext | None = None, **options: Any
    ) -> Iterator[Server]:
        """A server on 127.0.0.1 that speaks TLS: script gets the TLS socket, bytes answer each request.

        options: of server_context.
        """
        context = context or server_context(self.ca, self.server, **options)
        seen = self.seen

        def named(_tls: ssl.SSLObject, name: str | None, _context: ssl.SSLContext) -> int | None:
            seen.names.append(name)
            self.gate.wait(20)
            return ssl.ALERT_DESCRIPTION_HANDSHAKE_FAILURE if self.refuses else None

        context.sni_callback = named

        open_sockets: list[ssl.SSLSocket] = []

        def run(sock: Any, number: int) -> None:
            try:
                tls = context.wrap_socket(sock, server_side=True)
            except (ssl.SSLError, OSError) as error:
                seen.failures.append(error)
                seen.failed.set()
                return
            open_sockets.append(tls)
            with tls:
                seen.peers.append(tls.getpeercert(True))
                seen.protocols.append(tls.selected_alpn_protocol())
                try:
                    if callable(script):
                        script(tls, number)
                        return
                    while request := read_request(tls):
                        seen.data.append(request)
                        tls.sendall(script)
                    with suppress(OSError, ValueError):
                        tls.unwrap()
                except (ssl.SSLError, OSError) as error:
                    seen.failures.append(error)
                    seen.failed.set()

        with serve(run) as server:
            try:
                yield server
            finally:
                for tls in open_sockets:
                    with suppress(OSError):
                        socket.socket.shutdown(
                            tls, socket.SHUT_RDWR
                        )  # SSLSocket's own would go on in plaintext

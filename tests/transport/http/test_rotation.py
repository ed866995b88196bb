"""Connections while certificates, bundles and transport sockets are exchanged."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from meshlib import errors
from meshlib.httpx import MeshTransport
from meshlib.identity.store import IdentityStore
from meshlib.resources.cluster import Cluster, HttpProtocol
from meshlib.resources.tls import CertificateValidation, CommonTls, ProviderInstance, UpstreamTls
from tests.identity.ca import Issued, TestCA
from tests.transport.http.drivers import Driver
from tests.transport.http.h2_server import H2Server
from tests.transport.http.secure import CLIENT, Source, World, server_context
from tests.transport.http.support import OK, FakeMesh, mesh_for, read_request, serve

TLS = UpstreamTls(
    common=CommonTls(
        certificate_provider=ProviderInstance(instance_name="own"),
        validation=CertificateValidation(ca_provider=ProviderInstance(instance_name="own")),
    )
)


class Rotating(World):
    """A World whose client's identity comes from a source."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.source = Source()
        self.store = IdentityStore(self.source)
        self.store.start()
        self.source.give(self.client, self.ca)

    def rotating_mesh(self, *ports: int, **options: Any) -> FakeMesh:
        mesh = mesh_for(ports, tls=TLS, secure=self.store.client, **options)
        self.store.subscribe(mesh.engine.rotated)
        return mesh

    def renew(self) -> Issued:
        """A new certificate for the client."""
        issued = self.ca.issue(CLIENT)
        self.source.give(issued, self.ca)
        return issued


@pytest.fixture
def world() -> Iterator[Rotating]:
    made = Rotating()
    yield made
    made.store.close()


@pytest.mark.usefixtures("exchanged_at_once")
def test_new_calls_take_the_new_certificate(driver: Driver, world: Rotating) -> None:
    with world.serve() as server:
        driver.open(world.rotating_mesh(server.port))
        driver.get()
        second = world.renew()
        driver.get()
        driver.get()
        driver.close_client()
    assert world.seen.peers == [world.client.der, second.der]


@pytest.mark.usefixtures("exchanged_late")
def test_a_renewed_certificate_is_for_new_connections_first(driver: Driver, world: Rotating) -> None:
    """Calls go on over what is open, for a while; each new handshake shows it."""
    with world.serve() as server:
        mesh = world.rotating_mesh(server.port)
        driver.open(mesh)
        driver.get()
        second = world.renew()
        driver.get()
        assert world.seen.peers == [world.client.der]
        world.renew()
        third = world.renew()
        driver.get()
        driver.close_client()
        driver.open(mesh)
        driver.get()
        driver.close_client()
    assert second.der not in world.seen.peers
    assert world.seen.peers == [world.client.der, third.der]


@pytest.mark.usefixtures("exchanged_at_once")
def test_an_idle_connection_is_closed_at_once(world: Rotating) -> None:
    ended = threading.Event()

    def script(sock: Any, _number: int) -> None:
        read_request(sock)
        sock.sendall(OK)
        assert sock.recv(100) == b""
        ended.set()

    with world.serve(script) as server:
        mesh = world.rotating_mesh(server.port)
        with httpx.Client(transport=MeshTransport(mesh)) as client:
            client.get("http://backend/")
            world.renew()
            assert ended.wait(10)
            assert mesh.permits() == (0, 0, 0, 0)


@pytest.mark.usefixtures("exchanged_at_once")
def test_what_runs_is_not_cut_and_its_connection_is_used_no_more(driver: Driver, world: Rotating) -> None:
    def script(sock: Any, number: int) -> None:
        while read_request(sock):
            sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\nhalf")
            if number == 0:
                world.renew()
            sock.sendall(b"full")

    with world.serve(script) as server:
        mesh = world.rotating_mesh(server.port)
        driver.open(mesh)
        assert driver.get().text == "halffull"
        assert driver.idle() == 0
        assert driver.get().text == "halffull"
        assert driver.idle() == 1
        driver.close_client()
    assert server.accepted == 2


@pytest.mark.usefixtures("exchanged_at_once")
def test_streams_of_one_http2_connection(driver: Driver, world: Rotating) -> None:
    with world.serve(H2Server(), alpn=("h2",)) as server:
        driver.open(world.rotating_mesh(server.port, protocol=HttpProtocol.HTTP2))
        driver.get()
        driver.get()
        second = world.renew()
        driver.get()
        driver.close_client()
    assert world.seen.peers == [world.client.der, second.der]


def test_a_renewal_elsewhere_disturbs_nobody(driver: Driver, world: Rotating) -> None:
    """The cluster has a certificate of its own."""
    with world.serve() as server:
        mesh = world.mesh(server.port)
        world.store.subscribe(mesh.engine.rotated)
        driver.open(mesh)
        driver.get()
        world.renew()
        driver.get()
        driver.close_client()
    assert server.accepted == 1


def test_the_root_is_exchanged(driver: Driver, world: Rotating) -> None:
    """Old, both, new: no call fails, and the old authority is worth nothing in the end."""
    new = TestCA()
    both = server_context(world.ca, world.server)
    both.load_verify_locations(cadata=new.pem.decode())
    with world.serve(context=both) as server:
        driver.open(world.rotating_mesh(server.port))
        assert driver.get().status_code == 200
        world.source.give(world.client, world.ca, new)
        assert driver.get().status_code == 200
        world.source.give(new.issue(CLIENT), new)
        with pytest.raises(errors.IdentityError):
            driver.get()
        driver.close_client()
    assert server.accepted == 3


def test_a_trust_domain_that_is_trusted_no_more(driver: Driver, world: Rotating) -> None:
    """An open connection to it does not survive either."""
    with world.serve() as server:
        driver.open(world.rotating_mesh(server.port))
        assert driver.get().status_code == 200
        world.source.give(world.client, TestCA())
        with pytest.raises(errors.IdentityError):
            driver.get()
        driver.close_client()
    assert len(world.seen.data) == 1


# --- from plaintext to TLS -------------------------------------------------------------------------------------------


def turn_to(mesh: FakeMesh, tls: UpstreamTls | None) -> None:
    """Publish the same configuration with this transport socket."""
    from dataclasses import replace

    snapshot = mesh.engine.program.snapshot
    cluster: Cluster = replace(snapshot.clusters["backend"], tls=tls)
    mesh.engine.publish(replace(snapshot, clusters={"backend": cluster}))


class Plain:
    """A server without TLS, which hangs up on whoever speaks something else. requests: what it has answered."""

    def __init__(self) -> None:
        self.requests: list[bytes] = []

    def __call__(self, sock: socket.socket, _number: int) -> None:
        while (data := sock.recv(65536)).startswith(b"GET "):
            self.requests.append(data)
            sock.sendall(OK)


def test_a_plaintext_connection_is_not_used_once_tls_is_asked_for(driver: Driver, world: Rotating) -> None:
    """The endpoint speaks plaintext only: after the push every call must fail, the idle connection notwithstanding."""
    plain = Plain()
    with serve(plain) as server:
        mesh = mesh_for([server.port], secure=world.store.client)
        driver.open(mesh)
        assert driver.get().status_code == 200
        turn_to(mesh, TLS)
        for _ in range(2):
            with pytest.raises(errors.ConnectFailed):
                driver.get()
        turn_to(mesh, None)
        assert driver.get().status_code == 200
        driver.close_client()
    assert len(plain.requests) == 2


def test_not_one_call_goes_out_in_plaintext_after_the_push(world: Rotating) -> None:
    """Eight threads call all the time, and the queue of the endpoint is never empty."""
    plain, pushed = Plain(), threading.Event()
    with serve(plain) as server:
        mesh = mesh_for([server.port], secure=world.store.client, max_connections=2)
        good, refusals = threading.Semaphore(0), [0] * 8

        def work(number: int) -> None:
            with httpx.Client(transport=MeshTransport(mesh)) as client:
                while refusals[number] < 20:
                    word = "after-the-push" if pushed.is_set() else "before"
                    try:
                        client.get(f"http://backend/{word}")
                        good.release()
                    except errors.ConnectFailed:
                        refusals[number] += 1

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for _ in range(200):
            assert good.acquire(timeout=10)
        turn_to(mesh, TLS)
        pushed.set()
        for thread in threads:
            thread.join(20)
        assert mesh.permits() == (0, 0, 0, 0)
    assert refusals == [20] * 8
    assert not any(b"after-the-push" in request for request in plain.requests)

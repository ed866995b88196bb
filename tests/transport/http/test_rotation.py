"""Connections while certificates, bundles and transport sockets are exchanged."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from meshlib import errors
from meshlib.httpx import MeshTransport
from meshlib.identity.store import IdentityStore
from meshlib.resources.cluster import Cluster, HttpProtocol
from meshlib.resources.tls import CertificateValidation, CommonTls, ProviderInstance, UpstreamTls
from meshlib.state import ClusterStats
from meshlib.transport.http.pool import PooledConnection
from meshlib.transport.http.pools import pools_of
from tests.identity.ca import Issued, TestCA
from tests.transport.http.drivers import Driver
from tests.transport.http.h2_server import H2Server
from tests.transport.http.secure import CLIENT, Source, World, again_until, server_context
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


def members(mesh: FakeMesh) -> list[PooledConnection]:
    """Every connection that is open."""
    pools = pools_of(mesh.engine)
    return [each for pool in (pools.sync, *pools._by_loop.values()) for each in pool.members]


def _nothing() -> None:
    """For `again_until`."""


def _failing(driver: Driver) -> Callable[[], None]:
    """A call that is refused."""

    def call() -> None:
        with pytest.raises(errors.IdentityError):
            driver.get()

    return call


def _expired(connection: PooledConnection) -> bool:
    return connection.expires <= connection.pool.monotonic()


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
        again_until(driver.get, lambda: len(world.seen.peers) == 2)
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
        driver.close_client()
        driver.open(mesh)
        driver.get()
        driver.close_client()
    assert world.seen.peers == [world.client.der, second.der]


@pytest.mark.usefixtures("exchanged_late")
def test_no_connection_in_use_is_more_than_one_rotation_old(driver: Driver, world: Rotating) -> None:
    with world.serve() as server:
        driver.open(world.rotating_mesh(server.port))
        driver.get()
        world.renew()
        driver.get()
        third = world.renew()
        again_until(driver.get, lambda: len(world.seen.peers) == 2)
        driver.close_client()
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
            again_until(_nothing, lambda: mesh.permits() == (0, 0, 0, 0))


class Halves:
    """Answers in two halves; `between` is called between those of the first answer."""

    def __init__(self, between: Callable[[], None]) -> None:
        self._between: Callable[[], None] | None = between
        self.requests: list[bytes] = []

    def __call__(self, sock: Any, _number: int) -> None:
        while request := read_request(sock):
            self.requests.append(request)
            sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\nhalf")
            between, self._between = self._between, None
            if between is not None:
                between()
            sock.sendall(b"full")


class LateAnswer(H2Server):
    """HTTP/2; `between` is called between the first request and its answer."""

    def __init__(self, between: Callable[[], None]) -> None:
        super().__init__()
        self._between: Callable[[], None] | None = between

    def _answer(self, *arguments: Any) -> bool:
        between, self._between = self._between, None
        if between is not None:
            between()
        return super()._answer(*arguments)


class Exchange:
    """A connection that is in use while its certificate is renewed, so that it has a successor.

    held: the successor's handshake is held up until `world.gate` is set.
    """

    script: Halves | LateAnswer

    def __init__(self, driver: Driver, world: Rotating, *, held: bool) -> None:
        self.driver, self.world, self.held = driver, world, held

    def open(self, port: int, **options: Any) -> None:
        self.mesh = self.world.rotating_mesh(port, **options)
        self.driver.open(self.mesh)
        self.call()

    def renew(self) -> None:
        """While the call is under way: until the successor has begun its handshake, or has taken the connection's place."""
        if self.held:
            self.world.gate.clear()
        self.renewed = self.world.renew()
        if self.held:
            again_until(_nothing, lambda: len(self.world.seen.names) == 2)
        else:
            again_until(_nothing, lambda: any(map(_expired, members(self.mesh))))

    @property
    def stats(self) -> ClusterStats:
        return self.mesh.engine.store.cluster("backend").stats

    def call(self) -> None:
        assert self.driver.get().text in ("halffull", "hello")


@contextlib.contextmanager
def exchanging(
    driver: Driver,
    world: Rotating,
    protocol: HttpProtocol = HttpProtocol.HTTP1,
    *,
    held: bool,
    **options: Any,
) -> Iterator[Exchange]:
    """One call has been made, during which the certificate was renewed."""
    multiplexed = protocol is HttpProtocol.HTTP2
    exchange = Exchange(driver, world, held=held)
    exchange.script = LateAnswer(exchange.renew) if multiplexed else Halves(exchange.renew)
    with world.serve(exchange.script, alpn=("h2",) if multiplexed else ()) as server:
        exchange.open(server.port, protocol=protocol, **options)
        yield exchange
        driver.close_client()
        world.gate.set()


BOTH = pytest.mark.parametrize("protocol", [HttpProtocol.HTTP1, HttpProtocol.HTTP2], ids=["http1", "http2"])


@pytest.mark.usefixtures("exchanged_at_once")
def test_what_runs_is_not_cut_and_its_connection_is_used_no_more(driver: Driver, world: Rotating) -> None:
    with exchanging(driver, world, held=False) as exchange:
        assert exchange.mesh.permits() == (1, 0, 0, 0)
        assert driver.idle() == 1
        exchange.call()
        assert driver.idle() == 1
    assert world.seen.peers == [world.client.der, exchange.renewed.der]


@BOTH
@pytest.mark.usefixtures("exchanged_at_once")
def test_no_call_waits_for_the_handshake_of_a_successor(
    driver: Driver, world: Rotating, protocol: HttpProtocol
) -> None:
    """Until it is over, calls go on over the predecessor."""
    with exchanging(driver, world, protocol, held=True) as exchange:
        for _ in range(3):
            exchange.call()
        assert world.seen.peers == [world.client.der]
        assert exchange.mesh.permits() == (2, 0, 0, 0)
        world.gate.set()
        again_until(exchange.call, lambda: exchange.mesh.permits()[0] == 1)
        exchange.call()
        assert exchange.stats.upstream_cx_total.value == 2
    assert world.seen.peers == [world.client.der, exchange.renewed.der]


@pytest.mark.usefixtures("exchanged_at_once")
def test_where_a_successor_would_be_one_too_many(driver: Driver, world: Rotating) -> None:
    """The next call opens a connection, and waits for it."""
    with exchanging(driver, world, held=False, max_connections=1) as exchange:
        again_until(_nothing, lambda: exchange.mesh.permits() == (0, 0, 0, 0))
        exchange.call()
        assert exchange.mesh.permits() == (1, 0, 0, 0)
    assert world.seen.peers == [world.client.der, exchange.renewed.der]


@BOTH
@pytest.mark.usefixtures("exchanged_at_once")
def test_a_successor_whose_handshake_fails(driver: Driver, world: Rotating, protocol: HttpProtocol) -> None:
    """Calls go on over the predecessor until the next renewal, and open a connection then."""
    with exchanging(driver, world, protocol, held=True) as exchange:
        world.refuses = True
        world.gate.set()
        again_until(exchange.call, lambda: exchange.stats.upstream_cx_connect_fail.value == 1)
        exchange.call()
        assert world.seen.peers == [world.client.der]
        assert exchange.mesh.permits() == (1, 0, 0, 0)
        world.refuses = False
        third = world.renew()
        again_until(exchange.call, lambda: len(world.seen.peers) == 2)
    assert world.seen.peers == [world.client.der, third.der]
    assert exchange.stats.upstream_cx_connect_timeout.value == 0


@pytest.mark.usefixtures("exchanged_at_once")
def test_a_successor_whose_handshake_takes_too_long(driver: Driver, world: Rotating) -> None:
    with exchanging(driver, world, held=True, connect_timeout=0.2) as exchange:
        again_until(exchange.call, lambda: exchange.stats.upstream_cx_connect_timeout.value == 1)
        exchange.call()
        assert exchange.mesh.permits() == (1, 0, 0, 0)
    assert world.seen.peers == [world.client.der]
    assert exchange.stats.upstream_cx_connect_fail.value == 1


@BOTH
@pytest.mark.usefixtures("exchanged_at_once")
def test_a_client_that_is_closed_with_a_successor_under_way(
    driver: Driver, world: Rotating, protocol: HttpProtocol
) -> None:
    with exchanging(driver, world, protocol, held=True) as exchange:
        assert exchange.mesh.permits() == (2, 0, 0, 0)
        driver.close_client()
        assert exchange.mesh.permits() == (0, 0, 0, 0)
    assert exchange.stats.upstream_cx_connect_fail.value == 0


@BOTH
@pytest.mark.usefixtures("exchanged_at_once")
def test_what_is_trusted_changes_while_a_successor_shakes_hands(
    driver: Driver, world: Rotating, protocol: HttpProtocol
) -> None:
    """Neither it nor its predecessor takes another call."""
    with exchanging(driver, world, protocol, held=True) as exchange:
        world.source.give(world.client, TestCA())
        world.gate.set()
        again_until(_failing(driver), lambda: exchange.mesh.permits() == (0, 0, 0, 0))
        assert len(exchange.script.requests) == 1


@pytest.mark.usefixtures("exchanged_at_once")
def test_streams_of_one_http2_connection(driver: Driver, world: Rotating) -> None:
    with world.serve(H2Server(), alpn=("h2",)) as server:
        driver.open(world.rotating_mesh(server.port, protocol=HttpProtocol.HTTP2))
        driver.get()
        driver.get()
        second = world.renew()
        again_until(driver.get, lambda: len(world.seen.peers) == 2)
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
    """Old, both, new: no call fails, and the old authority is worth nothing in the end. Trust in both closes no connection."""
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
    assert server.accepted == 2


@BOTH
def test_a_root_that_no_connection_needs_is_withdrawn(
    driver: Driver, world: Rotating, protocol: HttpProtocol
) -> None:
    """The last step of a root rotation, some time after the others."""
    two = protocol is HttpProtocol.HTTP2
    with world.serve(H2Server() if two else OK, alpn=("h2",) if two else ()) as server:
        world.source.give(world.client, TestCA(), world.ca)
        driver.open(world.rotating_mesh(server.port, protocol=protocol))
        assert driver.get().status_code == 200
        world.source.give(world.client, world.ca)
        assert driver.get().status_code == 200
        driver.close_client()
    assert server.accepted == 1


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

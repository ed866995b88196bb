"""HTTP over TLS, against real handshakes: what arrives, what must never leave, and how it ends."""

from __future__ import annotations

import socket
import ssl
import struct
import threading
import time
from typing import Any

import pytest

from meshlib import errors
from meshlib.resources.cluster import HttpProtocol
from meshlib.resources.route import BackOff, RetryPolicy
from meshlib.resources.tls import TlsVersion, TransportSocketMatch
from tests.identity.ca import TestCA
from tests.transport.http.drivers import Driver
from tests.transport.http.h2_server import H2Server
from tests.transport.http.secure import CLIENT, SERVER, World
from tests.transport.http.support import OK, info, read_request, response, serve

RESET = "TLS_error:|33554536:system_library:OPENSSL_internal:Connection_reset_by_peer:TLS_error_end"
VERSIONS = (TlsVersion.TLSv1_2, TlsVersion.TLSv1_3)


@pytest.fixture
def world() -> World:
    return World()


def refused(driver: Driver, kind: type[errors.MeshError] = errors.ConnectFailed) -> errors.MeshError:
    """A call fails as if the connection could not be opened."""
    with pytest.raises(kind) as caught:
        driver.get("/secret")
    assert isinstance(caught.value, driver.lib.ConnectError)
    error: errors.MeshError = caught.value
    assert error.local_reply is not None
    assert (error.flags, error.local_reply.status) == ("UF", 503)
    assert error.local_reply.body.endswith(b"reset reason: remote connection failure")
    return error


@pytest.mark.parametrize("version", VERSIONS)
def test_a_call(driver: Driver, world: World, version: TlsVersion) -> None:
    with world.serve() as server:
        driver.open(world.mesh(server.port, tls=world.tls(maximum=version)))
        for _ in range(3):
            assert driver.get().text == "hello"
        assert driver.idle() == 1
        driver.close_client()
    assert server.accepted == 1
    assert len(world.seen.data) == 3
    assert world.seen.peers == [world.client.der]
    assert world.seen.protocols == [None]


def test_alpn_follows_the_protocol_unless_the_configuration_names_some(driver: Driver, world: World) -> None:
    with world.serve(alpn=("h2", "http/1.1", "own")) as server:
        driver.open(world.mesh(server.port))
        driver.get()
        driver.close_client()
        driver.open(world.mesh(server.port, tls=world.tls(alpn=("own", "h2"))))
        driver.get()
        driver.close_client()
    assert world.seen.protocols == ["http/1.1", "h2"]


@pytest.mark.parametrize("alpn", [("h2",), ("other",), ()])
def test_http2_is_spoken_whatever_the_peer_picks(driver: Driver, world: World, alpn: tuple[str, ...]) -> None:
    def script(sock: Any, _number: int) -> None:
        H2Server()(sock, 0)

    with world.serve(script, alpn=alpn) as server:
        tls = world.tls(alpn=alpn if alpn == ("other",) else ())
        driver.open(world.mesh(server.port, tls=tls, protocol=HttpProtocol.HTTP2))
        for _ in range(2):
            assert driver.get().http_version == "HTTP/2"
        driver.close_client()
    assert server.accepted == 1


def test_large_bodies_in_both_directions(driver: Driver, world: World) -> None:
    body = bytes(range(256)) * 12_000

    def script(sock: Any, _number: int) -> None:
        request = read_request(sock)
        sock.sendall(response(request.partition(b"\r\n\r\n")[2]))

    with world.serve(script) as server:
        driver.open(world.mesh(server.port))
        answer = driver.request("POST", "/", content=body)
        assert answer.content == body


def test_a_streamed_upload(driver: Driver, world: World) -> None:
    with world.serve() as server:
        driver.open(world.mesh(server.port))
        answer = driver.request("POST", "/", content=driver.body([b"one", b"two" * 50_000, b"three"]))
        assert answer.status_code == 200
    assert world.seen.data[0].endswith(b"5\r\nthree\r\n0\r\n\r\n")


# --- who is not talked to --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_another_name(driver: Driver, world: World, version: TlsVersion) -> None:
    with world.serve() as server:
        driver.open(world.mesh(server.port, tls=world.tls(san="spiffe://td.example/other", maximum=version)))
        error = refused(driver, errors.IdentityError)
        assert isinstance(error, driver.mod.IdentityError)
        assert error.expected is not None
        assert "spiffe://td.example/other" in error.expected
        assert SERVER in error.details
        assert "CERTIFICATE_VERIFY_FAILED" in error.details
        assert counted(driver) == {"fail_verify_san": 1}
    assert world.seen.data == []


@pytest.mark.parametrize("version", VERSIONS)
def test_what_the_wrong_peer_says_is_not_heard(driver: Driver, world: World, version: TlsVersion) -> None:
    """It answers before it is asked, in the same breath as the end of the handshake."""

    def script(sock: Any, _number: int) -> None:
        for _ in range(20):
            sock.sendall(OK)

    with world.serve(script) as server:
        driver.open(world.mesh(server.port, tls=world.tls(san="spiffe://td.example/other", maximum=version)))
        for _ in range(3):
            refused(driver, errors.IdentityError)


@pytest.mark.parametrize("version", VERSIONS)
def test_another_authority(driver: Driver, world: World, version: TlsVersion) -> None:
    stranger = TestCA()
    with world.serve() as server:
        driver.open(world.mesh(server.port, tls=world.tls(roots=stranger.pem, maximum=version)))
        error = refused(driver, errors.IdentityError)
        assert "CERTIFICATE_VERIFY_FAILED:verify_cert_failed:_X509_verify_cert" in error.details
        assert counted(driver) == {"fail_verify_error": 1}
        assert world.seen.failed.wait(10)
    assert world.seen.data == []


def test_a_server_that_speaks_plaintext(driver: Driver, world: World) -> None:
    received: list[bytes] = []

    def script(sock: socket.socket, _number: int) -> None:
        received.append(sock.recv(65536))
        sock.sendall(OK)

    with serve(script) as server:
        driver.open(world.mesh(server.port))
        assert "WRONG_VERSION_NUMBER" in refused(driver).details
        assert counted(driver) == {"connection_error": 1}
    assert len(received) == 1
    assert b"secret" not in received[0]


def test_a_server_that_closes_or_resets_in_the_handshake(driver: Driver, world: World) -> None:
    def script(sock: socket.socket, number: int) -> None:
        sock.recv(65536)
        if number % 2:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    with serve(script) as server:
        driver.open(world.mesh(server.port))
        details = [refused(driver).details for _ in range(2)]
        assert counted(driver) == {}  # as Envoy
    assert details == [
        "upstream_reset_before_response_started{remote_connection_failure}",
        f"upstream_reset_before_response_started{{remote_connection_failure|{RESET}}}",
    ]


def test_one_deadline_for_tcp_and_tls(driver: Driver, world: World) -> None:
    go = threading.Event()

    def script(_sock: socket.socket, _number: int) -> None:
        go.wait(20)

    with serve(script) as server:
        driver.open(world.mesh(server.port, connect_timeout=0.1))
        with pytest.raises(errors.ConnectTimedOut) as caught:
            driver.get()
        assert isinstance(caught.value, driver.lib.ConnectTimeout)
        assert caught.value.details.endswith("{connection_timeout}")
        go.set()


@pytest.mark.parametrize("version", VERSIONS)
def test_a_server_that_wants_a_certificate(driver: Driver, world: World, version: TlsVersion) -> None:
    """With TLS 1.3 the handshake is over for us before the server says no: the connection ends, as Envoy has it."""
    with world.serve() as server:
        driver.open(world.mesh(server.port, tls=world.tls(shows=False, maximum=version)))
        if version is TlsVersion.TLSv1_2:
            assert "SSLV3_ALERT_HANDSHAKE_FAILURE" in refused(driver).details
        else:
            with pytest.raises(errors.StreamReset) as caught:
                driver.get()
            assert caught.value.flags == "UC"
            assert caught.value.details.endswith("{connection_termination}")
    assert world.seen.data == []


def test_a_handshake_that_fails_is_retried_as_configured(driver: Driver, world: World) -> None:
    retry = RetryPolicy(
        retry_on=frozenset(["connect-failure"]), num_retries=1, back_off=BackOff(base_interval=0.001)
    )
    with world.serve() as good, serve(lambda sock, _: None) as bad:
        driver.open(world.mesh(bad.port, good.port, retry=retry))
        answers = [driver.get() for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert max(len(info(answer).attempts) for answer in answers) == 2


def test_nothing_to_show(driver: Driver, world: World) -> None:
    """The certificate is over: not even a connection is opened."""
    with world.serve() as server:
        old = world.ca.issue(CLIENT, starts=-100.0, lifetime=-10.0)
        driver.open(world.mesh(server.port, tls=world.tls(certificate=old)))
        error = refused(driver, errors.IdentityError)
        assert isinstance(error, errors.IdentityError)
        assert error.not_after == old.not_after
    assert server.accepted == 0


def test_a_refused_certificate_is_retried_only_by_reset(driver: Driver, world: World) -> None:
    """TLS 1.3: the request has left when the alert comes, so it is no `connect-failure`."""
    retry: dict[str, Any] = {"num_retries": 1, "back_off": BackOff(base_interval=0.001)}
    tls = world.tls(shows=False, maximum=TlsVersion.TLSv1_3)
    tried = []
    with world.serve() as server:
        for word in ("connect-failure", "reset"):
            policy = RetryPolicy(retry_on=frozenset([word]), **retry)
            driver.open(world.mesh(server.port, tls=tls, retry=policy))
            with pytest.raises(errors.StreamReset) as caught:
                driver.get()
            tried.append(len(caught.value.attempts))
            driver.close_client()
    assert tried == [1, 2]


# --- the end of a connection -----------------------------------------------------------------------------------------


def test_a_body_until_the_end_needs_a_goodbye(driver: Driver, world: World) -> None:
    """RFC 9112, 9.8: whoever cuts the connection must not be able to cut the body."""

    def script(sock: Any, number: int) -> None:
        read_request(sock)
        sock.sendall(b"HTTP/1.1 200 OK\r\n\r\nas far as it goes")
        if number:
            sock.settimeout(5.0)
            sock.unwrap()

    with world.serve(script) as server:
        driver.open(world.mesh(server.port))
        with pytest.raises(errors.StreamReset) as caught:
            driver.get()
        assert caught.value.flags == "UC"
        assert driver.get().text == "as far as it goes"


def test_a_body_with_a_length_is_cut(driver: Driver, world: World) -> None:
    def script(sock: Any, number: int) -> None:
        read_request(sock)
        sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\npart")
        if number:
            sock.settimeout(5.0)
            sock.unwrap()

    with world.serve(script) as server:
        driver.open(world.mesh(server.port))
        for _ in range(2):
            with pytest.raises(errors.ProtocolViolation):
                driver.get()


def test_records_that_are_no_records(driver: Driver, world: World) -> None:
    def script(sock: Any, _number: int) -> None:
        read_request(sock)
        with socket.socket(fileno=sock.detach()) as raw:
            raw.sendall(b"\x17\x03\x03\x00\x20" + b"x" * 32)

    with world.serve(script) as server:
        driver.open(world.mesh(server.port))
        with pytest.raises(errors.StreamReset) as caught:
            driver.get()
        assert caught.value.flags == "UC"


def test_an_idle_connection_that_the_peer_closed_is_not_used(driver: Driver, world: World) -> None:
    closed = threading.Event()

    def script(sock: Any, _number: int) -> None:
        read_request(sock)
        sock.sendall(OK)
        if not closed.is_set():
            socket.socket(fileno=sock.detach()).close()
            closed.set()
            return
        read_request(sock)

    with world.serve(script) as server:
        driver.open(world.mesh(server.port))
        assert driver.get().status_code == 200
        assert closed.wait(10)
        assert driver.get().status_code == 200
        driver.close_client()
    assert server.accepted == 2


def test_we_say_goodbye(driver: Driver, world: World) -> None:
    ends: list[bytes] = []

    def script(sock: Any, _number: int) -> None:
        read_request(sock)
        sock.sendall(OK)
        ends.append(sock.recv(100))  # raises SSLEOFError without a close_notify

    context_errors = world.seen.failures
    with world.serve(script) as server:
        driver.open(world.mesh(server.port))
        assert driver.get().status_code == 200
        driver.close_client()
    assert (ends, context_errors) == ([b""], [])


def test_renegotiation_is_switched_off(world: World) -> None:
    context = world.store.client(world.tls()).handshake().context
    assert context.options & ssl.OP_NO_RENEGOTIATION


# --- how a connection is made ----------------------------------------------------------------------------------------


def test_endpoints_are_connected_to_as_their_metadata_says(driver: Driver, world: World) -> None:
    """Istio's auto mTLS: TLS where the endpoint has a sidecar, plaintext elsewhere."""
    match = TransportSocketMatch(name="tls", match={"tlsMode": "istio"}, tls=world.tls())
    options: dict[str, Any] = {"transport_socket_matches": (match,)}
    with world.serve() as server, serve() as plain:
        driver.open(world.mesh(server.port, tls=None, metadata={"tlsMode": "istio"}, **options))
        assert driver.get().status_code == 200
        driver.close_client()
        driver.open(plain_mesh(world, plain.port, **options))
        assert driver.get().status_code == 200
        driver.close_client()
    assert (len(world.seen.data), len(plain.received)) == (1, 1)


def plain_mesh(world: World, port: int, **options: Any) -> Any:
    from tests.transport.http.support import mesh_for

    return mesh_for([port], secure=world.store.client, **options)


def test_the_sni(driver: Driver, world: World) -> None:
    with world.serve() as server:
        driver.open(world.mesh(server.port, tls=world.tls(sni="srv.example")))
        driver.get()
        driver.close_client()
    assert world.seen.names == ["srv.example"]


def test_a_connection_with_the_name_of_one_request_serves_no_other(driver: Driver, world: World) -> None:
    with world.serve() as server:
        driver.open(world.mesh(server.port, tls=world.tls(auto_sni=True)))
        for host in ("a.example", "b.example", "a.example", "b.example:8080"):
            assert driver.get("http://backend/", headers={"host": host}).status_code == 200
        driver.close_client()
    assert world.seen.names == ["a.example", "b.example", "b.example"]


def test_a_connection_is_not_used_after_its_certificate(driver: Driver, world: World) -> None:
    """The pool's clock moves; the store still finds the certificate good, as after a renewal that changed nothing else."""
    with world.serve() as server:
        mesh = world.mesh(server.port)
        driver.open(mesh)
        assert driver.get().status_code == 200
        for connection in members(driver):
            assert connection.expires == pytest.approx(time.monotonic() + 3600, abs=60)
            connection.expires = time.monotonic()
        assert driver.get().status_code == 200
        driver.close_client()
    assert server.accepted == 2


def counted(driver: Driver) -> dict[str, int]:
    """The counters `cluster.backend.ssl.*`."""
    engine = driver.transport._shell._engine  # type: ignore[attr-defined]
    prefix = "cluster.backend.ssl."
    return {
        metric.name.removeprefix(prefix): metric.value
        for metric in engine.store.registry
        if metric.name.startswith(prefix)
    }


def members(driver: Driver) -> list[Any]:
    """The open connections."""
    pools = driver.transport._shell._pools  # type: ignore[attr-defined]
    return [each for pool in (pools.sync, *pools._by_loop.values()) for each in pool.members]

"""Calls over TLS, blocking and asyncio: what is allowed, what is refused, and what is said about it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
from collections.abc import Callable
from concurrent import futures
from typing import Any

import grpc
import grpc.aio
import pytest

import meshlib
import meshlib.grpc
from tests.identity.ca import TestCA
from tests.ports import reserved
from tests.transport.grpc.secure.world import CLIENT, OTHER, World, terminator
from tests.transport.grpc.support import backend, config, mesh_for

ECHO = "/test.Echo/echo"
WHO = "/test.Echo/who"
HEAD = "upstream_reset_before_response_started"

Call = Callable[..., bytes]
"""call(mesh, method, request, **options): the response of one unary call on a channel of its own."""


def _sync(mesh: meshlib.Mesh, method: str, request: bytes, **options: Any) -> bytes:
    with meshlib.grpc.channel("echo:80", mesh=mesh) as channel:
        answer: bytes = channel.unary_unary(method)(request, timeout=10, **options)
        return answer


def _future(mesh: meshlib.Mesh, method: str, request: bytes, **options: Any) -> bytes:
    with meshlib.grpc.channel("echo:80", mesh=mesh) as channel:
        answer: bytes = channel.unary_unary(method).future(request, timeout=10, **options).result()
        return answer


def _aio(mesh: meshlib.Mesh, method: str, request: bytes, **options: Any) -> bytes:
    async def run() -> bytes:
        async with meshlib.grpc.aio_channel("echo:80", mesh=mesh) as channel:
            answer: bytes = await channel.unary_unary(method)(request, timeout=10, **options)
            return answer

    return asyncio.run(run())


@pytest.fixture(params=[_sync, _future, _aio], ids=["sync", "future", "aio"])
def call(request: pytest.FixtureRequest) -> Call:
    made: Call = request.param
    return made


def refused(call: Call, document: dict[str, Any]) -> Any:
    with mesh_for(document) as mesh, pytest.raises(grpc.RpcError) as caught:
        call(mesh, ECHO, b"secret words")
    return caught.value


def told(error: Any) -> str:
    """Envoy's response code details."""
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    details: str = error.meshlib.details
    return details


class Listener:
    """Takes connections; `first` is what each has sent first, after TLS when there is a context. failures: of the handshakes."""

    def __init__(self, context: ssl.SSLContext | None = None, *, says: bytes | None = b"") -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._context = context
        self._says = says
        self.first: list[bytes] = []
        self.failures: list[Exception] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._socket.getsockname()[1]}"

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                plain = self._socket.accept()[0]
                plain.settimeout(5)
                with contextlib.closing(plain):
                    self._serve(plain)

    def _serve(self, plain: socket.socket) -> None:
        try:
            if self._context is None:
                if self._says is None:
                    self.first.append(plain.recv(1 << 16))
                    self._over.wait(10)
                else:
                    plain.sendall(self._says)
                    self.first.append(plain.recv(1 << 16))
                return
            with self._context.wrap_socket(plain, server_side=True) as secure:
                self.first.append(secure.recv(1 << 16))
        except OSError as error:
            self.failures.append(error)

    def __enter__(self) -> Listener:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()


def test_both_sides_know_each_other(world: World, call: Call) -> None:
    with world.backend() as server, mesh_for(config(server.address, cluster=world.cluster())) as mesh:
        assert call(mesh, WHO, b"") == CLIENT.encode()
        assert call(mesh, ECHO, b"hello") == b"hello"


def test_large_messages(world: World, call: Call) -> None:
    request = bytes(range(256)) * (3 << 12)
    with world.backend() as server, mesh_for(config(server.address, cluster=world.cluster())) as mesh:
        assert call(mesh, ECHO, request) == request


@pytest.mark.parametrize("maximum", ["TLSv1_2", "TLSv1_3"])
def test_another_server_than_expected(world: World, call: Call, maximum: str) -> None:
    """It gets no byte of the call, not even the preface of HTTP/2."""
    with Listener(world.context()) as listener:
        cluster = world.cluster(OTHER, maximum=maximum)
        error = refused(call, config(listener.address, cluster=cluster))
    assert isinstance(error, meshlib.IdentityError)
    assert told(error).startswith(f"{HEAD}{{remote_connection_failure|TLS_error:|268435581:")
    assert "SAN_matcher" in told(error)
    assert b"".join(listener.first) == b""


def test_a_server_of_another_ca(world: World, call: Call) -> None:
    with Listener(world.context()) as listener:
        error = refused(call, config(listener.address, cluster=world.cluster(ca=TestCA("td.example"))))
    assert isinstance(error, meshlib.IdentityError)
    assert "CERTIFICATE_VERIFY_FAILED" in told(error)
    assert listener.first == []
    assert "UNKNOWN_CA" in str(listener.failures[0])


def test_a_server_that_speaks_plaintext(world: World, call: Call) -> None:
    with Listener(says=b"HTTP/1.1 400 Bad Request\r\n\r\n") as listener:
        error = refused(call, config(listener.address, cluster=world.cluster()))
    assert error.flags == "UF"
    assert "WRONG_VERSION_NUMBER" in told(error)
    assert not any(b"PRI" in first for first in listener.first)


def test_a_server_that_waits(world: World, call: Call) -> None:
    with Listener(says=None) as listener:
        cluster = {**world.cluster(), "connect_timeout": "0.2s"}
        error = refused(call, config(listener.address, cluster=cluster))
    assert isinstance(error, meshlib.ConnectTimedOut)
    assert told(error) == f"{HEAD}{{connection_timeout}}"


def test_nobody_listens(world: World, call: Call) -> None:
    with reserved() as port:
        error = refused(call, config(f"127.0.0.1:{port}", cluster=world.cluster()))
    assert isinstance(error, meshlib.ConnectFailed)
    assert told(error) == (f"{HEAD}{{remote_connection_failure|delayed_connect_error:_Connection_refused}}")


@pytest.mark.parametrize(
    ("maximum", "flags", "words"),
    [("TLSv1_2", "UF", "HANDSHAKE_FAILURE"), ("TLSv1_3", "UC", "connection_termination")],
)
def test_without_a_certificate_of_our_own(
    world: World, call: Call, maximum: str, flags: str, words: str
) -> None:
    """With TLS 1.3 the handshake is over for the client before the server says no."""
    with Listener(world.context()) as listener:
        error = refused(call, config(listener.address, cluster=world.cluster(shows=False, maximum=maximum)))
    assert (error.flags, words in told(error)) == (flags, True)
    assert listener.first == []


def test_a_server_that_speaks_no_http2(world: World, call: Call) -> None:
    with Listener(world.context(alpn=("http/1.1",))) as listener:
        error = refused(call, config(listener.address, cluster=world.cluster()))
    assert isinstance(error, meshlib.IdentityError)
    assert error.expected == "ALPN h2"
    assert b"".join(listener.first) == b""


def _bearer(context: Any, callback: Any) -> None:
    callback((("authorization", "Bearer token"),), None)


def test_call_credentials_travel_over_tls(world: World, call: Call) -> None:
    credentials = grpc.metadata_call_credentials(_bearer)
    with world.backend() as server, mesh_for(config(server.address, cluster=world.cluster())) as mesh:
        assert call(mesh, ECHO, b"x", credentials=credentials) == b"x"
        assert server.seen[0][1]["authorization"] == "Bearer token"


def test_call_credentials_do_not_travel_in_plaintext(call: Call) -> None:
    credentials = grpc.metadata_call_credentials(_bearer)
    with backend() as server, mesh_for(config(server.address)) as mesh:
        with pytest.raises((grpc.RpcError, grpc.aio.UsageError)) as caught:
            call(mesh, ECHO, b"x", credentials=credentials)
        assert "secur" in str(caught.value)
        assert server.seen == []


def test_plaintext_only_where_the_configuration_says_so(world: World, call: Call) -> None:
    """transport_socket_matches: the endpoint whose metadata asks for TLS gets it, the other one is reached in plaintext."""
    matches = [{"name": "tls", "match": {"mode": "mutual"}, "transport_socket": world.socket()}]
    with world.backend() as secure, backend() as open_server:
        document = config(secure.address, open_server.address)
        by_kind = {item["@type"].rpartition(".")[2]: item for item in document["resources"]}
        by_kind["Cluster"]["transport_socket_matches"] = matches
        first = by_kind["ClusterLoadAssignment"]["endpoints"][0]["lb_endpoints"][0]
        first["metadata"] = {"filter_metadata": {"envoy.transport_socket_match": {"mode": "mutual"}}}
        with mesh_for(document) as mesh:
            for _ in range(4):
                assert call(mesh, ECHO, b"x") == b"x"
        assert secure.methods()
        assert open_server.methods()


@pytest.fixture
def names() -> Callable[[], set[str]]:
    before = set(threading.enumerate())
    return lambda: {thread.name for thread in set(threading.enumerate()) - before}


def test_no_thread_without_tls(names: Callable[[], set[str]]) -> None:
    with backend() as server, mesh_for(config(server.address)) as mesh:
        assert _sync(mesh, ECHO, b"x") == b"x"
        assert not any(name.startswith("meshlib-grpc-") for name in names())


@pytest.mark.parametrize("aio", [False, True], ids=["sync", "aio"])
def test_a_connection_that_is_lost_in_a_call(world: World, aio: bool) -> None:
    """The same as in plaintext: the connection was terminated, and the next call makes another one."""
    with backend() as server:
        reached, go_on = threading.Event(), threading.Event()

        def hang(request: bytes, _context: grpc.ServicerContext) -> bytes:
            reached.set()
            go_on.wait(10)
            return request

        server.unary("hang", hang)
        with contextlib.ExitStack() as stack:
            front = stack.enter_context(terminator(world.context(), server.port))
            document = config(f"127.0.0.1:{front}", cluster=world.cluster())
            with mesh_for(document) as mesh:
                method = "/test.Echo/hang"
                failing: futures.Future[Any] = futures.Future()

                def run() -> None:
                    try:
                        failing.set_result((_aio if aio else _sync)(mesh, method, b"x"))
                    except Exception as error:  # noqa: BLE001 - looked at below
                        failing.set_exception(error)

                thread = threading.Thread(target=run)
                thread.start()
                assert reached.wait(10)
                stack.close()
                error: Any = failing.exception(timeout=10)
                thread.join()
        go_on.set()
    assert isinstance(error, meshlib.StreamReset)
    assert error.flags == "UC"


def test_a_header_that_should_name_the_endpoint_is_refused(world: World, call: Call) -> None:
    """Calls with other values of it would share the connection: rather none than one to the wrong name."""
    with Listener(world.context()) as listener:
        socket_ = world.socket(auto_host_sni=False)
        options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
        protocol = {
            "@type": f"type.googleapis.com/{options}",
            "upstream_http_protocol_options": {"auto_sni": True, "override_auto_sni_header": "x-name"},
            "explicit_http_config": {"http2_protocol_options": {}},
        }
        cluster = {"transport_socket": socket_, "typed_extension_protocol_options": {options: protocol}}
        error = refused(call, config(listener.address, cluster=cluster))
    assert isinstance(error, meshlib.IdentityError)
    assert listener.first == []
    assert listener.failures == []

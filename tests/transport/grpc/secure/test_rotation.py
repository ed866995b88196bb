"""Certificates, bundles and transport sockets that are exchanged while channels are in use."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import grpc
import pytest

import meshlib
import meshlib.grpc
from meshlib.identity.client import ClientSecurity
from meshlib.identity.material import BundleSet, Svid, TrustBundle
from meshlib.identity.source import IdentityUpdate
from meshlib.testing import messages, serve
from meshlib.transport.grpc.endpoints import EndpointChannels
from tests.identity.ca import Issued, TestCA
from tests.transport.grpc.secure.world import CLIENT, SERVER, World
from tests.transport.grpc.support import backend, config

ECHO = "/test.Echo/echo"
SERIAL = "/test.Echo/serial"
TALK = "/test.Echo/talk"
CALLER = "/test.Echo/caller"
LIMIT = 10


class Source:
    """An IdentitySource that gives what it is told to give."""

    def __init__(self) -> None:
        self._tell: Callable[[IdentityUpdate], None] | None = None
        self._latest: IdentityUpdate | None = None

    def start(self, on_update: Callable[[IdentityUpdate], None]) -> None:
        self._tell = on_update
        if self._latest is not None:
            on_update(self._latest)

    def close(self) -> None:
        self._tell = None

    def give(self, own: Issued, *authorities: TestCA) -> None:
        bundle = TrustBundle("td.example", tuple(each.der for each in authorities), 1)
        svid = Svid.from_pem(own.chain, own.key)
        self._latest = IdentityUpdate(svids=(svid,), bundles=BundleSet([bundle]))
        if self._tell is not None:
            self._tell(self._latest)


def _serial(_request: bytes, context: grpc.ServicerContext) -> bytes:
    """The certificate that the caller has shown."""
    shown: bytes = context.auth_context()["x509_pem_cert"][0]
    return shown


def _talk(requests: Iterator[bytes], _context: grpc.ServicerContext) -> Iterator[bytes]:
    yield from requests


def _socket() -> dict[str, Any]:
    instance = {"instance_name": "own"}
    return {
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            "common_tls_context": {
                "tls_certificate_provider_instance": instance,
                "validation_context": {
                    "ca_certificate_provider_instance": instance,
                    "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"exact": SERVER}}],
                },
            },
        },
    }


class Rotating(World):
    def __init__(self) -> None:
        super().__init__()
        self.source = Source()
        self.source.give(self.client, self.ca)

    def renew(self) -> Issued:
        """A new certificate for the client."""
        issued = self.ca.issue(CLIENT)
        self.source.give(issued, self.ca)
        return issued

    @contextlib.contextmanager
    def mesh(self, **cluster: Any) -> Iterator[meshlib.Mesh]:
        """cluster: more fields of it."""
        with self.backend() as server:
            server.unary("serial", _serial)
            server.unary("caller", _caller)
            server.stream_stream("talk", _talk)
            document = config(server.address, cluster={"transport_socket": _socket(), **cluster})
            with meshlib.Mesh(config=[document], identity=self.source) as mesh:
                yield mesh


@pytest.fixture
def rotating() -> Rotating:
    return Rotating()


@pytest.mark.usefixtures("exchanged_at_once")
def test_new_calls_show_the_new_certificate(rotating: Rotating) -> None:
    with rotating.mesh() as mesh, meshlib.grpc.channel("echo:80", mesh=mesh) as channel:
        serial = channel.unary_unary(SERIAL)
        assert serial(b"", timeout=LIMIT) == rotating.client.chain
        for _ in range(3):
            issued = rotating.renew()
            _await(partial(_shows, serial, issued))
            assert serial.future(b"", timeout=LIMIT).result() == issued.chain


@pytest.mark.usefixtures("exchanged_at_once")
def test_new_calls_show_the_new_certificate_in_asyncio(rotating: Rotating) -> None:
    async def run() -> None:
        with rotating.mesh() as mesh:
            async with meshlib.grpc.aio_channel("echo:80", mesh=mesh) as channel:
                serial = channel.unary_unary(SERIAL)
                assert await serial(b"", timeout=LIMIT) == rotating.client.chain
                for _ in range(3):
                    issued = rotating.renew()
                    while await serial(b"", timeout=LIMIT) != issued.chain:
                        await asyncio.sleep(0.005)

    asyncio.run(run())


def _held(mesh: meshlib.Mesh) -> int:
    state = mesh.engine.store.cluster("echo")
    return sum(endpoint.connections for endpoint in state.endpoints.values())


def _shows(serial: Any, issued: Issued) -> bool:
    """A call is made with this certificate."""
    shown: bytes = serial(b"", timeout=LIMIT)
    return shown == issued.chain


def _await(condition: Callable[[], bool]) -> None:
    pause = threading.Event()
    for _ in range(2000):
        if condition():
            return
        pause.wait(0.005)
    pytest.fail("it does not become true")


@pytest.mark.usefixtures("exchanged_late")
def test_a_renewed_certificate_is_for_new_connections_first(rotating: Rotating) -> None:
    """Calls go on over what is open, for a while."""
    with rotating.mesh() as mesh:
        with meshlib.grpc.channel("echo:80", mesh=mesh) as channel:
            serial = channel.unary_unary(SERIAL)
            for _ in range(3):
                assert serial(b"", timeout=LIMIT) == rotating.client.chain
                rotating.renew()
            issued = rotating.renew()
        with meshlib.grpc.channel("echo:80", mesh=mesh) as channel:
            assert channel.unary_unary(SERIAL)(b"", timeout=LIMIT) == issued.chain


@pytest.mark.usefixtures("exchanged_late")
def test_a_renewed_certificate_is_for_new_connections_first_in_asyncio(rotating: Rotating) -> None:
    async def run() -> None:
        with rotating.mesh() as mesh:
            async with meshlib.grpc.aio_channel("echo:80", mesh=mesh) as channel:
                serial = channel.unary_unary(SERIAL)
                for _ in range(3):
                    assert await serial(b"", timeout=LIMIT) == rotating.client.chain
                    rotating.renew()
                issued = rotating.renew()
            async with meshlib.grpc.aio_channel("echo:80", mesh=mesh) as channel:
                assert await channel.unary_unary(SERIAL)(b"", timeout=LIMIT) == issued.chain

    asyncio.run(run())


@pytest.mark.usefixtures("exchanged_at_once")
def test_what_runs_is_not_cut(rotating: Rotating) -> None:
    """A stream goes on over its old connection, which closes with it; calls beside it take a new one."""
    with rotating.mesh() as mesh, meshlib.grpc.channel("echo:80", mesh=mesh) as channel:
        serial = channel.unary_unary(SERIAL)
        more = threading.Event()

        def requests() -> Iterator[bytes]:
            yield b"first"
            more.wait(LIMIT)
            yield b"second"

        responses = channel.stream_stream(TALK)(requests(), timeout=3 * LIMIT)
        assert next(responses) == b"first"
        issued = rotating.renew()
        _await(partial(_shows, serial, issued))
        assert _held(mesh) == 2
        more.set()
        assert list(responses) == [b"second"]
        _await(lambda: _held(mesh) == 1)


@pytest.mark.usefixtures("exchanged_at_once")
def test_what_runs_is_not_cut_in_asyncio(rotating: Rotating) -> None:
    async def run() -> None:
        with rotating.mesh() as mesh:
            async with meshlib.grpc.aio_channel("echo:80", mesh=mesh) as channel:
                talk = channel.stream_stream(TALK)(timeout=3 * LIMIT)
                await talk.write(b"first")
                assert await talk.read() == b"first"
                issued = rotating.renew()
                while await channel.unary_unary(SERIAL)(b"", timeout=LIMIT) != issued.chain:
                    await asyncio.sleep(0.005)
                assert _held(mesh) == 2
                await talk.write(b"second")
                assert await talk.read() == b"second"
                await talk.done_writing()
                assert await talk.read() is grpc.aio.EOF
                while _held(mesh) > 1:
                    await asyncio.sleep(0.005)

    asyncio.run(run())


@pytest.mark.usefixtures("exchanged_at_once")
def test_many_rotations_under_load(rotating: Rotating) -> None:
    """No call fails, whatever is exchanged meanwhile."""
    failures: list[BaseException] = []
    stop = threading.Event()
    made = [0]

    with rotating.mesh() as mesh, meshlib.grpc.channel("echo:80", mesh=mesh) as channel:

        def busy() -> None:
            echo = channel.unary_unary(ECHO)
            try:
                while not stop.is_set():
                    assert echo(b"x", timeout=LIMIT) == b"x"
                    made[0] += 1
            except BaseException as error:  # noqa: BLE001 - told by the main thread
                failures.append(error)

        threads = [threading.Thread(target=busy) for _ in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(20):
            seen = made[0]
            rotating.renew()
            while made[0] < seen + 10 and not failures:
                stop.wait(0.001)
        stop.set()
        for thread in threads:
            thread.join()
    assert failures == []


def test_a_bundle_without_the_servers_authority(rotating: Rotating) -> None:
    with rotating.mesh() as mesh, meshlib.grpc.channel("echo:80", mesh=mesh) as channel:
        echo = channel.unary_unary(ECHO)
        echo(b"", timeout=LIMIT)
        rotating.source.give(rotating.client, TestCA("td.example"))
        with pytest.raises(meshlib.IdentityError):
            echo(b"", timeout=LIMIT)
        rotating.source.give(rotating.client, rotating.ca, TestCA("td.example"))
        assert echo(b"again", timeout=LIMIT) == b"again"


def _caller(_request: bytes, context: grpc.ServicerContext) -> bytes:
    """The connection that the call came over."""
    return str(context.peer()).encode()


@pytest.mark.parametrize("aio", [False, True], ids=["sync", "aio"])
def test_a_root_that_no_connection_needs_is_withdrawn(rotating: Rotating, aio: bool) -> None:
    """The last step of a root rotation, some time after the others: calls go on over what is open."""
    rotating.source.give(rotating.client, TestCA("td.example"), rotating.ca)
    found = []
    with rotating.mesh() as mesh:
        if aio:

            async def run() -> None:
                async with meshlib.grpc.aio_channel("echo:80", mesh=mesh) as channel:
                    call = channel.unary_unary(CALLER)
                    found.append(await call(b"", timeout=LIMIT))
                    rotating.source.give(rotating.client, rotating.ca)
                    found.append(await call(b"", timeout=LIMIT))

            asyncio.run(run())
        else:
            with meshlib.grpc.channel("echo:80", mesh=mesh) as channel:
                call = channel.unary_unary(CALLER)
                found.append(call(b"", timeout=LIMIT))
                rotating.source.give(rotating.client, rotating.ca)
                found.append(call(b"", timeout=LIMIT))
    assert found[0] == found[1]


class Ending:
    """A handshake whose own certificate is over in a moment."""

    def __init__(self, handshake: Any) -> None:
        self._handshake = handshake
        self.not_after = time.time() + 0.2

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handshake, name)


@pytest.mark.parametrize("aio", [False, True], ids=["sync", "aio"])
def test_a_connection_whose_certificate_is_over_takes_no_new_calls(
    rotating: Rotating, aio: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = ClientSecurity.handshake
    begun = []

    def handshake(self: ClientSecurity, **names: Any) -> Any:
        begun.append(1)
        return Ending(original(self, **names)) if len(begun) == 1 else original(self, **names)

    monkeypatch.setattr(ClientSecurity, "handshake", handshake)
    with rotating.mesh() as mesh:
        if aio:

            async def run() -> None:
                async with meshlib.grpc.aio_channel("echo:80", mesh=mesh) as channel:
                    echo = channel.unary_unary(ECHO)
                    await echo(b"", timeout=LIMIT)
                    while _held(mesh):
                        await asyncio.sleep(0.005)
                    await echo(b"", timeout=LIMIT)

            asyncio.run(run())
        else:
            with meshlib.grpc.channel("echo:80", mesh=mesh) as channel:
                echo = channel.unary_unary(ECHO)
                echo(b"", timeout=LIMIT)
                _await(lambda: _held(mesh) == 0)
                echo(b"", timeout=LIMIT)
    assert len(begun) == 2


def test_a_server_that_comes_back(rotating: Rotating) -> None:
    """A connection that was lost is not used again: another one is made, with another handshake."""
    with rotating.backend() as server:
        document = config(server.address, cluster={"transport_socket": _socket()})
        with (
            meshlib.Mesh(config=[document], identity=rotating.source) as mesh,
            meshlib.grpc.channel("echo:80", mesh=mesh) as channel,
        ):
            echo = channel.unary_unary(ECHO)
            for _ in range(3):
                assert echo(b"x", timeout=LIMIT) == b"x"
                port = server.port
                server.stop()
                with pytest.raises(grpc.RpcError):
                    echo(b"x", timeout=LIMIT)
                server.start(port)
                assert echo(b"x", timeout=LIMIT) == b"x"


def test_no_call_takes_a_plaintext_connection_once_tls_is_asked_for(rotating: Rotating) -> None:
    """Not one, with calls under way while the configuration changes."""
    failures: list[BaseException] = []

    def busy(echo: Any) -> None:
        """Until the first call fails, as each does when TLS meets a server without."""
        try:
            while True:
                echo(b"x", timeout=LIMIT)
        except Exception as error:  # noqa: BLE001 - looked at by the main thread
            failures.append(error)

    with (
        backend() as server,
        serve(config(server.address)) as plane,
        meshlib.Mesh(bootstrap=plane.bootstrap("test")) as mesh,
        meshlib.grpc.channel("echo:80", mesh=mesh) as channel,
    ):
        echo = channel.unary_unary(ECHO)
        threads = [threading.Thread(target=busy, args=(echo,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        _await(lambda: len(server.seen) > 20)
        plane.store.replace(messages(config(server.address, cluster=rotating.cluster())))
        for thread in threads:
            thread.join()
        seen = len(server.seen)
        for _ in range(3):
            with pytest.raises(meshlib.ConnectFailed):
                echo(b"", timeout=LIMIT)
        assert len(server.seen) == seen
    assert [type(error).__bases__[1] for error in failures] == [meshlib.ConnectFailed] * 4


def test_a_channel_that_is_dropped_leaves_nothing(rotating: Rotating) -> None:
    with rotating.mesh() as mesh:
        channel = meshlib.grpc.channel("echo:80", mesh=mesh)
        channel.unary_unary(ECHO)(b"", timeout=LIMIT)
        _, channels = channel.opened()
        assert isinstance(channels, EndpointChannels)
        del channel, channels
        gc.collect()


def test_closing_twice(rotating: Rotating) -> None:
    with rotating.mesh() as mesh:
        channel = meshlib.grpc.channel("echo:80", mesh=mesh)
        channel.unary_unary(ECHO)(b"", timeout=LIMIT)
        channel.close()
        channel.close()
        with pytest.raises(ValueError, match="closed"):
            channel.unary_unary(ECHO)(b"", timeout=LIMIT)

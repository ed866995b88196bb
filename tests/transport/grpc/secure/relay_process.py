"""A process whose gRPC channels use the relay: `python -m ... MODE`. It exits with 0 when all is as it should be.

C-core reads its bootstrap for the whole process, so these can't run in the process of the other tests. At its end it prints the
folder that its relay had.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

import meshlib
import meshlib.grpc
from meshlib import proto
from meshlib.policy import rotation
from meshlib.transport.grpc import relay, relay_hub, relay_resources, tunnel_loop
from tests.identity.ca import TestCA
from tests.ports import reserved
from tests.transport.grpc.secure.test_calls import Call, Listener, told
from tests.transport.grpc.secure.test_rotation import CALLER, SERIAL, Source, _caller, _serial, _socket
from tests.transport.grpc.secure.world import CLIENT, OTHER, World
from tests.transport.grpc.support import config, mesh_for

ECHO = "/test.Echo/echo"
WHO = "/test.Echo/who"
PATIENCE = 10.0


def sync_call(mesh: meshlib.Mesh, method: str, request: bytes, **options: Any) -> bytes:
    with meshlib.grpc.channel("echo:80", mesh=mesh, tls="relay") as channel:
        answer: bytes = channel.unary_unary(method)(request, timeout=10, **options)
        return answer


def future_call(mesh: meshlib.Mesh, method: str, request: bytes, **options: Any) -> bytes:
    with meshlib.grpc.channel("echo:80", mesh=mesh, tls="relay") as channel:
        answer: bytes = channel.unary_unary(method).future(request, timeout=10, **options).result()
        return answer


def aio_call(mesh: meshlib.Mesh, method: str, request: bytes, **options: Any) -> bytes:
    async def run() -> bytes:
        async with meshlib.grpc.aio_channel("echo:80", mesh=mesh, tls="relay") as channel:
            answer: bytes = await channel.unary_unary(method)(request, timeout=10, **options)
            return answer

    return asyncio.run(run())


CALLS: tuple[Call, ...] = (sync_call, future_call, aio_call)


def eventually(true: Callable[[], object], what: str) -> None:
    until = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < until, what
        threading.Event().wait(0.01)


def refused(document: dict[str, Any]) -> Iterator[Any]:
    """The error of each kind of call."""
    for call in CALLS:
        with mesh_for(document) as mesh, pytest.raises(grpc.RpcError) as caught:
            call(mesh, ECHO, b"secret words")
        yield caught.value


def key_files() -> list[Path]:
    hub = relay_hub.the_hub()
    return sorted(hub._folder.rglob("*.pem"))


# --- what works -------------------------------------------------------------------------------------------------------


def both_sides_know_each_other(world: World) -> None:
    large = bytes(range(256)) * (3 << 12)
    for call in CALLS:
        with world.backend() as server, mesh_for(config(server.address, cluster=world.cluster())) as mesh:
            assert call(mesh, WHO, b"") == CLIENT.encode()
            assert call(mesh, ECHO, large) == large


def no_certificate_of_our_own(world: World) -> None:
    with (
        world.backend(require=False) as server,
        mesh_for(config(server.address, cluster=world.cluster(shows=False))) as mesh,
    ):
        for call in CALLS:
            assert call(mesh, WHO, b"") == b""
            assert key_files() == []


def a_required_certificate_that_is_not_there(world: World) -> None:
    """TLS 1.3: the handshake is over for the client before the server says no."""
    with Listener(world.context()) as listener:
        for error in refused(config(listener.address, cluster=world.cluster(shows=False))):
            assert error.flags in ("UC", "UF")
    assert b"".join(listener.first) == b""


def the_server_name(world: World) -> None:
    """C-core may connect more than once before the call fails."""
    for call in CALLS:
        for name, expected in (("srv.example", "srv.example"), ("", None)):
            seen: set[str | None] = set()
            context = world.context()
            context.sni_callback = lambda _socket, name, _context, seen=seen: seen.add(name)
            with (
                Listener(context) as listener,
                mesh_for(config(listener.address, cluster=world.cluster(sni=name))) as mesh,
                pytest.raises(grpc.RpcError),
            ):
                call(mesh, ECHO, b"x")
            assert seen == {expected}


def calls_may_carry_credentials(world: World) -> None:
    def bearer(_context: Any, callback: Any) -> None:
        callback((("authorization", "Bearer token"),), None)

    credentials = grpc.metadata_call_credentials(bearer)
    with world.backend() as server, mesh_for(config(server.address, cluster=world.cluster())) as mesh:
        for call in CALLS:
            assert call(mesh, ECHO, b"x", credentials=credentials) == b"x"
    assert [metadata["authorization"] for _, metadata, _ in server.seen] == ["Bearer token"] * len(CALLS)


def endpoints_share_a_place(world: World) -> None:
    """One key on the file system for one certificate, however many endpoints; none when nobody needs it."""
    with world.backend() as one, world.backend() as other:
        document = config(one.address, other.address, cluster=world.cluster())
        with mesh_for(document) as mesh, meshlib.grpc.channel("echo:80", mesh=mesh, tls="relay") as channel:
            for _ in range(4):
                assert channel.unary_unary(WHO)(b"", timeout=10) == CLIENT.encode()
            assert one.seen
            assert other.seen
            files = key_files()
            assert [path.name for path in files] == ["chain.pem", "key.pem", "roots.pem"]
            assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
            assert {
                stat.S_IMODE(path.stat().st_mode) for path in (files[0].parent, *files[0].parents[1:2])
            } == {0o700}
    assert key_files() == []


# --- what is refused --------------------------------------------------------------------------------------------------


def another_server_than_expected(world: World) -> None:
    with Listener(world.context()) as listener:
        for error in refused(config(listener.address, cluster=world.cluster(OTHER))):
            assert isinstance(error, meshlib.ConnectFailed)
            assert "SANs_from_certificate_did_not_match" in told(error)
    assert b"".join(listener.first) == b""


def a_server_of_another_ca(world: World) -> None:
    with Listener(world.context()) as listener:
        for error in refused(config(listener.address, cluster=world.cluster(ca=TestCA("td.example")))):
            assert isinstance(error, meshlib.ConnectFailed)
            assert "CERTIFICATE_VERIFY_FAILED" in told(error)
    assert listener.first == []


def a_server_that_speaks_no_http2(world: World) -> None:
    with Listener(world.context(alpn=("http/1.1",))) as listener:
        for error in refused(config(listener.address, cluster=world.cluster())):
            assert isinstance(error, meshlib.ConnectFailed)
    assert b"".join(listener.first) == b""


def nobody_listens(world: World) -> None:
    with reserved() as port:
        for error in refused(config(f"127.0.0.1:{port}", cluster=world.cluster())):
            assert isinstance(error, meshlib.ConnectFailed)
            assert "Connection_refused" in told(error)


def a_server_that_waits(world: World) -> None:
    with Listener(says=None) as listener:
        cluster = {**world.cluster(), "connect_timeout": "0.3s"}
        for call in CALLS[:1]:
            with (
                mesh_for(config(listener.address, cluster=cluster)) as mesh,
                pytest.raises(grpc.RpcError) as caught,
            ):
                call(mesh, ECHO, b"x")
            assert isinstance(caught.value, meshlib.ConnectTimedOut)


def what_c_core_does_not_know(world: World) -> None:
    with Listener(world.context()) as listener:
        for error in refused(config(listener.address, cluster=world.cluster(maximum="TLSv1_2"))):
            assert isinstance(error, meshlib.IdentityError)
            assert "tls_maximum_protocol_version" in str(error)
            assert 'use tls="tunnel"' in str(error)
    assert listener.first == []
    assert listener.failures == []  # nobody came


def an_own_certificate_that_is_over(world: World) -> None:
    own = world.ca.issue(CLIENT, starts=-300.0, lifetime=-60.0)
    with Listener(world.context()) as listener:
        for error in refused(config(listener.address, cluster=world.cluster(own=own))):
            assert isinstance(error, meshlib.IdentityError)
            assert error.not_after == own.not_after
    assert listener.first == []
    assert listener.failures == []


def never_in_plaintext(world: World) -> None:
    """Even if C-core were told of no transport socket at all."""
    resources = relay_resources.resources

    def without_tls(*arguments: Any, **options: Any) -> dict[str, bytes]:
        made = resources(*arguments, **options)
        cluster = proto.parse("google.protobuf.Any", made[proto.CLUSTER])
        message = proto.unpack(cluster)
        message.ClearField("transport_socket")
        return {**made, proto.CLUSTER: proto.pack(message).SerializeToString()}

    relay.resources = without_tls  # type: ignore[attr-defined]
    with Listener(says=b"") as listener:
        for error in refused(config(listener.address, cluster=world.cluster())):
            assert isinstance(error, meshlib.ConnectFailed)
    assert b"PRI" not in b"".join(listener.first)
    assert b"secret" not in b"".join(listener.first)


# --- what changes -----------------------------------------------------------------------------------------------------


def a_rotation(world: World) -> None:
    """New calls show the new certificate, and the place of the earlier one is given back."""
    rotation.WITHIN = 0.0
    source = Source()
    first, second = world.ca.issue(CLIENT), world.ca.issue(CLIENT)
    source.give(first, world.ca)
    with world.backend() as server:
        server.unary("serial", _serial)
        document = config(server.address, cluster={"transport_socket": _socket()})
        with (
            meshlib.Mesh(config=[document], identity=source) as mesh,
            meshlib.grpc.channel("echo:80", mesh=mesh, tls="relay") as channel,
        ):
            call = channel.unary_unary(SERIAL)
            assert call(b"", timeout=10) == first.chain
            source.give(second, world.ca)
            eventually(lambda: call(b"", timeout=10) == second.chain, "the new certificate is not shown")
            eventually(lambda: len(key_files()) == 3, "the earlier key is still there")
            assert key_files()[0].read_bytes() == second.chain


def a_successor(world: World) -> None:
    """Calls go on over the connection of before until the one that takes its place is READY."""
    rotation.WITHIN = 0.0
    source = Source()
    first, second = world.ca.issue(CLIENT), world.ca.issue(CLIENT)
    source.give(first, world.ca)
    with world.backend() as server:
        server.unary("serial", _serial)
        document = config(server.address, cluster={"transport_socket": _socket()})
        with (
            meshlib.Mesh(config=[document], identity=source) as mesh,
            meshlib.grpc.channel("echo:80", mesh=mesh, tls="relay") as channel,
        ):
            call = channel.unary_unary(SERIAL)
            assert call(b"", timeout=10) == first.chain
            held: list[Callable[[], None]] = []
            begin = relay.Relayed.begin

            def hold(self: relay.Relayed, _limit: float) -> None:
                held.append(partial(begin, self, _limit))

            relay.Relayed.begin = hold  # type: ignore[method-assign]
            source.give(second, world.ca)
            eventually(lambda: len(held) == 1, "no successor is opened")
            assert {call(b"", timeout=10) for _ in range(3)} == {first.chain}
            held[0]()
            eventually(lambda: call(b"", timeout=10) == second.chain, "the successor serves no call")
            assert {call(b"", timeout=10) for _ in range(3)} == {second.chain}
            assert len(held) == 1


def roots_that_change(world: World) -> None:
    """What is not trusted any more is not called any more, from the next call on.

    C-core does not say by which root it has verified a peer: when any of them goes, another connection is made.
    """
    source = Source()
    source.give(world.client, world.ca)
    with world.backend() as server:
        server.unary("caller", _caller)
        document = config(server.address, cluster={"transport_socket": _socket()})
        with (
            meshlib.Mesh(config=[document], identity=source) as mesh,
            meshlib.grpc.channel("echo:80", mesh=mesh, tls="relay") as channel,
        ):
            call = channel.unary_unary(WHO)
            assert call(b"", timeout=10) == CLIENT.encode()
            source.give(world.client, TestCA("td.example"))
            with pytest.raises(grpc.RpcError) as caught:
                call(b"", timeout=10)
            assert "CERTIFICATE_VERIFY_FAILED" in told(caught.value)
            both = world.ca, TestCA("td.example")
            source.give(world.client, *both)
            assert call(b"", timeout=10) == CLIENT.encode()
            caller = channel.unary_unary(CALLER)
            first = caller(b"", timeout=10)
            source.give(world.client, *both, TestCA("td.example"))
            assert caller(b"", timeout=10) == first
            source.give(world.client, world.ca)
            assert caller(b"", timeout=10) != first


def an_expiry(world: World) -> None:
    """No new call uses a connection whose certificate is over."""
    own = world.ca.issue(CLIENT, lifetime=5.0)
    with world.backend() as server, mesh_for(config(server.address, cluster=world.cluster(own=own))) as mesh:
        with meshlib.grpc.channel("echo:80", mesh=mesh, tls="relay") as channel:
            call = channel.unary_unary(WHO)
            assert call(b"", timeout=10) == CLIENT.encode()
            errors: list[Any] = []

            def fails() -> bool:
                try:
                    call(b"", timeout=10)
                except grpc.RpcError as error:
                    errors.append(error)
                return bool(errors)

            eventually(fails, "the certificate is over, and calls go on")
            assert isinstance(errors[0], meshlib.IdentityError)


def a_server_that_comes_back(world: World) -> None:
    with world.backend() as server:
        mesh = stack.enter_context(mesh_for(config(server.address, cluster=world.cluster())))
        channel = stack.enter_context(meshlib.grpc.channel("echo:80", mesh=mesh, tls="relay"))
        assert channel.unary_unary(WHO)(b"", timeout=10) == CLIENT.encode()
        server.stop()
        with pytest.raises(grpc.RpcError):
            channel.unary_unary(WHO)(b"", timeout=10)
        server.start(server.port)
        assert channel.unary_unary(WHO)(b"", timeout=10) == CLIENT.encode()


def a_channel_that_is_dropped(world: World) -> None:
    with world.backend() as server, mesh_for(config(server.address, cluster=world.cluster())) as mesh:
        channel = meshlib.grpc.channel("echo:80", mesh=mesh, tls="relay")
        assert channel.unary_unary(WHO)(b"", timeout=10) == CLIENT.encode()
        del channel
        gc.collect()
        eventually(lambda: key_files() == [], "the key is still there")


# --- the process ------------------------------------------------------------------------------------------------------


def a_bootstrap_of_the_application(world: World) -> None:
    for name, value in (
        ("GRPC_XDS_BOOTSTRAP", "/nowhere/bootstrap.json"),
        ("GRPC_XDS_BOOTSTRAP_CONFIG", json.dumps({"xds_servers": []})),
    ):
        os.environ[name] = value
        for make in (meshlib.grpc.channel, meshlib.grpc.aio_channel):
            with pytest.raises(meshlib.ConfigError, match=f'{name} is set: use tls="tunnel"'):
                make("echo:80", tls="relay")
        assert os.environ.pop(name) == value


def a_bootstrap_that_grpcio_has_read(world: World) -> None:
    server = {"server_uri": "unix:/nowhere", "channel_creds": [{"type": "insecure"}]}
    os.environ["GRPC_XDS_BOOTSTRAP_CONFIG"] = json.dumps({"xds_servers": [server], "node": {"id": "app"}})
    with grpc.insecure_channel("xds:///other") as other:
        with pytest.raises(grpc.RpcError):
            other.unary_unary(ECHO)(b"", timeout=10)
        del os.environ["GRPC_XDS_BOOTSTRAP_CONFIG"]
        with pytest.raises(meshlib.ConfigError, match="has read another one"):
            meshlib.grpc.channel("echo:80", tls="relay")
    both_sides_know_each_other(world)


def a_bootstrap_that_comes_later(world: World) -> None:
    """It counts, and the channel says so."""
    with world.backend() as server, mesh_for(config(server.address, cluster=world.cluster())) as mesh:
        with meshlib.grpc.channel("echo:80", mesh=mesh, tls="relay") as channel:
            os.environ["GRPC_XDS_BOOTSTRAP"] = "/nowhere/bootstrap.json"
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary(ECHO)(b"", timeout=10)
            assert "GRPC_XDS_BOOTSTRAP_is_set" in told(caught.value)
            del os.environ["GRPC_XDS_BOOTSTRAP"]
            assert channel.unary_unary(ECHO)(b"x", timeout=10) == b"x"


def no_control_plane_is_made_of_it(world: World) -> None:
    """The default Mesh, and processes that are started from here, do not take the relay's bootstrap for theirs."""
    both_sides_know_each_other(world)
    assert "GRPC_XDS_BOOTSTRAP_CONFIG" in os.environ
    with pytest.raises(meshlib.ConfigError, match="no control plane is given"):
        meshlib.Mesh()
    meshlib.grpc.channel("echo:80", tls="relay").close()


def no_room(world: World) -> None:
    hub = relay_hub.the_hub()
    hub._free["own"].clear()
    with Listener(world.context()) as listener:
        for error in refused(config(listener.address, cluster=world.cluster())):
            assert isinstance(error, meshlib.IdentityError)
            assert "has room for" in str(error)


def strangers(world: World) -> None:
    """Another process of this user is turned away from the relay's socket."""
    with world.backend() as server, mesh_for(config(server.address, cluster=world.cluster())) as mesh:
        with meshlib.grpc.channel("echo:80", mesh=mesh, tls="relay") as channel:
            assert channel.unary_unary(ECHO)(b"x", timeout=10) == b"x"
            path = relay_hub.the_hub()._server.path

            done = subprocess.run([sys.executable, "-c", STRANGER, path], timeout=PATIENCE, check=False)
            assert done.returncode == 0
            assert channel.unary_unary(ECHO)(b"x", timeout=10) == b"x"


STRANGER = """
import contextlib, socket, sys
with socket.socket(socket.AF_UNIX) as stranger:
    stranger.connect(sys.argv[1])
    with contextlib.suppress(ConnectionResetError):
        assert stranger.recv(1) == b""
"""
stack = contextlib.ExitStack()

MODES: dict[str, Callable[[World], None]] = {
    mode.__name__: mode
    for mode in (
        both_sides_know_each_other,
        no_certificate_of_our_own,
        a_required_certificate_that_is_not_there,
        the_server_name,
        calls_may_carry_credentials,
        endpoints_share_a_place,
        another_server_than_expected,
        a_server_of_another_ca,
        a_server_that_speaks_no_http2,
        nobody_listens,
        a_server_that_waits,
        what_c_core_does_not_know,
        an_own_certificate_that_is_over,
        never_in_plaintext,
        a_rotation,
        a_successor,
        roots_that_change,
        an_expiry,
        a_server_that_comes_back,
        a_channel_that_is_dropped,
        a_bootstrap_of_the_application,
        a_bootstrap_that_grpcio_has_read,
        a_bootstrap_that_comes_later,
        no_control_plane_is_made_of_it,
        no_room,
        strangers,
    )
}


def main(mode: str) -> None:
    tunnel_loop.LINGER = 0.02
    with stack:
        MODES[mode](World())
    assert not relay_hub._process.hub or not relay_hub._process.hub._targets
    lasting = ("MainThread", "_poll_wrapper")
    eventually(lambda: not sockets(), "sockets are left")
    eventually(
        lambda: all(any(name in each.name for name in lasting) for each in threading.enumerate()),
        "threads are left",
    )
    sys.stdout.write(str(relay_hub.the_hub()._folder))


def sockets() -> list[str]:
    gc.collect()  # an error that was caught may hold the loop that it was raised in
    found = []
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found.append(str(link.readlink()))
    return [each for each in found if each.startswith("socket:")]


if __name__ == "__main__":
    main(*sys.argv[1:])

"""The life of a channel: connections, readiness, limits, endpoints that come and go, what is put on top of it."""

from __future__ import annotations

import contextlib
import gc
import os
import queue
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
import types
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest

import meshlib
from meshlib import testing
from meshlib.grpc import channel
from meshlib.resources.cluster import Cluster, DiscoveryType, Keepalive
from meshlib.transport.grpc.endpoint import InnerChannel
from meshlib.transport.grpc.target import inner_options, target_of
from tests.ports import reserved
from tests.transport.grpc.support import Backend, backend, config, mesh_for

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def server() -> Iterator[Backend]:
    with backend() as started:
        yield started


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of an endpoint that accepts connections and never says anything."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"127.0.0.1:{listening.getsockname()[1]}"


def test_accepts_and_never_speaks(server: Backend, silent: str) -> None:
    """It costs its connect_timeout, then a retry elsewhere."""
    route = {"retry_policy": {"retry_on": "connect-failure"}, "timeout": "30s"}
    document = config(silent, server.address, route=route, cluster={"connect_timeout": "1s"})
    with mesh_for(document) as mesh, channel("echo:80", mesh=mesh) as chan:
        echo = chan.unary_unary("/test.Echo/echo")
        attempts = [echo.with_call(b"")[1].meshlib.attempts for _ in range(3)]
    slow = [made for made in attempts if len(made) == 2]
    assert slow
    for first, second in slow:
        assert (first.endpoint, first.failure) == (silent, "connection timeout")
        assert 1.0 <= first.duration < 10.0  # no attempt of C-core's own, which would take 20 s
        assert second.endpoint == server.address


@pytest.mark.parametrize("future", [False, True])
def test_calls_beyond_the_requests_of_a_connection_get_another(server: Backend, future: bool) -> None:
    cluster = {
        "max_requests_per_connection": 2,
        "circuit_breakers": {"thresholds": [{"max_connections": 1}]},
    }
    with mesh_for(config(server.address, cluster=cluster)) as mesh:
        permits = mesh.engine.store.cluster("echo").default
        with channel("echo:80", mesh=mesh) as chan:
            echo = chan.unary_unary("/test.Echo/echo")

            def call(number: int) -> Any:
                request = b"%d" % number
                return echo.future(request, timeout=20).result() if future else echo(request, timeout=20)

            with futures.ThreadPoolExecutor(8) as pool:
                assert list(pool.map(call, range(40))) == [b"%d" % number for number in range(40)]
            assert (permits.pending, permits.requests) == (0, 0)
            assert permits.connections <= 1  # the last one may have served a single call
        assert permits.connections == 0


@pytest.mark.parametrize("busy", [False, True])
def test_two_channels_and_one_permit_for_a_connection(server: Backend, busy: bool) -> None:
    """The one that waits is given the place of the other's connection once that is idle."""
    cluster = {"circuit_breakers": {"thresholds": [{"max_connections": 1}]}}
    began = threading.Event()

    def hang(request: bytes, context: grpc.ServicerContext) -> bytes:
        began.set()
        server.gate.wait(20)
        return request

    server.unary("hang", hang)
    with mesh_for(config(server.address, cluster=cluster)) as mesh:
        permits = mesh.engine.store.cluster("echo").default
        with channel("echo:80", mesh=mesh) as one, channel("echo:80", mesh=mesh) as other:
            assert one.unary_unary("/test.Echo/echo")(b"1") == b"1"
            held = one.unary_unary("/test.Echo/hang").future(b"2", timeout=20) if busy else None
            if held is not None:
                assert began.wait(20)
            waits = other.unary_unary("/test.Echo/echo").future(b"3", timeout=20)
            if held is not None:
                assert permits.pending == 1
                server.gate.set()
                assert held.result() == b"2"
            assert waits.result() == b"3"
            assert one.unary_unary("/test.Echo/echo")(b"4", timeout=20) == b"4"
            assert permits.connections == 1


def test_a_closed_channel_says_so(server: Backend) -> None:
    with mesh_for(config(server.address)) as mesh:
        chan = channel("echo:80", mesh=mesh)
        assert chan.unary_unary("/test.Echo/echo")(b"x") == b"x"
        chan.close()
        told: list[grpc.ChannelConnectivity] = []
        heard = threading.Event()

        def tell(state: grpc.ChannelConnectivity) -> None:
            told.append(state)
            heard.set()

        chan.subscribe(tell)
        assert heard.wait(20)
        assert told == [grpc.ChannelConnectivity.SHUTDOWN]
        chan.unsubscribe(tell)


def test_a_channel_that_is_dropped_counts_no_more(server: Backend) -> None:
    cluster = {"circuit_breakers": {"thresholds": [{"max_connections": 1}]}}
    with mesh_for(config(server.address, cluster=cluster)) as mesh:
        for _ in range(3):
            assert channel("echo:80", mesh=mesh).unary_unary("/test.Echo/echo")(b"x") == b"x"
            gc.collect()
            state = mesh.engine.store.cluster("echo")
            state.drain_abandoned()
            assert state.default.connections == 0


def test_a_revived_endpoint_is_used_at_once(server: Backend) -> None:
    with mesh_for(config(server.address)) as mesh, channel("echo:80", mesh=mesh) as chan:
        echo = chan.unary_unary("/test.Echo/echo")
        assert echo(b"1") == b"1"
        port = server.port
        server.stop()
        for _ in range(3):
            with pytest.raises(meshlib.UpstreamError):
                echo(b"2")
        server.start(port)
        back = time.monotonic()
        assert echo(b"3") == b"3"
        assert time.monotonic() - back < 5  # one attempt: no back-off of C-core is waited for
        assert mesh.engine.store.cluster("echo").default.connections == 1


def test_wait_for_ready_before_the_control_plane_is_up(server: Backend) -> None:
    with (
        reserved() as port,
        meshlib.Mesh(server_uri=f"127.0.0.1:{port}") as mesh,
        channel("echo:80", mesh=mesh) as chan,
    ):
        future = chan.unary_unary("/test.Echo/echo").future(b"patient", wait_for_ready=True, timeout=30)
        answers: list[Any] = []
        echo = chan.unary_unary("/test.Echo/echo")
        thread = threading.Thread(
            target=lambda: answers.append(echo(b"blocking", wait_for_ready=True, timeout=30))
        )
        thread.start()
        with testing.serve(config(server.address), listen=f"127.0.0.1:{port}"):
            assert future.result(30) == b"patient"
            thread.join(30)
            assert answers == [b"blocking"]


def test_wait_for_ready_until_an_endpoint_is_up(server: Backend) -> None:
    port = server.port
    server.stop()
    answers: list[Any] = []
    with mesh_for(config(server.address)) as mesh, channel("echo:80", mesh=mesh) as chan:
        echo = chan.unary_unary("/test.Echo/echo")
        thread = threading.Thread(target=lambda: answers.append(echo(b"x", wait_for_ready=True, timeout=30)))
        thread.start()
        future = echo.future(b"y", wait_for_ready=True, timeout=30)
        server.start(port)
        thread.join(30)
        assert answers == [b"x"]
        assert future.result(30) == b"y"


def test_channels_of_endpoints_that_left_are_closed() -> None:
    with backend() as old, backend() as new:
        cancelled = threading.Event()

        def watch(request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
            context.add_callback(cancelled.set)
            yield b"one"
            old.gate.wait(20)
            yield b"two"

        old.unary_stream("watch", watch)
        with testing.serve(config(old.address)) as plane:
            with meshlib.Mesh(bootstrap=plane.bootstrap()) as mesh, channel("echo:80", mesh=mesh) as chan:
                echo = chan.unary_unary("/test.Echo/echo")
                assert echo(b"") == b""
                stream = chan.unary_stream("/test.Echo/watch")(b"")
                assert next(stream) == b"one"
                state = mesh.engine.store.cluster("echo")
                endpoint = state.endpoints[old.address]
                plane.store.update(*testing.messages(config(new.address)))
                limit = time.monotonic() + 20
                while not endpoint.departed or chan._opened[1]._by_endpoint.get(endpoint):
                    assert time.monotonic() < limit
                    threading.Event().wait(0.01)
                assert echo(b"") == b""
                assert new.methods() == ["echo"]
                assert not cancelled.is_set()  # its call goes on
                old.gate.set()
                assert list(stream) == [b"two"]
                assert state.default.connections == 1


def test_one_connection_for_many_calls(server: Backend) -> None:
    """max_connections 1: calls that find it connecting wait in the queue, and are all served when it is open."""
    limits = {"circuit_breakers": {"thresholds": [{"max_connections": 1}]}}
    with mesh_for(config(server.address, cluster=limits)) as mesh, channel("echo:80", mesh=mesh) as chan:
        echo = chan.unary_unary("/test.Echo/echo")
        futures = [echo.future(b"%d" % n) for n in range(8)]
        assert [future.result(10) for future in futures] == [b"%d" % n for n in range(8)]
        held = mesh.engine.store.cluster("echo").default
        assert (held.connections, held.pending, held.requests) == (1, 0, 0)
        answers: list[bytes] = []
        threads = [threading.Thread(target=lambda: answers.append(echo(b"t"))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert answers == [b"t"] * 8
        assert (held.connections, held.pending, held.requests) == (1, 0, 0)


def test_queue_goes_on_when_the_connection_fails(silent: str) -> None:
    limits = {
        "circuit_breakers": {"thresholds": [{"max_connections": 1}]},
        "connect_timeout": "0.1s",
    }
    with mesh_for(config(silent, cluster=limits)) as mesh, channel("echo:80", mesh=mesh) as chan:
        echo = chan.unary_unary("/test.Echo/echo")
        futures = [echo.future(b"") for _ in range(3)]
        failures = [future.exception(10) for future in futures]
        assert all(isinstance(error, meshlib.ConnectTimedOut) for error in failures)
        held = mesh.engine.store.cluster("echo").default
        assert (held.connections, held.pending, held.requests) == (0, 0, 0)


def test_limits_refuse(server: Backend) -> None:
    limits = {"circuit_breakers": {"thresholds": [{"max_requests": 1}]}}
    server.unary("hang", lambda request, context: server.gate.wait(20) and request)
    with mesh_for(config(server.address, cluster=limits)) as mesh, channel("echo:80", mesh=mesh) as chan:
        assert chan.unary_unary("/test.Echo/echo")(b"") == b""
        hanging = chan.unary_unary("/test.Echo/hang").future(b"")
        with pytest.raises(meshlib.CircuitFull) as caught:
            chan.unary_unary("/test.Echo/echo")(b"")
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE  # type: ignore[attr-defined]
        server.gate.set()
        assert hanging.result(10) == b""


def _await_loss(chan: grpc.Channel) -> None:
    """C-core says READY until it has seen the server's goodbye."""
    states: queue.SimpleQueue[grpc.ChannelConnectivity] = queue.SimpleQueue()
    chan.subscribe(states.put)
    while states.get(timeout=20) is grpc.ChannelConnectivity.READY:
        pass
    chan.unsubscribe(states.put)


def test_channel_ready_future(server: Backend) -> None:
    port = server.port
    with mesh_for(config(server.address)) as mesh, channel("echo:80", mesh=mesh) as chan:
        grpc.channel_ready_future(chan).result(timeout=20)
        server.stop()
        _await_loss(chan)
        threads = threading.active_count()
        ready = grpc.channel_ready_future(chan)
        with pytest.raises(grpc.FutureTimeoutError):
            ready.result(timeout=0.1)
        assert threading.active_count() <= threads + 1
        server.start(port)
        ready.result(timeout=20)
        held = mesh.engine.store.cluster("echo").default
        assert (held.connections, held.pending) == (1, 0)


def test_states_of_a_channel(server: Backend) -> None:
    seen: list[grpc.ChannelConnectivity] = []
    changed = threading.Event()

    def note(state: grpc.ChannelConnectivity) -> None:
        seen.append(state)
        changed.set()

    with mesh_for(config(server.address)) as mesh:
        chan = channel("echo:80", mesh=mesh)
        chan.subscribe(note)
        assert changed.wait(10)
        assert seen == [grpc.ChannelConnectivity.IDLE]
        chan.close()
        assert seen[-1] is grpc.ChannelConnectivity.SHUTDOWN


class _Adds(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor):  # type: ignore[misc]
    def __init__(self) -> None:
        self.calls: list[Any] = []

    def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        self.calls.append(details.method)
        details = details._replace(metadata=(*(details.metadata or ()), ("from", "interceptor")))
        return continuation(details, request)

    intercept_unary_stream = intercept_unary_unary


def test_interceptors_of_the_application(server: Backend) -> None:
    answers = iter((grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.OK))

    def flaky(request: bytes, context: grpc.ServicerContext) -> bytes:
        code = next(answers)
        if code is not grpc.StatusCode.OK:
            context.abort(code, "again")
        return request

    server.unary("flaky", flaky)
    server.unary_stream("count", lambda request, context: (b"%d" % n for n in range(2)))
    route = {"retry_policy": {"retry_on": "unavailable"}}
    adds = _Adds()
    with mesh_for(config(server.address, route=route)) as mesh:
        with channel("echo:80", mesh=mesh, interceptors=[adds]) as chan:
            assert chan.unary_unary("/test.Echo/flaky")(b"x") == b"x"
            assert chan.unary_unary("/test.Echo/echo").future(b"y").result(10) == b"y"
            assert list(chan.unary_stream("/test.Echo/count")(b"")) == [b"0", b"1"]
            with pytest.raises(grpc.RpcError) as caught:
                chan.unary_unary("/test.Echo/fail")(b"NOT_FOUND:no")
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert adds.calls == [f"/test.Echo/{name}" for name in ("flaky", "echo", "count", "fail")]
    assert [metadata["from"] for _, metadata, _ in server.seen] == ["interceptor"] * 5


def test_compression(server: Backend) -> None:
    encodings: list[Any] = []

    def note(request: bytes, context: grpc.ServicerContext) -> bytes:
        encodings.append(dict(context.invocation_metadata()).get("grpc-internal-encoding-request"))
        return request

    server.unary("note", note)
    with mesh_for(config(server.address)) as mesh:
        with channel("echo:80", mesh=mesh, compression=grpc.Compression.Gzip) as chan:
            assert chan.unary_unary("/test.Echo/note")(b"x" * 10_000) == b"x" * 10_000
            call = chan.unary_unary("/test.Echo/note")
            assert call(b"y", compression=grpc.Compression.Deflate) == b"y"


def test_options_of_the_application() -> None:
    cluster = Cluster(
        name="echo",
        discovery=DiscoveryType.STATIC,
        connect_timeout=0.25,
        keepalive=Keepalive(interval=30.0, timeout=2.5),
    )
    own = [
        ("grpc.max_receive_message_length", 1),
        ("grpc.enable_retries", 1),
        ("grpc.keepalive_timeout_ms", 9),
    ]
    options = dict(inner_options(cluster, "echo:80", own))
    assert (options["grpc.keepalive_time_ms"], options["grpc.keepalive_timeout_ms"]) == (30_000, 9)
    assert options["grpc.max_receive_message_length"] == 1
    assert options["grpc.enable_retries"] == 0
    assert options["grpc.default_authority"] == "echo:80"
    assert options["grpc.min_reconnect_backoff_ms"] > 250


def test_targets() -> None:
    class Endpoint:
        def __init__(self, address: str, port: int) -> None:
            self.address = address
            self.port = port

    targets = {
        ("10.0.0.1", 80): "ipv4:10.0.0.1:80",
        ("::1", 80): "ipv6:[::1]:80",
        ("/run/app.sock", 0): "unix:/run/app.sock",
        ("@app", 0): "unix-abstract:app",
    }
    for (address, port), target in targets.items():
        assert target_of(Endpoint(address, port)) == target  # type: ignore[arg-type]


def test_hosts_without_the_mesh(server: Backend) -> None:
    server.unary_stream("count", lambda request, context: (b"%d" % n for n in range(2)))
    document = config("127.0.0.1:1", listener="other:80")
    other = config("127.0.0.1:1", listener="another:80")
    with meshlib.Mesh(config=[document, _renamed(other)], unknown_hosts="passthrough") as mesh:
        with channel(server.address, mesh=mesh) as chan:
            assert chan.unary_unary("/test.Echo/echo")(b"x") == b"x"
            assert chan.unary_unary("/test.Echo/echo").future(b"x").result(10) == b"x"
            stream = chan.unary_stream("/test.Echo/count")(b"")
            assert list(stream) == [b"0", b"1"]
            assert stream.code() is grpc.StatusCode.OK
            with pytest.raises(grpc.RpcError) as caught:
                list(chan.unary_stream("/test.Echo/fail")(b"NOT_FOUND:no"))
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    with meshlib.Mesh(config=[document, _renamed(other)]) as mesh, channel(server.address, mesh=mesh) as chan:
        with pytest.raises(meshlib.UnknownHost):
            chan.unary_unary("/test.Echo/echo")(b"")


def _renamed(document: dict[str, Any]) -> dict[str, Any]:
    """The same with a Listener of its own and nothing else."""
    listeners = [resource for resource in document["resources"] if resource["@type"].endswith("Listener")]
    return {"resources": listeners}


def test_override_of_the_application(server: Backend) -> None:
    server.unary("hang", lambda request, context: server.gate.wait(20) and request)
    with mesh_for(config(server.address)) as mesh, channel("echo:80", mesh=mesh) as chan:
        with meshlib.call(timeout=0.1), pytest.raises(meshlib.DeadlineExceeded):
            chan.unary_unary("/test.Echo/hang")(b"")
        with meshlib.call(timeout=0.1):
            future = chan.unary_unary("/test.Echo/hang").future(b"")
        assert isinstance(future.exception(10), meshlib.DeadlineExceeded)


def test_an_endpoint_that_was_never_called_costs_little() -> None:
    addresses = [f"10.1.{n >> 8}.{n & 255}:80" for n in range(1000)]
    document = config(*addresses)
    with mesh_for(document) as mesh, channel("echo:80", mesh=mesh) as chan:
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            chan.opened()
            assert tracemalloc.get_traced_memory()[0] - before < 50_000  # for 1,000 endpoints
        finally:
            tracemalloc.stop()


def test_gevent_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkey = types.ModuleType("gevent.monkey")
    monkey.is_module_patched = lambda name: name == "threading"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "gevent.monkey", monkey)
    with pytest.raises(meshlib.ConfigError, match="gevent"):
        channel("echo:80")


def test_channel_credentials_are_refused() -> None:
    with pytest.raises(meshlib.ConfigError, match="transport socket"):
        channel("echo:80", credentials=grpc.ssl_channel_credentials())


def test_hash_policy_of_the_channel() -> None:
    """Every call of a channel goes to one endpoint; channels are spread."""
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(backend()) for _ in range(2)]
        document = config(
            *(server.address for server in servers),
            route={"hash_policy": [{"filter_state": {"key": "io.grpc.channel_id"}}]},
            cluster={"lb_policy": "RING_HASH"},
        )
        mesh = stack.enter_context(mesh_for(document))
        chosen = set()
        for _ in range(24):
            with channel("echo:80", mesh=mesh) as chan:
                echo = chan.unary_unary("/test.Echo/echo")
                endpoints = {echo.with_call(b"")[1].meshlib.attempts[0].endpoint for _ in range(3)}
                assert len(endpoints) == 1
                chosen |= endpoints
        assert len(chosen) == 2


@pytest.mark.parametrize("mode", ["open", "reading", "closed"])
def test_a_process_ends_in_silence(mode: str, server: Backend) -> None:
    def forever(request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        yield b"one"
        server.gate.wait(30)

    server.unary_stream("forever", forever)
    server.unary("hang", lambda request, context: server.gate.wait(30) and request)
    ended = subprocess.run(
        [sys.executable, "-m", "tests.transport.grpc.leaver", server.address, mode],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        timeout=40,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "over True\n", "")


def test_a_subscriber_that_is_collected_anywhere() -> None:
    """grpcio's ready future unsubscribes in its finalizer, which may run in any line of ours."""
    with mesh_for(config("127.0.0.1:1")) as mesh:
        chan = channel("echo:80", mesh=mesh)
        future = grpc.channel_ready_future(chan)
        del future
        chan.close()


@pytest.mark.parametrize("how", ["blocking", "with_call", "future", "stream"])
def test_a_channel_that_is_closed_before_a_method_is_first_called_on_it(
    server: Backend, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """grpcio crashes the process when a method of a generated stub is made on a channel that another thread has closed."""
    with mesh_for(config(server.address)) as mesh, channel("echo:80", mesh=mesh) as chan:
        chan.unary_unary("/test.Echo/echo")(b"")
        enter = InnerChannel.enter

        def enter_and_lose(inner: InnerChannel) -> bool:
            entered = enter(inner)
            inner.channel.close()
            inner.closed = True
            return entered

        monkeypatch.setattr(InnerChannel, "enter", enter_and_lose)
        kind = "unary_stream" if how == "stream" else "unary_unary"
        method = getattr(chan, kind)("/test.Echo/other", _registered_method=True)
        begin = getattr(method, how) if how in ("with_call", "future") else method
        with pytest.raises((ValueError, grpc.RpcError)):
            list(begin(b"")) if how == "stream" else begin(b"").result() if how == "future" else begin(b"")
        permits = mesh.engine.store.cluster("echo").default
        assert permits.requests == 0


def test_a_plain_channel_is_not_closed_while_a_method_is_made_on_it(server: Backend) -> None:
    """The same without the mesh."""
    with meshlib.Mesh(config=[], unknown_hosts="passthrough") as mesh:
        chan = channel(server.address, mesh=mesh)
        closing = threading.Thread(target=chan.close)

        def maker(plain: grpc.Channel) -> bool:
            closing.start()
            closing.join(0.05)
            return plain.unary_unary("/test.Echo/echo", _registered_method=True) is not None

        assert chan.plain(maker)
        closing.join(10)
        assert not closing.is_alive()
        with pytest.raises(ValueError, match="closed channel"):
            chan.plain(maker)

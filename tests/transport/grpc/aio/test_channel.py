"""The asyncio channel itself: loops, connections, interceptors, connectivity, the end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Any

import grpc
import pytest

import meshlib
import meshlib.grpc
from meshlib import testing
from meshlib.controlplane import ControlPlane, ResourceStore
from meshlib.engine.events import Failed, FailureKind
from meshlib.errors import ConfigError, ConnectTimedOut, MeshClosed, NoHealthyEndpoint, UnknownHost
from meshlib.transport.grpc.aio_channel import AioMeshChannel
from meshlib.transport.grpc.aio_endpoint import InnerChannel
from tests.ports import reserved
from tests.transport.grpc.aio.support import (
    LIMIT,
    Backend,
    backend,
    channel_to,
    complaints,
    eventually,
    held,
    name_of,
    run,
)
from tests.transport.grpc.support import config, mesh_for

Code = grpc.StatusCode
State = grpc.ChannelConnectivity


def messages(document: dict[str, Any]) -> list[Any]:
    return list(testing.messages(document))


def store_of(document: dict[str, Any]) -> ResourceStore:
    return ResourceStore(messages(document))


# --- event loops -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def threaded_backend() -> Iterator[Backend]:
    """A server that runs in a loop of its own."""
    loop = asyncio.new_event_loop()
    server: list[Backend] = []
    ready = threading.Event()

    async def serve() -> None:
        async with backend() as started:
            server.append(started)
            ready.set()
            await stop.wait()

    stop = asyncio.Event()
    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    assert ready.wait(LIMIT)
    try:
        yield server[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(LIMIT)
        loop.close()


def test_one_channel_on_several_loops() -> None:
    with threaded_backend() as server, mesh_for(config(server.address)) as mesh:
        channel = meshlib.grpc.aio_channel("echo:80", mesh=mesh)

        async def calls(close: bool = False) -> None:
            echo, repeat = channel.unary_unary(name_of("echo")), channel.unary_stream(name_of("repeat"))
            assert await asyncio.gather(*(echo(b"%d" % n) for n in range(8))) == [b"%d" % n for n in range(8)]
            assert [message async for message in repeat(b"x")] == [b"x"] * 3
            if close:
                await channel.close()

        for _ in range(3):  # one after another; what belongs to a loop that is gone goes at the next use
            asyncio.run(calls())
        threads = [threading.Thread(target=lambda: asyncio.run(calls())) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMIT)
        assert held(mesh) == 0
        asyncio.run(calls(close=True))
        state = mesh.engine.store.cluster("echo")
        state.drain_abandoned()
        assert state.default.connections == 0


def test_a_channel_that_is_dropped_leaves_nothing() -> None:
    with threaded_backend() as server, mesh_for(config(server.address)) as mesh:

        async def calls() -> None:
            channel = meshlib.grpc.aio_channel("echo:80", mesh=mesh)
            assert await channel.unary_unary(name_of("echo"))(b"x") == b"x"

        asyncio.run(calls())
        gc.collect()
        state = mesh.engine.store.cluster("echo")
        state.drain_abandoned()
        assert state.default.connections == 0


def test_a_loop_that_is_closed_with_a_call_that_waits() -> None:
    with mesh_for(config()) as mesh:
        channel = meshlib.grpc.aio_channel("echo:80", mesh=mesh)
        kept: list[Any] = []

        async def leave() -> None:
            kept.append(channel.unary_unary(name_of("echo"))(b"", wait_for_ready=True))
            kept.append(channel.unary_stream(name_of("repeat"))(b"", wait_for_ready=True))

        async def use() -> None:
            with pytest.raises(NoHealthyEndpoint):
                await channel.unary_unary(name_of("echo"))(b"")
            assert all(call.cancelled() for call in kept)
            await channel.close()

        loop = asyncio.new_event_loop()
        loop.run_until_complete(leave())
        assert not any(call.done() for call in kept)
        loop.close()
        asyncio.run(use())
        assert held(mesh) == 0


def test_a_loop_that_ends_with_calls_under_way(caplog: pytest.LogCaptureFixture) -> None:
    with threaded_backend() as server, mesh_for(config(server.address)) as mesh:
        channel = meshlib.grpc.aio_channel("echo:80", mesh=mesh)
        kept: list[Any] = []

        async def leave() -> None:
            await channel.unary_unary(name_of("echo"))(b"x")
            kept.append(channel.unary_unary(name_of("hang"))(b""))
            kept.append(channel.unary_stream(name_of("hang_stream"))(b""))
            await kept[-1].read()

        async def use() -> None:
            assert await channel.unary_unary(name_of("echo"))(b"x") == b"x"
            await channel.close()

        asyncio.run(leave())
        assert all(call.done() for call in kept)
        asyncio.run(use())
        assert held(mesh) == 0
        assert complaints(caplog) == []


# --- connections -----------------------------------------------------------------------------------------------------


def test_an_endpoint_that_accepts_and_never_speaks() -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as mute:
            address = f"127.0.0.1:{mute.getsockname()[1]}"
            cluster = {"connect_timeout": "1s"}
            retry = {"retry_policy": {"retry_on": "connect-failure", "num_retries": 1}}
            async with backend() as server:
                async with channel_to(address, cluster=cluster) as (channel, mesh):
                    with pytest.raises(ConnectTimedOut) as caught:
                        await channel.unary_unary(name_of("echo"))(b"")
                    assert caught.value.flags == "UF"
                    assert held(mesh) == 0
                async with channel_to(address, server.address, cluster=cluster, route=retry) as (
                    channel,
                    mesh,
                ):
                    echo = channel.unary_unary(name_of("echo"))
                    for _ in range(4):
                        assert await echo(b"x") == b"x"
                    assert held(mesh) == 0

    run(main())


def test_an_endpoint_that_comes_back_serves_the_next_call() -> None:
    async def main() -> None:
        async with backend() as server, channel_to(server.address) as (channel, mesh):
            echo = channel.unary_unary(name_of("echo"))
            assert await echo(b"1") == b"1"
            port = server.port
            await server.stop()
            for _ in range(5):
                with pytest.raises(grpc.aio.AioRpcError):
                    await echo(b"2")
            await server.start(port)
            assert await echo(b"3") == b"3"
            assert held(mesh) == 0
            assert mesh.engine.store.cluster("echo").default.connections == 1

    run(main())


def test_calls_wait_for_the_connection_that_is_opening() -> None:
    async def main() -> None:
        cluster = {"circuit_breakers": {"thresholds": [{"max_connections": 1}]}}
        async with backend() as server, channel_to(server.address, cluster=cluster) as (channel, mesh):
            echo = channel.unary_unary(name_of("echo"))
            assert await asyncio.gather(*(echo(b"%d" % n) for n in range(20))) == [
                b"%d" % n for n in range(20)
            ]
            state = mesh.engine.store.cluster("echo")
            assert state.stats.upstream_cx_total.value == state.default.connections == 1
            assert held(mesh) == 0

    run(main())


def _lost(lane: InnerChannel) -> bool:
    """Whether C-core has seen the server's goodbye. A call that comes before it fails, as one of Envoy's would."""
    return lane.get_state() is not State.READY


def test_a_connection_that_was_lost_is_not_waited_for() -> None:
    async def main() -> None:
        cluster = {"circuit_breakers": {"thresholds": [{"max_connections": 1}]}}
        async with backend() as server, channel_to(server.address, cluster=cluster) as (channel, mesh):
            assert isinstance(channel, AioMeshChannel)
            echo = channel.unary_unary(name_of("echo"))
            for _ in range(3):
                assert await echo(b"x") == b"x"
                (lane,) = channel.home()._channels.values()
                port = server.port
                await server.stop()
                await eventually(partial(_lost, lane))
                await server.start(port)
            assert mesh.engine.store.cluster("echo").default.connections == 1

    run(main())


def test_two_channels_and_one_permit_for_a_connection() -> None:
    """The one that waits is given the other's idle connection's place."""

    async def main() -> None:
        cluster = {"circuit_breakers": {"thresholds": [{"max_connections": 1}]}}
        async with backend() as server, channel_to(server.address, cluster=cluster) as (channel, mesh):
            assert await channel.unary_unary(name_of("echo"))(b"1") == b"1"
            async with meshlib.grpc.aio_channel("echo:80", mesh=mesh) as other:
                assert await other.unary_unary(name_of("echo"))(b"2") == b"2"
            assert await channel.unary_unary(name_of("echo"))(b"3") == b"3"

    run(main())


def test_a_connection_serves_as_many_calls_as_it_may() -> None:
    async def main() -> None:
        options = {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "common_http_protocol_options": {"max_requests_per_connection": 2},
            "explicit_http_config": {"http2_protocol_options": {}},
        }
        cluster = {
            "typed_extension_protocol_options": {
                "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options
            }
        }
        async with backend() as server, channel_to(server.address, cluster=cluster) as (channel, mesh):
            echo = channel.unary_unary(name_of("echo"))
            for number in range(6):
                assert await echo(b"%d" % number) == b"%d" % number
            assert mesh.engine.store.cluster("echo").stats.upstream_cx_total.value == 3
            answers = await asyncio.gather(*(echo(b"%d" % number) for number in range(10)))
            assert answers == [b"%d" % number for number in range(10)]
            assert mesh.engine.store.cluster("echo").stats.upstream_cx_total.value == 8
            assert held(mesh) == 0

    run(main())


def test_loops_take_turns_with_one_permit() -> None:
    cluster = {"circuit_breakers": {"thresholds": [{"max_connections": 1}]}}
    with threaded_backend() as server, mesh_for(config(server.address, cluster=cluster)) as mesh:
        channel = meshlib.grpc.aio_channel("echo:80", mesh=mesh)
        answers: list[bytes] = []

        async def calls() -> None:
            echo = channel.unary_unary(name_of("echo"))
            answers.extend([await echo(b"x", timeout=LIMIT) for _ in range(20)])

        threads = [threading.Thread(target=lambda: asyncio.run(calls())) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMIT)
        assert answers == [b"x"] * 80
        asyncio.run(channel.close())
        assert held(mesh) == 0


def test_a_connection_that_opens_is_not_idle() -> None:
    """Others who wait for a permit close idle connections only."""

    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            address = f"127.0.0.1:{silent.getsockname()[1]}"
            async with channel_to(address, cluster={"connect_timeout": "30s"}) as (channel, mesh):
                assert isinstance(channel, AioMeshChannel)
                call = channel.unary_unary(name_of("echo"))(b"x")
                (endpoint,) = mesh.engine.store.cluster("echo").endpoints.values()
                channel.home().close_idle(endpoint)
                await asyncio.sleep(0)
                assert not call.done()
                assert mesh.engine.store.cluster("echo").default.connections == 1
                call.cancel()

    run(main())


def test_a_connection_that_was_lost_takes_no_more_calls() -> None:
    """C-core says READY for some milliseconds more."""

    async def main() -> None:
        async with backend() as server, channel_to(server.address) as (channel, mesh):
            assert isinstance(channel, AioMeshChannel)
            echo = channel.unary_unary(name_of("echo"))
            permits = mesh.engine.store.cluster("echo").default
            assert await echo(b"x", timeout=LIMIT) == b"x"
            (lane,) = channel.home()._channels.values()
            lane.told(Failed(1, FailureKind.REMOTE_RESET, True))
            assert list(channel.home()._channels.values()) == [lane]
            lane.told(Failed(1, FailureKind.TERMINATED, True))
            assert list(channel.home()._channels.values()) == []
            assert permits.connections == 0
            assert await echo(b"y", timeout=LIMIT) == b"y"
            assert permits.connections == 1

    run(main())


def test_connections_to_endpoints_that_leave_are_closed() -> None:
    async def main() -> None:
        async with backend() as old, backend() as new:
            store = store_of(config(old.address))
            with ControlPlane(store) as control_plane:
                with meshlib.Mesh(server_uri=control_plane.address) as mesh:
                    async with meshlib.grpc.aio_channel("echo:80", mesh=mesh) as channel:
                        hang = channel.unary_unary(name_of("hang"))(b"")
                        await old.started.wait()
                        state = mesh.engine.store.cluster("echo")
                        assert state.default.connections == 1
                        store.replace(messages(config(new.address)))
                        echo = channel.unary_unary(name_of("echo"))

                        async def moved() -> bool:
                            await echo(b"")
                            return bool(new.seen)

                        await eventually(moved)
                        assert state.default.connections == 2
                        endpoint = state.endpoints[old.address]
                        await eventually(lambda: endpoint.departed)
                        await asyncio.sleep(0)
                        hang.cancel()
                        await old.stopped.wait()
                        await eventually(lambda: state.default.connections == 1)

    run(main())


# --- waiting for what is not there ------------------------------------------------------------------------------------


@pytest.mark.parametrize("arity", ["unary_unary", "stream_stream"])
def test_wait_for_ready_before_the_control_plane_is_up(arity: str) -> None:
    """grpcio's own xDS client hangs here until its deadline."""

    async def main() -> None:
        async with backend() as server:
            with reserved() as port, meshlib.Mesh(server_uri=f"127.0.0.1:{port}") as mesh:
                async with meshlib.grpc.aio_channel("echo:80", mesh=mesh) as channel:
                    if arity == "unary_unary":
                        call = channel.unary_unary(name_of("echo"))(b"x", wait_for_ready=True, timeout=LIMIT)
                    else:
                        call = channel.stream_stream(name_of("chat"))(
                            iter([b"x"]), wait_for_ready=True, timeout=LIMIT
                        )
                    await asyncio.sleep(0)
                    with ControlPlane(store_of(config(server.address)), listen=f"127.0.0.1:{port}"):
                        if arity == "unary_unary":
                            assert await call == b"x"
                        else:
                            assert [message async for message in call] == [b"X"]

    run(main())


def test_wait_for_ready_waits_for_an_endpoint() -> None:
    async def main() -> None:
        async with backend() as server:
            port = server.port
            await server.stop()
            async with channel_to(f"127.0.0.1:{port}") as (channel, mesh):
                call = channel.unary_unary(name_of("echo"))(b"x", wait_for_ready=True, timeout=LIMIT)
                stats = mesh.engine.store.cluster("echo").stats
                await eventually(lambda: stats.upstream_cx_connect_fail.value > 0)
                await server.start(port)
                assert await call == b"x"
                assert held(mesh) == 0

    run(main())


def test_a_mesh_that_is_closed_ends_the_wait() -> None:
    async def main() -> None:
        with reserved() as port, meshlib.Mesh(server_uri=f"127.0.0.1:{port}") as mesh:
            async with meshlib.grpc.aio_channel("echo:80", mesh=mesh) as channel:
                call = channel.unary_unary(name_of("echo"))(b"")
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await channel.unary_unary(name_of("echo"))(b"", timeout=0.05)
                assert caught.value.code() is Code.DEADLINE_EXCEEDED
                mesh.close()
                with pytest.raises(MeshClosed):
                    await call

    run(main())


def test_hosts_that_no_listener_knows() -> None:
    async def main() -> None:
        async with backend() as server:
            document = testing.service("other", server.address)
            with mesh_for(
                {"resources": [*document["resources"], *config(server.address)["resources"]]}
            ) as mesh:
                async with meshlib.grpc.aio_channel(server.address, mesh=mesh) as channel:
                    with pytest.raises(UnknownHost):
                        await channel.unary_unary(name_of("echo"))(b"")
            both = {"resources": [*document["resources"], *config(server.address)["resources"]]}
            with mesh_for(both, unknown_hosts="passthrough") as mesh:
                async with meshlib.grpc.aio_channel(server.address, mesh=mesh) as channel:
                    call = channel.unary_unary(name_of("echo"))(b"x", timeout=5)
                    assert await call == b"x"
                    assert await call.trailing_metadata() == (("x-trailing", "2"),)
                    chat = channel.stream_stream(name_of("chat"))(iter([b"x"]))
                    assert [message async for message in chat] == [b"X"]
                    with pytest.raises(grpc.aio.AioRpcError) as caught:
                        await channel.unary_unary(name_of("fail"))(b"ABORTED:x")
                    assert caught.value.code() is Code.ABORTED

    run(main())


# --- interceptors ------------------------------------------------------------------------------------------------------


def test_interceptors_of_all_kinds() -> None:
    seen: list[str] = []

    def marked(details: grpc.aio.ClientCallDetails) -> grpc.aio.ClientCallDetails:
        seen.append(details.method.decode().rpartition("/")[2])
        metadata = grpc.aio.Metadata(*details.metadata, ("x-marked", "1"))
        return details._replace(metadata=metadata)

    class OfUnaryUnary(grpc.aio.UnaryUnaryClientInterceptor):  # type: ignore[misc]
        async def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
            return await continuation(marked(details), request + b"!")

    class OfUnaryStream(grpc.aio.UnaryStreamClientInterceptor):  # type: ignore[misc]
        async def intercept_unary_stream(self, continuation: Any, details: Any, request: Any) -> Any:
            return await continuation(marked(details), request)

    class OfStreamUnary(grpc.aio.StreamUnaryClientInterceptor):  # type: ignore[misc]
        async def intercept_stream_unary(self, continuation: Any, details: Any, requests: Any) -> Any:
            return await continuation(marked(details), requests)

    class OfStreamStream(grpc.aio.StreamStreamClientInterceptor):  # type: ignore[misc]
        async def intercept_stream_stream(self, continuation: Any, details: Any, requests: Any) -> Any:
            call = await continuation(marked(details), requests)

            async def louder() -> AsyncIterator[bytes]:
                async for message in call:
                    yield message + b"!"

            return louder()

    interceptors = [OfUnaryUnary(), OfUnaryStream(), OfStreamUnary(), OfStreamStream()]

    async def main() -> None:
        async with backend() as server:
            async with channel_to(server.address, interceptors=interceptors) as (channel, mesh):
                call = channel.unary_unary(name_of("echo"))(b"x", timeout=5)
                assert await call == b"x!"
                assert await call.code() is Code.OK
                stream = channel.unary_stream(name_of("repeat"))(b"x")
                assert [message async for message in stream] == [b"x"] * 3
                collect = channel.stream_unary(name_of("collect"))()
                await collect.write(b"a")
                await collect.write(b"b")
                await collect.done_writing()
                assert await collect == b"a,b"
                chat = channel.stream_stream(name_of("chat"))(iter([b"a", b"b"]))
                assert [message async for message in chat] == [b"A!", b"B!"]
                assert seen == ["echo", "repeat", "collect", "chat"]
                assert all(metadata["x-marked"] == "1" for _, metadata, _ in server.seen)
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await channel.unary_unary(name_of("fail"))(b"ABORTED:")
                assert caught.value.code() is Code.ABORTED
                assert held(mesh) == 0

    run(main())


def test_an_interceptor_may_answer_by_itself() -> None:
    class Cache(grpc.aio.UnaryUnaryClientInterceptor):  # type: ignore[misc]
        async def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
            return b"cached"

    async def main() -> None:
        async with backend() as server:
            async with channel_to(server.address, interceptors=[Cache()]) as (channel, _):
                assert await channel.unary_unary(name_of("echo"))(b"x") == b"cached"
                assert server.seen == []

    run(main())


def test_what_is_no_interceptor_is_refused() -> None:
    with mesh_for(config()) as mesh:
        with pytest.raises(ValueError, match="UnaryUnaryClientInterceptor"):
            meshlib.grpc.aio_channel("echo:80", mesh=mesh, interceptors=[object()])
        with pytest.raises(ConfigError, match="credentials"):
            meshlib.grpc.aio_channel("echo:80", mesh=mesh, credentials=grpc.ssl_channel_credentials())


# --- connectivity and the end ----------------------------------------------------------------------------------------------


def test_connectivity() -> None:
    async def main() -> None:
        async with backend() as server:
            store = store_of(config())
            with ControlPlane(store) as control_plane:
                with meshlib.Mesh(server_uri=control_plane.address) as mesh:
                    channel = meshlib.grpc.aio_channel("echo:80", mesh=mesh)
                    assert channel.get_state() is State.IDLE
                    ready = asyncio.create_task(channel.channel_ready())
                    state = channel.get_state()
                    while state is not State.TRANSIENT_FAILURE:  # there is no endpoint
                        await channel.wait_for_state_change(state)
                        state = channel.get_state()
                    assert not ready.done()
                    store.replace(messages(config(server.address)))
                    await ready
                    assert channel.get_state() is State.READY
                    change = asyncio.create_task(channel.wait_for_state_change(State.READY))
                    await asyncio.sleep(0)
                    await channel.close()
                    await change
                    assert channel.get_state() is State.SHUTDOWN
                    with pytest.raises(grpc.aio.UsageError):
                        await channel.channel_ready()

    run(main())


def test_close_waits_for_calls_as_long_as_it_is_told() -> None:
    async def main() -> None:
        async with backend() as server:
            async with channel_to(server.address) as (channel, mesh):
                release = asyncio.Event()

                async def slow(request: bytes, _context: grpc.aio.ServicerContext) -> bytes:
                    server.started.set()
                    await release.wait()
                    return request

                server.methods["slow"] = ("unary_unary", slow)
                good = channel.unary_unary(name_of("slow"))(b"x")
                await server.started.wait()
                closing = asyncio.create_task(channel.close(LIMIT))
                await asyncio.sleep(0)
                with pytest.raises(grpc.aio.UsageError):
                    channel.unary_unary(name_of("echo"))(b"")
                release.set()
                await closing
                assert await good == b"x"
            async with channel_to(server.address) as (channel, mesh):
                server.started.clear()
                hang = channel.unary_unary(name_of("hang"))(b"")
                stream = channel.unary_stream(name_of("hang_stream"))(b"")
                await server.started.wait()
                await channel.close(0.01)
                await channel.close()
                for call in hang, stream:
                    assert call.cancelled()
                with pytest.raises(asyncio.CancelledError):
                    await hang
                assert held(mesh) == 0

    run(main())

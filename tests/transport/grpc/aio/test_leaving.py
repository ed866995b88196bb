"""What is cancelled shortly before an event loop ends, and what loops after it hear of that: nothing."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

import meshlib
import meshlib.grpc
from meshlib.transport.grpc import aio_inner, aio_lean, aio_leaving
from meshlib.transport.grpc.aio_leaving import Leaving
from tests.transport.grpc.aio.support import (
    Backend,
    channel_to,
    complaints,
    eventually,
    held,
    name_of,
    run,
)
from tests.transport.grpc.aio.test_channel import threaded_backend
from tests.transport.grpc.support import config, mesh_for

CALLS: dict[str, Callable[[grpc.aio.Channel], Any]] = {
    "unary_unary": lambda channel: channel.unary_unary(name_of("hang"))(b""),
    "unary_stream": lambda channel: channel.unary_stream(name_of("hang_stream"))(b""),
    "stream_unary": lambda channel: channel.stream_unary(name_of("collect"))(),
    "stream_stream": lambda channel: channel.stream_stream(name_of("chat"))(),
}


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    """An endpoint that takes connections and never says anything."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


@pytest.fixture(scope="module")
def server() -> Iterator[Backend]:
    with threaded_backend() as started:
        yield started


async def listen() -> None:
    """Hear, on another loop, what grpcio's poller has to say."""
    channel = grpc.aio.insecure_channel("ipv4:127.0.0.1:1")
    try:
        await asyncio.sleep(0.01)
    finally:
        await channel.close()


async def begun(server: Backend, channel: grpc.aio.Channel, kind: str) -> Any:
    """A call that has come to the server."""
    seen = len(server.seen)
    call = CALLS[kind](channel)
    if kind.startswith("stream"):
        await call.write(b"x")
    await eventually(lambda: len(server.seen) > seen)
    return call


async def use(call: Any) -> None:
    """Whatever the call gives, until it is cancelled."""
    if isinstance(call, grpc.aio.UnaryStreamCall | grpc.aio.StreamStreamCall):
        async for _ in call:
            pass
    else:
        await call


async def end(how: str, channel: grpc.aio.Channel, call: Any) -> None:
    task = asyncio.create_task(use(call))
    await asyncio.sleep(0)
    if how == "task":
        task.cancel()
    elif how == "call":
        call.cancel()
    elif how == "channel":
        await channel.close()


@pytest.mark.parametrize("kind", CALLS)
@pytest.mark.parametrize("how", ["loop", "task", "call", "channel"])
@pytest.mark.parametrize("accepted", [False, True])
def test_a_call_that_ends_while_it_connects(
    silent: socket.socket, kind: str, how: str, accepted: bool, caplog: pytest.LogCaptureFixture
) -> None:
    host, port = silent.getsockname()
    with mesh_for(config(f"{host}:{port}", cluster={"connect_timeout": "60s"})) as mesh:
        taken = []

        async def leave() -> Any:
            channel = meshlib.grpc.aio_channel("echo:80", mesh=mesh)
            call = CALLS[kind](channel)
            if accepted:
                taken.append((await asyncio.to_thread(silent.accept))[0])
            await end(how, channel, call)
            return channel, call

        _, call = kept = asyncio.run(leave())
        assert call.cancelled()
        asyncio.run(listen())
        assert held(mesh) == 0
        state = mesh.engine.store.cluster("echo")
        assert state.default.connections == 0
        assert state.stats.upstream_cx_connect_fail.value == 0  # the endpoint has not failed
        assert caplog.records == []
        for connection in taken:
            connection.close()
        del kept


@pytest.mark.parametrize("kind", CALLS)
@pytest.mark.parametrize("how", ["loop", "task", "call", "channel"])
@pytest.mark.parametrize("way", ["lean", "public"])
def test_a_call_that_ends_under_way(
    server: Backend,
    kind: str,
    how: str,
    way: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(aio_lean, "_usable", way == "lean")
    with mesh_for(config(server.address)) as mesh:

        async def leave() -> Any:
            channel = meshlib.grpc.aio_channel("echo:80", mesh=mesh)
            await channel.unary_unary(name_of("echo"))(b"")
            call = await begun(server, channel, kind)
            await end(how, channel, call)
            return channel, call

        for _ in range(3):
            _, call = kept = asyncio.run(leave())
            assert call.cancelled()
            asyncio.run(listen())
            del kept
        assert held(mesh) == 0
        assert complaints(caplog) == []


def test_a_call_that_was_cancelled_is_forgotten(server: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would hold its connection."""
    monkeypatch.setattr(aio_leaving, "PATIENCE", 0.01)

    async def main() -> None:
        async with channel_to(server.address) as (channel, _):
            leaving = channel.home().leaving
            for _ in range(2):
                calls = [await begun(server, channel, kind) for kind in CALLS]
                for call in calls:
                    call.cancel()
                assert len(leaving._calls) == len(calls)
                await eventually(lambda: not leaving._calls)
                assert leaving._forgetting is None

    run(main())


def test_a_call_is_asked_until_it_is_over() -> None:
    class Core:
        """Takes the third request for a message, and reports on it when it is told to."""

        def __init__(self) -> None:
            self.asked = 0
            self.report = asyncio.get_running_loop().create_future()

        async def receive_serialized_message(self) -> bytes | None:
            self.asked += 1
            if self.asked >= 3:
                await self.report
            return None

    async def main() -> None:
        leaving = Leaving(asyncio.get_running_loop())
        cores = [Core(), Core()]
        for core in cores:
            leaving.cut(SimpleNamespace(**{aio_inner.CORE: core}))
        gone = asyncio.create_task(leaving.gone())
        for core in cores:
            await eventually(lambda: core.asked == 3)  # noqa: B023 - awaited here
            assert not gone.done()
            core.report.set_exception(grpc.aio.InternalError("cancelled"))
        await gone
        assert [core.asked for core in cores] == [3, 3]
        await leaving.gone()

    run(main())


def test_it_is_not_waited_for_ever(server: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aio_leaving, "PATIENCE", 0.01)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        leaving = Leaving(loop)
        never = loop.create_future()

        async def change(_state: grpc.ChannelConnectivity) -> None:
            await never

        async def refuse() -> bytes:
            return b""  # at once: it has a request for a message

        watched = leaving.watch(SimpleNamespace(wait_for_state_change=change), grpc.ChannelConnectivity.IDLE)
        watched.cancel()
        await leaving.gone()
        assert not never.done()
        monkeypatch.setattr(aio_inner, "CORE", "core")
        leaving.cut(SimpleNamespace(core=SimpleNamespace(receive_serialized_message=refuse)))
        await leaving.gone()
        monkeypatch.setattr(aio_inner, "CORE", "not there")
        leaving.cut(SimpleNamespace())
        never.set_result(None)
        await asyncio.sleep(0)
        await leaving.gone()

    run(main())

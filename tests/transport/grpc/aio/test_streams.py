"""Streaming calls in asyncio: both ways of reading and writing, what is sent again, what cancels them."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Iterator
from typing import Any, cast

import grpc
import pytest

from meshlib.errors import MeshError
from meshlib.transport.grpc import aio_inner, aio_stream
from meshlib.transport.grpc.aio_stream import GRACE, LATE, TURNS, Grace
from tests.transport.grpc.aio.support import (
    LIMIT,
    Backend,
    backend,
    channel_to,
    eventually,
    held,
    name_of,
    run,
)

Code = grpc.StatusCode
EOF = grpc.aio.EOF
UNAVAILABLE = {"retry_policy": {"retry_on": "unavailable", "num_retries": 2}}
MESSAGES = [b"one", b"two", b"three"]


@pytest.fixture(params=["lean", "public"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages straight to C-core's call, and through grpc.aio's methods, as with a grpcio that is made otherwise."""
    if request.param == "public":
        monkeypatch.setattr(aio_inner, "CORE", "not there")


async def asynchronously(messages: list[bytes]) -> AsyncIterator[bytes]:
    for message in messages:
        yield message


@pytest.mark.usefixtures("way")
def test_a_response_stream() -> None:
    async def main() -> None:
        async with backend() as server, channel_to(server.address) as (channel, mesh):
            repeat = channel.unary_stream(name_of("repeat"), str.encode, bytes.decode)
            for _ in range(2):
                call = repeat("x", timeout=5)
                await call.wait_for_connection()
                assert [message async for message in call] == ["x"] * 3
                assert await call.code() is Code.OK
                with pytest.raises(grpc.aio.UsageError):
                    await call.read()
                call = repeat("y")
                assert [await call.read() for _ in range(5)] == ["y", "y", "y", EOF, EOF]
                with pytest.raises(grpc.aio.UsageError):
                    aiter(call)
            assert held(mesh) == 0

    run(main())


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("source", [asynchronously, iter, list])
def test_a_request_stream_from_an_iterator(source: Any) -> None:
    async def main() -> None:
        async with backend() as server, channel_to(server.address) as (channel, mesh):
            collect, chat = channel.stream_unary(name_of("collect")), channel.stream_stream(name_of("chat"))
            for _ in range(2):
                call = collect(source(MESSAGES))
                assert (await call, await call) == (b"one,two,three",) * 2
                with pytest.raises(grpc.aio.UsageError):
                    await call.write(b"")
                with pytest.raises(grpc.aio.UsageError):
                    await call.done_writing()
                assert [message async for message in chat(source(MESSAGES))] == [b"ONE", b"TWO", b"THREE"]
            assert held(mesh) == 0

    run(main())


@pytest.mark.usefixtures("way")
def test_writing_and_reading() -> None:
    async def main() -> None:
        async with backend() as server, channel_to(server.address) as (channel, mesh):
            for _ in range(2):
                call = channel.stream_stream(name_of("chat"))()
                await call.wait_for_connection()
                for message in MESSAGES:
                    await call.write(message)
                    assert await call.read() == message.upper()
                await call.done_writing()
                await call.done_writing()
                with pytest.raises(asyncio.InvalidStateError):
                    await call.write(b"late")
                assert await call.read() is EOF
                assert call.done()
                collect = channel.stream_unary(name_of("collect"))()
                await collect.write(b"a")
                await collect.write(b"b")
                await collect.done_writing()
                assert await collect == b"a,b"
            assert held(mesh) == 0

    run(main())


@pytest.mark.usefixtures("way")
def test_initial_metadata_come_before_the_first_message() -> None:
    async def greet(
        requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[bytes]:
        await context.send_initial_metadata((("x-hello", "you"),))
        async for message in requests:
            yield message

    async def greet_bare(
        requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[bytes]:
        await context.send_initial_metadata(())
        async for message in requests:
            yield message

    async def main() -> None:
        async with backend() as server, channel_to(server.address) as (channel, _):
            server.methods["greet"] = ("stream_stream", greet)
            server.methods["greet_bare"] = ("stream_stream", greet_bare)
            for method, expected in ("greet", (("x-hello", "you"),)), ("greet_bare", ()):
                call = channel.stream_stream(name_of(method))()
                assert await call.initial_metadata() == expected
                await call.write(b"x")
                assert await call.read() == b"x"
                await call.done_writing()
                assert await call.read() is EOF

    run(main())


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine the status may come long after the empty initial metadata."""
    monkeypatch.setattr(aio_stream, "GRACE", LIMIT)


def fail_once(server: Backend, after: int) -> None:
    """`collect` and `chat` end with UNAVAILABLE in their first call, after so many request messages and before any response."""
    failed: list[str] = []
    collect, chat = server.methods["collect"][1], server.methods["chat"][1]

    async def refuse(requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> None:
        failed.append("")
        for _ in range(after):
            await anext(requests)
        await context.abort(Code.UNAVAILABLE, "not yet")

    async def collect_later(requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> Any:
        if not failed:
            await refuse(requests, context)
        return await collect(requests, context)

    async def chat_later(
        requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[bytes]:
        if not failed:
            await refuse(requests, context)
        async for message in chat(requests, context):
            yield message

    server.methods["collect"] = ("stream_unary", collect_later)
    server.methods["chat"] = ("stream_stream", chat_later)


@pytest.mark.parametrize("after", [0, 2, 3])
@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.usefixtures("patient")
def test_request_messages_are_sent_again(after: int, *, warm: bool) -> None:
    async def main() -> None:
        async with backend() as server, channel_to(server.address, route=UNAVAILABLE) as (channel, mesh):
            if warm:
                await channel.unary_unary(name_of("echo"))(b"")
            fail_once(server, after)
            call = channel.stream_unary(name_of("collect"))(asynchronously(MESSAGES))
            assert await call == b"one,two,three"
            assert call.meshlib.attempt_count == 2
            assert held(mesh) == 0

    run(main())


@pytest.mark.parametrize("after", [0, 1])
@pytest.mark.usefixtures("patient")
def test_writing_goes_on_over_a_retry(after: int) -> None:
    """Also when the application writes to an attempt that is over, which grpc.aio reports as INTERNAL."""

    async def main() -> None:
        async with backend() as server, channel_to(server.address, route=UNAVAILABLE) as (channel, mesh):
            fail_once(server, after)
            call = channel.stream_stream(name_of("chat"))()
            for message in MESSAGES:
                await call.write(message)
            assert [await call.read() for _ in MESSAGES] == [b"ONE", b"TWO", b"THREE"]
            await call.done_writing()
            assert await call.read() is EOF
            assert call.meshlib.attempt_count == 2
            assert held(mesh) == 0

    run(main())


def test_a_request_beyond_the_buffer_is_not_sent_again() -> None:
    async def main() -> None:
        async with backend() as server, channel_to(server.address, route=UNAVAILABLE) as (channel, mesh):
            fail_once(server, 20)
            call = channel.stream_unary(name_of("collect"))(asynchronously([b"x" * 100_000] * 20))
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            assert caught.value.code() is Code.UNAVAILABLE
            assert call.meshlib.attempt_count == 1
            assert held(mesh) == 0

    run(main())


def test_the_status_of_a_call_that_ends_while_it_is_written_to() -> None:
    """grpc.aio itself makes INTERNAL of it."""

    async def main() -> None:
        async with backend() as server, channel_to(server.address) as (channel, mesh):
            fail_once(server, 1)
            for arity, method in ("stream_unary", "collect"), ("stream_stream", "chat"):
                fail_once(server, 1)
                call = getattr(channel, arity)(name_of(method))()

                async def write_on(call: Any = call) -> None:
                    while True:
                        await call.write(b"x")

                with pytest.raises((grpc.aio.AioRpcError, asyncio.InvalidStateError)):
                    await write_on()
                assert (await call.code(), await call.details()) == (Code.UNAVAILABLE, "not yet")
            assert held(mesh) == 0

    run(main())


@pytest.mark.usefixtures("way")
def test_a_response_stream_is_tried_again_before_its_first_message_only() -> None:
    calls: list[str] = []

    async def flaky(_request: bytes, context: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
        calls.append("")
        if len(calls) == 1:
            await context.abort(Code.UNAVAILABLE, "early")
        yield b"first"
        await context.abort(Code.UNAVAILABLE, "late", (("x-why", "because"),))

    async def main() -> None:
        async with backend() as server, channel_to(server.address, route=UNAVAILABLE) as (channel, mesh):
            server.methods["flaky"] = ("unary_stream", flaky)
            call = channel.unary_stream(name_of("flaky"))(b"")
            assert await call.read() == b"first"
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call.read()
            assert (caught.value.details(), len(calls)) == ("late", 2)
            assert caught.value.trailing_metadata() == (("x-why", "because"),)
            assert not isinstance(caught.value, MeshError)
            with pytest.raises(grpc.aio.AioRpcError):
                await call.read()
            messages = aiter(channel.unary_stream(name_of("flaky"))(b""))
            assert await anext(messages) == b"first"
            with pytest.raises(grpc.aio.AioRpcError):
                await anext(messages)
            assert held(mesh) == 0

    run(main())


@pytest.mark.usefixtures("way")
def test_a_timeout_after_the_first_message_cuts_the_stream() -> None:
    async def main() -> None:
        async with (
            backend() as server,
            channel_to(server.address, route={"timeout": "1s"}) as (channel, mesh),
        ):
            call = channel.unary_stream(name_of("hang_stream"))(b"first")
            assert await call.read() == b"first"
            with pytest.raises(MeshError) as caught:
                await call.read()
            error: Any = caught.value
            assert isinstance(error, grpc.aio.AioRpcError)
            assert error.flags == "UT"
            await server.stopped.wait()
            assert held(mesh) == 0

    run(main())


@pytest.mark.usefixtures("way")
def test_cancelling() -> None:
    async def main() -> None:
        async with backend() as server, channel_to(server.address) as (channel, mesh):
            call = channel.unary_stream(name_of("hang_stream"))(b"first")
            assert await call.read() == b"first"
            assert call.cancel()
            assert not call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call.read()
            assert call.cancelled()
            assert await call.code() is Code.CANCELLED
            await server.stopped.wait()

            server.stopped.clear()
            call = channel.unary_stream(name_of("hang_stream"))(b"first")
            assert await call.read() == b"first"
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.02):
                    await call.read()
            assert call.cancelled()
            await server.stopped.wait()
            assert held(mesh) == 0

    run(main())


@pytest.mark.usefixtures("way")
def test_a_stream_that_is_let_go_is_cancelled() -> None:
    async def main() -> None:
        async with backend() as server, channel_to(server.address) as (channel, mesh):
            call = channel.unary_stream(name_of("hang_stream"))(b"first")
            assert await call.read() == b"first"
            del call
            gc.collect()
            await server.stopped.wait()

            server.stopped.clear()
            async for _ in channel.unary_stream(name_of("hang_stream"))(b"first"):
                break
            await server.stopped.wait()
            await eventually(lambda: held(mesh) == 0)

    run(main())


def test_an_iterator_keeps_its_call() -> None:
    async def main() -> None:
        async with backend() as server, channel_to(server.address) as (channel, _):
            iterator = aiter(channel.unary_stream(name_of("repeat"))(b"x"))
            gc.collect()
            assert [message async for message in iterator] == [b"x"] * 3

    run(main())


def test_a_request_iterator_that_raises_cancels_the_call() -> None:
    def broken() -> Iterator[bytes]:
        yield b"one"
        raise ValueError("broken")

    async def main() -> None:
        async with backend() as server, channel_to(server.address) as (channel, mesh):
            call = channel.stream_unary(name_of("collect"))(broken())
            with pytest.raises(asyncio.CancelledError):
                await call
            assert call.cancelled()
            assert held(mesh) == 0

    run(main())


def test_the_end_of_a_call_ends_its_request_iterator() -> None:
    ended = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        try:
            yield b"one"
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def main() -> None:
        async with backend() as server, channel_to(server.address) as (channel, _):
            fail_once(server, 0)
            call = channel.stream_unary(name_of("collect"))(endless())
            with pytest.raises(grpc.aio.AioRpcError):
                await call
            await ended.wait()

    run(main())


def test_hedged_request_streams_go_to_both_attempts() -> None:
    got: list[list[bytes]] = []

    async def slow_once(requests: AsyncIterator[bytes], _context: grpc.aio.ServicerContext) -> bytes:
        mine: list[bytes] = []
        got.append(mine)
        first = len(got) == 1
        async for message in requests:
            mine.append(message)  # noqa: PERF401 - read by the test while it grows
        if first:
            await asyncio.Event().wait()
        return b",".join(mine)

    async def main() -> None:
        route = {
            "retry_policy": {"retry_on": "unavailable", "num_retries": 1, "per_try_timeout": "0.05s"},
            "hedge_policy": {"hedge_on_per_try_timeout": True},
        }
        async with backend() as server, channel_to(server.address, route=route) as (channel, mesh):
            server.methods["slow_once"] = ("stream_unary", slow_once)
            call = channel.stream_unary(name_of("slow_once"))(asynchronously(MESSAGES))
            assert await call == b"one,two,three"
            assert got == [MESSAGES, MESSAGES]
            assert held(mesh) == 0

    run(main())


# --- the grace of empty initial metadata -------------------------------------------------------------------------------


class LateLoop:
    """A loop that comes `late` seconds late to its timers."""

    def __init__(self, late: float) -> None:
        self.now = 0.0
        self.late = late
        self.timers: list[tuple[float, Any]] = []

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, task: Any) -> Any:
        self.timers.append((when, task))
        return self

    def cancel(self) -> None:
        self.timers.clear()

    def turn(self) -> None:
        when, task = self.timers.pop(0)
        self.now = when + self.late
        task()


def graced(late: float) -> tuple[LateLoop, list[float]]:
    loop, over = LateLoop(late), list[float]()
    Grace(cast(asyncio.AbstractEventLoop, loop), lambda: over.append(loop.now))
    return loop, over


def test_the_grace_of_a_loop_that_has_time() -> None:
    loop, over = graced(late=LATE / 2)
    loop.turn()
    assert over == [GRACE + LATE / 2]
    assert loop.timers == []


def test_the_grace_begins_anew_when_the_loop_comes_late() -> None:
    loop, over = graced(late=1.0)
    loop.turn()
    assert over == []
    loop.late = 0.0
    loop.turn()
    assert over == [1.0 + 2 * GRACE]


def test_the_grace_of_a_loop_that_always_comes_late_ends() -> None:
    loop, over = graced(late=1.0)
    for _ in range(TURNS):
        assert over == []
        loop.turn()
    assert len(over) == 1
    assert loop.timers == []

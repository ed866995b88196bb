"""Unary calls in asyncio: what they give, how they fail, what becomes of their attempts."""

from __future__ import annotations

import asyncio
import pickle
from typing import Any

import grpc
import pytest
from grpc_status import rpc_status

import meshlib
import meshlib.grpc
from meshlib.errors import CircuitFull, ConnectFailed, DeadlineExceeded, MeshError, NoRoute
from meshlib.transport.grpc import aio_lean
from tests.transport.grpc.aio.support import backend, channel_to, eventually, held, name_of, run
from tests.transport.grpc.support import config, mesh_for

Code = grpc.StatusCode
UNAVAILABLE = {"retry_policy": {"retry_on": "unavailable", "num_retries": 2}}


@pytest.fixture(params=["lean", "public"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Attempts straight on C-core's objects, and through grpc.aio's own calls, as with a grpcio that is made otherwise."""
    monkeypatch.setattr(aio_lean, "_usable", request.param == "lean")
    return str(request.param)


@pytest.mark.usefixtures("way")
class TestBothWays:
    def test_a_call_gives_what_grpc_aio_gives(self) -> None:
        async def main() -> None:
            async with backend() as server, channel_to(server.address) as (channel, mesh):
                ended: list[Any] = []
                for _ in range(2):  # the first one connects
                    call = channel.unary_unary(name_of("echo"))(b"hi", timeout=5, metadata=(("k", "v"),))
                    call.add_done_callback(ended.append)
                    assert not call.done()
                    assert (await call, await call) == (b"hi", b"hi")
                    assert await call.code() is Code.OK
                    assert await call.details() == ""
                    assert await call.initial_metadata() == (("x-initial", "1"),)
                    assert await call.trailing_metadata() == (("x-trailing", "2"),)
                    assert call.done()
                    assert not call.cancelled()
                    assert not call.cancel()
                    assert 4 < call.time_remaining() <= 5
                    assert ended.pop() is call
                    call.add_done_callback(ended.append)
                    assert ended.pop() is call
                    await call.wait_for_connection()
                    assert call.meshlib.cluster == "echo"
                    assert [attempt.endpoint for attempt in call.meshlib.attempts] == [server.address]
                name, metadata, left = server.seen[-1]
                assert (name, metadata["k"]) == ("echo", "v")
                assert left is not None
                assert 4 < left < 5.5
                assert held(mesh) == 0

        run(main())

    def test_a_status_of_the_endpoint_is_no_error_of_the_mesh(self) -> None:
        async def main() -> None:
            async with backend() as server, channel_to(server.address, route=UNAVAILABLE) as (channel, mesh):
                for _ in range(2):
                    call = channel.unary_unary(name_of("fail"))(b"NOT_FOUND:gone")
                    with pytest.raises(grpc.aio.AioRpcError) as caught:
                        await call
                    error: Any = caught.value
                    assert not isinstance(error, MeshError)
                    assert (error.code(), error.details()) == (Code.NOT_FOUND, "gone")
                    assert error.trailing_metadata() == (("x-why", "because"),)
                    assert (await call.code(), await call.details()) == (Code.NOT_FOUND, "gone")
                    assert error.meshlib.details == "via_upstream"
                    assert len(error.meshlib.attempts) == 1
                    with pytest.raises(grpc.aio.AioRpcError):
                        await call
                assert held(mesh) == 0

        run(main())

    def test_another_endpoint_is_tried(self) -> None:
        async def main() -> None:
            async with backend() as good, backend() as bad:
                bad.methods["echo"] = ("unary_unary", bad.methods["fail"][1])
                async with channel_to(good.address, bad.address, route=UNAVAILABLE) as (channel, mesh):
                    echo = channel.unary_unary(name_of("echo"))
                    answers = [await echo(b"UNAVAILABLE:later") for _ in range(4)]
                    assert answers == [b"UNAVAILABLE:later"] * 4
                    assert bad.calls()
                    assert len(good.calls()) == 4
                    assert held(mesh) == 0

        run(main())

    def test_no_retry_once_the_response_has_begun(self) -> None:
        async def begin(_request: bytes, context: grpc.aio.ServicerContext) -> None:
            await context.send_initial_metadata((("x-begun", "1"),))
            await context.abort(Code.UNAVAILABLE, "late")

        async def main() -> None:
            async with backend() as server, channel_to(server.address, route=UNAVAILABLE) as (channel, mesh):
                server.methods["begin"] = ("unary_unary", begin)
                call = channel.unary_unary(name_of("begin"))(b"")
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call
                assert caught.value.code() is Code.UNAVAILABLE
                assert caught.value.initial_metadata() == (("x-begun", "1"),)
                assert len(server.seen) == 1
                assert held(mesh) == 0

        run(main())

    def test_the_callers_deadline_covers_all_attempts(self) -> None:
        async def main() -> None:
            route = {"retry_policy": {"retry_on": "deadline-exceeded,unavailable", "num_retries": 5}}
            async with backend() as server, channel_to(server.address, route=route) as (channel, mesh):
                for _ in range(2):
                    call = channel.unary_unary(name_of("hang"))(b"", timeout=0.1)
                    with pytest.raises(grpc.aio.AioRpcError) as caught:
                        await call
                    assert caught.value.code() is Code.DEADLINE_EXCEEDED
                    assert isinstance(caught.value, DeadlineExceeded)
                    assert call.time_remaining() == 0
                assert len(server.seen) == 2
                assert held(mesh) == 0

        run(main())

    def test_cancelling_the_call_reaches_the_endpoint(self) -> None:
        async def main() -> None:
            async with backend() as server, channel_to(server.address) as (channel, mesh):
                for _ in range(2):
                    server.started.clear()
                    server.stopped.clear()
                    call = channel.unary_unary(name_of("hang"))(b"")
                    await server.started.wait()
                    assert call.cancel()
                    assert not call.cancel()
                    with pytest.raises(asyncio.CancelledError):
                        await call
                    assert call.cancelled()
                    assert call.done()
                    assert await call.code() is Code.CANCELLED
                    assert await call.details() == "Locally cancelled by application!"
                    await server.stopped.wait()
                assert held(mesh) == 0

        run(main())

    def test_cancelling_the_task_cancels_the_call(self) -> None:
        async def main() -> None:
            async with backend() as server, channel_to(server.address) as (channel, mesh):
                for _ in range(2):
                    server.started.clear()
                    server.stopped.clear()
                    call = channel.unary_unary(name_of("hang"))(b"")

                    async def wait(call: Any = call) -> None:
                        await call

                    task = asyncio.create_task(wait())
                    await server.started.wait()
                    task.cancel()
                    with pytest.raises(asyncio.CancelledError):
                        await task
                    assert call.cancelled()
                    await server.stopped.wait()
                assert held(mesh) == 0

        run(main())

    def test_a_timeout_of_asyncio_is_a_timeout(self) -> None:
        async def main() -> None:
            async with backend() as server, channel_to(server.address) as (channel, mesh):
                await channel.unary_unary(name_of("echo"))(b"")
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.05):
                        await channel.unary_unary(name_of("hang"))(b"")
                await server.stopped.wait()
                assert held(mesh) == 0

        run(main())

    def test_a_call_in_a_cancelled_task_still_says_what_happened_to_it(self) -> None:
        """Clean-up code makes calls too; that its task was cancelled once says nothing about them."""

        async def main() -> None:
            async with (
                backend() as server,
                channel_to(server.address, route={"timeout": "1s"}) as (channel, _),
            ):
                await channel.unary_unary(name_of("echo"))(b"")
                codes: list[grpc.StatusCode] = []

                async def work() -> None:
                    try:
                        await asyncio.Event().wait()
                    finally:
                        try:
                            await channel.unary_unary(name_of("hang"))(b"")
                        except grpc.aio.AioRpcError as error:
                            codes.append(error.code())

                task = asyncio.create_task(work())
                await asyncio.sleep(0)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert codes == [Code.UNAVAILABLE]

        run(main())

    def test_per_try_timeout(self) -> None:
        async def main() -> None:
            policy = {"retry_on": "reset", "num_retries": 1, "per_try_timeout": "1s"}
            async with (
                backend() as server,
                channel_to(server.address, route={"retry_policy": policy}) as (channel, mesh),
            ):
                server.methods["slow_once"] = ("unary_unary", server.hang_once)
                call = channel.unary_unary(name_of("slow_once"))(b"x")
                assert await call == b"x"
                assert [attempt.failure for attempt in call.meshlib.attempts] == [
                    "upstream per try timeout",
                    None,
                ]
                await server.stopped.wait()
                assert held(mesh) == 0

        run(main())

    def test_hedging(self) -> None:
        """The first attempt is left alone when another one is made; the answer that comes first is taken."""

        async def main() -> None:
            route = {
                "retry_policy": {"retry_on": "unavailable", "num_retries": 1, "per_try_timeout": "0.05s"},
                "hedge_policy": {"hedge_on_per_try_timeout": True},
            }
            async with backend() as server, channel_to(server.address, route=route) as (channel, mesh):
                server.methods["slow_once"] = ("unary_unary", server.hang_once)
                call = channel.unary_unary(name_of("slow_once"))(b"x")
                assert await call == b"x"
                assert call.meshlib.attempt_count == 2
                await server.stopped.wait()
                assert held(mesh) == 0

        run(main())

    def test_many_at_once(self) -> None:
        async def main() -> None:
            async with backend() as one, backend() as two:
                async with channel_to(one.address, two.address) as (channel, mesh):
                    echo = channel.unary_unary(name_of("echo"))
                    messages = [b"%d" % number for number in range(300)]
                    assert await asyncio.gather(*map(echo, messages)) == messages
                    assert len(one.seen) == len(two.seen) == 150
                    assert held(mesh) == 0
                    stats = mesh.engine.store.cluster("echo").stats
                    assert stats.upstream_cx_total.value == 2

        run(main())

    def test_header_edits_and_a_rewritten_method(self) -> None:
        async def main() -> None:
            headers = [{"header": {"key": "x-added", "value": "by the route"}}]
            routes = [
                {
                    "match": {"prefix": "/"},
                    "route": {"cluster": "echo", "prefix_rewrite": "/test.Echo/"},
                    "request_headers_to_add": headers,
                    "response_headers_to_add": headers,
                }
            ]
            async with backend() as server:
                with mesh_for(config(server.address, routes=routes)) as mesh:
                    async with meshlib.grpc.aio_channel("echo:80", mesh=mesh) as channel:
                        for _ in range(2):
                            call = channel.unary_unary("/echo")(b"hi", metadata=[("k-bin", b"\x00\xff")])
                            assert await call == b"hi"
                            initial = await call.initial_metadata()
                            assert (initial["x-initial"], initial["x-added"]) == ("1", "by the route")
                        _, metadata, _ = server.seen[-1]
                        assert (metadata["k-bin"], metadata["x-added"]) == (b"\x00\xff", "by the route")
                        with pytest.raises(grpc.aio.AioRpcError) as caught:
                            await channel.unary_unary("/fail")(b"ABORTED:x")
                        trailing = caught.value.trailing_metadata()
                        assert (trailing["x-why"], trailing["x-added"]) == ("because", "by the route")

        run(main())


def test_errors_of_the_mesh_are_both() -> None:
    async def main() -> None:
        async with backend() as server, channel_to(server.address) as (channel, _):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary("/a#b")(b"")
            assert isinstance(caught.value, NoRoute)
            error: Any = caught.value
            assert (error.flags, error.meshlib.details) == ("-", "path_normalization_failed")
            assert error.local_reply is not None
            status = rpc_status.from_call(error)
            assert status is not None
            assert status.code == error.code().value[0]
            again = pickle.loads(pickle.dumps(error))
            assert type(again) is type(error)
            assert (again.code(), again.details()) == (error.code(), error.details())
            assert again.trailing_metadata() == error.trailing_metadata()

    run(main())


def test_a_limit_refuses_at_once() -> None:
    async def main() -> None:
        cluster = {"circuit_breakers": {"thresholds": [{"max_requests": 1}]}}
        async with backend() as server, channel_to(server.address, cluster=cluster) as (channel, mesh):
            await channel.unary_unary(name_of("echo"))(b"")
            first = channel.unary_unary(name_of("hang"))(b"")
            await server.started.wait()
            with pytest.raises(CircuitFull) as caught:
                await channel.unary_unary(name_of("echo"))(b"")
            refused: Any = caught.value
            assert refused.code() is Code.UNAVAILABLE
            assert refused.flags == "UO"
            status = rpc_status.from_call(refused)
            assert status is not None
            assert {part.type_url.rpartition(".")[2] for part in status.details} == {"ErrorInfo", "RetryInfo"}
            first.cancel()
            assert held(mesh) == 0

    run(main())


def test_a_direct_response_is_a_status() -> None:
    async def main() -> None:
        routes = [{"match": {"prefix": "/"}, "direct_response": {"status": 403}}]
        with mesh_for(config(routes=routes)) as mesh:
            async with meshlib.grpc.aio_channel("echo:80", mesh=mesh) as channel:
                for arity in ("unary_unary", "unary_stream"):
                    call = getattr(channel, arity)(name_of("x"))(b"")
                    with pytest.raises(grpc.aio.AioRpcError) as caught:
                        await (call if arity == "unary_unary" else call.read())
                    assert caught.value.code() is Code.PERMISSION_DENIED
                    assert not isinstance(caught.value, MeshError)

    run(main())


def test_an_override_of_the_application_counts() -> None:
    async def main() -> None:
        async with backend() as server, channel_to(server.address, route=UNAVAILABLE) as (channel, _):
            with meshlib.call(retries=0):
                with pytest.raises(grpc.aio.AioRpcError):
                    await channel.unary_unary(name_of("fail"))(b"UNAVAILABLE:x")
            assert len(server.seen) == 1

    run(main())


def test_a_call_that_nobody_holds_is_made() -> None:
    async def main() -> None:
        async with backend() as server, channel_to(server.address) as (channel, mesh):
            channel.unary_unary(name_of("echo"))(b"first, which connects")
            await eventually(lambda: len(server.seen) == 1)
            channel.unary_unary(name_of("echo"))(b"second")
            await eventually(lambda: len(server.seen) == 2)
            await eventually(lambda: held(mesh) == 0)

    run(main())


def test_what_c_core_does_not_take_is_said() -> None:
    async def main() -> None:
        async with backend() as server, channel_to(server.address) as (channel, mesh):
            echo = channel.unary_unary(name_of("echo"))
            await echo(b"")
            with pytest.raises(grpc.aio.UsageError):
                await echo(b"", credentials=grpc.access_token_call_credentials("secret"))
            bad: Any = (("Key", "upper case"),), (("key", 1),)
            for metadata in bad:
                call = echo(b"", metadata=metadata)
                with pytest.raises((grpc.aio.BaseError, TypeError)):
                    await call
                assert call.done()
            assert held(mesh) == 0

    run(main())


def test_serializers() -> None:
    async def main() -> None:
        async with backend() as server, channel_to(server.address) as (channel, mesh):
            echo = channel.unary_unary(name_of("echo"), str.encode, bytes.decode, _registered_method=True)
            call = echo("text")
            assert await call == "text"
            assert await call is await call

            def refuse(_message: object) -> bytes:
                raise ValueError("not mine")

            with pytest.raises(ValueError, match="not mine"):
                channel.unary_unary(name_of("echo"), refuse)(b"")
            assert held(mesh) == 0

    run(main())


def test_compression() -> None:
    async def main() -> None:
        async with backend() as server, channel_to(server.address) as (channel, _):
            message = b"x" * 10_000
            echo = channel.unary_unary(name_of("echo"))
            assert await echo(message, compression=grpc.Compression.Gzip) == message
            assert await echo(message, compression=grpc.Compression.Gzip) == message

    run(main())


def test_a_refused_connection() -> None:
    async def main() -> None:
        async with backend() as server:
            address = server.address
            await server.stop()
            async with channel_to(address) as (channel, mesh):
                with pytest.raises(ConnectFailed) as caught:
                    await channel.unary_unary(name_of("echo"))(b"")
                assert caught.value.flags == "UF"
                assert held(mesh) == 0
                state = mesh.engine.store.cluster("echo")
                assert state.default.connections == 0

    run(main())

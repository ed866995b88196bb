"""Futures and the three streaming arities."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

import meshlib
from meshlib.grpc import channel
from tests.transport.grpc.support import Backend, backend, config, mesh_for


@pytest.fixture
def server() -> Iterator[Backend]:
    with backend() as started:
        started.unary_stream("count", lambda request, context: (b"%d" % n for n in range(int(request))))
        started.stream_unary("join", lambda requests, context: b",".join(requests))
        started.stream_stream("each", lambda requests, context: (b"<" + item for item in requests))
        yield started


def permits(mesh: meshlib.Mesh) -> tuple[int, int, int]:
    held = mesh.engine.store.cluster("echo").default
    return held.pending, held.requests, held.retries


def test_every_arity(server: Backend) -> None:
    with mesh_for(config(server.address)) as mesh, channel("echo:80", mesh=mesh) as chan:
        future = chan.unary_unary("/test.Echo/echo").future(b"later")
        assert future.result(10) == b"later"
        assert future.code() is grpc.StatusCode.OK
        count = chan.unary_stream("/test.Echo/count")(b"3")
        assert list(count) == [b"0", b"1", b"2"]
        assert count.code() is grpc.StatusCode.OK
        join = chan.stream_unary("/test.Echo/join")
        assert join(iter([b"a", b"b"])) == b"a,b"
        response, call = join.with_call(iter([b"c"]))
        assert (response, call.code()) == (b"c", grpc.StatusCode.OK)
        assert join.future(iter([])).result(10) == b""
        assert list(chan.stream_stream("/test.Echo/each")(iter([b"a", b"b"]))) == [b"<a", b"<b"]
        assert list(chan.unary_stream("/test.Echo/count")(b"0")) == []
        assert permits(mesh) == (0, 0, 0)


def test_ping_pong(server: Backend) -> None:
    """The application's next request depends on the response before it."""
    go = threading.Semaphore(1)

    def requests() -> Iterator[bytes]:
        for number in range(3):
            assert go.acquire(timeout=10)
            yield b"%d" % number

    with mesh_for(config(server.address)) as mesh, channel("echo:80", mesh=mesh) as chan:
        responses = []
        for response in chan.stream_stream("/test.Echo/each")(requests()):
            responses.append(response)
            go.release()
        assert responses == [b"<0", b"<1", b"<2"]


def test_metadata_of_a_stream(server: Backend) -> None:
    def talk(request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        context.send_initial_metadata((("early", "1"),))
        yield b"one"
        context.set_trailing_metadata((("late", "2"),))

    server.unary_stream("talk", talk)
    with mesh_for(config(server.address)) as mesh, channel("echo:80", mesh=mesh) as chan:
        stream = chan.unary_stream("/test.Echo/talk")(b"")
        assert [tuple(pair) for pair in stream.initial_metadata()] == [("early", "1")]
        assert stream.is_active()
        assert next(stream) == b"one"
        assert list(stream) == []
        assert [tuple(pair) for pair in stream.trailing_metadata()] == [("late", "2")]
        assert stream.meshlib.attempts[0].endpoint == server.address


def test_error_in_the_middle(server: Backend) -> None:
    def breaks(request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        yield b"one"
        context.abort(grpc.StatusCode.DATA_LOSS, "gone")

    server.unary_stream("breaks", breaks)
    route = {"retry_policy": {"retry_on": "5xx,unavailable", "num_retries": 3}}
    with mesh_for(config(server.address, route=route)) as mesh, channel("echo:80", mesh=mesh) as chan:
        stream = chan.unary_stream("/test.Echo/breaks")(b"")
        assert next(stream) == b"one"
        with pytest.raises(grpc.RpcError) as caught:
            next(stream)
        assert caught.value.code() is grpc.StatusCode.DATA_LOSS
        assert (stream.code(), stream.details()) == (grpc.StatusCode.DATA_LOSS, "gone")
        assert permits(mesh) == (0, 0, 0)
    assert server.methods() == ["breaks"]


def test_retry_before_the_first_message(server: Backend) -> None:
    attempts: list[list[bytes]] = []

    def flaky(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        seen: list[bytes] = []
        attempts.append(seen)
        for request in requests:
            seen.append(request)
            if len(attempts) == 1 and len(seen) == 2:
                context.abort(grpc.StatusCode.UNAVAILABLE, "again")
            if len(attempts) > 1:
                yield request

    server.stream_stream("flaky", flaky)
    route = {"retry_policy": {"retry_on": "unavailable"}}
    with mesh_for(config(server.address, route=route)) as mesh, channel("echo:80", mesh=mesh) as chan:
        stream = chan.stream_stream("/test.Echo/flaky")(iter([b"a", b"b", b"c"]))
        assert list(stream) == [b"a", b"b", b"c"]
        assert attempts == [[b"a", b"b"], [b"a", b"b", b"c"]]
        assert len(stream.meshlib.attempts) == 2
        assert permits(mesh) == (0, 0, 0)


def test_retry_without_a_reader(server: Backend) -> None:
    """An attempt that fails is retried though the application asks for nothing yet."""
    served = threading.Event()
    answers = iter((False, True))

    def flaky(request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        if not next(answers):
            context.abort(grpc.StatusCode.UNAVAILABLE, "again")
        served.set()
        yield b"done"

    server.unary_stream("flaky", flaky)
    route = {"retry_policy": {"retry_on": "unavailable"}}
    with mesh_for(config(server.address, route=route)) as mesh, channel("echo:80", mesh=mesh) as chan:
        stream = chan.unary_stream("/test.Echo/flaky")(b"")
        assert served.wait(10)
        assert list(stream) == [b"done"]


def test_request_beyond_the_buffer_is_not_retried(server: Backend) -> None:
    def flaky(requests: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        for _ in requests:
            pass
        context.abort(grpc.StatusCode.UNAVAILABLE, "again")
        raise AssertionError

    server.stream_unary("flaky", flaky)
    document = config(server.address, route={"retry_policy": {"retry_on": "unavailable", "num_retries": 3}})
    host = next(r for r in document["resources"] if "virtual_hosts" in r)["virtual_hosts"][0]
    host["per_request_buffer_limit_bytes"] = 10
    with mesh_for(document) as mesh, channel("echo:80", mesh=mesh) as chan:
        join = chan.stream_unary("/test.Echo/flaky")
        with pytest.raises(grpc.RpcError):
            join(iter([b"x" * 6]))
        assert server.methods() == ["flaky"] * 4
        with pytest.raises(grpc.RpcError):
            join(iter([b"x" * 6, b"y" * 6]))
        assert server.methods() == ["flaky"] * 5


def test_cancelling_reaches_the_endpoint(server: Backend) -> None:
    cancelled = threading.Event()

    def forever(request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        context.add_callback(cancelled.set)
        yield b"one"
        server.gate.wait(20)

    server.unary_stream("forever", forever)
    with mesh_for(config(server.address)) as mesh, channel("echo:80", mesh=mesh) as chan:
        stream = chan.unary_stream("/test.Echo/forever")(b"")
        assert next(stream) == b"one"
        assert stream.cancel()
        assert not stream.cancel()
        assert cancelled.wait(10)
        assert stream.cancelled()
        assert stream.code() is grpc.StatusCode.CANCELLED
        with pytest.raises(grpc.RpcError) as caught:
            next(stream)
        assert caught.value.code() is grpc.StatusCode.CANCELLED
        assert permits(mesh) == (0, 0, 0)


def test_a_dropped_stream_is_cancelled(server: Backend) -> None:
    cancelled = threading.Event()

    def forever(request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        context.add_callback(cancelled.set)
        yield b"one"
        server.gate.wait(20)

    server.unary_stream("forever", forever)
    with mesh_for(config(server.address)) as mesh, channel("echo:80", mesh=mesh) as chan:
        stream = chan.unary_stream("/test.Echo/forever")(b"")
        assert next(stream) == b"one"
        del stream
        gc.collect()
        assert cancelled.wait(10)


def test_future_cancelled(server: Backend) -> None:
    server.unary("hang", lambda request, context: server.gate.wait(20) and request)
    done: list[Any] = []
    with mesh_for(config(server.address)) as mesh, channel("echo:80", mesh=mesh) as chan:
        future = chan.unary_unary("/test.Echo/hang").future(b"")
        future.add_done_callback(done.append)
        with pytest.raises(grpc.FutureTimeoutError):
            future.result(0.05)
        assert future.running()
        assert future.cancel()
        with pytest.raises(grpc.FutureCancelledError):
            future.result(10)
        assert done == [future]
        assert future.done()
        assert not future.add_callback(lambda: None)


def test_caller_deadline_of_a_stream(server: Backend) -> None:
    def slow(request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        yield b"one"
        server.gate.wait(20)

    server.unary_stream("slow", slow)
    with mesh_for(config(server.address)) as mesh, channel("echo:80", mesh=mesh) as chan:
        stream = chan.unary_stream("/test.Echo/slow")(b"", timeout=0.4)
        remaining = stream.time_remaining()
        assert remaining is not None
        assert 0 < remaining <= 0.4
        assert next(stream) == b"one"
        with pytest.raises(grpc.RpcError) as caught:
            next(stream)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert isinstance(caught.value, meshlib.DeadlineExceeded)
    remaining = server.seen[0][2]
    assert remaining is not None
    assert remaining < 0.41


def test_route_timeout_of_a_stream(server: Backend) -> None:
    def slow(request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        yield b"one"
        server.gate.wait(20)

    server.unary_stream("slow", slow)
    with mesh_for(config(server.address, route={"timeout": "1s"})) as mesh:
        with channel("echo:80", mesh=mesh) as chan:
            stream = chan.unary_stream("/test.Echo/slow")(b"")
            assert next(stream) == b"one"
            with pytest.raises(meshlib.DeadlineExceeded):
                next(stream)
            assert permits(mesh) == (0, 0, 0)


def test_headers_end_the_time_of_an_attempt_though_nobody_reads(server: Backend) -> None:
    sent = threading.Event()

    def slow(request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        context.send_initial_metadata(())
        sent.set()
        server.gate.wait(20)
        yield b"late"

    server.unary_stream("slow", slow)
    route = {"retry_policy": {"retry_on": "5xx", "per_try_timeout": "1s"}, "timeout": "20s"}
    with mesh_for(config(server.address, route=route)) as mesh, channel("echo:80", mesh=mesh) as chan:
        stream = chan.unary_stream("/test.Echo/slow")(b"")
        assert sent.wait(10)
        assert not threading.Event().wait(1.2)  # beyond the attempt's timeout
        server.gate.set()
        assert list(stream) == [b"late"]
    assert server.methods() == ["slow"]


def test_faults_in_the_application_s_requests(server: Backend) -> None:
    def broken() -> Iterator[bytes]:
        yield b"a"
        raise LookupError("no more")

    with mesh_for(config(server.address)) as mesh, channel("echo:80", mesh=mesh) as chan:
        join = chan.stream_unary("/test.Echo/join")
        with pytest.raises(grpc.RpcError) as caught:
            join(broken())
        assert caught.value.code() is grpc.StatusCode.UNKNOWN
        assert caught.value.details() == "Exception iterating requests!"
        serialized = chan.stream_unary("/test.Echo/join", lambda _: 1 / 0)
        with pytest.raises(grpc.RpcError) as caught:
            serialized(iter([b"a"]))
        assert caught.value.code() is grpc.StatusCode.INTERNAL
        assert permits(mesh) == (0, 0, 0)


def test_closing_the_channel_ends_what_waits() -> None:
    """Also a call that has no endpoint yet."""
    with meshlib.Mesh(server_uri="127.0.0.1:1") as mesh:
        chan = channel("echo:80", mesh=mesh)
        future = chan.unary_unary("/test.Echo/echo").future(b"", wait_for_ready=True)
        stream = chan.unary_stream("/test.Echo/count")(b"1", wait_for_ready=True)
        assert not future.done()
        chan.close()
        assert isinstance(future.exception(10), grpc.RpcError)
        assert not future.cancelled()  # that is what the application does
        with pytest.raises(grpc.RpcError) as caught:
            next(stream)
        assert caught.value.code() is grpc.StatusCode.CANCELLED
        assert caught.value.details() == "Channel closed!"


def test_hedged_calls(server: Backend) -> None:
    """The late attempt stays alive beside the next one; the first response wins and the other is cancelled."""
    late = threading.Event()
    answers = iter((True, False, True, False))

    def slow(request: bytes, context: grpc.ServicerContext) -> bytes:
        if next(answers):
            context.add_callback(late.set)
            server.gate.wait(20)
        return request

    def slow_stream(request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        yield slow(request, context)

    server.unary("slow", slow)
    server.unary_stream("slow_stream", slow_stream)
    route = {
        "retry_policy": {"retry_on": "5xx", "per_try_timeout": "0.2s", "num_retries": 1},
        "hedge_policy": {"hedge_on_per_try_timeout": True},
        "timeout": "10s",
    }
    with mesh_for(config(server.address, route=route)) as mesh, channel("echo:80", mesh=mesh) as chan:
        response, call = chan.unary_unary("/test.Echo/slow").with_call(b"x")
        assert response == b"x"
        assert len(call.meshlib.attempts) == 2
        assert late.wait(10)
        late.clear()
        stream = chan.unary_stream("/test.Echo/slow_stream")(b"y")
        assert list(stream) == [b"y"]
        assert late.wait(10)
        assert permits(mesh) == (0, 0, 0)

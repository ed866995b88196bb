"""Blocking unary calls: what reaches the endpoint, what comes back, and what is raised."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Iterator

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

import meshlib
from meshlib.grpc import channel
from tests.ports import reserved
from tests.transport.grpc.support import Backend, backend, config, mesh_for


@pytest.fixture
def server() -> Iterator[Backend]:
    with backend() as started:
        yield started


def test_response_and_call(server: Backend) -> None:
    def headers(request: bytes, context: grpc.ServicerContext) -> bytes:
        context.send_initial_metadata((("early", "1"), ("raw-bin", b"\x00\xff")))
        context.set_trailing_metadata((("late", "2"),))
        return request

    server.unary("headers", headers)
    with mesh_for(config(server.address)) as mesh, channel("echo:80", mesh=mesh) as chan:
        assert chan.unary_unary("/test.Echo/echo")(b"hello") == b"hello"
        response, call = chan.unary_unary("/test.Echo/headers").with_call(b"x", metadata=(("k", "v"),))
        assert response == b"x"
        assert [tuple(pair) for pair in call.initial_metadata()] == [("early", "1"), ("raw-bin", b"\x00\xff")]
        assert [tuple(pair) for pair in call.trailing_metadata()] == [("late", "2")]
        assert call.code() is grpc.StatusCode.OK
        assert call.meshlib.cluster == "echo"
        assert [attempt.endpoint for attempt in call.meshlib.attempts] == [server.address]
    assert server.seen[1][1]["k"] == "v"


def test_status_of_the_endpoint(server: Backend) -> None:
    with mesh_for(config(server.address)) as mesh, channel("echo:80", mesh=mesh) as chan:
        with pytest.raises(grpc.RpcError) as caught:
            chan.unary_unary("/test.Echo/fail")(b"NOT_FOUND:g\xc3\xb6ne")
    error = caught.value
    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert error.details() == "göne"
    assert not isinstance(error, meshlib.MeshError)
    assert error.meshlib.details == "via_upstream"
    assert "NOT_FOUND" in error.debug_error_string()


def test_serializers_of_the_stub(server: Backend) -> None:
    with mesh_for(config(server.address)) as mesh, channel("echo:80", mesh=mesh) as chan:
        echo = chan.unary_unary("/test.Echo/echo", str.encode, bytes.decode, _registered_method=True)
        assert echo("text") == "text"
        broken = chan.unary_unary("/test.Echo/echo", lambda _: 1 / 0)
        with pytest.raises(grpc.RpcError) as caught:
            broken("text")
        assert caught.value.code() is grpc.StatusCode.INTERNAL
        assert caught.value.details() == "Exception serializing request!"


def test_no_connection_is_an_error_of_both(server: Backend) -> None:
    server.stop()
    with mesh_for(config(server.address)) as mesh, channel("echo:80", mesh=mesh) as chan:
        with pytest.raises(meshlib.ConnectFailed) as caught:
            chan.unary_unary("/test.Echo/echo")(b"")
    error = caught.value
    assert isinstance(error, grpc.RpcError)
    assert isinstance(error, grpc.Call)
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert error.details() == (
        "upstream connect error or disconnect/reset before headers. reset reason: remote connection failure"
    )
    assert error.details == "upstream_reset_before_response_started{remote_connection_failure}"
    assert error.flags == "UF"


def test_rich_status(server: Backend) -> None:
    server.stop()
    with mesh_for(config(server.address)) as mesh, channel("echo:80", mesh=mesh) as chan:
        with pytest.raises(grpc.RpcError) as caught:
            chan.unary_unary("/test.Echo/echo")(b"")
    for error in (caught.value, pickle.loads(pickle.dumps(caught.value))):
        status = rpc_status.from_call(error)
        assert status is not None
        info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
        assert status.details[0].Unpack(info)
        assert status.details[1].Unpack(retry)
        assert (info.reason, info.domain) == ("CONNECT_FAILED", "meshlib")
        assert info.metadata["flags"] == "UF"
        assert info.metadata["cluster"] == "echo"
        assert info.metadata["attempt-1"] == f"{server.address} remote connection failure"
        assert retry.retry_delay.ToMilliseconds() == 250
        assert type(error.details)(error.details, "x") == error.details  # survives pickling


def test_no_route_has_no_retry_info() -> None:
    document = config("127.0.0.1:1", routes=[{"match": {"path": "/other"}, "route": {"cluster": "echo"}}])
    with mesh_for(document) as mesh, channel("echo:80", mesh=mesh) as chan:
        with pytest.raises(meshlib.NoRoute) as caught:
            chan.unary_unary("/test.Echo/echo")(b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED  # type: ignore[attr-defined]
    status = rpc_status.from_call(caught.value)
    assert status is not None
    assert len(status.details) == 1


def test_direct_response_is_a_status_but_no_error_of_the_mesh() -> None:
    direct = {"match": {"prefix": "/"}, "direct_response": {"status": 403, "body": {"inline_string": "no"}}}
    with mesh_for(config(routes=[direct])) as mesh, channel("echo:80", mesh=mesh) as chan:
        with pytest.raises(grpc.RpcError) as caught:
            chan.unary_unary("/test.Echo/echo")(b"")
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert caught.value.details() == "no"
    assert not isinstance(caught.value, meshlib.MeshError)


def test_retry_goes_to_another_endpoint(server: Backend) -> None:
    route = {"retry_policy": {"retry_on": "connect-failure", "num_retries": 3}}
    with (
        reserved() as dead,
        mesh_for(config(f"127.0.0.1:{dead}", server.address, route=route)) as mesh,
        channel("echo:80", mesh=mesh) as chan,
    ):
        echo = chan.unary_unary("/test.Echo/echo")
        calls = [echo.with_call(b"x")[1] for _ in range(4)]
    failures = [tuple(attempt.failure for attempt in call.meshlib.attempts) for call in calls]
    assert set(failures) <= {(None,), ("remote connection failure", None)}
    assert len(set(failures)) == 2 or failures[0][0] is not None  # where the turn begins is drawn
    assert {call.meshlib.attempts[-1].endpoint for call in calls} == {server.address}


def test_retry_of_a_status(server: Backend) -> None:
    answers = iter((grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.OK))

    def flaky(request: bytes, context: grpc.ServicerContext) -> bytes:
        code = next(answers)
        if code is not grpc.StatusCode.OK:
            context.abort(code, "again")
        return request

    server.unary("flaky", flaky)
    route = {"retry_policy": {"retry_on": "unavailable"}}
    with mesh_for(config(server.address, route=route)) as mesh, channel("echo:80", mesh=mesh) as chan:
        response, call = chan.unary_unary("/test.Echo/flaky").with_call(b"x")
        assert response == b"x"
        assert len(call.meshlib.attempts) == 2


def test_no_retry_once_initial_metadata_came(server: Backend) -> None:
    def late(request: bytes, context: grpc.ServicerContext) -> None:
        context.send_initial_metadata((("seen", "1"),))
        context.abort(grpc.StatusCode.UNAVAILABLE, "too late")

    server.unary("late", late)
    route = {"retry_policy": {"retry_on": "unavailable", "num_retries": 3}}
    with mesh_for(config(server.address, route=route)) as mesh, channel("echo:80", mesh=mesh) as chan:
        with pytest.raises(grpc.RpcError) as caught:
            chan.unary_unary("/test.Echo/late")(b"x")
        assert caught.value.details() == "too late"
        assert [tuple(pair) for pair in caught.value.initial_metadata()] == [("seen", "1")]
    assert server.methods() == ["late"]
    assert mesh.engine.store.cluster("echo").default.requests == 0


def test_edits_of_the_route(server: Backend) -> None:
    def headers(request: bytes, context: grpc.ServicerContext) -> bytes:
        context.send_initial_metadata((("early", "1"),))
        return request

    server.unary("headers", headers)
    routes = [
        {
            "match": {"path": "/test.Echo/echo"},
            "route": {"cluster": "echo", "prefix_rewrite": "/test.Echo/headers"},
            "request_headers_to_add": [{"header": {"key": "added", "value": "a"}}],
            "response_headers_to_add": [{"header": {"key": "back", "value": "b"}}],
        }
    ]
    with mesh_for(config(server.address, routes=routes)) as mesh, channel("echo:80", mesh=mesh) as chan:
        _, call = chan.unary_unary("/test.Echo/echo").with_call(b"", metadata=(("own-bin", b"\x01\x02"),))
        assert ("back", "b") in [tuple(pair) for pair in call.initial_metadata()]
        assert ("early", "1") in [tuple(pair) for pair in call.initial_metadata()]
    method, metadata, _ = server.seen[0]
    assert method == "headers"
    assert metadata["added"] == "a"
    assert metadata["own-bin"] == b"\x01\x02"


def test_route_timeout_is_unavailable_as_in_envoy(server: Backend) -> None:
    server.unary("hang", lambda request, context: server.gate.wait(20) and request)
    with mesh_for(config(server.address, route={"timeout": "0.2s"})) as mesh:
        with channel("echo:80", mesh=mesh) as chan:
            with pytest.raises(meshlib.DeadlineExceeded) as caught:
                chan.unary_unary("/test.Echo/hang")(b"")
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE  # type: ignore[attr-defined]
    assert caught.value.flags == "UT"


def test_per_try_timeout_is_retried(server: Backend) -> None:
    answers = iter((True, False))

    def slow(request: bytes, context: grpc.ServicerContext) -> bytes:
        if next(answers):
            server.gate.wait(20)
        return request

    server.unary("slow", slow)
    route = {"retry_policy": {"retry_on": "5xx", "per_try_timeout": "1s"}}
    with mesh_for(config(server.address, route=route)) as mesh, channel("echo:80", mesh=mesh) as chan:
        _, call = chan.unary_unary("/test.Echo/slow").with_call(b"")
    assert [attempt.failure for attempt in call.meshlib.attempts] == ["upstream per try timeout", None]


def test_local_faults_of_the_application_are_passed_on(server: Backend) -> None:
    route = {"retry_policy": {"retry_on": "5xx,unavailable,resource-exhausted,internal", "num_retries": 3}}
    options = [("grpc.max_receive_message_length", 10)]
    with mesh_for(config(server.address, route=route)) as mesh:
        with channel("echo:80", mesh=mesh, options=options) as chan:
            echo = chan.unary_unary("/test.Echo/echo")
            with pytest.raises(grpc.RpcError) as large:
                echo(b"x" * 11)
            with pytest.raises(grpc.RpcError) as insecure:
                echo(b"", credentials=grpc.access_token_call_credentials("token"))
    assert large.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert insecure.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert server.methods() == ["echo"]
    assert mesh.engine.store.cluster("echo").default.requests == 0


def test_closing_ends_calls(server: Backend) -> None:
    started = threading.Event()

    def hang(request: bytes, context: grpc.ServicerContext) -> bytes:
        started.set()
        server.gate.wait(20)
        return request

    server.unary("hang", hang)
    raised: list[grpc.RpcError] = []

    def call() -> None:
        try:
            chan.unary_unary("/test.Echo/hang")(b"")
        except grpc.RpcError as error:
            raised.append(error)

    with mesh_for(config(server.address)) as mesh:
        chan = channel("echo:80", mesh=mesh)
        thread = threading.Thread(target=call)
        thread.start()
        assert started.wait(10)
        chan.close()
        chan.close()
        thread.join(10)
        assert raised[0].code() is grpc.StatusCode.CANCELLED
        with pytest.raises(ValueError, match="closed channel"):
            chan.unary_unary("/test.Echo/echo")(b"")
        assert mesh.engine.store.cluster("echo").default.connections == 0


def test_connection_of_the_channel_is_counted_once(server: Backend) -> None:
    with mesh_for(config(server.address)) as mesh, channel("echo:80", mesh=mesh) as chan:
        permits = mesh.engine.store.cluster("echo").default
        for _ in range(3):
            chan.unary_unary("/test.Echo/echo")(b"")
        assert (permits.connections, permits.pending, permits.requests) == (1, 0, 0)
    assert permits.connections == 0

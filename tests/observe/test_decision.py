"""Why a real call went where it went: on its response, on every error, and among the recent calls."""

from __future__ import annotations

import asyncio
import json
import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import httpx
import pytest

import meshlib
import meshlib.grpc
from meshlib.httpx import MeshTransport
from meshlib.observe.decision import Decision
from meshlib.testing import Reply, Reset, Upstream, serve, service


def configuration(*addresses: str) -> dict[str, Any]:
    config = service("reviews", *addresses)
    config["resources"][1]["virtual_hosts"][0]["routes"] = [
        {
            "name": "gone",
            "match": {"prefix": "/gone"},
            "direct_response": {"status": 410, "body": {"inline_string": "no"}},
        },
        {"match": {"prefix": "/moved"}, "redirect": {"path_redirect": "/there"}},
        {
            "name": "api",
            "match": {"prefix": "/api/"},
            "route": {
                "prefix_rewrite": "/",
                "timeout": "3s",
                "weighted_clusters": {
                    "clusters": [{"name": "reviews", "weight": 1}, {"name": "x", "weight": 0}]
                },
                "retry_policy": {
                    "retry_on": "5xx",
                    "num_retries": 2,
                    "retry_back_off": {"base_interval": "0.001s"},
                },
            },
        },
    ]
    return config


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream([Reply(status=503), Reset()], default=Reply(body=b"ok")) as server:
        yield server


@pytest.fixture
def mesh(upstream: Upstream) -> Iterator[meshlib.Mesh]:
    with meshlib.Mesh(config=[configuration(upstream.address)]) as made:
        yield made


@pytest.fixture
def client(mesh: meshlib.Mesh) -> Iterator[httpx.Client]:
    with httpx.Client(transport=MeshTransport(mesh)) as made:
        yield made


def test_a_call_with_retries(client: httpx.Client, upstream: Upstream) -> None:
    decision = client.get("http://reviews/api/x?a=1").extensions["meshlib"].decision
    assert isinstance(decision, Decision)
    assert (decision.method, decision.authority, decision.path) == ("GET", "reviews", "/api/x?a=1")
    assert (decision.listener, decision.route_config, decision.virtual_host) == ("reviews:80",) + (
        "reviews",
    ) * 2
    assert (decision.route, decision.action, decision.cluster) == ("api", "cluster", "reviews")
    assert decision.weighted_clusters == [{"cluster": "reviews", "weight": 1}, {"cluster": "x", "weight": 0}]
    assert (decision.path_sent, decision.authority_sent) == ("/x?a=1", "reviews")
    assert (decision.timeout, decision.endpoint, decision.protocol, decision.secure) == (
        3.0,
        upstream.address,
        "HTTP/1.1",
        False,
    )
    assert decision.retry == {"on": ["5xx"], "attempts": 3, "per_try_timeout": None}
    first, second, third = decision.attempts
    assert (first.number, first.status, first.failure, first.accepted) == (1, 503, None, False)
    assert first.retried == "response 503; retry_on 5xx"
    assert second.status is None
    assert second.failure is not None
    assert second.retried == f"{second.failure}; retry_on 5xx"
    assert (third.status, third.retried, third.accepted) == (200, None, True)
    assert first.after <= second.after <= third.after
    assert all(each.duration is not None and each.cluster == "reviews" for each in decision.attempts)
    assert (decision.status, decision.flags, decision.details, decision.error) == (
        200,
        "-",
        "via_upstream",
        None,
    )
    assert decision.duration is not None
    assert decision.duration > 0
    assert json.loads(json.dumps(decision.to_dict()))["attempts"][0]["retried"] == first.retried
    assert pickle.loads(pickle.dumps(decision)) == decision


def test_an_answer_of_the_configuration(client: httpx.Client) -> None:
    gone = client.get("http://reviews/gone").extensions["meshlib"].decision
    assert (gone.action, gone.route, gone.status, gone.cluster, gone.attempts) == (
        "direct_response",
        "gone",
        410,
        None,
        (),
    )
    moved = client.get("http://reviews/moved").extensions["meshlib"].decision
    assert (moved.action, moved.route, moved.status) == ("redirect", 1, 301)


def test_an_error_explains_itself(client: httpx.Client) -> None:
    with pytest.raises(meshlib.NoRoute) as caught:
        client.get("http://reviews/nothing")
    decision = caught.value.decision
    assert decision is not None
    assert (decision.action, decision.virtual_host, decision.status, decision.flags) == (
        "none",
        None,
        404,
        "NR",
    )
    assert decision.error is not None
    assert "NR route_not_found" in decision.error
    copy = pickle.loads(pickle.dumps(meshlib.NoRoute("x")))
    assert copy.decision is None


def test_an_error_that_was_raised_can_be_pickled(client: httpx.Client) -> None:
    with pytest.raises(meshlib.NoRoute) as caught:
        client.get("http://reviews/nothing")
    plain = meshlib.NoRoute("x")
    plain.decided_by(lambda: caught.value.decision)
    assert plain.decision is not None
    assert pickle.loads(pickle.dumps(plain)).decision is None


def test_versions_are_those_by_which_the_call_was_routed(upstream: Upstream) -> None:
    with serve(configuration(upstream.address)) as plane, meshlib.Mesh(bootstrap=plane.bootstrap()) as mesh:
        with httpx.Client(transport=MeshTransport(mesh)) as client:
            client.get("http://reviews/api/")
            decision = client.get("http://reviews/api/").extensions["meshlib"].decision
        assert decision.versions == {"lds": "1", "rds": "1", "cds": "1", "eds": "1"}


def test_a_grpc_error(mesh: meshlib.Mesh) -> None:
    with meshlib.grpc.channel("reviews:80", mesh=mesh) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/no.Such/Method")(b"")
    decision = caught.value.decision
    assert (decision.path, decision.flags) == ("/no.Such/Method", "NR")
    assert decision.grpc_status == "12"


def answering() -> grpc.Server:
    """A server that answers every method."""

    class Everything(grpc.GenericRpcHandler):  # type: ignore[misc]
        def service(self, details: Any) -> Any:
            return grpc.unary_unary_rpc_method_handler(lambda request, _context: request)

    server = grpc.server(ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((Everything(),))
    return server


@pytest.mark.shared_workers
def test_grpc_calls() -> None:
    server = answering()
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        config = service("reviews", f"127.0.0.1:{port}")
        config["resources"][2]["http2_protocol_options"] = {}
        with meshlib.Mesh(config=[config]) as mesh:
            with meshlib.grpc.channel("reviews:80", mesh=mesh) as channel:
                method = channel.unary_unary("/a.B/C")
                _, finished = method.with_call(b"x")
                future = method.future(b"x")
                assert future.result() == b"x"
                decisions = [finished.decision, future.decision]

            async def run() -> Decision:
                async with meshlib.grpc.aio_channel("reviews:80", mesh=mesh) as channel:
                    call = channel.unary_unary("/a.B/C")(b"x")
                    assert await call == b"x"
                    found: Decision = call.decision
                    return found

            decisions.append(asyncio.run(run()))
    finally:
        server.stop(None).wait()
    for decision in decisions:
        assert (decision.path, decision.cluster, decision.grpc_status) == ("/a.B/C", "reviews", "0")
        assert (decision.endpoint, decision.protocol) == (f"127.0.0.1:{port}", "HTTP/2")
        assert decision.attempts[-1].accepted

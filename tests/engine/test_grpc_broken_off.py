"""A gRPC call that ends by itself after its response began: Envoy resets the stream, which the caller sees as INTERNAL."""

from __future__ import annotations

import pytest

from meshlib.engine.dialect import DIALECTS
from meshlib.policy.failure import FailureKind
from meshlib.resources.route import MaxStreamDuration
from tests.engine.builders import cluster, forward
from tests.engine.grpc_calls import rpc, status
from tests.engine.wire import FakeMesh, request


@pytest.mark.parametrize("kind", [FailureKind.REMOTE_RESET, FailureKind.TERMINATED])
def test_a_stream_that_breaks(kind: FailureKind) -> None:
    call = FakeMesh(cluster()).call(rpc())
    call.answer(200, end=False)
    call.fail(kind)
    assert status(call) == ("13", f"the response broke off: {kind.value}")


def test_a_stream_that_breaks_before_its_response() -> None:
    call = FakeMesh(cluster()).call(rpc())
    call.fail(FailureKind.REMOTE_RESET)
    assert status(call)[0] == "14"


def test_the_timers_of_the_configuration() -> None:
    for action, details in (
        (forward(timeout=0.2), "response_timeout"),
        (forward(max_stream_duration=MaxStreamDuration(max_stream_duration=0.2)), "max_duration_timeout"),
    ):
        call = FakeMesh(cluster(), action=action).call(rpc())
        call.answer(200, end=False)
        while call.error is None:
            call.tick()
        assert call.details == details
        assert status(call)[0] == "13"


def test_the_callers_deadline_stays() -> None:
    mesh = FakeMesh(cluster())
    call = mesh.call(rpc(), deadline=mesh.clock.monotonic() + 0.2)
    call.answer(200, end=False)
    while call.error is None:
        call.tick()
    assert status(call) == ("4", "Deadline Exceeded")


def test_the_grpc_dialect_keeps_its_words() -> None:
    action = forward(max_stream_duration=MaxStreamDuration(max_stream_duration=0.2))
    call = FakeMesh(cluster(), action=action).call(rpc(), dialect=DIALECTS["grpc"])
    call.answer(200, end=False)
    while call.error is None:
        call.tick()
    assert status(call) == ("4", "Deadline Exceeded")


def test_http_is_not_touched() -> None:
    call = FakeMesh(cluster()).call(request("/"))
    call.answer(200, end=False)
    call.fail(FailureKind.TERMINATED)
    assert call.error is not None
    assert call.error.local_reply is not None
    assert call.error.local_reply.status == 503

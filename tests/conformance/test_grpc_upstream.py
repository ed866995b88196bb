"""The scripted gRPC upstream and the gRPC client against each other."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import grpc
import pytest

from conformance.case import Request
from conformance.outcome import Outcome, Sent
from conformance.reader import Fields
from conformance.rpc import Rpc
from conformance.runners.grpc_client import OPTIONS, GrpcClient
from conformance.upstream.record import Hit
from conformance.upstream.script import parse_upstream
from conformance.upstream.server import Upstreams, UpstreamThread


@pytest.fixture
def thread() -> Iterator[UpstreamThread]:
    with UpstreamThread() as running:
        yield running


def start(thread: UpstreamThread, *responses: Mapping[str, object]) -> Upstreams:
    return thread.start({"A": parse_upstream("A", Fields({"responses": list(responses)}, "test"), "grpc")})


def call(thread: UpstreamThread, upstreams: Upstreams, **rpc: object) -> Outcome:
    def channel(host: str) -> grpc.Channel:
        options = (*OPTIONS, ("grpc.default_authority", host))
        return grpc.insecure_channel(f"127.0.0.1:{upstreams.ports['A']}", options=options)

    request = Request(path="/p.S/M", headers=(("x-in", "v"),), rpc=Rpc(**rpc))  # type: ignore[arg-type]
    with contextlib.closing(GrpcClient(channel)) as client:
        outcome = client.send(Sent(id="0", request=request))
        thread.settle(upstreams.record)
    return outcome


def hit(upstreams: Upstreams) -> Hit:
    (found,) = upstreams.record.by_request()["0"]
    return found


def test_unary(thread: UpstreamThread) -> None:
    upstreams = start(thread, {"initial": {"x-i": "1"}, "trailing": {"x-t": "2"}})
    outcome = call(thread, upstreams)
    assert (outcome.code, outcome.message, outcome.messages) == ("OK", "", (b"A",))
    assert ("x-i", "1") in outcome.headers
    assert ("x-t", "2") in outcome.trailers
    found = hit(upstreams)
    assert (found.target, found.body, found.cancelled) == ("/p.S/M", b"hello", False)
    assert ("host", "mesh.example") in found.headers
    assert ("x-in", "v") in found.headers


@pytest.mark.parametrize(
    ("form", "place"), [("auto", "trailers"), ("trailers-only", "trailers"), ("headers", "headers")]
)
def test_an_error_in_each_form(thread: UpstreamThread, form: str, place: str) -> None:
    answer = {"code": "NOT_FOUND", "message": "not here", "form": form}
    outcome = call(thread, start(thread, answer))
    assert (outcome.code, outcome.message, outcome.messages) == ("NOT_FOUND", "not here", ())
    with_metadata = start(thread, answer | {"initial": {"x-i": "1"}, "form": form})
    outcome = call(thread, with_metadata)
    found = outcome.headers if form != "trailers-only" else outcome.trailers
    assert ("x-i", "1") in found


def test_a_stream_of_messages_and_an_error(thread: UpstreamThread) -> None:
    upstreams = start(
        thread, {"messages": {"count": 3, "size": 2}, "code": 10, "gap": 0.001, "linger": 0.001}
    )
    outcome = call(thread, upstreams, arity="unary-stream")
    assert (outcome.code, outcome.messages) == ("ABORTED", (b"xx",) * 3)


def test_echo_of_paced_messages(thread: UpstreamThread) -> None:
    upstreams = start(thread, {"echo": True})
    outcome = call(thread, upstreams, arity="stream-stream", messages=(b"a", b"b"), paced=True)
    assert (outcome.code, outcome.messages) == ("OK", (b"a", b"b"))
    assert hit(upstreams).body == b"a\nb"


def test_an_answer_before_the_request_is_over(thread: UpstreamThread) -> None:
    upstreams = start(thread, {"code": "ABORTED", "wait": 1})
    outcome = call(thread, upstreams, arity="stream-unary", messages=(b"a", b"b"), gap=0.1)
    assert outcome.code == "ABORTED"
    assert not hit(upstreams).cancelled


def test_a_large_message(thread: UpstreamThread) -> None:
    upstreams = start(thread, {"messages": {"size": 1_000_000}})
    assert len(call(thread, upstreams).messages[0]) == 1_000_000


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ({"action": "rst"}, "INTERNAL"),
        ({"action": "rst", "reset": "REFUSED_STREAM"}, "UNAVAILABLE"),
        ({"action": "rst", "moment": "headers", "reset": "CANCEL"}, "CANCELLED"),
        ({"action": "fin"}, "UNAVAILABLE"),
        ({"action": "goaway"}, "UNAVAILABLE"),
        ({"action": "garbage"}, "UNKNOWN"),
        (
            {"status": 503, "content_type": "text/plain", "code": "none", "form": "trailers-only"},
            "UNAVAILABLE",
        ),
        ({"code": "none"}, "UNKNOWN"),
    ],
)
def test_misbehaviour(thread: UpstreamThread, answer: dict[str, object], code: str) -> None:
    assert call(thread, start(thread, answer)).code == code


def test_a_reset_after_messages(thread: UpstreamThread) -> None:
    upstreams = start(thread, {"messages": ["a", "b"], "action": "rst", "moment": "messages"})
    outcome = call(thread, upstreams, arity="unary-stream")
    assert (outcome.code, outcome.messages) == ("INTERNAL", (b"a", b"b"))


@pytest.mark.parametrize(
    ("rpc", "code"), [({"timeout": 0.05}, "DEADLINE_EXCEEDED"), ({"cancel_after": 0.05}, "CANCELLED")]
)
def test_a_caller_that_gives_up(thread: UpstreamThread, rpc: dict[str, object], code: str) -> None:
    upstreams = start(thread, {"action": "hang"})
    assert call(thread, upstreams, **rpc).code == code
    assert hit(upstreams).cancelled


def test_a_caller_that_cancels_in_a_stream(thread: UpstreamThread) -> None:
    upstreams = start(thread, {"messages": ["a", "b"], "action": "hang", "moment": "messages"})
    outcome = call(thread, upstreams, arity="unary-stream", cancel_at=2)
    assert (outcome.code, outcome.messages) == ("CANCELLED", (b"a", b"b"))
    assert hit(upstreams).cancelled


def test_binary_metadata_and_pushback(thread: UpstreamThread) -> None:
    upstreams = start(thread, {"code": 14, "pushback": "20"})
    assert ("grpc-retry-pushback-ms", "20") in call(thread, upstreams).trailers

"""The scripted upstreams and the raw client against each other."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest

from conformance.case import Request
from conformance.outcome import Outcome, Sent
from conformance.runners.raw import RawClient
from conformance.upstream.script import Behaviour, Rule, Upstream
from conformance.upstream.server import Upstreams, UpstreamThread


@pytest.fixture
def thread() -> Iterator[UpstreamThread]:
    with UpstreamThread() as running:
        yield running


def start(thread: UpstreamThread, *responses: Behaviour, **options: object) -> Upstreams:
    fields: dict[str, object] = {"name": "A", "responses": responses or (Behaviour(),)}
    return thread.start({"A": Upstream(**(fields | options))})  # type: ignore[arg-type]


def send(upstreams: Upstreams, *requests: Request) -> list[Outcome]:
    with contextlib.closing(RawClient(("127.0.0.1", upstreams.ports["A"]), keep_alive=True)) as client:
        return [client.send(Sent(id=str(index), request=request)) for index, request in enumerate(requests)]


def test_plain(thread: UpstreamThread) -> None:
    upstreams = start(thread, Behaviour(headers=(("X-A", "b"),)))
    (outcome,) = send(upstreams, Request(method="POST", path="/p?q", headers=(("X-In", "v"),), body=b"data"))
    assert (outcome.status, outcome.body, outcome.complete) == (200, b"A", True)
    assert ("x-a", "b") in outcome.headers
    (hit,) = upstreams.record.by_request()["0"]
    assert (hit.method, hit.target, hit.body) == ("POST", "/p?q", b"data")
    assert ("x-in", "v") in hit.headers


def test_chunked_both_ways(thread: UpstreamThread) -> None:
    upstreams = start(thread, Behaviour(body="answer", chunked=True))
    (outcome,) = send(upstreams, Request(method="POST", body=b"data", chunked=True))
    assert outcome.body == b"answer"
    assert upstreams.record.by_request()["0"][0].body == b"data"


def test_sequence_repeats_its_last(thread: UpstreamThread) -> None:
    upstreams = start(thread, Behaviour(status=503), Behaviour(status=200))
    assert [outcome.status for outcome in send(upstreams, *[Request()] * 3)] == [503, 200, 200]
    upstreams.record.reset()
    assert [outcome.status for outcome in send(upstreams, Request())] == [503]


def test_cycle_and_per_request(thread: UpstreamThread) -> None:
    cycling = start(thread, Behaviour(status=503), Behaviour(), cycle=True)
    assert [outcome.status for outcome in send(cycling, *[Request()] * 3)] == [503, 200, 503]
    anew = start(thread, Behaviour(status=503), Behaviour(), per_request=True)
    assert [outcome.status for outcome in send(anew, *[Request()] * 3)] == [503, 503, 503]


def test_rules(thread: UpstreamThread) -> None:
    rules = (
        Rule(path="/x", then=(Behaviour(status=418),)),
        Rule(headers=(("x-fail", "1"),), then=(Behaviour(status=500),)),
    )
    upstreams = start(thread, rules=rules)
    sent = (Request(path="/x?q"), Request(headers=(("x-fail", "1"),)), Request(headers=(("x-fail", "2"),)))
    assert [outcome.status for outcome in send(upstreams, *sent)] == [418, 500, 200]


@pytest.mark.parametrize("action", ["fin", "rst"])
def test_no_answer(thread: UpstreamThread, action: str) -> None:
    outcomes = send(start(thread, Behaviour(action=action), Behaviour()), Request(), Request())
    assert [(outcome.status, outcome.complete) for outcome in outcomes] == [(0, False), (200, True)]


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("cut", ["fin", "rst"])
def test_cut_in_the_middle(thread: UpstreamThread, cut: str, chunked: bool) -> None:
    behaviour = Behaviour(size=1000, cut_after=400, cut=cut, chunked=chunked)
    (outcome,) = send(start(thread, behaviour), Request())
    assert (outcome.status, outcome.complete) == (200, False)
    assert len(outcome.body) == 400


def test_head_and_bodiless_statuses(thread: UpstreamThread) -> None:
    upstreams = start(thread, Behaviour(body="hello"), Behaviour(status=204), Behaviour())
    outcomes = send(upstreams, Request(method="HEAD"), Request(), Request())
    assert [(outcome.status, outcome.body, outcome.complete) for outcome in outcomes] == [
        (200, b"", True),
        (204, b"", True),
        (200, b"A", True),
    ]


def test_refused(thread: UpstreamThread) -> None:
    upstreams = start(thread, kind="refused")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", upstreams.ports["A"]), timeout=5)


def test_blackhole(thread: UpstreamThread) -> None:
    upstreams = start(thread, kind="blackhole")
    with pytest.raises(TimeoutError):
        socket.create_connection(("127.0.0.1", upstreams.ports["A"]), timeout=0.2)

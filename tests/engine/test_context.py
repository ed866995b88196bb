"""Calls that are made while an inbound request is being answered."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import meshlib
from meshlib.engine.context import INBOUND, InboundContext, in_context
from meshlib.engine.options import call, deadline_of
from meshlib.resources.route import MirrorPolicy
from tests.engine.builders import cluster, forward, retry
from tests.engine.grpc_calls import rpc, status
from tests.engine.wire import FakeMesh, request


@contextmanager
def answering(**facts: Any) -> Iterator[InboundContext]:
    inbound = InboundContext(**facts)
    token = INBOUND.set(inbound)
    try:
        yield inbound
    finally:
        INBOUND.reset(token)


@given(
    inbound=st.none() | st.floats(0.001, 20),
    own=st.none() | st.floats(0.001, 20),
    route=st.just(0.0) | st.floats(0.001, 20),
)
def test_the_earliest_deadline_ends_a_call(inbound: float | None, own: float | None, route: float) -> None:
    mesh = FakeMesh(cluster(), action=forward(timeout=route))
    now = mesh.clock.monotonic()
    moments = [each for each in (inbound, own, route or None) if each is not None]
    with answering(deadline=None if inbound is None else now + inbound), call(timeout=own):
        it = mesh.call()
    if not moments:
        it.answer(200)
        return
    assert it.tick() == pytest.approx(min(moments))
    assert it.error is not None
    assert (it.error.local_reply.status, it.flags) == (504, "UT")  # type: ignore[union-attr]
    assert mesh.held() == {}


def test_a_deadline_that_is_over_fails_at_once() -> None:
    mesh = FakeMesh(cluster(), action=forward(retry_policy=retry("5xx")))
    for moment in (mesh.clock.monotonic(), mesh.clock.monotonic() - 5):
        with answering(deadline=moment):
            it = mesh.call()
        assert isinstance(it.error, meshlib.DeadlineExceeded)
        assert (it.error.flags, it.error.details, it.error.attempts) == ("UT", "response_timeout", ())
        assert (it.error.local_reply.status, it.starts) == (504, [])  # type: ignore[union-attr]
    assert mesh.stat("upstream_rq_total") == 0


def test_a_call_that_waits_for_configuration_ends_too() -> None:
    mesh = FakeMesh(cluster(), publish=False)
    mesh.engine.source = None
    with answering(deadline=mesh.clock.monotonic() + 0.5):
        it = mesh.call()
    assert it.tick() == pytest.approx(0.5)
    assert it.error is not None


def test_a_grpc_call_ends_as_by_its_own_deadline() -> None:
    mesh = FakeMesh(cluster(), action=forward(timeout=0.0))
    now = mesh.clock.monotonic()
    with answering(deadline=now + 0.25):
        it = mesh.call(rpc(), deadline=now + 5)
        later = mesh.call(rpc())
        assert deadline_of(5.0, mesh.clock.monotonic) == now + 0.25
        assert deadline_of(0.1, mesh.clock.monotonic) == now + 0.1
        assert deadline_of(None, mesh.clock.monotonic) == now + 0.25
        with call(timeout=0.2):
            assert deadline_of(None, mesh.clock.monotonic) == now + 0.2
    with answering():
        assert deadline_of(None, mesh.clock.monotonic) is None
    for each in (it, later):
        each.tick()
        assert status(each) == ("4", "Deadline Exceeded")
    with answering(deadline=now):
        assert status(mesh.call(rpc())) == ("4", "Deadline Exceeded")


def test_the_endpoint_is_told_how_long_the_caller_waits() -> None:
    for route, left, told in ((15.0, 0.25, "250"), (0.0, 0.25, "250"), (0.2, 5.0, "200"), (0.0, None, None)):
        mesh = FakeMesh(cluster(), action=forward(timeout=route), envoy_headers=True)
        with answering(deadline=None if left is None else mesh.clock.monotonic() + left):
            it = mesh.call(request())
        assert dict(it.starts[0].headers or ()).get("x-envoy-expected-rq-timeout-ms") == told


def test_what_goes_on_after_the_answer_is_not_cut() -> None:
    mesh = FakeMesh(cluster(), action=forward(timeout=3.0))
    with answering(deadline=mesh.clock.monotonic() + 0.5, request_id="a") as inbound:
        inbound.answered()
        it = mesh.call()
        assert INBOUND.get() is inbound
    assert it.tick() == pytest.approx(3.0)
    assert "request_id=a" in repr(inbound)


def test_threads_have_it_where_the_application_says_so() -> None:
    def look(*_: object) -> tuple[object, object]:
        return INBOUND.get(), meshlib.current_peer()

    with ThreadPoolExecutor(2) as pool, answering(request_id="a") as inbound:
        assert pool.submit(look).result() == (None, meshlib.current_peer())
        assert pool.submit(in_context(look)).result() == (inbound, meshlib.current_peer())
        assert all(found is inbound for found, _ in pool.map(in_context(look), range(8)))
        assert pool.submit(look).result() == (None, meshlib.current_peer())
        assert in_context(look).__name__ == "look"
        with pytest.raises(ZeroDivisionError):
            in_context(lambda: 1 // 0)()


def test_tasks_and_their_threads_have_it() -> None:
    async def main() -> None:
        with answering(deadline=5.0) as inbound:
            task = asyncio.create_task(asyncio.to_thread(INBOUND.get))
        assert INBOUND.get() is None
        assert await task is inbound

    asyncio.run(main())


@pytest.mark.parametrize("edits", [False, True])
def test_the_request_id_goes_on(edits: bool) -> None:
    mesh = FakeMesh(cluster(), action=forward(retry_policy=retry("5xx")), envoy_headers=edits)
    with answering(request_id="a"):
        it = mesh.call(request())
        own = mesh.call(request(headers=[("x-request-id", "b")]))
    it.answer(503)
    it.tick()
    for start in it.starts:
        sent = [*(start.headers or ()), *start.extra]
        assert [value for name, value in sent if name == "x-request-id"] == ["a"]
    assert len(it.starts) == 2
    assert it.core.request.first("x-request-id") == "a"
    (start,) = own.starts
    assert start.extra == ()
    assert own.core.request.values("x-request-id") == ["b"]


def test_copies_have_the_request_id_too() -> None:
    mirrors = (MirrorPolicy(cluster="b"),)
    mesh = FakeMesh(cluster(), cluster("b"), action=forward(mirrors=mirrors))
    with answering(request_id="a"):
        it = mesh.call(request())
    assert [each.start.extra for each in it.live.values()] == [(("x-request-id", "a"),)] * 2

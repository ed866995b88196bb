"""The filter chain: going on, answering, waiting, asking a service; with the most specific configuration."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from meshlib.engine import events as ev
from meshlib.engine.filters import FACTORIES
from meshlib.engine.options import CallOptions
from meshlib.engine.replies import Ending
from meshlib.engine.steps import GO_ON, Answer, Ask, FilterContext, Step, WaitUntil
from meshlib.errors import LimitError
from meshlib.resources.listener import HttpFilter
from meshlib.resources.route import RouteAction, WeightedCluster, WeightedClusters
from tests.engine.builders import ROUTER, cluster, forward, listener, route_config
from tests.engine.wire import FakeCall, FakeMesh

DENIED = Ending(LimitError, 429, "slow down", "RL", "request_rate_limited", "denied by the service")


@dataclass
class Guard:
    """Does what its configuration says: `pass`, `deny`, `wait`, `ask`, or `ask twice`."""

    name: str
    config: Any
    seen: list[tuple[str, object]]

    def on_request(self, context: FilterContext, now: float) -> Step:
        self.seen.append((self.name, context.config))
        if context.config == "deny":
            return Answer(DENIED)
        if context.config == "wait":
            return WaitUntil(now + 0.5)
        return Ask("ratelimit", self.name) if context.config in ("ask", "ask twice") else GO_ON

    def resume(self, context: FilterContext, result: object, error: BaseException | None, now: float) -> Step:
        self.seen.append((self.name, result if error is None else error))
        if result == "again":
            return Ask("ratelimit", "again")
        return Answer(DENIED) if result == "no" else GO_ON


@pytest.fixture
def seen() -> Iterator[list[tuple[str, object]]]:
    log: list[tuple[str, object]] = []
    FACTORIES["guard"] = lambda entry, _scope: Guard(entry.name, entry.config, log)
    yield log
    del FACTORIES["guard"]


def guarded(*configs: str, action: RouteAction | None = None, **host: Any) -> FakeMesh:
    filters = [
        HttpFilter(name=f"g{index}", type_url="guard", config=each) for index, each in enumerate(configs)
    ]
    return FakeMesh(cluster(), listen=listener(route_config(action or forward(), **host), [*filters, ROUTER]))


def test_they_are_asked_in_order(seen: list[tuple[str, object]]) -> None:
    call = guarded("pass", "pass").call()
    assert seen == [("g0", "pass"), ("g1", "pass")]
    assert call.log[0] == "Start(1)"


def test_an_answer_ends_the_call(seen: list[tuple[str, object]]) -> None:
    call = guarded("pass", "deny", "pass").call()
    assert [name for name, _ in seen] == ["g0", "g1"]
    assert isinstance(call.error, LimitError)
    assert call.error.local_reply is not None
    assert (call.error.local_reply.status, call.error.local_reply.body) == (429, b"slow down")
    assert (call.flags, call.details) == ("RL", "request_rate_limited")
    assert call.starts == []


def test_waiting(seen: list[tuple[str, object]]) -> None:
    mesh = guarded("wait", action=forward(timeout=1.0))
    call = mesh.call()
    assert call.log == []
    assert call.tick() == pytest.approx(0.5)
    assert call.log[0] == "Start(1)"
    assert call.tick() == pytest.approx(1.0), "the route timeout starts when the router gets the request"


def test_asking(seen: list[tuple[str, object]]) -> None:
    call = guarded("ask", "pass").call()
    side = call.sides[0]
    assert (side.side, side.service, side.request) == (0, "ratelimit", "g0")
    call.handle(ev.SideResult(7, "no"))
    assert call.error is None, "an answer to another question"
    call.handle(ev.SideResult(0, "yes"))
    assert call.log[1] == "Start(1)"
    assert seen == [("g0", "ask"), ("g0", "yes"), ("g1", "pass")]
    call.handle(ev.SideResult(0, "no"))
    assert call.error is None, "an answer that comes twice"


def test_the_answer_may_be_no(seen: list[tuple[str, object]]) -> None:
    call = guarded("ask").call()
    call.handle(ev.SideResult(0, "no"))
    assert call.flags == "RL"


def test_a_question_may_follow_a_question(seen: list[tuple[str, object]]) -> None:
    call = guarded("ask").call()
    call.handle(ev.SideResult(0, "again"))
    assert [side.request for side in call.sides] == ["g0", "again"]
    call.handle(ev.SideResult(0, "yes"))
    assert call.log[-2] == "Start(1)"


def test_a_service_that_fails_is_the_filters_business(seen: list[tuple[str, object]]) -> None:
    error = OSError("down")
    call = guarded("ask").call()
    call.handle(ev.SideResult(0, error=error))
    assert seen[-1] == ("g0", error)
    assert call.starts


@pytest.mark.parametrize("config", ["ask", "wait"])
def test_the_callers_deadline_holds_in_the_chain(seen: list[tuple[str, object]], config: str) -> None:
    call = guarded(config).call(options=CallOptions(timeout=0.2))
    assert call.tick() == pytest.approx(0.2)
    assert (call.flags, call.details) == ("UT", "response_timeout")
    call.handle(ev.SideResult(0, "yes"))
    assert call.starts == []


def test_cancelling_while_the_service_thinks(seen: list[tuple[str, object]]) -> None:
    call = guarded("ask").call()
    call.cancel()
    call.handle(ev.SideResult(0, "yes"))
    assert call.starts == []
    assert call.flags == "DC"


def test_the_most_specific_configuration_counts(seen: list[tuple[str, object]]) -> None:
    weighted = RouteAction(
        weighted_clusters=WeightedClusters(
            clusters=(WeightedCluster(name="a", weight=1, typed_per_filter_config={"g0": "deny"}),)
        )
    )
    guarded("pass", action=weighted, route_typed_per_filter_config={"g0": "wait"}).call()
    guarded(
        "pass", route_typed_per_filter_config={"g0": "wait"}, typed_per_filter_config={"g0": "ask"}
    ).call()
    guarded("pass", typed_per_filter_config={"g0": "ask"}).call()
    guarded("pass", typed_per_filter_config={"other": "ask"}).call()
    assert [config for _, config in seen] == ["deny", "wait", "ask", "pass"]


class Holder:
    """Takes something for the time of the call, and waits first when it is told to."""

    def __init__(self, config: str, held: list[str]) -> None:
        self.name = "holder"
        self.config = config
        self.held = held

    def on_request(self, context: FilterContext, now: float) -> Step:
        self.held.append("one")
        context.at_end(self.held.clear)
        context.flag("RL")
        return WaitUntil(now + 0.5, "carried") if context.config == "wait" else GO_ON

    def resume(
        self, _context: FilterContext, result: object, _error: BaseException | None, _now: float
    ) -> Step:
        assert result == "carried"
        return GO_ON


@pytest.fixture
def held() -> Iterator[list[str]]:
    taken: list[str] = []
    FACTORIES["holder"] = lambda entry, _scope: Holder(entry.config, taken)
    yield taken
    del FACTORIES["holder"]


def holding(config: str = "pass", **fields: Any) -> FakeMesh:
    entry = HttpFilter(name="holder", type_url="holder", config=config)
    return FakeMesh(cluster(), listen=listener(route_config(forward(**fields)), [entry, ROUTER]))


def test_a_filter_hears_when_the_response_is_complete(held: list[str]) -> None:
    call = holding().call()
    call.answer(200, end=False)
    assert held == ["one"]
    call.end()
    assert held == []
    assert call.flags == "RL", "flags of a filter stay"


def test_a_filter_hears_of_every_other_end(held: list[str]) -> None:
    ends: list[Callable[[FakeCall], object]] = [
        lambda call: call.answer(503),
        lambda call: call.fail(),
        lambda call: call.tick(),
        lambda call: call.cancel(),
    ]
    for end in ends:
        call = holding(timeout=1.0).call()
        assert held == ["one"]
        end(call)
        assert held == []


def test_a_filter_hears_of_the_end_of_a_waiting_call(held: list[str]) -> None:
    call = holding("wait").call()
    call.cancel()
    assert held == []
    call = holding("wait").call()
    call.tick()
    assert held == ["one"]
    call.answer(200)
    assert held == []


def test_a_filter_hears_of_a_dropped_call_when_the_next_one_begins(held: list[str]) -> None:
    mesh = holding("wait")
    mesh.call().core = None
    gc.collect()
    assert held == ["one"], "a finalizer runs nothing of the filter"
    mesh.call()
    assert held == ["one"], "the second one's"

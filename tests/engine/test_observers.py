"""Observers hear of each call once, however it ends, with what there is to know, and nothing that they do touches the call."""

from __future__ import annotations

import gc
import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from meshlib.engine import events as ev
from meshlib.engine.attempt import Attempt
from meshlib.engine.call import Call
from meshlib.engine.observer import CallObserver, InboundCall, InboundObserver, Observers
from meshlib.engine.options import CallOptions
from meshlib.errors import DeadlineExceeded, NoRoute, UnknownHost
from meshlib.policy.failure import FailureKind
from meshlib.resources.route import DirectResponse, Redirect, RouteConfiguration
from tests.engine.builders import HEDGING, NO_BACK_OFF, cluster, forward, listener, retry, route_config
from tests.engine.grpc_calls import rpc
from tests.engine.test_random_calls import Script
from tests.engine.wire import FakeCall, FakeMesh, request


class Diary(CallObserver):
    """Writes down what it is told, and what the call says of itself in `over`."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.seen: list[dict[str, Any]] = []
        self.times: list[float] = []

    def begun(self, call: Call, now: float) -> None:
        self._note("begun", now)

    def routed(self, call: Call, now: float) -> None:
        self._note(f"routed {call.plan.cluster if call.plan is not None else None}", now)

    def attempt_begun(self, call: Call, attempt: Attempt, now: float) -> None:
        self._note(f"+{attempt.number} {attempt.endpoint.key}", now)

    def attempt_over(self, call: Call, attempt: Attempt, now: float) -> None:
        self._note(f"-{attempt.number} {attempt.failure or attempt.status}", now)

    def over(self, call: Call, now: float) -> None:
        self._note(f"over {call.status} {','.join(call.flags) or '-'} {call.details}", now)
        names = (
            "status grpc_status error reply upstream protocol secure duration bytes_sent bytes_received messages_sent "
            "messages_received path_sent authority_sent accepted program listener notes"
        )
        self.seen.append({name: getattr(call, name) for name in names.split()})
        for name in ("response_headers", "response_trailers", "request_headers_sent", "upstream_headers"):
            self.seen[-1][name] = list(getattr(call, name))

    def _note(self, what: str, now: float) -> None:
        self.log.append(what)
        self.times.append(now)


def observed(*clusters: Any, **fields: Any) -> tuple[FakeMesh, Diary]:
    mesh, diary = FakeMesh(*(clusters or (cluster(),)), **fields), Diary()
    mesh.engine.observe(diary)
    return mesh, diary


# --- what is told -----------------------------------------------------------------------------------------------------


def test_a_call_that_goes_well() -> None:
    mesh, diary = observed()
    call = mesh.call(request("/x?y=1", headers=[("a", "b")]))
    mesh.clock.advance(0.25)
    call.answer(200, [("content-type", "text/plain")])
    assert diary.log == ["begun", "routed a", "+1 10.0.0.1:80", "-1 200", "over 200 - via_upstream"]
    (seen,) = diary.seen
    assert seen["upstream"].key == "10.0.0.1:80"
    assert seen["protocol"] == "HTTP/1.1"
    assert not seen["secure"]
    assert seen["duration"] == 0.25
    assert seen["response_headers"] == [("content-type", "text/plain")]
    assert seen["request_headers_sent"] == [("a", "b")]
    assert (seen["path_sent"], seen["authority_sent"]) == ("/x?y=1", "svc")
    assert seen["program"] is mesh.engine.program
    assert seen["listener"].listener.name == "svc:80"
    assert seen["error"] is seen["reply"] is seen["grpc_status"] is None


def test_a_streamed_response_is_over_when_it_is_complete() -> None:
    mesh, diary = observed()
    call = mesh.call()
    call.answer(200, end=False)
    assert diary.log[-1] == "+1 10.0.0.1:80"
    mesh.clock.advance(3.0)
    call.core.account(7, 11, messages=(1, 2))
    call.end(trailers=[("grpc-status", "5")])
    assert diary.log[-2:] == ["-1 200", "over 200 - via_upstream"]
    (seen,) = diary.seen
    assert (seen["grpc_status"], seen["duration"]) == ("5", 3.0)
    assert (seen["bytes_sent"], seen["bytes_received"]) == (7, 11)
    assert (seen["messages_sent"], seen["messages_received"]) == (1, 2)
    assert seen["response_trailers"] == [("grpc-status", "5")]


def test_each_attempt_is_over_when_its_verdict_is_known() -> None:
    policy = retry("5xx,reset", times=2, back_off=NO_BACK_OFF)
    mesh, diary = observed(cluster(hosts=3), action=forward(retry_policy=policy))
    call = mesh.call()
    call.answer(503)
    assert diary.log[-1] == "-1 503"
    call.tick()
    call.fail(FailureKind.TERMINATED)
    assert diary.log[-1].startswith("-2 ")
    call.tick()
    call.answer(200)
    numbers = [line[:2] for line in diary.log if line[0] in "+-"]
    assert numbers == ["+1", "-1", "+2", "-2", "+3", "-3"]
    assert diary.log[-1] == "over 200 - via_upstream"
    assert diary.seen[0]["accepted"] == 3


def test_hedged_attempts() -> None:
    policy = retry("5xx", times=1, per_try_timeout=0.1, back_off=NO_BACK_OFF)
    mesh, diary = observed(cluster(hosts=2), action=forward(retry_policy=policy, hedge_policy=HEDGING))
    call = mesh.call()
    call.tick()
    call.tick()
    assert [line[:2] for line in diary.log if line[0] in "+-"] == ["+1", "+2"]
    call.answer(200, attempt=1)
    assert [line[:2] for line in diary.log if line[0] in "+-"] == ["+1", "+2", "-2", "-1"]
    assert "-2 cancelled" in diary.log
    assert diary.log.count("over 200 - via_upstream") == 1


def test_an_error_is_there_in_over_and_no_longer() -> None:
    mesh, diary = observed(action=forward(timeout=1.0))
    call = mesh.call()
    call.tick()
    assert diary.log[-1] == "over 504 UT response_timeout"
    (seen,) = diary.seen
    assert isinstance(seen["error"], DeadlineExceeded)
    assert seen["error"] is call.error
    assert seen["reply"].status == 504
    assert call.core.error is None, "it would keep the frames of whoever raised it"


def test_local_answers() -> None:
    for action, status in ((DirectResponse(status=418), 418), (Redirect(response_code=302), 302)):
        mesh, diary = observed(action=action)
        mesh.call()
        assert diary.log == ["begun", "routed None", f"over {status} - direct_response"]
        assert diary.seen[0]["upstream"] is None
        assert diary.seen[0]["protocol"] == ""


def unknown(mesh: FakeMesh) -> FakeCall:
    """A call to a host that no Listener knows."""
    mesh.publish(listeners={"svc:80": mesh.listen, "x:80": mesh.listen})
    view = request(authority="other")
    view.target = "other:80"
    return mesh.call(view)


def test_no_route_and_no_listener() -> None:
    mesh, diary = observed(listen=listener(RouteConfiguration(name="r", virtual_hosts=())))
    mesh.call()
    assert diary.log == ["begun", "routed None", "over 404 NR route_not_found"]
    assert isinstance(diary.seen[0]["error"], NoRoute)
    diary.log.clear()
    unknown(mesh)
    assert diary.log[:2] == ["begun", "routed None"]
    assert diary.log[2].startswith("over 404 NR")
    assert isinstance(diary.seen[1]["error"], UnknownHost)


def test_a_host_that_is_let_through() -> None:
    mesh, diary = observed()
    mesh.engine.passthrough = True
    call = unknown(mesh)
    assert call.core.passthrough
    assert diary.log[:2] == ["begun", "routed None"]
    assert len(diary.seen) == 1


def test_a_cancelled_call() -> None:
    mesh, diary = observed()
    mesh.call().cancel()
    assert diary.log[-2:] == ["-1 cancelled", "over 0 DC downstream_remote_disconnect"]


def test_a_closed_mesh() -> None:
    mesh, diary = observed()
    mesh.engine.close()
    mesh.call()
    assert diary.log[:2] == ["begun", "routed None"]
    assert diary.log[2].startswith("over ")
    assert len(diary.log) == 3


def test_a_dropped_call_is_told_of_when_the_next_one_begins() -> None:
    mesh, diary = observed(cluster(hosts=2), action=forward(retry_policy=retry("5xx", times=1)))
    call = mesh.call()
    call.answer(503)
    mesh.clock.advance(0.001)
    moment = mesh.clock.monotonic()
    call.core = None
    gc.collect()
    assert "over" not in "".join(diary.log), "a finalizer runs nobody's code"
    mesh.clock.advance(5.0)
    mesh.call()
    at = diary.log.index("over 0 DC downstream_remote_disconnect")
    assert diary.times[at] == moment
    assert diary.log[at + 1] == "begun"
    assert diary.seen[0]["duration"] == pytest.approx(0.001)
    gc.collect()
    assert sum(line.startswith("over") for line in diary.log) == 1


def test_the_status_of_a_grpc_call() -> None:
    mesh, diary = observed()
    mesh.call(rpc()).answer(200, [("grpc-status", "7")])
    assert diary.seen[0]["grpc_status"] == "7"
    call = mesh.call(rpc())
    call.handle(ev.Succeeded(1, 200, (), True))
    assert diary.seen[1]["grpc_status"] == "0"
    mesh.publish(cluster(hosts=0))
    mesh.call(rpc())
    assert diary.seen[2]["grpc_status"] == "14"
    assert diary.seen[2]["status"] == 200


# --- who is told ------------------------------------------------------------------------------------------------------


def test_nobody_is_told_of_calls_that_began_before() -> None:
    mesh = FakeMesh(cluster())
    call, diary = mesh.call(), Diary()
    mesh.engine.observe(diary)
    call.answer(200)
    assert diary.log == []


def test_who_leaves_hears_the_end_of_what_it_saw_begin() -> None:
    mesh, diary = observed()
    call = mesh.call()
    mesh.engine.unobserve(diary)
    mesh.call().answer(200)
    call.answer(200)
    assert diary.log.count("begun") == diary.log.count("over 200 - via_upstream") == 1


def test_an_observer_is_subscribed_once_and_to_what_it_defines() -> None:
    class Ends(CallObserver):
        def over(self, call: Call, now: float) -> None: ...

    class Inbound(InboundObserver):
        def inbound_over(self, record: InboundCall) -> None: ...

    class Duck:
        def begun(self, call: Call, now: float) -> None: ...

    ends, inbound, duck = Ends(), Inbound(), Duck()
    observers = Observers().plus(ends).plus(ends).plus(inbound).plus(duck)
    assert observers.members == (ends, inbound, duck)
    assert observers.over == (ends.over,)
    assert observers.begun == (duck.begun,)
    assert observers.inbound_over == (inbound.inbound_over,)
    assert (
        observers.routed == observers.attempt_begun == observers.attempt_over == observers.inbound_begun == ()
    )
    assert observers.outbound
    assert observers.inbound
    rest = observers.minus(ends).minus(duck)
    assert rest.members == (inbound,)
    assert not rest.outbound
    assert not Observers().inbound


@pytest.mark.parametrize("hook", ["begun", "routed", "attempt_begun", "attempt_over", "over"])
def test_what_an_observer_raises_is_logged_once(hook: str, caplog: pytest.LogCaptureFixture) -> None:
    def broken(self: object, *arguments: object) -> None:
        raise ValueError("never mind")

    mesh, diary = observed()
    mesh.engine.unobserve(diary)
    mesh.engine.observe(type(f"Broken_{hook}", (CallObserver,), {hook: broken})())
    mesh.engine.observe(diary)
    with caplog.at_level(logging.ERROR, "meshlib.engine"):
        for _ in range(3):
            call = mesh.call()
            call.answer(200)
            assert call.status == 200
    assert len(caplog.records) == 1
    assert diary.log.count("over 200 - via_upstream") == 3


# --- what they add ----------------------------------------------------------------------------------------------------


class Tracer(CallObserver):
    def begun(self, call: Call, now: float) -> None:
        call.headers_to_add += (("baggage", "a=b"),)

    def attempt_begun(self, call: Call, attempt: Attempt, now: float) -> None:
        attempt.headers_to_add = (("traceparent", str(attempt.number)),)


@pytest.mark.parametrize("edits", [False, True])
def test_headers_of_observers_go_out_with_each_attempt(edits: bool) -> None:
    action = forward(retry_policy=retry("5xx", times=1, back_off=NO_BACK_OFF))
    config = route_config(action, include_request_attempt_count=edits)
    mesh = FakeMesh(cluster(), listen=listener(config))
    diary = Diary()
    mesh.engine.observe(Tracer())
    mesh.engine.observe(diary)
    call = mesh.call(request(headers=[("a", "b")]))
    call.answer(503)
    call.tick()
    call.answer(200)
    assert [list(start.extra) for start in call.starts] == [
        [("baggage", "a=b"), ("traceparent", "1")],
        [("baggage", "a=b"), ("traceparent", "2")],
    ]
    sent = diary.seen[0]["request_headers_sent"]
    assert sent[0] == ("a", "b")
    assert sent[-2:] == [("baggage", "a=b"), ("traceparent", "2")]
    assert (("x-envoy-attempt-count", "2") in sent) is edits


# --- whatever happens -------------------------------------------------------------------------------------------------


class Auditor(CallObserver):
    """Checks the order of what it is told. Keeps no call alive: some are dropped for good."""

    def __init__(self) -> None:
        self.alive: dict[int, set[Attempt]] = {}
        self.begins = 0
        self.ends: Counter[str] = Counter()

    def begun(self, call: Call, now: float) -> None:
        self.begins += 1
        assert id(call) not in self.alive
        assert call.observed
        assert call.notes is None, "nobody has kept anything yet"
        call.notes = {self: 0}
        self.alive[id(call)] = set()

    def routed(self, call: Call, now: float) -> None:
        assert call.notes is not None
        call.notes[self] += 1
        assert call.notes[self] == 1

    def attempt_begun(self, call: Call, attempt: Attempt, now: float) -> None:
        assert call.notes is not None
        assert call.notes[self] == 1
        alive = self.alive[id(call)]
        assert attempt not in alive
        alive.add(attempt)

    def attempt_over(self, call: Call, attempt: Attempt, now: float) -> None:
        self.alive[id(call)].remove(attempt)
        assert attempt.over_at is not None
        assert attempt.over_at <= now
        assert attempt.status is not None or attempt.failure

    def over(self, call: Call, now: float) -> None:
        assert not self.alive.pop(id(call)), "an attempt has no end"
        assert call.notes is not None
        assert call.notes[self] == 1, "routed exactly once"
        assert call.duration is not None
        assert call.duration >= 0
        assert call.details
        if call.accepted is not None:
            assert call.upstream is call.attempts[call.accepted - 1].endpoint
            assert call.status == call.attempts[call.accepted - 1].status
        elif call.error is not None and call.error.local_reply is not None:  # type: ignore[attr-defined]
            assert call.status == call.reply.status  # type: ignore[union-attr]
        self.ends["accepted" if call.accepted else "failed" if call.error else ",".join(call.flags)] += 1


class AuditedScript(Script):
    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.auditor = Auditor()
        self.mesh.engine.observe(self.auditor)


@pytest.mark.parametrize("block", range(4))
def test_over_exactly_once_whatever_happens(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    ends: Counter[str] = Counter()

    def fail(hook: Callable[..., object], error: Exception) -> None:
        raise AssertionError(f"{hook} failed") from error

    monkeypatch.setattr("meshlib.engine.observer.report", fail)
    for seed in range(block * 50, block * 50 + 50):
        script = AuditedScript(seed)
        for _ in range(200):
            script.step()
        script.finish()
        auditor = script.auditor
        assert auditor.alive == {}
        assert sum(auditor.ends.values()) == auditor.begins == script.done["call"]
        ends += auditor.ends
    assert ends["accepted"] > 50
    assert ends["failed"] > 50
    assert ends["DC"] > 10


def test_a_call_in_a_block_of_options_is_no_exception() -> None:
    mesh, diary = observed()
    call: FakeCall = mesh.call(options=CallOptions(timeout=0.5))
    call.tick()
    assert diary.log[-1].startswith("over 504 UT")


def test_an_observer_may_have_others_told_of_what_comes() -> None:
    class Choosy(CallObserver):
        def __init__(self, then: CallObserver) -> None:
            self.then = then

        def routed(self, call: Call, now: float) -> None:
            told = call.told
            assert told is not None
            if call.request.path == "/watched":
                call.also_tell(told.plus(self.then))

    mesh, diary = FakeMesh(cluster()), Diary()
    mesh.engine.observe(Choosy(diary))
    mesh.call(request("/else")).answer(200)
    assert diary.log == []
    mesh.call(request("/watched")).answer(200)
    assert diary.log == ["+1 10.0.0.1:80", "-1 200", "over 200 - via_upstream"]

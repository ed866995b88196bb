"""Mirroring, cancellation at every stage, dropped calls, late events, streams both ways, header edits, forks."""

from __future__ import annotations

import gc
from random import Random

import pytest

from meshlib.engine import events as ev
from meshlib.engine.options import CallOptions
from meshlib.errors import NoHealthyEndpoint
from meshlib.policy.breaker import BreakerConfig, BreakerSet
from meshlib.policy.failure import FailureKind
from meshlib.resources.matching import FractionalPercent
from meshlib.resources.route import MirrorPolicy
from tests.engine.builders import cluster, forward, listener, outlier, retry, route_config, thresholds
from tests.engine.wire import FakeCall, FakeMesh, request
from tests.routing.build import edits, header


class TestMirrors:
    MIRRORED = forward(mirrors=(MirrorPolicy(cluster="b"),), retry_policy=retry("5xx"))

    def test_a_copy_goes_to_the_other_cluster(self) -> None:
        mesh = FakeMesh(cluster(), cluster("b"), action=self.MIRRORED)
        call = mesh.call(request("/x?y=1", authority="svc:8080"))
        copy = call.live[-1].start
        assert (copy.cluster.name, copy.path, copy.authority) == ("b", "/x?y=1", "svc-shadow:8080")
        assert mesh.held()["b.requests"] == 1
        call.answer(200)
        assert call.status == 200
        call.answer(500, attempt=-1)
        assert (call.status, call.flags) == (200, "-")
        assert mesh.held() == {}

    @pytest.mark.parametrize("how", ["answer", "end", "fail"])
    def test_whatever_becomes_of_the_copy_does_not_touch_the_call(self, how: str) -> None:
        mesh = FakeMesh(cluster(), cluster("b"), action=self.MIRRORED)
        call = mesh.call()
        before = list(call.log)
        if how == "answer":
            call.answer(503, attempt=-1)
        elif how == "end":
            call.handle(ev.Headers(-1, 200, ()))
            call.handle(ev.End(-1))
        else:
            call.handle(ev.Failed(-1, FailureKind.TERMINATED, True))
        assert call.log == before
        assert "b.requests" not in mesh.held()
        call.answer(200, attempt=1)
        assert mesh.held() == {}

    def test_a_copy_that_outlives_its_call_gives_back_what_it_holds(self) -> None:
        mesh = FakeMesh(cluster(), cluster("b"), action=self.MIRRORED)
        call = mesh.call()
        call.cancel()
        assert mesh.held() == {"b.requests": 1, "b.10.0.0.1:80": 1}
        call.handle(ev.Failed(-1, FailureKind.TERMINATED, True))
        assert mesh.held() == {}

    def test_a_copy_whose_call_was_dropped_gives_back_at_the_clusters_next_call(self) -> None:
        mesh = FakeMesh(cluster(), cluster("b"), action=self.MIRRORED)
        call = mesh.call()
        call.answer(200, attempt=1)
        del call
        gc.collect()
        mesh.state("b").drain_abandoned()
        assert mesh.held() == {}

    def test_only_the_first_attempt_is_copied(self) -> None:
        mesh = FakeMesh(cluster(), cluster("b"), action=self.MIRRORED)
        call = mesh.call()
        call.answer(503, attempt=1)
        call.tick()
        assert sorted(call.live) == [-1, 2]

    def test_no_copy_without_an_endpoint_or_a_permit(self) -> None:
        for other in (
            cluster("b", hosts=0),
            cluster("b", circuit_breakers=thresholds(max_requests=0)),
            cluster("c"),
        ):
            call = FakeMesh(cluster(), other, action=self.MIRRORED).call()
            assert list(call.live) == [1]

    def test_a_share(self) -> None:
        half = FractionalPercent(numerator=50, denominator=100)
        mesh = FakeMesh(
            cluster(), cluster("b"), action=forward(mirrors=(MirrorPolicy(cluster="b", fraction=half),))
        )
        copies = 0
        for _ in range(2_000):
            call = mesh.call()
            if -1 in call.live:
                copies += 1
                call.answer(200, attempt=-1)
            call.answer(200, attempt=1)
        assert abs(copies - 1_000) < 3.5 * (2_000 * 0.25) ** 0.5

    def test_the_host_can_be_kept(self) -> None:
        policy = MirrorPolicy(cluster="b", keep_host=True)
        call = FakeMesh(cluster(), cluster("b"), action=forward(mirrors=(policy,))).call()
        assert call.live[-1].start.authority == "svc"


class TestCancel:
    def test_while_it_waits_for_configuration(self) -> None:
        mesh = FakeMesh(publish=False)
        call = mesh.call()
        call.cancel()
        mesh.publish(cluster())
        call.attend()
        assert call.log == ["Park"]

    @pytest.mark.parametrize("slow", [False, True])
    def test_while_an_attempt_is_alive(self, slow: bool) -> None:
        mesh = FakeMesh(cluster())
        mesh.slow = slow
        call = mesh.call()
        call.cancel()
        assert call.log[-1] == "CancelAttempt(1)"
        assert (call.flags, call.details) == ("DC", "downstream_remote_disconnect")
        assert mesh.held() == {}
        assert mesh.state().default.connections == 0

    def test_in_a_back_off(self) -> None:
        mesh = FakeMesh(cluster(), action=forward(retry_policy=retry("5xx")))
        call = mesh.call()
        call.answer(503)
        assert mesh.held() == {"a.retries": 1}
        call.cancel()
        assert mesh.held() == {}
        assert call.core.wake_at == float("inf")

    def test_in_the_body(self) -> None:
        mesh = FakeMesh(cluster())
        call = mesh.call()
        call.answer(200, end=False)
        call.cancel()
        assert call.log[-1] == "CancelAttempt(1)"
        assert (call.flags, call.details) == ("DC", "via_upstream")
        assert mesh.held() == {}

    def test_after_the_end_it_changes_nothing(self) -> None:
        mesh = FakeMesh(cluster())
        call = mesh.call()
        call.answer(200)
        call.cancel()
        assert call.flags == "-"


def late(call: FakeCall) -> None:
    """Everything that a transport could still report of attempts that are over."""
    events: list[ev.Event] = []
    for number in (-3, 0, 1, 2, 9):
        events += [
            ev.NeedConnection(number, call.pool),
            ev.Connected(number),
            ev.Sent(number, 10),
            ev.Headers(number, 200, ()),
            ev.Headers(number, 503, (), True),
            ev.Message(number),
            ev.End(number),
            ev.Failed(number, FailureKind.TERMINATED, True),
        ]
    events += [ev.RequestComplete(), ev.Timer(), ev.Woken(), ev.SideResult(0, "x"), ev.Cancelled()]
    for event in events:
        call.handle(event)


@pytest.mark.parametrize("ending", ["answer", "fail", "timeout", "cancel", "overflow"])
def test_late_events_change_nothing(ending: str) -> None:
    limits = thresholds(max_requests=0 if ending == "overflow" else 5)
    mesh = FakeMesh(cluster(circuit_breakers=limits, outlier_detection=outlier()), action=forward())
    call = mesh.call()
    if ending == "answer":
        call.answer(200)
    elif ending == "fail":
        call.fail()
    elif ending == "timeout":
        call.tick()
    elif ending == "cancel":
        call.cancel()
    log, flags, details = list(call.log), call.flags, call.details
    counted = mesh.state().endpoints["10.0.0.1:80"].consecutive_5xx
    late(call)
    assert (call.log, call.flags, call.details) == (log, flags, details)
    assert mesh.state().endpoints["10.0.0.1:80"].consecutive_5xx == counted
    assert call.core.wake_at == float("inf")
    assert mesh.held() == {}


def test_headers_that_come_twice_are_taken_once() -> None:
    call = FakeMesh(cluster()).call()
    call.answer(200, end=False)
    call.handle(ev.Headers(1, 503, ()))
    assert call.log.count("Accept(1)") == 1
    assert call.flags == "-"


def test_events_of_a_cancelled_attempt_change_nothing_while_another_is_alive() -> None:
    mesh = FakeMesh(cluster(), action=forward(retry_policy=retry("5xx")))
    call = mesh.call()
    call.answer(503)
    call.tick()
    before = list(call.log)
    call.handle(ev.Headers(1, 200, (), True))
    call.handle(ev.Failed(1, FailureKind.TERMINATED, True))
    call.handle(ev.End(1))
    assert call.log == before
    call.answer(200)
    assert call.status == 200
    assert mesh.held() == {}


class TestDropped:
    """A call that nobody ends: the finalizer takes no lock, the cluster's next call gives back what was held."""

    @pytest.mark.parametrize("stage", ["sent", "connecting", "back-off", "body"])
    def test_it_is_given_back(self, stage: str) -> None:
        mesh = FakeMesh(cluster(), action=forward(retry_policy=retry("5xx")))
        mesh.slow = stage == "connecting"
        call = mesh.call()
        if stage == "back-off":
            call.answer(503)
        elif stage == "body":
            call.answer(200, end=False)
        assert mesh.held()
        with mesh.state().lock:  # held by this very thread
            del call
            gc.collect()
        mesh.slow = False
        mesh.call().answer(200)
        assert mesh.held() == {}

    def test_a_breakers_trial_ends(self) -> None:
        breakers = BreakerSet({"a": BreakerConfig(fail_max=1, reset_timeout=10)})
        mesh = FakeMesh(cluster(), breakers=breakers)
        mesh.call().answer(500)
        mesh.clock.advance(10)
        trial = mesh.call()
        assert not trial.over
        del trial
        gc.collect()
        after = mesh.call()
        assert not after.over, "the trial that was dropped does not block the next one"
        after.answer(200)
        assert mesh.held() == {}


class TestStreams:
    def test_both_ways_at_once(self) -> None:
        """A bidirectional stream: the response begins before the request ends; messages flow; no timer in the way."""
        mesh = FakeMesh(cluster(), action=forward(timeout=1.0))
        call = mesh.call(complete=False)
        call.handle(ev.Sent(1, 100))
        call.answer(200, end=False)
        for _ in range(5):
            mesh.clock.advance(10)
            call.handle(ev.Message(1))
        assert call.core.wake_at == float("inf")
        call.handle(ev.RequestComplete())
        mesh.clock.advance(0.5)
        call.end()
        assert (call.status, call.flags) == (200, "-")
        assert mesh.held() == {}

    def test_the_timeout_starts_when_the_request_ends_even_after_the_headers(self) -> None:
        mesh = FakeMesh(cluster(), action=forward(timeout=1.0))
        call = mesh.call(complete=False)
        call.answer(200, end=False)
        mesh.clock.advance(10)
        call.handle(ev.RequestComplete())
        assert call.tick() == pytest.approx(1.0)
        assert call.flags == "UT"

    def test_a_response_that_ends_before_the_request(self) -> None:
        mesh = FakeMesh(cluster())
        call = mesh.call(complete=False)
        call.answer(413)
        assert call.status == 413
        call.handle(ev.RequestComplete())
        assert call.core.wake_at == float("inf")


class TestHeaders:
    def test_nothing_is_touched_without_need(self) -> None:
        start = FakeMesh(cluster()).call(request("/a", headers=[("x-a", "1")])).starts[0]
        assert (start.authority, start.path, start.headers) == ("svc", "/a", None)

    def test_a_rewrite_is_in_every_attempt(self) -> None:
        mesh = FakeMesh(cluster(), action=forward(prefix_rewrite="/new/", retry_policy=retry("5xx")))
        call = mesh.call(request("/old", headers=[("x-a", "1")]))
        call.answer(503)
        call.tick()
        assert [start.path for start in call.starts] == ["/new/old", "/new/old"]

    def test_attempt_counts_where_they_are_asked_for(self) -> None:
        config = route_config(
            forward(retry_policy=retry("5xx")),
            include_request_attempt_count=True,
            include_attempt_count_in_response=True,
        )
        call = FakeMesh(cluster(), listen=listener(config)).call()
        call.answer(503)
        call.tick()
        call.answer(200, [("x-a", "1")])
        counted = [dict(start.headers or ())["x-envoy-attempt-count"] for start in call.starts]
        assert counted == ["1", "2"]
        assert call.headers is not None
        assert list(call.headers) == [("x-a", "1"), ("x-envoy-attempt-count", "2")]

    @pytest.mark.parametrize("ending", ["answer", "fail", "no endpoint"])
    def test_response_edits_apply_to_local_replies_too(self, ending: str) -> None:
        config = route_config(forward(), response_headers=edits(header("x-mesh", "yes")))
        hosts = 0 if ending == "no endpoint" else 1
        call = FakeMesh(cluster(hosts=hosts), listen=listener(config)).call()
        if ending == "answer":
            call.answer(200)
            assert call.headers is not None
            assert ("x-mesh", "yes") in call.headers
            return
        if ending == "fail":
            call.fail()
        assert call.error is not None
        assert call.error.local_reply is not None
        assert ("x-mesh", "yes") in call.error.local_reply.headers


def test_a_head_request_gets_no_body() -> None:
    call = FakeMesh(cluster(hosts=0)).call(request(method="HEAD"))
    assert isinstance(call.error, NoHealthyEndpoint)
    assert call.error.local_reply is not None
    assert call.error.local_reply.body == b""
    assert ("content-length", "19") in call.error.local_reply.headers


def test_a_fork_leaves_the_parents_calls_without_effect() -> None:
    mesh = FakeMesh(cluster())
    parents = mesh.call()
    mesh.engine.renew_locks()
    mesh.pool.idle.clear()
    childs = mesh.call()
    parents.cancel()
    assert mesh.held() == {"a.requests": 1, "a.10.0.0.1:80": 1}
    childs.answer(200)
    assert mesh.held() == {}


def test_a_fork_beside_an_ejection_leaves_the_child_free_to_eject() -> None:
    mesh = FakeMesh(cluster(hosts=2))
    balancer = mesh.engine.program.clusters["a"].balancer
    with balancer._lock:
        mesh.engine.renew_locks()
        assert balancer._lock.acquire(blocking=False)


def test_the_same_seed_gives_the_same_calls() -> None:
    def run(seed: int) -> list[str]:
        mesh = FakeMesh(cluster(hosts=5), action=forward(retry_policy=retry("5xx", times=3)), seed=seed)
        chance = Random(7)
        keys = []
        for _ in range(50):
            call = mesh.call()
            while call.status is None:
                if call.live:
                    call.answer(chance.choice((200, 503)))
                else:
                    call.tick()
            keys += [start.endpoint.key for start in call.starts]
        return [*keys, repr(mesh.clock.monotonic())]

    assert run(1) == run(1)
    assert run(1) != run(2)


class TestOverrides:
    def test_no_retries(self) -> None:
        mesh = FakeMesh(cluster(), action=forward(retry_policy=retry("5xx", times=3)))
        call = mesh.call(options=CallOptions(retries=0))
        call.answer(503)
        assert (call.status, call.flags) == (503, "URX")

    def test_retries_on_a_route_without_a_policy_are_safe_ones(self) -> None:
        mesh = FakeMesh(cluster())
        call = mesh.call(options=CallOptions(retries=1))
        call.answer(503)
        assert call.status == 503
        call = mesh.call(options=CallOptions(retries=1))
        call.fail(FailureKind.CONNECT_FAILED, sent=False)
        call.tick()
        call.answer(200)
        assert call.status == 200

    def test_conditions(self) -> None:
        call = FakeMesh(cluster()).call(options=CallOptions(retries=1, retry_on="retriable-4xx"))
        call.answer(409)
        call.tick()
        call.answer(200)
        assert call.status == 200

    def test_a_per_try_timeout(self) -> None:
        call = FakeMesh(cluster()).call(options=CallOptions(per_try_timeout=0.3))
        assert call.tick() == pytest.approx(0.3)
        assert call.details == "upstream_per_try_timeout"

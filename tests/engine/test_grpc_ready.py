"""The caller's deadline and wait_for_ready of a gRPC call."""

from __future__ import annotations

from math import inf

import pytest

from meshlib.engine import events as ev
from meshlib.engine.options import CallOptions
from meshlib.errors import (
    CircuitFull,
    DeadlineExceeded,
    MeshClosed,
    NoHealthyEndpoint,
    NoRoute,
    UnknownHost,
)
from meshlib.policy.failure import FailureKind
from meshlib.resources.cluster import Cluster, LocalityLbConfig
from meshlib.resources.route import MirrorPolicy, RouteConfiguration
from tests.engine.builders import cluster, forward, listener, outlier, retry, route_config, thresholds
from tests.engine.grpc_calls import rpc, status
from tests.engine.wire import FakeCall, FakeMesh

NO_PANIC = LocalityLbConfig(healthy_panic_threshold=0.0)


def parked(call: FakeCall) -> bool:
    return not call.over and call.log[-1] == "Park"


class TestDeadline:
    def test_it_ends_the_call_in_deadline_exceeded(self) -> None:
        mesh = FakeMesh(cluster(outlier_detection=outlier(consecutive_5xx=1)))
        call = mesh.call(rpc(), deadline=mesh.clock.monotonic() + 0.5)
        assert call.tick() == pytest.approx(0.5)
        assert isinstance(call.error, DeadlineExceeded)
        assert status(call) == ("4", "Deadline Exceeded")
        assert (call.flags, call.details) == ("DC", "downstream_remote_disconnect")
        assert call.log[-2:] == ["CancelAttempt(1)", "Fail"]
        assert mesh.stat("upstream_rq_timeout") == 0
        assert mesh.stat("outlier_detection.ejections_enforced_total") == 0, "nobody is to blame"
        assert mesh.held() == {}

    def test_the_routes_timeout_keeps_envoys_answer(self) -> None:
        mesh = FakeMesh(cluster(), action=forward(timeout=0.2))
        call = mesh.call(rpc(), deadline=mesh.clock.monotonic() + 5)
        assert call.tick() == pytest.approx(0.2)
        assert status(call) == ("14", "upstream request timeout")
        assert call.flags == "UT"

    def test_it_goes_before_another_timer_of_the_same_moment(self) -> None:
        mesh = FakeMesh(cluster(), action=forward(timeout=0.5))
        call = mesh.call(rpc(), deadline=mesh.clock.monotonic() + 0.5)
        call.tick()
        assert status(call)[0] == "4"

    def test_one_deadline_covers_attempts_and_waits(self) -> None:
        mesh = FakeMesh(cluster(), action=forward(retry_policy=retry("unavailable", times=100)))
        began = mesh.clock.monotonic()
        call = mesh.call(rpc(), deadline=began + 1.0)
        while call.error is None:
            if call.live:
                call.answer(200, [("grpc-status", "14")])
            else:
                call.tick()
        assert mesh.clock.monotonic() == pytest.approx(began + 1.0)
        assert status(call)[0] == "4"
        assert mesh.held() == {}

    def test_the_nearest_of_the_callers_own_counts(self) -> None:
        mesh = FakeMesh(cluster())
        call = mesh.call(rpc(), deadline=mesh.clock.monotonic() + 5, options=CallOptions(timeout=0.1))
        assert call.tick() == pytest.approx(0.1)
        assert status(call) == ("4", "Deadline Exceeded")

    def test_a_timeout_override_alone_is_the_callers_too(self) -> None:
        mesh = FakeMesh(cluster())
        call = mesh.call(rpc(), options=CallOptions(timeout=0.1))
        call.tick()
        assert status(call) == ("4", "Deadline Exceeded")

    def test_it_ends_a_wait_for_configuration(self) -> None:
        mesh = FakeMesh(publish=False)
        call = mesh.call(rpc(), deadline=mesh.clock.monotonic() + 3)
        assert call.tick() == pytest.approx(3)
        assert status(call) == ("4", "Deadline Exceeded")

    def test_it_cuts_a_stream(self) -> None:
        mesh = FakeMesh(cluster(), action=forward(timeout=0.0))
        call = mesh.call(rpc(), deadline=mesh.clock.monotonic() + 3)
        call.answer(200, end=False)
        assert call.tick() == pytest.approx(3)
        assert status(call)[0] == "4"
        assert mesh.held() == {}


class TestConfiguration:
    def test_it_waits_longer_than_fifteen_seconds(self) -> None:
        mesh = FakeMesh(cluster(), publish=False)
        call = mesh.call(rpc(), wait_for_ready=True)
        assert parked(call)
        assert call.core.wake_at == inf
        call.after(3600)
        mesh.publish()
        call.attend()
        call.answer(200)
        assert call.status == 200
        assert mesh.held() == {}

    def test_the_routes_timeout_starts_when_there_is_a_connection(self) -> None:
        mesh = FakeMesh(cluster(), action=forward(timeout=2.0), publish=False)
        call = mesh.call(rpc(), wait_for_ready=True)
        call.after(100)
        mesh.publish()
        call.attend()
        assert call.tick() == pytest.approx(2.0)
        assert status(call) == ("14", "upstream request timeout")

    def test_what_the_control_plane_does_not_know_today(self) -> None:
        mesh = FakeMesh(cluster())
        mesh.publish(complete=False, listeners={})
        call = mesh.call(rpc(), wait_for_ready=True)
        assert parked(call)
        mesh.listen = listener(None)
        mesh.publish(complete=False)
        call.attend()
        assert parked(call), "its RouteConfiguration is not there"
        action = forward("b")
        mesh.publish(complete=False, routes={"r": route_config(action)})
        call.attend()
        assert parked(call), "its cluster is not there"
        mesh.publish(cluster("b"), complete=False, routes={"r": route_config(action)})
        call.attend()
        call.answer(200)
        assert call.status == 200

    def test_a_host_that_the_files_do_not_have_is_final(self) -> None:
        mesh = FakeMesh(cluster())
        other = listener(route_config(forward()))
        mesh.publish(listeners={"x:1": other, "y:1": other})
        call = mesh.call(rpc(), wait_for_ready=True)
        assert isinstance(call.error, UnknownHost)

    def test_a_route_that_does_not_match_is_final(self) -> None:
        mesh = FakeMesh(cluster(), listen=listener(RouteConfiguration(name="r", virtual_hosts=())))
        call = mesh.call(rpc(), wait_for_ready=True)
        assert isinstance(call.error, NoRoute)
        assert status(call)[0] == "12"

    def test_closing_the_mesh_ends_the_wait(self) -> None:
        mesh = FakeMesh(cluster(hosts=0))
        call = mesh.call(rpc(), wait_for_ready=True)
        assert parked(call)
        mesh.engine.close()
        call.attend()
        assert isinstance(call.error, MeshClosed)

    def test_calls_that_gave_up_leave_nothing_behind(self) -> None:
        mesh = FakeMesh(publish=False)
        for _ in range(10):
            call = mesh.call(rpc(), wait_for_ready=True, deadline=mesh.clock.monotonic() + 1)
            call.tick()
        assert mesh.engine._waiting == {}


class TestEndpoints:
    def test_without_it_the_call_fails(self) -> None:
        call = FakeMesh(cluster(hosts=0)).call(rpc(), deadline=inf)
        assert isinstance(call.error, NoHealthyEndpoint)

    def test_it_waits_for_an_endpoint(self) -> None:
        mesh = FakeMesh(cluster(hosts=0), action=forward(timeout=2.0))
        call = mesh.call(rpc(), wait_for_ready=True)
        assert parked(call)
        assert call.core.attempt_count == 0
        call.after(60)
        mesh.publish(cluster(hosts=0, connect_timeout=1.0))
        call.attend()
        assert parked(call), "a push that brings no endpoint"
        mesh.publish(cluster(hosts=1))
        call.attend()
        assert [start.attempt for start in call.starts] == [1]
        assert call.core.info.attempt_count == 1
        call.answer(200)
        assert call.status == 200
        assert mesh.held() == {}

    def test_the_deadline_ends_the_wait(self) -> None:
        mesh = FakeMesh(cluster(hosts=0), action=forward(timeout=0.2))
        call = mesh.call(rpc(), wait_for_ready=True, deadline=mesh.clock.monotonic() + 3)
        assert call.tick() == pytest.approx(3)
        assert status(call) == ("4", "Deadline Exceeded")

    def test_an_ejection_that_ends_is_noticed(self) -> None:
        detection = outlier(consecutive_5xx=1, interval=10.0, base_ejection_time=30.0)
        one: Cluster = cluster(outlier_detection=detection, locality=NO_PANIC)
        mesh = FakeMesh(one)
        mesh.call(rpc()).answer(200, [("grpc-status", "14")])
        refused = mesh.call(rpc())
        assert isinstance(refused.error, NoHealthyEndpoint)
        call = mesh.call(rpc(), wait_for_ready=True)
        assert parked(call)
        waited = 0.0
        while not call.live:
            waited += call.tick()
        assert waited == pytest.approx(30.0)
        call.answer(200)
        assert call.status == 200

    def test_a_limit_still_refuses_at_once(self) -> None:
        mesh = FakeMesh(cluster(circuit_breakers=thresholds(max_pending_requests=0)))
        call = mesh.call(rpc(), wait_for_ready=True)
        assert isinstance(call.error, CircuitFull)

    def test_a_retry_waits_as_well(self) -> None:
        mesh = FakeMesh(cluster(), action=forward(retry_policy=retry("unavailable")))
        call = mesh.call(rpc(), wait_for_ready=True)
        mesh.publish(cluster(hosts=0))
        call.answer(200, [("grpc-status", "14")])
        call.tick()
        assert parked(call)
        assert mesh.held() == {"a.retries": 1}
        mesh.publish(cluster(hosts=1))
        call.attend()
        call.answer(200)
        assert call.status == 200
        assert mesh.held() == {}


class TestConnections:
    def test_a_refused_connection_is_no_retry(self) -> None:
        mesh = FakeMesh(cluster(hosts=2), action=forward(timeout=1.0))
        mesh.slow = True
        call = mesh.call(rpc(), wait_for_ready=True)
        for _ in range(200):
            call.fail(FailureKind.CONNECT_FAILED, sent=False)
            assert parked(call)
            assert call.tick() <= 0.25
        call.connected()
        call.answer(200)
        assert call.status == 200
        assert call.flags == "-"
        assert {start.attempt for start in call.starts} == {1}
        assert {start.endpoint.key for start in call.starts} == {"10.0.0.1:80", "10.0.0.2:80"}
        assert mesh.stat("upstream_rq_retry") == 0
        assert mesh.stat("upstream_cx_connect_fail") == 200
        records = call.core.info.attempts
        assert len(records) == 17
        assert records[0].failure == "remote connection failure"
        assert records[-1].status == 200
        assert mesh.held() == {}

    def test_without_it_the_call_fails(self) -> None:
        mesh = FakeMesh(cluster())
        mesh.slow = True
        call = mesh.call(rpc(), deadline=mesh.clock.monotonic() + 3)
        call.fail(FailureKind.CONNECT_FAILED, sent=False)
        assert status(call)[0] == "14"
        assert call.flags == "UF"

    def test_a_stream_that_breaks_is_the_end(self) -> None:
        mesh = FakeMesh(cluster())
        call = mesh.call(rpc(), wait_for_ready=True)
        call.fail(FailureKind.TERMINATED)
        assert status(call)[0] == "14"
        assert call.flags == "UC"

    @pytest.mark.parametrize("kind", [FailureKind.CONNECT_FAILED, FailureKind.CONNECT_TIMEOUT])
    def test_a_response_that_began_is_never_begun_again(self, kind: FailureKind) -> None:
        mesh = FakeMesh(cluster(hosts=2))
        call = mesh.call(rpc(), wait_for_ready=True)
        call.answer(200, end=False)
        call.fail(kind)
        assert call.error is not None
        assert len(call.starts) == 1
        assert mesh.held() == {}

    def test_the_deadline_ends_it(self) -> None:
        mesh = FakeMesh(cluster())
        mesh.slow = True
        began = mesh.clock.monotonic()
        call = mesh.call(rpc(), wait_for_ready=True, deadline=began + 2.0)
        while call.error is None:
            if call.live:
                call.fail(FailureKind.CONNECT_TIMEOUT, sent=False)
            call.tick()
        assert mesh.clock.monotonic() == pytest.approx(began + 2.0)
        assert status(call) == ("4", "Deadline Exceeded")
        assert call.error.attempts
        assert mesh.held() == {}

    def test_a_push_ends_the_pause(self) -> None:
        mesh = FakeMesh(cluster())
        mesh.slow = True
        call = mesh.call(rpc(), wait_for_ready=True)
        call.fail(FailureKind.CONNECT_FAILED, sent=False)
        mesh.publish(cluster(hosts=2))
        call.attend()
        assert len(call.live) == 1

    def test_a_copy_is_sent_once(self) -> None:
        action = forward(mirrors=(MirrorPolicy(cluster="b"),))
        mesh = FakeMesh(cluster(), cluster("b"), action=action)
        mesh.slow = True
        call = mesh.call(rpc(), wait_for_ready=True)
        call.fail(FailureKind.CONNECT_FAILED, attempt=1, sent=False)
        call.tick()
        assert call.log.count("Mirror") == 1

    def test_cancelled_while_it_waits(self) -> None:
        mesh = FakeMesh(cluster())
        mesh.slow = True
        call = mesh.call(rpc(), wait_for_ready=True)
        call.fail(FailureKind.CONNECT_FAILED, sent=False)
        call.cancel()
        assert call.core.handle(ev.Timer(), mesh.clock.monotonic() + 1) == ()
        assert mesh.held() == {}
        assert mesh.engine._waiting == {}

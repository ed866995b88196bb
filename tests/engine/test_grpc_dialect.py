"""A gRPC call that follows the gRFCs where Envoy differs: the table of meshlib.engine.dialect, row by row."""

from __future__ import annotations

from math import inf
from typing import Any

import pytest

from meshlib.engine.dialect import DIALECTS, ENVOY, GRPC, GrpcRetryState, as_grpc_reads
from meshlib.engine.options import CallOptions
from meshlib.errors import ConnectFailed, NoHealthyEndpoint
from meshlib.policy.failure import FailureKind
from meshlib.resources.route import (
    BackOff,
    DirectResponse,
    MaxStreamDuration,
    Redirect,
    RetryPolicy,
    RouteConfiguration,
)
from tests.engine.builders import (
    NO_BACK_OFF,
    cluster,
    forward,
    listener,
    outlier,
    retry,
    route_config,
    thresholds,
)
from tests.engine.grpc_calls import rpc, status
from tests.engine.wire import FakeCall, FakeMesh


def call(mesh: FakeMesh, **rest: Any) -> FakeCall:
    return mesh.call(rpc(), dialect=GRPC, **rest)


def test_names() -> None:
    assert DIALECTS == {"envoy": ENVOY, "grpc": GRPC}


@pytest.mark.parametrize(
    ("deadline", "header_max", "stream", "expected"),
    [
        (None, None, None, inf),
        (None, None, 0.0, inf),
        (None, None, 10.0, 10.0),
        (None, 0.0, None, inf),
        (None, 0.0, 10.0, inf),
        (None, 10.0, None, 10.0),
        (None, 10.0, 5.0, 10.0),
        (20.0, None, None, 20.0),
        (20.0, None, 0.0, 20.0),
        (20.0, None, 10.0, 10.0),
        (20.0, 0.0, None, 20.0),
        (20.0, 0.0, 10.0, 20.0),
        (20.0, 10.0, None, 10.0),
        (20.0, 10.0, 5.0, 10.0),
    ],
)
def test_the_timeouts_of_a31(
    deadline: float | None, header_max: float | None, stream: float | None, expected: float
) -> None:
    duration = MaxStreamDuration(
        max_stream_duration=stream, grpc_timeout_header_max=header_max, grpc_timeout_header_offset=3.0
    )
    mesh = FakeMesh(cluster(), action=forward(timeout=1.0, max_stream_duration=duration))
    began = mesh.clock.monotonic()
    made = call(mesh, deadline=None if deadline is None else began + deadline)
    assert made.core.wake_at == (inf if expected == inf else pytest.approx(began + expected))
    if expected < inf:
        made.tick()
        assert status(made) == ("4", "Deadline Exceeded")


def test_the_listeners_duration_is_the_last_resort() -> None:
    mesh = FakeMesh(cluster(), listen=listener(route_config(forward()), max_stream_duration=7.0))
    assert call(mesh).tick() == pytest.approx(7.0)


def test_what_only_envoy_times() -> None:
    action = forward(
        timeout=1.0, max_grpc_timeout=0.5, retry_policy=retry("unavailable", per_try_timeout=0.1)
    )
    listen = listener(route_config(action), stream_idle_timeout=2.0)
    mesh = FakeMesh(cluster(max_stream_duration=3.0), listen=listen)
    assert call(mesh).core.wake_at == inf
    assert call(mesh, deadline=mesh.clock.monotonic() + 5).tick() == pytest.approx(5.0)


class TestRetries:
    def mesh(self, on: str = "unavailable", times: int = 1, **fields: Any) -> FakeMesh:
        fields.setdefault("back_off", NO_BACK_OFF)
        return FakeMesh(cluster(hosts=2), action=forward(retry_policy=retry(on, times=times, **fields)))

    def test_four_at_most(self) -> None:
        made = call(self.mesh(times=10))
        for _ in range(4):
            made.answer(200, [("grpc-status", "14")])
            made.tick()
        made.answer(200, [("grpc-status", "14")])
        assert made.status == 200
        assert len(made.starts) == 5

    def test_the_application_may_ask_for_more(self) -> None:
        made = call(self.mesh(), options=CallOptions(retries=6))
        for _ in range(6):
            made.answer(200, [("grpc-status", "14")])
            made.tick()
        assert len(made.starts) == 7

    def test_conditions_of_http_mean_nothing(self) -> None:
        made = call(self.mesh("5xx,gateway-error,reset,connect-failure,refused-stream"))
        made.answer(503)
        assert made.status == 503
        made = call(self.mesh("5xx,reset"))
        made.fail(FailureKind.TERMINATED)
        assert status(made)[0] == "14"

    def test_a_broken_stream_is_unavailable(self) -> None:
        made = call(self.mesh())
        made.fail(FailureKind.TERMINATED)
        made.tick()
        made.answer(200, [("grpc-status", "0")])
        assert made.status == 200

    def test_back_off_with_a_fifth_of_jitter(self) -> None:
        policy = RetryPolicy(
            retry_on=frozenset({"unavailable"}),
            num_retries=9,
            back_off=BackOff(base_interval=1, max_interval=10),
        )
        from random import Random

        for seed in range(100):
            state = GrpcRetryState(policy)
            random = Random(seed)
            for nominal in (1, 2, 4, 8, 10, 10):
                wait = state.take(1, random)
                assert wait is not None
                assert 0.8 * nominal <= wait <= 1.2 * nominal

    def test_attempts_are_numbered_for_the_server(self) -> None:
        made = call(self.mesh(times=2))
        for _ in range(2):
            made.answer(200, [("grpc-status", "14")])
            made.tick()
        sent = [dict(start.headers or ()).get("grpc-previous-rpc-attempts") for start in made.starts]
        assert sent == [None, "1", "2"]
        assert made.starts[0].headers is None

    def test_envoy_does_not_number_them(self) -> None:
        made = self.mesh().call(rpc())
        made.answer(200, [("grpc-status", "14")])
        made.tick()
        assert made.starts[1].headers is None

    def test_push_back(self) -> None:
        made = call(self.mesh(times=2))
        made.answer(200, [("grpc-status", "14"), ("grpc-retry-pushback-ms", "1200")])
        assert made.tick() == pytest.approx(1.2)
        made.answer(200, [("grpc-status", "14"), ("grpc-retry-pushback-ms", "-1")])
        assert made.status == 200


class TestConnections:
    def test_each_endpoint_is_tried_once(self) -> None:
        mesh = FakeMesh(cluster(hosts=3))
        mesh.slow = True
        made = call(mesh)
        for _ in range(3):
            made.fail(FailureKind.CONNECT_FAILED, sent=False)
        assert isinstance(made.error, ConnectFailed)
        assert {start.endpoint.key for start in made.starts} == {f"10.0.0.{last}:80" for last in (1, 2, 3)}
        assert [each.failure for each in made.error.attempts] == ["remote connection failure"] * 3
        assert mesh.held() == {}

    def test_the_second_one_may_work(self) -> None:
        mesh = FakeMesh(cluster(hosts=2))
        mesh.slow = True
        made = call(mesh)
        made.fail(FailureKind.CONNECT_TIMEOUT, sent=False)
        made.connected()
        made.answer(200)
        assert made.status == 200
        assert mesh.stat("upstream_rq_retry") == 0

    def test_no_endpoint_at_all(self) -> None:
        made = call(FakeMesh(cluster(hosts=0)))
        assert isinstance(made.error, NoHealthyEndpoint)


class TestOutlierDetection:
    def test_a_status_in_trailers_counts(self) -> None:
        mesh = FakeMesh(cluster(hosts=2, outlier_detection=outlier(consecutive_5xx=2)))
        for _ in range(4):
            made = call(mesh)
            made.answer(200, end=False)
            made.end(trailers=[("grpc-status", "14")])
        assert mesh.stat("outlier_detection.ejections_enforced_total") > 0

    def test_so_does_success(self) -> None:
        mesh = FakeMesh(cluster(outlier_detection=outlier(consecutive_5xx=2)))
        for code in ("14", "0", "14", "0"):
            made = call(mesh)
            made.answer(200, end=False)
            made.end(trailers=[("grpc-status", code)])
        assert mesh.stat("outlier_detection.ejections_enforced_total") == 0

    def test_in_headers_as_with_envoy(self) -> None:
        mesh = FakeMesh(cluster(hosts=2, outlier_detection=outlier(consecutive_5xx=1)))
        call(mesh).answer(200, [("grpc-status", "14")])
        assert mesh.stat("outlier_detection.ejections_enforced_total") == 1


class TestEndings:
    def test_no_route(self) -> None:
        mesh = FakeMesh(cluster(), listen=listener(RouteConfiguration(name="r", virtual_hosts=())))
        assert status(call(mesh)) == ("14", "No matching route found in xDS route config")

    def test_no_cluster(self) -> None:
        assert status(call(FakeMesh(action=forward("missing"))))[0] == "14"

    @pytest.mark.parametrize("action", [DirectResponse(status=200, body=b"x"), Redirect(host="b")])
    def test_a_route_that_answers(self, action: DirectResponse | Redirect) -> None:
        made = call(FakeMesh(cluster(), action=action))
        assert status(made) == ("14", "Matching route has inappropriate action")

    def test_a_limit(self) -> None:
        made = call(FakeMesh(cluster(circuit_breakers=thresholds(max_requests=0))))
        assert status(made) == ("14", "circuit breaker drop")


def test_a_plan_is_converted_once() -> None:
    mesh = FakeMesh(cluster(), action=forward(retry_policy=retry("unavailable")))
    plan = mesh.call(rpc()).core.plan
    assert as_grpc_reads(plan) is as_grpc_reads(plan)
    assert plan.timeout == 15.0

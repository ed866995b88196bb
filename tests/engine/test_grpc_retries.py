"""Retries of gRPC calls: by the status of a trailers-only answer, by what the server says, and who takes the blame."""

from __future__ import annotations

from math import inf

import pytest

from meshlib.engine import events as ev
from meshlib.engine.options import CallOptions
from meshlib.policy.failure import FailureKind
from meshlib.resources.matching import HeaderMatch
from tests.engine.builders import NO_BACK_OFF, cluster, forward, outlier, retry
from tests.engine.grpc_calls import rpc, status
from tests.engine.wire import FakeMesh


def mesh_with(on: str, times: int = 1) -> FakeMesh:
    return FakeMesh(
        cluster(hosts=2), action=forward(retry_policy=retry(on, times=times, back_off=NO_BACK_OFF))
    )


@pytest.mark.parametrize(
    ("condition", "code"),
    [
        ("cancelled", 1),
        ("deadline-exceeded", 4),
        ("resource-exhausted", 8),
        ("internal", 13),
        ("unavailable", 14),
    ],
)
def test_each_condition_has_its_code(condition: str, code: int) -> None:
    for answered in range(17):
        mesh = mesh_with(condition)
        call = mesh.call(rpc())
        call.answer(200, [("grpc-status", str(answered))])
        if answered == code:
            assert call.status is None
            call.tick()
            call.answer(200, [("grpc-status", "0")])
        assert call.status == 200
        assert len(call.starts) == (2 if answered == code else 1)
        assert mesh.held() == {}


def test_a_status_in_trailers_comes_too_late() -> None:
    mesh = mesh_with("unavailable")
    call = mesh.call(rpc())
    call.answer(200, end=False)
    assert call.status == 200
    call.end(trailers=[("grpc-status", "14")])
    assert len(call.starts) == 1
    assert mesh.held() == {}


def test_the_last_answer_is_passed_on() -> None:
    call = mesh_with("unavailable", times=2).call(rpc())
    for _ in range(2):
        call.answer(200, [("grpc-status", "14")])
        call.tick()
    call.answer(200, [("grpc-status", "14"), ("grpc-message", "third")])
    assert dict(call.headers or ())["grpc-message"] == "third"
    assert call.flags == "URX"


def test_a_reset_is_no_grpc_status() -> None:
    call = mesh_with("unavailable").call(rpc())
    call.fail(FailureKind.REMOTE_RESET)
    assert status(call)[0] == "14"
    assert call.flags == "UR"


class TestPushBack:
    def test_the_server_says_when(self) -> None:
        call = mesh_with("unavailable").call(rpc())
        call.answer(200, [("grpc-status", "14"), ("grpc-retry-pushback-ms", "700")])
        assert call.tick() == pytest.approx(0.7)
        assert len(call.starts) == 2

    @pytest.mark.parametrize("value", ["-1", "x", ""])
    def test_the_server_says_no(self, value: str) -> None:
        mesh = mesh_with("unavailable", times=5)
        call = mesh.call(rpc())
        call.answer(200, [("grpc-status", "14"), ("grpc-retry-pushback-ms", value)])
        assert call.status == 200
        assert call.flags == "-"
        assert mesh.held() == {}

    def test_it_asks_for_no_retry_by_itself(self) -> None:
        call = mesh_with("internal").call(rpc())
        call.answer(200, [("grpc-status", "14"), ("grpc-retry-pushback-ms", "0")])
        assert call.status == 200

    def test_it_does_not_raise_the_number(self) -> None:
        call = mesh_with("unavailable", times=1).call(rpc())
        answer = [("grpc-status", "14"), ("grpc-retry-pushback-ms", "0")]
        call.answer(200, answer)
        call.tick()
        call.answer(200, answer)
        assert call.status == 200
        assert call.flags == "URX"


def test_a_trusted_caller_may_name_conditions() -> None:
    mesh = FakeMesh(cluster(hosts=2), trust_request_headers=True)
    view = rpc(("x-envoy-retry-grpc-on", "unavailable, internal"), ("x-envoy-max-retries", "2"))
    call = mesh.call(view)
    for code in ("14", "13"):
        call.answer(200, [("grpc-status", code)])
        call.tick()
    call.answer(200, [("grpc-status", "0")])
    assert len(call.starts) == 3


def test_the_application_may_name_conditions() -> None:
    call = FakeMesh(cluster(hosts=2)).call(rpc(), options=CallOptions(retries=1, retry_on="unavailable"))
    call.answer(200, [("grpc-status", "14")])
    call.tick()
    call.answer(200, [("grpc-status", "0")])
    assert len(call.starts) == 2


class TestOutlierDetection:
    """As seen with Envoy 1.40: the status in headers counts by the HTTP status that it stands for; in trailers it is too late."""

    @pytest.mark.parametrize("code", range(18))
    def test_which_statuses_count(self, code: int) -> None:
        mesh = FakeMesh(cluster(hosts=2, outlier_detection=outlier(consecutive_5xx=1)))
        mesh.call(rpc()).answer(200, [("grpc-status", str(code))])
        expected = 1 if code in (2, 4, 12, 13, 14, 15, 17) else 0
        assert mesh.stat("outlier_detection.ejections_enforced_total") == expected

    def test_a_status_in_trailers_does_not(self) -> None:
        mesh = FakeMesh(cluster(hosts=2, outlier_detection=outlier(consecutive_5xx=2)))
        for _ in range(6):
            call = mesh.call(rpc())
            call.answer(200, end=False)
            call.end(trailers=[("grpc-status", "14")])
        assert mesh.stat("outlier_detection.ejections_enforced_total") == 0

    def test_headers_without_a_status_are_a_success(self) -> None:
        mesh = FakeMesh(cluster(outlier_detection=outlier(consecutive_5xx=2)))
        mesh.call(rpc()).answer(200, [("grpc-status", "14")])
        call = mesh.call(rpc())
        call.answer(200, end=False)
        call.end(trailers=[("grpc-status", "14")])
        mesh.call(rpc()).answer(200, [("grpc-status", "14")])
        assert mesh.stat("outlier_detection.ejections_enforced_total") == 0

    def test_what_is_counted_is_the_http_status(self) -> None:
        mesh = FakeMesh(cluster())
        mesh.call(rpc()).answer(200, [("grpc-status", "14")])
        assert mesh.stat("upstream_rq_2xx") == 1


class TestSucceeded:
    """A unary response that is known to be OK: the same as its headers, found faster."""

    @pytest.mark.parametrize("event", [ev.Headers, ev.Succeeded])
    def test_both_ways_lead_to_the_same(self, event: type[ev.Headers]) -> None:
        mesh = FakeMesh(
            cluster(hosts=1, outlier_detection=outlier(consecutive_5xx=2)),
            action=forward(retry_policy=retry("unavailable")),
        )
        for answer in ("14", None, "14"):
            call = mesh.call(rpc(), options=CallOptions(retries=0) if answer else None)
            if answer:
                call.answer(200, [("grpc-status", answer)])
                continue
            mesh.clock.advance(0.25)
            assert call.core.handle(event(1, 200, (), True), mesh.clock.monotonic())[0].attempt == 1
            info = call.core.info
            assert (info.flags, info.details, info.attempts[0].status) == ("-", "via_upstream", 200)
            assert info.attempts[0].duration == pytest.approx(0.25)
            assert call.core.wake_at == inf
            assert call.core.handle(event(1, 200, (), True), mesh.clock.monotonic()) == ()
        assert mesh.stat("outlier_detection.ejections_enforced_total") == 0, "the success came between"
        assert mesh.stat("upstream_rq_2xx") == 3
        assert mesh.stat("upstream_rq_completed") == 3
        assert mesh.held() == {}

    def test_headers_may_ask_for_a_retry_all_the_same(self) -> None:
        policy = retry(
            "retriable-headers", retriable_headers=(HeaderMatch(name="x-again"),), back_off=NO_BACK_OFF
        )
        call = FakeMesh(cluster(hosts=2), action=forward(retry_policy=policy)).call(rpc())
        call.handle(ev.Succeeded(1, 200, [("x-again", "1")], True))
        call.tick()
        assert len(call.starts) == 2

    def test_the_second_attempt(self) -> None:
        mesh = mesh_with("unavailable")
        call = mesh.call(rpc())
        call.answer(200, [("grpc-status", "14")])
        call.tick()
        assert call.core.handle(ev.Succeeded(2, 200, (), True), mesh.clock.monotonic())[-1].attempt == 2
        assert mesh.stat("upstream_rq_retry_success") == 1
        assert mesh.held() == {}

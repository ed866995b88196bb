"""What calls count, by Envoy's names. The conformance suite compares the same with a real Envoy, case by case."""

from __future__ import annotations

import gc
from math import inf
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshlib.engine import events as ev
from meshlib.errors import LocalReply
from meshlib.policy.failure import FailureKind
from meshlib.resources.cluster import HttpProtocol
from meshlib.resources.matching import HeaderMatch, StringKind, StringMatch
from meshlib.resources.route import DirectResponse, RouteConfiguration, VirtualCluster
from meshlib.stats import Histogram
from tests.engine.builders import (
    HEDGING,
    NO_BACK_OFF,
    cluster,
    forward,
    listener,
    retry,
    route_config,
    thresholds,
)
from tests.engine.wire import FakeMesh, request

GAUGES = ("membership", "upstream_cx_active")


def counted(mesh: FakeMesh, prefix: str) -> dict[str, float]:
    """Whatever below the prefix is not zero; of a histogram the number of its samples."""
    found = {
        metric.name: metric.count if isinstance(metric, Histogram) else metric.value
        for metric in mesh.registry
    }
    return {
        name.removeprefix(prefix): value
        for name, value in found.items()
        if name.startswith(prefix) and value and not name.removeprefix(prefix).startswith(GAUGES)
    }


def responses(prefix: str = "", /, **codes: int) -> dict[str, int]:
    """Of `c200=3`: the code, its class, and all of them."""
    found = {f"{prefix}upstream_rq_completed": sum(codes.values())}
    for code, number in codes.items():
        found[f"{prefix}upstream_rq_{code[1:]}"] = number
        group = f"{prefix}upstream_rq_{code[1]}xx"
        found[group] = found.get(group, 0) + number
    return found


OPENED = {"upstream_rq_pending_total": 1}
TIMED = {"upstream_rq_time": 1, "external.upstream_rq_time": 1}


def test_a_call_that_goes_well() -> None:
    mesh = FakeMesh(cluster())
    mesh.call().answer(200)
    assert counted(mesh, "cluster.a.") == {
        "upstream_rq_total": 1, **OPENED, **TIMED, **responses(c200=1), **responses("external.", c200=1)
    }  # fmt: skip
    mesh.call().answer(404)
    assert counted(mesh, "cluster.a.") == {
        "upstream_rq_total": 2, **OPENED, "upstream_rq_time": 2, "external.upstream_rq_time": 2,
        **responses(c200=1, c404=1), **responses("external.", c200=1, c404=1),
    }  # fmt: skip
    assert counted(mesh, "http.svc_80.") == {
        "downstream_rq_total": 2, "rq_total": 2, "downstream_rq_completed": 2, "downstream_rq_2xx": 1, "downstream_rq_4xx": 1
    }  # fmt: skip


def test_calls_of_a_trusted_caller_are_internal() -> None:
    mesh = FakeMesh(cluster(), trust_request_headers=True)
    mesh.call().answer(200)
    assert counted(mesh, "cluster.a.internal.") == {"upstream_rq_time": 1, **responses(c200=1)}
    assert counted(mesh, "cluster.a.external.") == {}


def test_what_is_under_way() -> None:
    mesh = FakeMesh(cluster())
    mesh.slow = True
    call = mesh.call()
    assert mesh.stat("upstream_rq_pending_active") == 1
    assert mesh.stat("upstream_rq_total") == 0, "it has no connection yet"
    call.connected()
    assert (mesh.stat("upstream_rq_pending_active"), mesh.stat("upstream_rq_active")) == (0, 1)
    assert (mesh.stat("upstream_rq_total"), mesh.stat("upstream_cx_active")) == (1, 1)
    assert counted(mesh, "http.svc_80.")["downstream_rq_active"] == 1
    call.answer(200, end=False)
    assert mesh.stat("upstream_rq_200") == 1, "the headers decide"
    call.end()
    assert mesh.stat("upstream_rq_active") == 0
    assert "downstream_rq_active" not in counted(mesh, "http.svc_80.")


def test_retries() -> None:
    mesh = FakeMesh(cluster(), action=forward(retry_policy=retry("5xx", 2, back_off=NO_BACK_OFF)))
    call = mesh.call()
    call.answer(503)
    assert "upstream_rq_retry" not in counted(mesh, "cluster.a."), "it has not begun"
    call.tick()
    call.answer(200)
    assert counted(mesh, "cluster.a.") == {
        "upstream_rq_total": 2, "upstream_rq_pending_total": 2, **TIMED,
        **responses(c200=1), **responses("external.", c200=1), **responses("retry.", c503=1),
        "upstream_rq_retry": 1, "upstream_rq_retry_backoff_exponential": 1, "upstream_rq_retry_success": 1,
    }  # fmt: skip


def test_a_call_that_ends_between_two_attempts_was_not_retried() -> None:
    mesh = FakeMesh(cluster(), action=forward(retry_policy=retry()))
    call = mesh.call()
    call.answer(503)
    call.cancel()
    found = counted(mesh, "cluster.a.")
    assert "upstream_rq_retry" not in found
    assert found["retry.upstream_rq_503"] == 1


def test_retries_that_are_used_up() -> None:
    mesh = FakeMesh(cluster(), action=forward(retry_policy=retry()))
    call = mesh.call()
    call.answer(503)
    call.tick()
    call.answer(503)
    found = counted(mesh, "cluster.a.")
    assert found["upstream_rq_retry_limit_exceeded"] == 1
    assert "upstream_rq_retry_success" not in found


@pytest.mark.parametrize(
    ("kind", "protocol", "expected", "status"),
    [
        (FailureKind.TERMINATED, HttpProtocol.HTTP1, {}, 503),
        (FailureKind.TERMINATED, HttpProtocol.HTTP2, {"upstream_rq_pending_failure_eject": 1}, 503),
        (FailureKind.REMOTE_RESET, HttpProtocol.HTTP2, {"upstream_rq_rx_reset": 1}, 503),
        (FailureKind.REFUSED_STREAM, HttpProtocol.HTTP2, {}, 503),
        (FailureKind.PROTOCOL_ERROR, HttpProtocol.HTTP1, {"upstream_cx_protocol_error": 1}, 502),
        (FailureKind.PROTOCOL_ERROR, HttpProtocol.HTTP2, {"upstream_cx_protocol_error": 1, "upstream_rq_tx_reset": 1}, 502),
    ],
)  # fmt: skip
def test_streams_that_break(
    kind: FailureKind, protocol: HttpProtocol, expected: dict[str, float], status: int
) -> None:
    mesh = FakeMesh(cluster(protocol=protocol))
    mesh.call().fail(kind)
    code = f"c{status}"
    assert counted(mesh, "cluster.a.") == {
        "upstream_rq_total": 1, **OPENED, **responses(**{code: 1}), **responses("external.", **{code: 1}), **expected
    }  # fmt: skip


@pytest.mark.parametrize("kind", [FailureKind.CONNECT_FAILED, FailureKind.CONNECT_TIMEOUT])
def test_connections_that_cannot_be_opened(kind: FailureKind) -> None:
    mesh = FakeMesh(cluster())
    mesh.slow = True
    mesh.call().fail(kind, sent=False)
    late = {"upstream_cx_connect_timeout": 1} if kind is FailureKind.CONNECT_TIMEOUT else {}
    assert counted(mesh, "cluster.a.") == {
        **OPENED, "upstream_cx_connect_fail": 1, "upstream_rq_pending_failure_eject": 1, **late,
        **responses(c503=1), **responses("external.", c503=1),
    }  # fmt: skip


def test_a_call_without_an_endpoint() -> None:
    mesh = FakeMesh(cluster(hosts=0))
    mesh.call()
    assert counted(mesh, "cluster.a.") == {
        "upstream_cx_none_healthy": 1, "lb_healthy_panic": 1, **responses(c503=1), **responses("external.", c503=1)
    }  # fmt: skip


def test_a_limit() -> None:
    mesh = FakeMesh(cluster(circuit_breakers=thresholds(max_pending_requests=0)))
    mesh.call()
    assert counted(mesh, "cluster.a.") == {
        "upstream_rq_pending_overflow": 1, **responses(c503=1), **responses("external.", c503=1)
    }  # fmt: skip


def test_timeouts() -> None:
    mesh = FakeMesh(cluster(protocol=HttpProtocol.HTTP2), action=forward(timeout=1.0))
    mesh.call().tick()
    assert counted(mesh, "cluster.a.") == {
        "upstream_rq_total": 1, **OPENED, "upstream_rq_timeout": 1, "upstream_rq_tx_reset": 1,
        **responses(c504=1), **responses("external.", c504=1),
    }  # fmt: skip
    assert counted(mesh, "http.svc_80.")["downstream_rq_5xx"] == 1


def test_a_timeout_while_connecting() -> None:
    mesh = FakeMesh(cluster(), action=forward(timeout=1.0))
    mesh.slow = True
    mesh.call().tick()
    found = counted(mesh, "cluster.a.")
    assert found["upstream_rq_cancelled"] == 1
    assert "upstream_rq_total" not in found


def test_hedging_charges_each_attempt_that_is_late() -> None:
    policy = retry("5xx", 1, per_try_timeout=1.0, back_off=NO_BACK_OFF)
    mesh = FakeMesh(cluster(), action=forward(timeout=3.0, retry_policy=policy, hedge_policy=HEDGING))
    call = mesh.call()
    call.after(10.0)
    found = counted(mesh, "cluster.a.")
    assert (found["upstream_rq_timeout"], found["upstream_rq_504"]) == (2, 2)
    assert "upstream_rq_per_try_timeout" not in found, "none was ended by it"
    assert counted(mesh, "http.svc_80.")["downstream_rq_completed"] == 1


def test_the_caller_gives_up() -> None:
    mesh = FakeMesh(cluster(protocol=HttpProtocol.HTTP2))
    mesh.call().cancel()
    assert counted(mesh, "cluster.a.") == {"upstream_rq_total": 1, **OPENED, "upstream_rq_tx_reset": 1}
    assert counted(mesh, "http.svc_80.") == {
        "downstream_rq_total": 1,
        "rq_total": 1,
        "downstream_rq_rx_reset": 1,
    }


def test_a_call_that_is_dropped_is_over() -> None:
    mesh = FakeMesh(cluster())
    call = mesh.call()
    assert counted(mesh, "http.svc_80.")["downstream_rq_active"] == 1
    del call
    gc.collect()
    assert "downstream_rq_active" not in counted(mesh, "http.svc_80.")
    mesh.call().answer(200)
    assert mesh.stat("upstream_rq_total") == 2


def test_what_no_cluster_sees() -> None:
    mesh = FakeMesh(cluster(), listen=listener(RouteConfiguration(name="r")))
    mesh.call()
    assert counted(mesh, "http.svc_80.") == {
        "downstream_rq_total": 1, "rq_total": 1, "no_route": 1, "downstream_rq_completed": 1, "downstream_rq_4xx": 1
    }  # fmt: skip
    mesh = FakeMesh(cluster(), action=forward("unknown"))
    mesh.call()
    assert counted(mesh, "http.svc_80.")["no_cluster"] == 1
    mesh = FakeMesh(cluster(), action=DirectResponse(status=201))
    call = mesh.call()
    assert isinstance(call.reply, LocalReply)
    assert counted(mesh, "http.svc_80.")["rq_direct_response"] == 1


def test_stat_prefix_of_the_listener() -> None:
    mesh = FakeMesh(cluster(), listen=listener(route_config(forward()), stat_prefix="outbound"))
    mesh.call().answer(200)
    assert counted(mesh, "http.outbound.")["downstream_rq_2xx"] == 1


SHELF = VirtualCluster(
    name="shelf",
    headers=(HeaderMatch(name=":path", string=StringMatch(kind=StringKind.PREFIX, value="/books")),),
)


def test_virtual_clusters_and_routes() -> None:
    config = route_config(
        forward(retry_policy=retry("5xx", 1, back_off=NO_BACK_OFF)), virtual_clusters=(SHELF,), route_stat_prefix="all"
    )  # fmt: skip
    mesh = FakeMesh(cluster(), listen=listener(config))
    call = mesh.call(request("/books/1"))
    call.answer(503)
    call.tick()
    call.answer(200)
    mesh.call(request("/")).answer(404)
    shelf = {
        "upstream_rq_total": 2, "upstream_rq_time": 1, "upstream_rq_retry": 1, "upstream_rq_retry_success": 1, **responses(c200=1)
    }  # fmt: skip
    assert counted(mesh, "vhost.v.vcluster.shelf.") == shelf
    other = {"upstream_rq_total": 1, "upstream_rq_time": 1, **responses(c404=1)}
    assert counted(mesh, "vhost.v.vcluster.other.") == other
    assert counted(mesh, "vhost.v.route.all.") == {
        **shelf, "upstream_rq_total": 3, "upstream_rq_time": 2, **responses(c200=1, c404=1)
    }  # fmt: skip


def test_retries_keep_no_call_alive() -> None:
    mesh = FakeMesh(cluster(), action=forward(retry_policy=retry()))
    call = mesh.engine.call(request(), wake=lambda: None)
    call.handle(ev.Begin(), 0.0)
    call.handle(ev.Headers(1, 503, (), True), 0.0)
    gc.disable()
    try:
        del call
        assert "downstream_rq_active" not in counted(mesh, "http.svc_80."), "no cycle, so it went at once"
    finally:
        gc.enable()


OUTCOMES = st.sampled_from(["200", "404", "503", "fail", "refused", "cancel", "tick", "stream"])


@given(st.lists(st.lists(OUTCOMES, min_size=1, max_size=4), max_size=12), st.booleans())
def test_the_sums_hold(calls: list[list[str]], slow: bool) -> None:
    """Whatever calls come to: each is counted once, and nothing stays under way."""
    policy = retry("5xx", 2, per_try_timeout=1.0, back_off=NO_BACK_OFF)
    mesh = FakeMesh(cluster(hosts=2), action=forward(timeout=5.0, retry_policy=policy))
    mesh.slow = slow
    for outcomes in calls:
        _play(mesh.call(), outcomes)
    http: dict[str, Any] = counted(mesh, "http.svc_80.")
    found: dict[str, Any] = counted(mesh, "cluster.a.")
    assert http.get("downstream_rq_total", 0) == len(calls)
    assert "downstream_rq_active" not in http
    assert (mesh.stat("upstream_rq_active"), mesh.stat("upstream_rq_pending_active")) == (0, 0)
    ended = http.get("downstream_rq_completed", 0) + http.get("downstream_rq_rx_reset", 0)
    assert ended - len(calls) <= http.get("downstream_rq_rx_reset", 0), "a response and then a reset, at most"
    assert found.get("upstream_rq_completed", 0) == http.get("downstream_rq_completed", 0)
    for scope in ("", "external.", "retry."):
        codes = sum(
            value for name, value in found.items()
            if name.startswith(f"{scope}upstream_rq_") and name.removeprefix(f"{scope}upstream_rq_").isdigit()
        )  # fmt: skip
        assert codes == found.get(f"{scope}upstream_rq_completed", 0)


def _play(call: Any, outcomes: list[str]) -> None:
    for outcome in outcomes:
        if call.core.wake_at == inf and not call.live:
            return
        alive = [number for number in call.live if number > 0]
        if not alive:
            call.tick()
        elif outcome == "cancel":
            call.cancel()
        elif outcome == "tick":
            call.tick()
        elif call.live[alive[0]].sent:
            _answer(call, outcome)
        else:
            call.fail(FailureKind.CONNECT_FAILED, sent=False) if outcome == "refused" else call.connected()
    call.cancel()


def _answer(call: Any, outcome: str) -> None:
    if outcome == "stream":
        if call.status is None:
            call.answer(200, end=False)
        else:
            call.end()
    elif outcome in ("fail", "refused"):
        call.fail()
    elif call.status is None:
        call.answer(int(outcome))
    else:
        call.end()

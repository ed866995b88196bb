"""Fault injection: who is meant, what happens to the call, how often, and what is counted."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshlib.engine import events as ev
from meshlib.engine.dialect import ENVOY, GRPC
from meshlib.engine.fault import rules_of
from meshlib.engine.options import CallOptions
from meshlib.errors import FaultInjected, NoRoute, UpstreamError
from meshlib.resources.fault import FaultAbort, FaultDelay, HttpFault
from meshlib.resources.filters import FAULT
from meshlib.resources.listener import HttpFilter
from meshlib.resources.matching import FractionalPercent, HeaderMatch, StringKind, StringMatch
from meshlib.resources.route import (
    DirectResponse,
    FilterConfig,
    PathKind,
    PathMatch,
    Route,
    RouteAction,
    RouteConfiguration,
    RouteMatch,
    VirtualHost,
)
from tests.engine.builders import NO_BACK_OFF, ROUTER, cluster, forward, listener, retry, route_config
from tests.engine.grpc_calls import rpc, status
from tests.engine.wire import FakeCall, FakeMesh, request

ALWAYS = FractionalPercent(numerator=100)
NEVER = FractionalPercent(numerator=0)


def delay(milliseconds: int | None = 500, share: FractionalPercent = ALWAYS) -> FaultDelay:
    return FaultDelay(percentage=share, milliseconds=milliseconds)


def abort(status: int | None = 503, share: FractionalPercent = ALWAYS) -> FaultAbort:
    return FaultAbort(percentage=share, http_status=status)


def faulty(
    *faults: HttpFault, action: RouteAction | None = None, seed: int = 1, host: Any = None, **engine: Any
) -> FakeMesh:
    """A mesh with these filters, named f0, f1 and so on."""
    filters = [HttpFilter(name=f"f{index}", type_url=FAULT, config=each) for index, each in enumerate(faults)]
    config = route_config(action or forward(), **(host or {}))
    listen = listener(config, [*filters, ROUTER], stat_prefix="s")
    return FakeMesh(cluster(), cluster("b"), listen=listen, seed=seed, **engine)


def stats(mesh: FakeMesh) -> dict[str, float]:
    """The counters and gauges of the filter that are not zero."""
    prefix = "http.s.fault."
    found = {metric.name: getattr(metric, "value", 0.0) for metric in mesh.registry}
    return {name[len(prefix) :]: value for name, value in found.items() if name.startswith(prefix) and value}


def send(mesh: FakeMesh, *headers: tuple[str, str], **fields: Any) -> FakeCall:
    return mesh.call(request(headers=list(headers), **fields))


class TestAbort:
    def test_it_is_a_local_reply(self) -> None:
        mesh = faulty(HttpFault(abort=abort(451)))
        call = mesh.call()
        assert call.starts == []
        assert isinstance(call.error, FaultInjected)
        assert isinstance(call.error, UpstreamError)
        reply = call.error.local_reply
        assert reply is not None
        assert (reply.status, reply.body) == (451, b"fault filter abort")
        assert dict(reply.headers) == {"content-type": "text/plain", "content-length": "18"}
        assert (call.flags, call.details) == ("FI", "fault_filter_abort")
        assert "HTTP status 451" in str(call.error)
        assert stats(mesh) == {"aborts_injected": 1}

    @pytest.mark.parametrize("status", [204, 304])
    def test_some_statuses_have_no_body(self, status: int) -> None:
        error = faulty(HttpFault(abort=abort(status))).call().error
        assert error is not None
        assert error.local_reply is not None
        assert error.local_reply.body == b""

    @pytest.mark.parametrize(
        ("fault", "grpc_status"),
        [(abort(503), "14"), (FaultAbort(percentage=ALWAYS, grpc_status=8), "8")],
    )
    def test_it_has_a_grpc_form(self, fault: FaultAbort, grpc_status: str) -> None:
        call = send(faulty(HttpFault(abort=fault)), ("content-type", "application/grpc"), method="POST")
        assert call.error is not None
        reply = call.error.local_reply
        assert reply is not None
        assert (reply.status, reply.body) == (200, b"")
        assert reply.headers == (
            ("content-type", "application/grpc"),
            ("grpc-status", grpc_status),
            ("grpc-message", "fault filter abort"),
        )

    def test_the_grpc_form_survives_the_edits_of_a_reply(self) -> None:
        mesh = faulty(HttpFault(abort=abort()), envoy_headers=True)
        call = send(mesh, ("content-type", "application/grpc"), method="POST")
        assert call.error is not None
        assert call.error.local_reply is not None
        assert call.error.local_reply.headers[0] == ("content-type", "application/grpc")

    def test_a_grpc_status_for_a_plain_request(self) -> None:
        call = faulty(HttpFault(abort=FaultAbort(percentage=ALWAYS, grpc_status=8))).call()
        assert call.error is not None
        assert call.error.local_reply is not None
        assert (call.error.local_reply.status, call.error.local_reply.body) == (200, b"fault filter abort")

    def test_it_is_not_retried(self) -> None:
        policy = retry("5xx", times=3, back_off=NO_BACK_OFF)
        call = faulty(HttpFault(abort=abort()), action=forward(retry_policy=policy)).call()
        assert call.starts == []
        assert call.flags == "FI"


class TestDelay:
    def test_it_comes_before_anything_is_sent(self) -> None:
        mesh = faulty(HttpFault(delay=delay(500)))
        call = mesh.call()
        assert (call.starts, call.flags) == ([], "DI")
        assert call.tick() == pytest.approx(0.5)
        call.answer(200)
        assert (call.status, call.flags, call.details) == (200, "DI", "via_upstream")
        assert stats(mesh) == {"delays_injected": 1}

    def test_it_is_not_part_of_the_routes_timeout(self) -> None:
        call = faulty(HttpFault(delay=delay(500)), action=forward(timeout=0.2)).call()
        assert call.tick() == pytest.approx(0.5)
        assert call.tick() == pytest.approx(0.2)
        assert (call.flags, call.details) == ("DI,UT", "response_timeout")

    def test_it_happens_once_however_often_the_call_is_tried(self) -> None:
        policy = retry("5xx", times=1, back_off=NO_BACK_OFF)
        call = faulty(HttpFault(delay=delay(500)), action=forward(retry_policy=policy)).call()
        call.tick()
        call.answer(503)
        assert call.tick() < 0.1
        call.answer(200)
        assert call.status == 200

    def test_an_abort_may_follow(self) -> None:
        mesh = faulty(HttpFault(delay=delay(500), abort=abort(429)))
        call = mesh.call()
        assert call.error is None
        assert call.tick() == pytest.approx(0.5)
        assert (call.flags, call.details) == ("DI,FI", "fault_filter_abort")
        assert stats(mesh) == {"delays_injected": 1, "aborts_injected": 1}

    def test_the_callers_deadline_holds(self) -> None:
        mesh = faulty(HttpFault(delay=delay(500)))
        call = mesh.call(options=CallOptions(timeout=0.2))
        assert call.tick() == pytest.approx(0.2)
        assert (call.flags, call.details) == ("DI,UT", "response_timeout")
        assert stats(mesh) == {"delays_injected": 1}

    @pytest.mark.parametrize(
        ("fields", "flags", "details"),
        [
            ({"stream_idle_timeout": 0.2}, "DI,SI", "stream_idle_timeout"),
            ({"max_stream_duration": 0.2}, "DI", "max_duration_timeout"),
        ],
    )
    @pytest.mark.parametrize("complete", [True, False])
    def test_the_streams_own_timers_run(
        self, fields: dict[str, float], flags: str, details: str, complete: bool
    ) -> None:
        filters = [HttpFilter(name="f", type_url=FAULT, config=HttpFault(delay=delay(500))), ROUTER]
        for action in (forward(), DirectResponse(status=200)):
            mesh = FakeMesh(cluster(), listen=listener(route_config(action), filters, **fields))
            call = mesh.call(complete=complete)
            assert call.tick() == pytest.approx(0.2)
            assert (call.flags, call.details) == (flags, details)

    def test_headers_alone_are_no_sign_of_life(self) -> None:
        filters = [HttpFilter(name="f", type_url=FAULT, config=HttpFault(delay=delay(500))), ROUTER]
        mesh = FakeMesh(cluster(), listen=listener(route_config(forward()), filters, stream_idle_timeout=0.8))
        call = mesh.call()
        call.tick()
        assert call.tick() == pytest.approx(0.3)
        assert call.flags == "DI,SI"
        call = send(mesh, ("content-length", "5"), method="POST")
        call.tick()
        assert call.tick() == pytest.approx(0.8)

    def test_no_time_is_no_delay(self) -> None:
        mesh = faulty(HttpFault(delay=delay(0)))
        assert mesh.call().flags == "-"
        assert stats(mesh) == {}


class TestHeaderControl:
    CONFIG = HttpFault(delay=delay(None), abort=abort(None))

    @pytest.mark.parametrize(
        ("headers", "status"),
        [
            ({}, None),
            ({"abort-request": "418"}, 418),
            ({"abort-request": "200"}, 200),
            ({"abort-request": " +599 "}, 599),
            ({"abort-request": "199"}, None),
            ({"abort-request": "600"}, None),
            ({"abort-request": "-500"}, None),
            ({"abort-request": "5xx"}, None),
            ({"abort-grpc-request": "7"}, 200),
            ({"abort-request": "502", "abort-grpc-request": "7"}, 502),
            ({"abort-request": "1", "abort-grpc-request": "7"}, 200),
            ({"abort-request": "418", "abort-request-percentage": "0"}, None),
            ({"abort-grpc-request": "7", "abort-request-percentage": "0"}, None),
            ({"abort-request": "418", "abort-request-percentage": "1000"}, 418),
            ({"abort-request": "418", "abort-request-percentage": "none"}, 418),
            ({"abort-request": "418", "abort-request-percentage": "4294967296"}, 418),
            ({"abort-request": "418", "delay-request-percentage": "0"}, 418),
        ],
    )
    def test_abort(self, headers: dict[str, str], status: int | None) -> None:
        call = send(
            faulty(self.CONFIG), *((f"x-envoy-fault-{name}", value) for name, value in headers.items())
        )
        assert (call.error is not None) is (status is not None)
        if call.error is not None:
            assert call.error.local_reply is not None
            assert call.error.local_reply.status == status

    @pytest.mark.parametrize(
        ("text", "status"), [("7", "7"), ("4294967299", "3"), ("18446744073709551615", "4294967295")]
    )
    def test_a_grpc_status_has_32_bits(self, text: str, status: str) -> None:
        headers = (("x-envoy-fault-abort-grpc-request", text), ("content-type", "application/grpc"))
        call = send(faulty(self.CONFIG), *headers)
        assert call.error is not None
        assert call.error.local_reply is not None
        assert dict(call.error.local_reply.headers)["grpc-status"] == status

    @pytest.mark.parametrize(
        ("headers", "seconds"),
        [
            ({"delay-request": "250"}, 0.25),
            ({"delay-request": "0"}, 0),
            ({"delay-request": "-250"}, 0),
            ({"delay-request": "2.5"}, 0),
            ({"delay-request": "9223372036854775808"}, 0),
            ({"delay-request": "250", "delay-request-percentage": "0"}, 0),
            ({"delay-request": "250", "delay-request-percentage": "100"}, 0.25),
        ],
    )
    def test_delay(self, headers: dict[str, str], seconds: float) -> None:
        call = send(
            faulty(self.CONFIG), *((f"x-envoy-fault-{name}", value) for name, value in headers.items())
        )
        if seconds:
            assert call.tick() == pytest.approx(seconds)
        assert call.log[-2] == "Start(1)"
        assert call.flags == ("DI" if seconds else "-")

    def test_only_the_first_value_counts(self) -> None:
        call = send(
            faulty(self.CONFIG),
            ("x-envoy-fault-abort-request", "none"),
            ("x-envoy-fault-abort-request", "500"),
        )
        assert call.error is None

    def test_a_longer_share_than_configured_is_not_given(self) -> None:
        config = HttpFault(abort=abort(None, NEVER))
        headers = (("x-envoy-fault-abort-request", "500"), ("x-envoy-fault-abort-request-percentage", "100"))
        assert send(faulty(config), *headers).error is None

    @pytest.mark.parametrize("trust", [True, False])
    def test_a_fixed_fault_does_not_listen_to_headers(self, trust: bool) -> None:
        mesh = faulty(HttpFault(abort=abort(500)), trust_request_headers=trust)
        headers = (("x-envoy-fault-abort-request", "418"), ("x-envoy-fault-abort-request-percentage", "0"))
        call = send(mesh, *headers)
        assert call.error is not None
        assert call.error.local_reply is not None
        assert call.error.local_reply.status == 500


class TestWhoIsMeant:
    def test_headers(self) -> None:
        def is_one(name: str) -> HeaderMatch:
            return HeaderMatch(name=name, string=StringMatch(kind=StringKind.EXACT, value="1"))

        mesh = faulty(HttpFault(abort=abort(), headers=(is_one("x-a"), is_one("x-b"))))
        assert send(mesh, ("x-a", "1"), ("x-b", "1")).flags == "FI"
        assert send(mesh, ("x-a", "1")).flags == "-"
        assert send(mesh, ("x-b", "1")).flags == "-"

    def test_upstream_cluster(self) -> None:
        fault = HttpFault(abort=abort(), upstream_cluster="b")
        assert faulty(fault).call().flags == "-"
        assert faulty(fault, action=forward("b")).call().flags == "FI"
        by_header = faulty(fault, action=RouteAction(cluster_header="x-to"))
        assert send(by_header, ("x-to", "b")).flags == "FI"
        assert send(by_header, ("x-to", "a")).flags == "-"

    def test_downstream_nodes(self) -> None:
        mesh = faulty(HttpFault(abort=abort(), downstream_nodes=frozenset(("n", "m"))))
        assert send(mesh, ("x-envoy-downstream-service-node", "m")).flags == "FI"
        assert send(mesh, ("x-envoy-downstream-service-node", "o")).flags == "-"
        assert mesh.call().flags == "-"

    def test_a_request_that_no_route_takes(self) -> None:
        only = Route(match=RouteMatch(path=PathMatch(kind=PathKind.PREFIX, value="/a")), action=forward())
        config = RouteConfiguration(
            name="r", virtual_hosts=(VirtualHost(name="v", domains=("*",), routes=(only,)),)
        )

        def without_a_route(fault: HttpFault) -> FakeCall:
            filters = [HttpFilter(name="f", type_url=FAULT, config=fault), ROUTER]
            return FakeMesh(cluster(), listen=listener(config, filters)).call()

        assert without_a_route(HttpFault(abort=abort())).flags == "FI"
        late = without_a_route(HttpFault(delay=delay(500)))
        late.tick()
        assert isinstance(late.error, NoRoute)
        assert late.flags == "DI,NR"
        elsewhere = without_a_route(HttpFault(abort=abort(), upstream_cluster="a"))
        assert elsewhere.flags == "NR"

    def test_the_routes_own_configuration_counts(self) -> None:
        own = {"route_typed_per_filter_config": {"f0": HttpFault(abort=abort(418))}}
        call = faulty(HttpFault(abort=abort(500)), host=own).call()
        assert call.error is not None
        assert call.error.local_reply is not None
        assert call.error.local_reply.status == 418
        off = {"route_typed_per_filter_config": {"f0": FilterConfig(disabled=True)}}
        assert faulty(HttpFault(abort=abort(500)), host=off).call().flags == "-"

    def test_two_filters(self) -> None:
        mesh = faulty(HttpFault(delay=delay(500)), HttpFault(abort=abort()))
        call = mesh.call()
        assert call.flags == "DI"
        call.tick()
        assert call.flags == "DI,FI"


class TestActiveFaults:
    def limited(self, limit: int | None = 1, **fault: Any) -> FakeMesh:
        return faulty(HttpFault(delay=delay(500), max_active_faults=limit, **fault))

    def active(self, mesh: FakeMesh) -> float:
        return stats(mesh).get("active_faults", 0)

    def test_beyond_the_limit_there_is_no_fault(self) -> None:
        mesh = self.limited()
        mesh_calls = [mesh.call() for _ in range(3)]
        assert [call.flags for call in mesh_calls] == ["DI", "-", "-"]
        assert stats(mesh) == {"delays_injected": 1, "faults_overflow": 2, "active_faults": 1}

    def test_a_refused_delay_and_a_refused_abort_both_count(self) -> None:
        mesh = faulty(HttpFault(delay=delay(500), abort=abort(), max_active_faults=0))
        assert mesh.call().flags == "-"
        assert stats(mesh) == {"faults_overflow": 2}

    def test_the_delays_end_gives_it_back(self) -> None:
        mesh = self.limited()
        call = mesh.call()
        call.tick()
        assert self.active(mesh) == 0
        assert mesh.call().flags == "DI"

    def test_an_abort_gives_it_back_too(self) -> None:
        mesh = self.limited(abort=abort())
        call = mesh.call()
        call.tick()
        assert call.flags == "DI,FI"
        assert self.active(mesh) == 0

    def test_an_abort_after_the_delay_needs_no_second_place(self) -> None:
        mesh = self.limited(abort=abort())
        first = mesh.call()
        first.tick()
        assert first.flags == "DI,FI"
        assert "faults_overflow" not in stats(mesh)

    def test_cancelling_gives_it_back(self) -> None:
        mesh = self.limited()
        mesh.call().cancel()
        assert self.active(mesh) == 0

    def test_a_timeout_gives_it_back(self) -> None:
        mesh = self.limited()
        mesh.call(options=CallOptions(timeout=0.1)).tick()
        assert self.active(mesh) == 0

    def test_a_call_that_is_dropped_gives_it_back_at_the_next_one(self) -> None:
        mesh = self.limited()
        mesh.call().core = None
        gc.collect()
        assert mesh.call().flags == "DI"
        assert stats(mesh) == {"delays_injected": 2, "active_faults": 1}

    def test_a_push_does_not_forget_them(self) -> None:
        mesh = self.limited()
        mesh.call()
        mesh.listen = listener(
            route_config(forward()),
            [
                HttpFilter(name="f0", type_url=FAULT, config=HttpFault(delay=delay(9), max_active_faults=1)),
                ROUTER,
            ],
            stat_prefix="s",
        )
        mesh.publish()
        assert mesh.call().flags == "-"

    def test_a_fork_does(self) -> None:
        mesh = self.limited()
        parents = mesh.call()
        mesh.engine.renew_locks()
        assert mesh.call().flags == "DI"
        parents.cancel()
        assert self.active(mesh) == 1


class TestCounting:
    def test_the_caller_that_the_request_names(self) -> None:
        mesh = faulty(HttpFault(delay=delay(), abort=abort()))
        call = send(mesh, ("x-envoy-downstream-service-cluster", "web"))
        call.tick()
        assert stats(mesh) == {
            "delays_injected": 1,
            "aborts_injected": 1,
            "web.delays_injected": 1,
            "web.aborts_injected": 1,
        }

    def test_names_that_requests_make_up_do_not_fill_the_memory(self) -> None:
        mesh = faulty(HttpFault(abort=abort()))
        for number in range(1010):
            send(mesh, ("x-envoy-downstream-service-cluster", f"c{number}"))
        send(mesh, ("x-envoy-downstream-service-cluster", "c0"))
        found = stats(mesh)
        assert found["aborts_injected"] == 1011
        assert found["c0.aborts_injected"] == 2
        assert len(found) == 1001

    def test_not_when_it_is_switched_off(self) -> None:
        mesh = faulty(HttpFault(abort=abort(), downstream_cluster_stats=False))
        send(mesh, ("x-envoy-downstream-service-cluster", "web"))
        assert stats(mesh) == {"aborts_injected": 1}


class TestChance:
    @pytest.mark.parametrize(("numerator", "denominator"), [(25, 100), (100, 10_000), (750_000, 1_000_000)])
    def test_the_share_of_calls(self, numerator: int, denominator: int) -> None:
        mesh = faulty(
            HttpFault(abort=abort(share=FractionalPercent(numerator=numerator, denominator=denominator)))
        )
        count = sum(_over(mesh.call()) for _ in range(4000))
        share = numerator / denominator
        assert abs(count - 4000 * share) < 4 * (4000 * share * (1 - share)) ** 0.5

    def test_delay_and_abort_are_independent(self) -> None:
        half = FractionalPercent(numerator=50)
        mesh = faulty(HttpFault(delay=delay(100, half), abort=abort(share=half)))
        seen: dict[str, int] = {}
        for _ in range(4000):
            call = mesh.call()
            if call.flags == "DI":
                call.tick()
            _over(call)
            seen[call.flags] = seen.get(call.flags, 0) + 1
        assert sorted(seen) == ["-", "DI", "DI,FI", "FI"]
        assert all(abs(count - 1000) < 120 for count in seen.values())

    def test_the_same_seed_gives_the_same_faults(self) -> None:
        def run(seed: int) -> list[str]:
            mesh = faulty(HttpFault(abort=abort(share=FractionalPercent(numerator=50))), seed=seed)
            return [_flags(mesh.call()) for _ in range(50)]

        assert run(3) == run(3)
        assert run(3) != run(4)

    @given(
        numerator=st.integers(0, 2**32 - 1),
        denominator=st.sampled_from((100, 10_000, 1_000_000)),
        asked=st.one_of(st.none(), st.integers(0, 2**65)),
    )
    def test_headers_only_ever_lower_the_share(
        self, numerator: int, denominator: int, asked: int | None
    ) -> None:
        config = HttpFault(abort=abort(None, FractionalPercent(numerator=numerator, denominator=denominator)))
        headers: Sequence[tuple[str, str]] = [("x-envoy-fault-abort-request", "500")]
        plain = rules_of(config).abort(request(headers=headers))
        assert plain == (FractionalPercent(numerator=numerator, denominator=denominator), (500, None))
        if asked is not None:
            headers = [*headers, ("x-envoy-fault-abort-request-percentage", str(asked))]
        found = rules_of(config).abort(request(headers=headers))
        effective = numerator if asked is None or asked >= 2**32 else min(asked, numerator)
        assert found == (FractionalPercent(numerator=effective, denominator=denominator), (500, None))


def _flags(call: FakeCall) -> str:
    _over(call)
    return call.flags


def _over(call: FakeCall) -> bool:
    """End the call; whether it was aborted."""
    if call.error is None:
        call.answer(200)
    return call.error is not None


def test_the_request_of_a_delayed_call_may_complete_meanwhile() -> None:
    mesh = faulty(HttpFault(delay=delay(500)), action=forward(timeout=0.2))
    call = mesh.call(complete=False)
    call.handle(ev.RequestComplete())
    assert call.tick() == pytest.approx(0.5)
    assert call.tick() == pytest.approx(0.2)
    assert call.flags == "DI,UT"


@pytest.mark.parametrize(
    ("fault", "grpc_status"),
    [(abort(401), "16"), (abort(200), "2"), (FaultAbort(percentage=ALWAYS, grpc_status=8), "8")],
)
def test_over_grpc_the_message_follows_the_channels_choice(fault: FaultAbort, grpc_status: str) -> None:
    mesh = faulty(HttpFault(abort=fault))
    assert status(mesh.call(rpc(), dialect=ENVOY)) == (grpc_status, "fault filter abort")
    assert status(mesh.call(rpc(), dialect=GRPC)) == (grpc_status, "Fault injected")


def test_what_grpc_calls_ignore_they_ignore_during_a_delay_too() -> None:
    filters = [HttpFilter(name="f", type_url=FAULT, config=HttpFault(delay=delay(500))), ROUTER]
    mesh = FakeMesh(cluster(), listen=listener(route_config(forward()), filters, stream_idle_timeout=0.2))
    assert mesh.call(rpc(), dialect=ENVOY).tick() == pytest.approx(0.2)
    assert mesh.call(rpc(), dialect=GRPC).tick() == pytest.approx(0.5)


def test_the_deadline_of_a_grpc_caller_holds_during_a_delay() -> None:
    mesh = faulty(HttpFault(delay=delay(500)))
    made = mesh.call(rpc(), deadline=mesh.clock.monotonic() + 0.2)
    assert made.tick() == pytest.approx(0.2)
    assert status(made) == ("4", "Deadline Exceeded")

"""What several live attempts share: the retry permit, the counters, the headers; and what a retry budget sees of them.

`test_time.TestHedging` tests when attempts start and which one wins. Everything here was seen on Envoy 1.40.
"""

from __future__ import annotations

from typing import Any

import pytest

from meshlib.policy.failure import FailureKind
from meshlib.resources.cluster import HttpProtocol, RetryBudget
from meshlib.resources.route import HedgePolicy, RetryPolicy, RouteAction
from tests.engine.builders import HEDGING, cluster, forward, listener, retry, route_config, thresholds
from tests.engine.grpc_calls import rpc
from tests.engine.wire import FakeCall, FakeMesh, request

ALL = RetryBudget(budget_percent=100.0, min_retry_concurrency=0)
LATE = retry("5xx", times=2, per_try_timeout=0.1)


def hedged(**fields: Any) -> RouteAction:
    return forward(**{"timeout": 5.0, "hedge_policy": HEDGING, "retry_policy": LATE, **fields})


def sent(call: FakeCall, attempt: int, name: str) -> str | None:
    """A header of the request as this attempt sent it."""
    headers = call.starts[attempt - 1].headers
    assert headers is not None
    return next((value for key, value in headers if key == name), None)


class TestSteering:
    """x-envoy-hedge-on-per-try-timeout, exactly `true` or `false`, from a caller that is trusted."""

    @pytest.mark.parametrize(
        ("policy", "header", "hedges"),
        [
            (None, "true", True),
            (None, "TRUE", False),
            (None, "false", False),
            (HEDGING, "false", False),
            (HEDGING, "no", True),
            (HEDGING, None, True),
        ],
    )
    def test_it_replaces_the_policy(
        self, policy: HedgePolicy | None, header: str | None, hedges: bool
    ) -> None:
        mesh = FakeMesh(
            cluster(hosts=2),
            action=hedged(hedge_policy=policy),
            trust_request_headers=True,
            envoy_headers=True,
        )
        given = {} if header is None else {"x-envoy-hedge-on-per-try-timeout": header}
        call = mesh.call(request(headers=list(given.items())))
        call.after(0.15)
        assert sorted(call.live) == ([1, 2] if hedges else [2])
        assert sent(call, 1, "x-envoy-hedge-on-per-try-timeout") is None
        call.cancel()

    def test_not_from_a_caller_that_is_not_trusted(self) -> None:
        mesh = FakeMesh(cluster(hosts=2), action=hedged(hedge_policy=None))
        call = mesh.call(request(headers=[("x-envoy-hedge-on-per-try-timeout", "true")]))
        call.after(0.15)
        assert sorted(call.live) == [2]
        call.cancel()


class TestPolicy:
    def test_the_virtual_hosts_is_for_routes_without_one(self) -> None:
        config = route_config(forward(retry_policy=LATE), hedge_policy=HEDGING)
        call = FakeMesh(cluster(hosts=2), listen=listener(config)).call()
        call.after(0.15)
        assert sorted(call.live) == [1, 2]
        call.cancel()

    def test_the_routes_replaces_the_virtual_hosts(self) -> None:
        config = route_config(forward(retry_policy=LATE, hedge_policy=HedgePolicy()), hedge_policy=HEDGING)
        call = FakeMesh(cluster(hosts=2), listen=listener(config)).call()
        call.after(0.15)
        assert sorted(call.live) == [2]
        call.cancel()

    def test_without_retries_the_attempt_goes_on_alone(self) -> None:
        mesh = FakeMesh(cluster(hosts=2), action=hedged(retry_policy=RetryPolicy(per_try_timeout=0.1)))
        call = mesh.call()
        call.after(4.0)
        assert sorted(call.live) == [1]
        call.answer(200)
        assert (call.status, call.flags) == (200, "-")

    def test_a_body_that_cannot_be_sent_again_goes_on_alone(self) -> None:
        call = FakeMesh(cluster(hosts=2), action=hedged()).call(replayable=lambda: False)
        call.after(4.0)
        assert sorted(call.live) == [1]
        call.answer(200)
        assert call.status == 200


class TestHeaders:
    def test_the_endpoint_may_use_what_is_left_of_the_routes_timeout(self) -> None:
        call = FakeMesh(cluster(hosts=3), action=hedged(), envoy_headers=True).call()
        call.after(0.15)
        assert sent(call, 1, "x-envoy-expected-rq-timeout-ms") == "5000"
        left = int(sent(call, 2, "x-envoy-expected-rq-timeout-ms") or 0)
        assert 4870 <= left <= 4900
        call.cancel()

    def test_without_any_timeout_there_is_no_header(self) -> None:
        call = FakeMesh(cluster(hosts=3), action=hedged(timeout=0.0), envoy_headers=True).call()
        assert sent(call, 1, "x-envoy-expected-rq-timeout-ms") is None
        call.cancel()

    def test_the_response_tells_the_number_of_attempts_not_the_winners(self) -> None:
        config = route_config(hedged(), include_attempt_count_in_response=True)
        call = FakeMesh(cluster(hosts=3), listen=listener(config)).call()
        call.after(0.15)
        call.answer(200, attempt=1)
        assert call.headers is not None
        assert dict(call.headers)["x-envoy-attempt-count"] == "2"

    def test_a_hedge_is_a_timeout_retry_whatever_became_of_the_first(self) -> None:
        config = route_config(hedged(), include_is_timeout_retry_header=True)
        call = FakeMesh(cluster(hosts=3), listen=listener(config)).call()
        call.tick()
        call.fail(attempt=1)
        call.tick()
        assert sent(call, 2, "x-envoy-is-timeout-retry") == "true"
        call.fail()
        call.tick()
        assert sent(call, 3, "x-envoy-is-timeout-retry") == "false"
        call.cancel()


class TestCounters:
    def test_a_timeout_that_ends_nothing_is_not_counted(self) -> None:
        mesh = FakeMesh(cluster(hosts=3), action=hedged())
        call = mesh.call()
        call.after(0.15)
        assert mesh.stat("upstream_rq_per_try_timeout") == 0
        call.cancel()

    def test_a_retry_succeeds_when_its_own_response_is_taken(self) -> None:
        mesh = FakeMesh(cluster(hosts=3), action=hedged())
        for winner, successes in ((2, 1), (1, 1)):
            call = mesh.call()
            call.after(0.15)
            call.answer(200, attempt=winner)
            assert mesh.stat("upstream_rq_retry_success") == successes

    def test_every_late_attempt_counts_at_the_routes_timeout(self) -> None:
        mesh = FakeMesh(cluster(hosts=3), action=hedged())
        mesh.call().after(5.0)
        assert mesh.stat("upstream_rq_timeout") == 3


class TestRetryPermit:
    def test_a_call_holds_one_however_many_attempts_are_alive(self) -> None:
        mesh = FakeMesh(cluster(hosts=3, circuit_breakers=thresholds(max_retries=1)), action=hedged())
        call = mesh.call()
        call.after(0.15)
        assert mesh.held()["a.retries"] == 1
        call.after(0.15)
        assert sorted(call.live) == [1, 2, 3]
        assert mesh.held()["a.retries"] == 1
        call.cancel()
        assert mesh.held() == {}

    def test_it_goes_back_when_no_further_one_is_granted(self) -> None:
        mesh = FakeMesh(cluster(hosts=3), action=hedged())
        call = mesh.call()
        call.after(0.5)
        assert call.flags == "URX"
        assert sorted(call.live) == [1, 2, 3]
        assert "a.retries" not in mesh.held()
        call.cancel()

    def test_it_goes_back_with_the_headers(self) -> None:
        mesh = FakeMesh(cluster(hosts=3), action=forward(retry_policy=retry("5xx")))
        call = mesh.call()
        call.answer(503)
        call.tick()
        assert mesh.held()["a.retries"] == 1
        call.answer(200, end=False)
        assert "a.retries" not in mesh.held()
        call.end()
        assert mesh.held() == {}


class TestBudget:
    """Whether the attempt that goes wrong counts as active when it asks for a retry; a budget of 100 % shows it."""

    @pytest.mark.parametrize("protocol", list(HttpProtocol))
    def test_a_response_counts(self, protocol: HttpProtocol) -> None:
        call = self._call(protocol)
        call.answer(503)
        assert call.error is None

    @pytest.mark.parametrize("protocol", list(HttpProtocol))
    def test_a_connection_that_fails_counts_as_pending(self, protocol: HttpProtocol) -> None:
        call = self._call(protocol, slow=True)
        call.fail(FailureKind.CONNECT_FAILED, sent=False)
        assert call.error is None

    @pytest.mark.parametrize("kind", [FailureKind.TERMINATED, FailureKind.PROTOCOL_ERROR])
    def test_http1_counts_until_its_connection_is_closed(self, kind: FailureKind) -> None:
        call = self._call(HttpProtocol.HTTP1)
        call.fail(kind)
        assert call.error is None
        call = self._call(HttpProtocol.HTTP1)
        call.after(0.1)
        assert call.error is None

    @pytest.mark.parametrize("kind", [FailureKind.TERMINATED, FailureKind.REMOTE_RESET])
    def test_a_stream_that_is_reset_does_not(self, kind: FailureKind) -> None:
        call = self._call(HttpProtocol.HTTP2)
        call.fail(kind)
        assert call.flags.startswith("UO,")
        call = self._call(HttpProtocol.HTTP2)
        call.after(0.1)
        assert call.flags == "UO,UT"

    def test_a_grpc_status_alone_does_not(self) -> None:
        mesh = FakeMesh(
            cluster(protocol=HttpProtocol.HTTP2, circuit_breakers=thresholds(retry_budget=ALL)),
            action=forward(retry_policy=retry("unavailable", times=2)),
        )
        call = mesh.call(rpc())
        call.answer(200, [("grpc-status", "14")])
        assert call.flags == "UO"
        assert mesh.held() == {}

    def test_a_hedge_counts_the_attempts_that_are_alive(self) -> None:
        half = RetryBudget(budget_percent=50.0, min_retry_concurrency=0)
        mesh = FakeMesh(
            cluster(hosts=3, circuit_breakers=thresholds(retry_budget=half)), action=hedged(timeout=0.5)
        )
        call = mesh.call()
        other = mesh.call()
        call.after(0.15)
        assert sorted(call.live) == [1, 2]
        other.after(0.15)
        assert sorted(other.live) == [1], "three are active, one is a retry: half of three is one"
        call.after(1.0)
        other.after(1.0)
        assert (call.flags, other.flags) == ("URX,UT", "UO,UT")
        assert mesh.held() == {}

    def _call(self, protocol: HttpProtocol, *, slow: bool = False) -> FakeCall:
        mesh = FakeMesh(
            cluster(hosts=2, protocol=protocol, circuit_breakers=thresholds(retry_budget=ALL)),
            action=forward(retry_policy=LATE),
        )
        mesh.slow = slow
        return mesh.call()

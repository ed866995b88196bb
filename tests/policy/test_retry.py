"""Retry conditions and back-off. The matrix is what Envoy 1.40.0 was seen to do with num_retries 1."""

from __future__ import annotations

from math import inf
from random import Random
from typing import Any

import pytest
import tenacity
from hypothesis import given
from hypothesis import strategies as st

from meshlib.engine.options import CallOptions
from meshlib.policy.failure import FailureKind
from meshlib.policy.override import retry_policy
from meshlib.policy.retry import SAFE, RetryState, exponential_wait, rate_limited_wait, rules_of
from meshlib.policy.schedule import RetryCallState, Schedule
from meshlib.resources.matching import HeaderMatch
from meshlib.resources.route import BackOff, RateLimitedBackOff, ResetHeader, RetryPolicy
from meshlib.routing.request import RequestView


def policy(*conditions: str, **rest: Any) -> RetryPolicy:
    return RetryPolicy(retry_on=frozenset(conditions), **rest)


def request(headers: dict[str, str] | None = None) -> RequestView:
    return RequestView(
        method="GET", scheme="http", authority="a", path="/", headers=list((headers or {}).items())
    )


STATUSES = (200, 404, 409, 418, 429, 500, 501, 502, 503, 504, 599)
LISTED = frozenset({418, 500})
BY_STATUS: dict[str, set[int]] = {
    "5xx": {500, 501, 502, 503, 504, 599},
    "gateway-error": {502, 503, 504},
    "reset": set(),
    "reset-before-request": set(),
    "connect-failure": set(),
    "refused-stream": set(),
    "retriable-4xx": {409},
    "retriable-status-codes": {418, 500},
    "retriable-headers": set(),
    "envoy-ratelimited": set(),
    "cancelled": set(),
    "unavailable": set(),
}


@pytest.mark.parametrize("condition", BY_STATUS)
def test_statuses(condition: str) -> None:
    rules = rules_of(policy(condition, retriable_status_codes=LISTED))
    assert {status for status in STATUSES if rules.wants_response(status, ())} == BY_STATUS[condition]


K = FailureKind
EVERY = set(FailureKind) - {K.OVERFLOW}
CONNECT = {K.CONNECT_FAILED, K.CONNECT_TIMEOUT}
BY_RESET: dict[str, tuple[set[FailureKind], set[FailureKind]]] = {
    # condition: kinds that are retried when no byte was sent, and when some were
    "5xx": (EVERY, EVERY),
    "gateway-error": (EVERY, EVERY),
    "reset": (EVERY, EVERY),
    "reset-before-request": (EVERY, set()),
    "connect-failure": (CONNECT, CONNECT),
    "refused-stream": ({K.REFUSED_STREAM}, {K.REFUSED_STREAM}),
    "retriable-4xx": (set(), set()),
    "retriable-status-codes": (set(), set()),
    "retriable-headers": (set(), set()),
    "envoy-ratelimited": (set(), set()),
    "unavailable": (set(), set()),
}


@pytest.mark.parametrize("condition", BY_RESET)
def test_resets(condition: str) -> None:
    rules = rules_of(policy(condition, retriable_status_codes=LISTED))
    before, after = BY_RESET[condition]
    assert {kind for kind in FailureKind if rules.wants_reset(kind, bytes_sent=False)} == before
    assert {kind for kind in FailureKind if rules.wants_reset(kind, bytes_sent=True)} == after


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
def test_grpc_codes_in_headers(condition: str, code: int) -> None:
    rules = rules_of(policy(condition))
    for other in range(17):
        for status in (200, 500):
            assert rules.wants_response(status, [("grpc-status", str(other))]) is (other == code)
    assert not rules.wants_response(503, ())


def test_retriable_headers() -> None:
    listed = (HeaderMatch(name="x-again"), HeaderMatch(name=":status", present=True, invert=True))
    rules = rules_of(policy("retriable-headers", retriable_headers=listed))
    assert rules.wants_response(200, [("x-again", "")])
    assert not rules.wants_response(200, [("x-other", "")])
    assert not rules_of(policy("reset", retriable_headers=listed)).wants_response(200, [("x-again", "")])


@pytest.mark.parametrize("condition", [*BY_STATUS, "retriable-headers", "unavailable"])
def test_ratelimited_blocks_every_other_condition(condition: str) -> None:
    rules = rules_of(
        policy(
            condition,
            retriable_status_codes=LISTED,
            retriable_headers=(HeaderMatch(name="x-envoy-ratelimited"),),
        )
    )
    headers = [("x-envoy-ratelimited", "true"), ("grpc-status", "14")]
    for status in STATUSES:
        assert rules.wants_response(status, headers) is (condition == "envoy-ratelimited")


def test_overloaded_blocks_nothing() -> None:
    assert rules_of(policy("5xx")).wants_response(503, [("x-envoy-overloaded", "true")])


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (policy("5xx", "reset", "connect-failure"), False),
        (policy("retriable-4xx"), True),
        (policy("retriable-status-codes", retriable_status_codes=frozenset({503})), False),
        (policy("retriable-status-codes", retriable_status_codes=frozenset({429})), True),
        (policy("retriable-headers", retriable_headers=(HeaderMatch(name="x"),)), True),
        (policy("retriable-headers"), False),
        (policy("unavailable"), True),
        (policy("envoy-ratelimited"), True),
    ],
)
def test_whether_a_success_needs_a_look(made: RetryPolicy, expected: bool) -> None:
    assert made.looks_at_success is expected


def test_rules_are_compiled_once_and_forgotten_safely() -> None:
    mine = policy("5xx")
    assert rules_of(mine) is rules_of(mine)
    for number in range(5000):
        made = RetryPolicy(retry_on=frozenset({"5xx"} if number % 2 else {"reset"}), num_retries=number)
        assert rules_of(made).policy is made
    assert rules_of(mine).policy is mine


class Highest(Random):
    """Always the top of the range."""

    def random(self) -> float:
        return 1 - 2**-53


@pytest.mark.parametrize(
    ("back_off", "limits"),
    [
        (BackOff(), [0.025, 0.05, 0.1, 0.2, 0.25, 0.25]),
        (BackOff(base_interval=0.1, max_interval=0.15), [0.1, 0.15, 0.15]),
        (BackOff(base_interval=0.001, max_interval=0.01), [0.001, 0.002, 0.004, 0.008, 0.01]),
    ],
)
def test_exponential_back_off(back_off: BackOff, limits: list[float]) -> None:
    state = RetryState(policy("5xx", back_off=back_off, num_retries=10))
    for number, limit in enumerate(limits, start=1):
        wait = state.take(number, Highest())
        assert wait == pytest.approx(limit, rel=1e-9)
        assert wait is not None
        assert wait < limit


@given(st.integers(1, 10_000), st.integers())
def test_back_off_stays_in_its_interval(retry: int, seed: int) -> None:
    wait = exponential_wait(BackOff(), retry, Random(seed))
    assert 0 <= wait < min(0.025 * 2 ** min(retry - 1, 20), 0.25)


def test_back_off_is_uniform() -> None:
    random = Random(7)
    waits = [exponential_wait(BackOff(), 3, random) for _ in range(10_000)]
    for share in (0.1, 0.5, 0.9):
        below = sum(wait < 0.1 * share for wait in waits)
        assert abs(below - 10_000 * share) < 3.5 * (10_000 * share * (1 - share)) ** 0.5


RATE_LIMITED = RateLimitedBackOff(
    reset_headers=(ResetHeader(name="retry-after"), ResetHeader(name="x-reset", unix_timestamp=True))
)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([("retry-after", "1")], 1.0),
        ([("retry-after", "300")], 300.0),
        ([("retry-after", "301")], None),
        ([("retry-after", "Wed, 21 Oct 2026 07:28:00 GMT")], None),
        ([("retry-after", "1.5")], None),
        ([("retry-after", "-1")], None),
        ([("retry-after", "99999999999999999999999")], None),
        ([("retry-after", "2"), ("retry-after", "1")], 2.0),
        ([("x-reset", "1002")], 2.0),
        ([("x-reset", "1000")], None),
        ([("x-reset", "900")], None),
        ([("x-reset", "1400")], None),
        ([("retry-after", "x"), ("x-reset", "1003")], 3.0),
        ([("x-reset", "1003"), ("retry-after", "1")], 1.0),
        ([], None),
    ],
)
def test_reset_headers(headers: list[tuple[str, str]], expected: float | None) -> None:
    assert rate_limited_wait(RATE_LIMITED, headers, epoch=1000.9) == expected


def test_a_rate_limited_wait_is_jittered_upwards_and_leaves_the_exponential_one_alone() -> None:
    state = RetryState(policy("5xx", num_retries=9, rate_limited_back_off=RATE_LIMITED))
    asked = [("retry-after", "2")]
    assert state.take(1, Highest()) == pytest.approx(0.025)
    assert state.take(2, Highest(), asked) == pytest.approx(3.0)
    wait = state.take(3, Random(3), asked)
    assert wait is not None
    assert 2.0 <= wait < 3.0
    assert state.take(4, Highest()) == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("number", "override", "expected"), [(1, None, 1), (3, None, 3), (3, 0, 0), (1, 4, 4), (0, None, 0)]
)
def test_number_of_retries(number: int, override: int | None, expected: int) -> None:
    state = RetryState(policy("5xx", num_retries=number), retries=override)
    taken = 0
    while state.take(taken + 1, Random(1)) is not None:
        taken += 1
    assert taken == expected
    assert state.remaining == 0


def waits_of(state: RetryState, elapsed: float = 0.1) -> list[float]:
    """Waits until the state gives up; an attempt takes `elapsed` seconds."""
    waits: list[float] = []
    clock = elapsed
    while len(waits) < 50:
        wait = state.take(len(waits) + 1, Highest(), elapsed=clock)
        if wait is None:
            return waits
        waits.append(wait)
        clock += wait + elapsed
    return waits


@pytest.mark.parametrize(
    ("stop", "wait", "expected"),
    [
        (tenacity.stop_after_attempt(3), tenacity.wait_fixed(0.5), [0.5, 0.5]),
        (tenacity.stop_after_attempt(4), tenacity.wait_exponential(multiplier=1, max=3), [1.0, 2.0, 3.0]),
        (tenacity.stop_after_attempt(4), tenacity.wait_incrementing(1, 2), [1.0, 3.0, 5.0]),
        (tenacity.stop_after_delay(2), tenacity.wait_fixed(1), [1.0, 1.0]),
        (tenacity.stop_before_delay(2), tenacity.wait_fixed(1), [1.0]),
        (tenacity.stop_after_attempt(9) | tenacity.stop_after_delay(1), tenacity.wait_fixed(1), [1.0]),
        (None, tenacity.wait_fixed(0.5) + tenacity.wait_fixed(1), [1.5, 1.5]),
        (None, tenacity.wait_chain(tenacity.wait_fixed(1), tenacity.wait_fixed(2)), [1.0, 2.0]),
        (None, tenacity.wait_none(), [0.0, 0.0]),
        (tenacity.stop_after_attempt(4), None, [0.025, 0.05, 0.1]),
    ],
)
def test_tenacity_says_when_and_how_often(stop: Any, wait: Any, expected: list[float]) -> None:
    state = RetryState(policy("5xx", num_retries=2), schedule=Schedule(stop=stop, wait=wait))
    assert waits_of(state) == pytest.approx(expected)
    assert state.remaining == 0


def test_a_stop_without_a_number_has_no_number() -> None:
    state = RetryState(policy("5xx"), schedule=Schedule(stop=tenacity.stop_never))
    assert state.remaining == inf
    assert len(waits_of(state)) == 50


def test_a_number_of_retries_limits_a_stop() -> None:
    schedule = Schedule(stop=tenacity.stop_after_attempt(9), wait=tenacity.wait_fixed(1))
    assert waits_of(RetryState(policy("5xx"), retries=2, schedule=schedule)) == [1.0, 1.0]


def test_random_waits_are_asked_for_once() -> None:
    seen: list[float] = []

    class Stop(tenacity.stop.stop_base):
        def __call__(self, retry_state: Any) -> bool:
            assert isinstance(retry_state, RetryCallState)
            seen.append(retry_state.upcoming_sleep)
            return retry_state.attempt_number >= 20

    state = RetryState(policy("5xx"), schedule=Schedule(stop=Stop(), wait=tenacity.wait_random(1, 2)))
    waits = waits_of(state)
    assert waits == seen[:-1]
    assert len(set(waits)) > 1
    assert all(1 <= wait <= 2 for wait in waits)


def test_a_wait_knows_how_long_was_slept() -> None:
    slept: list[float] = []

    def wait(state: RetryCallState) -> float:
        slept.append(state.idle_for)
        return 0.5

    state = RetryState(policy("5xx", num_retries=3), schedule=Schedule(wait=wait))
    assert waits_of(state) == [0.5, 0.5, 0.5]
    assert slept == [0.0, 0.5, 1.0]


STEERED: list[tuple[dict[str, str], set[str] | None, int]] = [
    # Seen on Envoy with an internal caller and a route without a policy.
    ({}, None, 0),
    ({"x-envoy-retry-on": "5xx"}, {"5xx"}, 1),
    ({"x-envoy-retry-on": "5xx", "x-envoy-max-retries": "3"}, {"5xx"}, 3),
    ({"x-envoy-retry-on": "5xx", "x-envoy-max-retries": "0"}, {"5xx"}, 0),
    ({"x-envoy-max-retries": "3"}, None, 0),
    ({"x-envoy-retry-on": "bogus, 5xx"}, {"5xx"}, 1),
    ({"x-envoy-retry-on": "5xx", "x-envoy-max-retries": "abc"}, {"5xx"}, 1),
    ({"x-envoy-retry-grpc-on": "unavailable"}, {"unavailable"}, 1),
    ({"x-envoy-retry-on": "unavailable"}, None, 0),
    ({"x-envoy-retry-grpc-on": "5xx"}, None, 0),
]


@pytest.mark.parametrize(("headers", "conditions", "number"), STEERED)
def test_trusted_headers_ask_for_retries(
    headers: dict[str, str], conditions: set[str] | None, number: int
) -> None:
    found = retry_policy(None, request(headers), None, trust=True)
    if conditions is None:
        assert found is None
    else:
        assert found is not None
        assert found.retry_on == conditions
        assert found.num_retries == number
    assert retry_policy(None, request(headers), None, trust=False) is None


def test_trusted_headers_add_to_the_routes_policy() -> None:
    base = policy("retriable-status-codes", retriable_status_codes=frozenset({418}), num_retries=2)
    headers = {
        "x-envoy-retry-on": "retriable-headers",
        "x-envoy-retriable-status-codes": "419, x,420",
        "x-envoy-retriable-header-names": "X-Foo, ,x-bar",
    }
    found = retry_policy(base, request(headers), None, trust=True)
    assert found is not None
    assert found.retry_on == {"retriable-status-codes", "retriable-headers"}
    assert found.num_retries == 2
    assert found.retriable_status_codes == {418, 419, 420}
    rules = rules_of(found)
    assert rules.wants_response(419, ())
    assert rules.wants_response(200, [("x-foo", "1")])
    assert rules.wants_response(200, [("x-bar", "1")])
    assert retry_policy(base, request(headers), None, trust=False) is base
    assert retry_policy(base, request(), None, trust=True) is base


def test_a_request_may_have_to_allow_retries() -> None:
    allowed = policy("5xx", retriable_request_headers=(HeaderMatch(name="x-can"), HeaderMatch(name="x-may")))
    assert retry_policy(allowed, request({"x-may": "1"}), None, trust=False) is allowed
    assert retry_policy(allowed, request({"x-other": "1"}), None, trust=False) is None
    assert retry_policy(allowed, request({"x-envoy-retry-on": "reset"}), None, trust=True) is None


def test_the_application_may_say_what_to_retry() -> None:
    base = policy("5xx", num_retries=4)
    found = retry_policy(base, request(), CallOptions(retry_on="reset, unavailable"), trust=False)
    assert found is not None
    assert found.retry_on == {"reset", "unavailable"}
    assert found.num_retries == 4
    assert retry_policy(base, request(), CallOptions(retry_on=""), trust=False) is None
    assert retry_policy(base, request(), CallOptions(timeout=1.0), trust=False) is base


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (CallOptions(retries=2), SAFE),
        (CallOptions(stop=tenacity.stop_after_attempt(2)), SAFE),
        (CallOptions(retries=0), None),
        (CallOptions(timeout=1.0), None),
    ],
)
def test_retries_on_a_route_without_a_policy_are_safe_ones(
    options: CallOptions, expected: RetryPolicy | None
) -> None:
    assert retry_policy(None, request(), options, trust=False) is expected
    assert retry_policy(RetryPolicy(), request(), options, trust=False) is expected
    mine = policy("5xx")
    assert retry_policy(mine, request(), options, trust=False) is mine


def test_a_state_answers_by_its_rules() -> None:
    state = RetryState(policy("gateway-error"))
    assert state.wants_response(502, ())
    assert not state.wants_response(500, ())
    assert state.wants_reset(K.TERMINATED, bytes_sent=True)
    assert not state.wants_reset(K.OVERFLOW, bytes_sent=False)


def test_safe_retries_never_repeat_what_was_sent() -> None:
    rules = rules_of(SAFE)
    sent = {kind for kind in FailureKind if rules.wants_reset(kind, bytes_sent=True)}
    assert sent == {K.CONNECT_FAILED, K.CONNECT_TIMEOUT, K.REFUSED_STREAM}
    assert not any(rules.wants_response(status, ()) for status in STATUSES)

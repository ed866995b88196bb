"""grpc-retry-pushback-ms, gRFC A6."""

from __future__ import annotations

from random import Random

import pytest
import tenacity

from meshlib.policy.retry import RetryState, push_back
from meshlib.policy.schedule import Schedule
from meshlib.resources.route import BackOff, RetryPolicy

POLICY = RetryPolicy(
    retry_on=frozenset({"unavailable"}),
    num_retries=5,
    back_off=BackOff(base_interval=1.0, max_interval=64.0),
)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("0", 0.0),
        ("1500", 1.5),
        ("-1", -1.0),
        ("", -1.0),
        ("soon", -1.0),
        ("1.5", -1.0),
        ("2147483647", 2147483.647),
        ("2147483648", -1.0),
    ],
)
def test_what_the_server_says(value: str | None, seconds: float | None) -> None:
    headers = [("grpc-status", "14")]
    if value is not None:
        headers.append(("grpc-retry-pushback-ms", value))
    assert push_back(headers) == seconds


def test_it_replaces_the_back_off_which_begins_anew() -> None:
    state = RetryState(POLICY)
    random = Random(1)
    state.take(1, random)
    state.take(2, random)
    assert state.take(3, random, asked=7.0) == 7.0
    assert state.remaining == 2
    waits = [RetryState(POLICY).take(1, Random(seed)) for seed in range(50)]
    assert all(wait is not None and wait < 1.0 for wait in waits)
    following = state.take(4, random)
    assert following is not None
    assert following < 1.0, "as the first one"


def test_it_uses_up_a_retry() -> None:
    state = RetryState(POLICY, retries=1)
    assert state.take(1, Random(1), asked=0.0) == 0.0
    assert state.take(2, Random(1), asked=0.0) is None


def test_the_applications_wait_yields_and_its_stop_does_not() -> None:
    schedule = Schedule(stop=tenacity.stop_after_attempt(2), wait=tenacity.wait_fixed(9))
    state = RetryState(POLICY, schedule=schedule)
    assert state.take(1, Random(1), asked=0.5) == 0.5
    assert state.take(2, Random(1), asked=0.5) is None

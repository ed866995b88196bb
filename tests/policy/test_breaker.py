"""The application's own breaker: closed, open, half-open, on the engine's clock; and through the engine."""

from __future__ import annotations

import threading

import pybreaker
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshlib.errors import BreakerOpen
from meshlib.policy.breaker import Breaker, BreakerConfig, BreakerSet
from tests.engine.builders import cluster, forward, retry, thresholds
from tests.engine.wire import FakeMesh


def opened(*, trials: int = 1, success_threshold: int = 1) -> Breaker:
    config = BreakerConfig(fail_max=1, reset_timeout=10, trials=trials, success_threshold=success_threshold)
    breaker = Breaker("a", config)
    assert breaker.admit(0.0)
    breaker.record(False, 0.0)
    assert breaker.state == "open"
    return breaker


def test_it_opens_after_failures_in_a_row() -> None:
    breaker = Breaker("a", BreakerConfig(fail_max=3))
    for ok in (False, False, True, False, False):
        assert breaker.admit(0.0)
        breaker.record(ok, 0.0)
        assert breaker.state == "closed"
    breaker.admit(0.0)
    breaker.record(False, 0.0)
    assert breaker.state == "open"
    assert not breaker.admit(59.9)
    assert breaker.admit(60.0)
    assert breaker.state == "half-open"


def test_a_trial_decides() -> None:
    breaker = opened()
    assert not breaker.admit(9.99)
    assert breaker.admit(10.0)
    assert not breaker.admit(10.0), "one trial at a time"
    breaker.record(False, 11.0)
    assert breaker.state == "open"
    assert not breaker.admit(20.9), "it stays open from the failed trial on"
    assert breaker.admit(21.0)
    breaker.record(True, 21.0)
    assert breaker.state == "closed"


def test_several_trials() -> None:
    breaker = opened(trials=2, success_threshold=3)
    for _ in range(2):
        assert breaker.admit(10.0)
    assert not breaker.admit(10.0)
    breaker.record(True, 10.0)
    assert breaker.admit(10.0)
    breaker.record(True, 10.0)
    assert breaker.state == "half-open"
    breaker.record(True, 10.0)
    assert breaker.state == "closed"


def test_a_trial_that_was_given_up_makes_room_for_another() -> None:
    breaker = opened()
    assert breaker.admit(10.0)
    breaker.record(None, 10.0)
    assert breaker.state == "half-open"
    assert breaker.admit(10.0)


def test_late_results_of_calls_from_before_do_not_disturb_an_open_breaker() -> None:
    breaker = Breaker("a", BreakerConfig(fail_max=1, reset_timeout=10))
    for _ in range(3):
        breaker.admit(0.0)
    breaker.record(False, 0.0)
    breaker.record(False, 5.0)
    breaker.record(True, 6.0)
    assert breaker.state == "open"
    assert breaker.admit(10.0), "counted from the first failure"


def test_listeners_hear_of_it() -> None:
    class Listener(pybreaker.CircuitBreakerListener):
        def __init__(self) -> None:
            self.seen: list[str] = []

        def state_change(
            self,
            cb: pybreaker.CircuitBreaker,
            old_state: pybreaker.CircuitBreakerState | None,
            new_state: pybreaker.CircuitBreakerState,
        ) -> None:
            self.seen.append(f"{cb.name}: {new_state.name}")

    listener = Listener()
    breaker = Breaker("a", BreakerConfig(fail_max=1, reset_timeout=1, listeners=[listener]))
    breaker.admit(0.0)
    breaker.record(False, 0.0)
    breaker.admit(1.0)
    breaker.record(True, 1.0)
    assert listener.seen == ["a: open", "a: half-open", "a: closed"]


def test_a_shared_storage_opens_both() -> None:
    storage = pybreaker.CircuitMemoryStorage(pybreaker.STATE_CLOSED)
    one, two = (Breaker("a", BreakerConfig(fail_max=1, reset_timeout=10, storage=storage)) for _ in range(2))
    one.admit(0.0)
    one.record(False, 0.0)
    assert not two.admit(5.0)
    assert one.admit(10.0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"fail_max": 0},
        {"trials": 0},
        {"success_threshold": 0},
        {"reset_timeout": 0.0},
        {"reset_timeout": -1.0},
    ],
)
def test_wrong_values(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        BreakerConfig(**wrong)  # type: ignore[arg-type]


def test_a_set_has_one_for_each_cluster() -> None:
    breakers = BreakerSet({"a": BreakerConfig(fail_max=1), "*": BreakerConfig(fail_max=9)})
    assert breakers.get("a") is breakers.get("a")
    assert breakers.get("b") is not breakers.get("c")
    assert BreakerSet({"a": BreakerConfig()}).get("b") is None


def test_threads_share_the_trials() -> None:
    breaker = opened(trials=3)
    admitted: list[bool] = []
    threads = [threading.Thread(target=lambda: admitted.append(breaker.admit(10.0))) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(admitted) == 3


def test_a_fork_forgets_the_parents_trials() -> None:
    breaker = opened()
    assert breaker.admit(10.0)
    breaker.renew_lock()
    assert breaker.admit(10.0)


@given(st.lists(st.tuples(st.sampled_from([True, False, None]), st.floats(0, 8)), max_size=60))
def test_calls_one_after_the_other_against_a_model(script: list[tuple[bool | None, float]]) -> None:
    breaker = Breaker("a", BreakerConfig(fail_max=2, reset_timeout=10))
    now, failures, opened_at = 0.0, 0, None
    for ok, pause in script:
        now += pause
        admitted = breaker.admit(now)
        assert admitted is (opened_at is None or now >= opened_at + 10)
        if not admitted:
            continue
        breaker.record(ok, now)
        trial = opened_at is not None
        if ok is True:
            failures, opened_at = 0, None
        elif ok is False:
            failures += 1
            if trial or failures >= 2:
                failures, opened_at = 0, now
        expected = "closed" if opened_at is None else "half-open" if trial and ok is None else "open"
        assert breaker.state == expected
        if expected == "half-open":
            # Given up while half-open: the next call is a trial at once.
            assert breaker.admit(now)
            breaker.record(True, now)
            failures, opened_at = 0, None


class TestThroughTheEngine:
    def mesh(self, **config: float) -> FakeMesh:
        breakers = BreakerSet({"a": BreakerConfig(**{"fail_max": 2, "reset_timeout": 10.0} | config)})  # type: ignore[arg-type]
        return FakeMesh(
            cluster(circuit_breakers=thresholds(max_requests=9)),
            action=forward(retry_policy=retry("5xx")),
            breakers=breakers,
        )

    def test_calls_fail_at_once_while_it_is_open(self) -> None:
        mesh = self.mesh()
        for _ in range(2):
            call = mesh.call()
            call.answer(503)
            call.tick()
            call.answer(503)
        call = mesh.call()
        assert isinstance(call.error, BreakerOpen)
        assert (call.flags, call.details) == ("UO", "breaker_open")
        assert call.starts == []
        mesh.clock.advance(10)
        mesh.call().answer(200)
        assert not mesh.call().over

    def test_what_counts_is_the_outcome_after_all_retries(self) -> None:
        mesh = self.mesh()
        for _ in range(5):
            call = mesh.call()
            call.fail()
            call.tick()
            call.answer(200)
        assert not mesh.call().over

    def test_a_call_without_an_answer_counts(self) -> None:
        mesh = self.mesh(fail_max=1)
        call = mesh.call()
        call.fail()
        call.tick()
        call.fail()
        assert isinstance(mesh.call().error, BreakerOpen)

    def test_a_call_that_was_given_up_does_not(self) -> None:
        mesh = self.mesh(fail_max=1)
        mesh.call().cancel()
        assert not mesh.call().over

    def test_a_call_is_admitted_once(self) -> None:
        mesh = self.mesh(fail_max=1)
        first = mesh.call()
        second = mesh.call()
        for call in (first, second):
            call.answer(503)
            call.tick()
        first.answer(503)
        assert isinstance(mesh.call().error, BreakerOpen)
        second.answer(200)
        assert second.status == 200, "its attempts go on"

"""Outlier detection on a clock of numbers: the sequences that were seen on Envoy, and the rules behind them."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshlib.balance.outlier import OutlierDetector
from meshlib.resources.cluster import OutlierDetection
from meshlib.state import ClusterState, EndpointState
from meshlib.stats import Registry


class Hosts:
    """`size` endpoints and their detector. Ticks are at multiples of the interval, from 0."""

    def __init__(self, size: int, seed: int = 1, **config: Any) -> None:
        self.size = size
        self.state = ClusterState("c", Registry())
        self.hosts = [self.state.endpoint(f"10.0.0.{n}:80", f"10.0.0.{n}", 80) for n in range(size)]
        config.setdefault("max_ejection_percent", 100)
        self.detector = OutlierDetector(OutlierDetection(**config), self.state, Random(seed))
        self.detector.members(self)
        self.detector.sweep(0.0)

    def fail(self, number: int, times: int, now: float) -> bool:
        return [self.detector.record(self.hosts[number], False, now) for _ in range(times)][-1]

    def out_until(self, number: int, since: float, step: float = 0.01) -> float:
        """Seconds after which a call finds the endpoint taken back, when calls come every `step` seconds."""
        now = since
        while self.hosts[number].ejected:
            now += step
            if now >= self.detector.next_sweep:
                self.detector.sweep(now)
            assert now < since + 2_000
        return now - since

    @property
    def ejected(self) -> list[int]:
        return [number for number, host in enumerate(self.hosts) if host.ejected]

    def stat(self, name: str) -> float:
        value: float = getattr(self.state.stats, name).value
        assert self.state.stats.ejections_active.value == len(self.ejected)
        return value


def test_the_fifth_failure_in_a_row_ejects() -> None:
    hosts = Hosts(1)
    assert not hosts.fail(0, 4, 0.0)
    assert hosts.fail(0, 1, 0.0)
    assert hosts.ejected == [0]
    assert hosts.stat("ejections_enforced_total") == 1
    assert hosts.stat("ejections_enforced_consecutive_5xx") == 1
    assert hosts.stat("ejections_detected_consecutive_5xx") == 1


def test_a_success_starts_the_count_again() -> None:
    hosts = Hosts(1)
    hosts.fail(0, 4, 0.0)
    hosts.detector.record(hosts.hosts[0], True, 0.0)
    assert not hosts.fail(0, 4, 0.0)
    assert hosts.fail(0, 1, 0.0)


def test_the_seen_times() -> None:
    """Interval 0.1 s, base 1 s, limit 3: out for 1.16 s, the second time for 2.16 s (up to one tick more than the time)."""
    hosts = Hosts(1, consecutive_5xx=3, interval=0.1, base_ejection_time=1.0)
    assert hosts.fail(0, 3, 0.04)
    first = hosts.out_until(0, 0.04)
    assert 1.0 <= first <= 1.12
    again = 0.04 + first + 0.01
    assert hosts.fail(0, 3, again)
    assert 2.0 <= hosts.out_until(0, again) <= 2.12


def test_the_multiplier_shrinks_at_each_tick_spent_inside() -> None:
    hosts = Hosts(1, consecutive_5xx=1, interval=1.0, base_ejection_time=10.0)
    now = 0.0
    for multiplier in (1, 2, 3):
        hosts.fail(0, 1, now)
        assert hosts.hosts[0].ejection_multiplier == multiplier
        now += hosts.out_until(0, now, step=1.0)
    hosts.detector.sweep(now + 2.0)
    assert hosts.hosts[0].ejection_multiplier == 1
    hosts.detector.sweep(now + 50.0)
    assert hosts.hosts[0].ejection_multiplier == 0


def test_the_longest_time() -> None:
    hosts = Hosts(1, consecutive_5xx=1, interval=1.0, base_ejection_time=10.0, max_ejection_time=25.0)
    now, seen = 0.0, []
    for _ in range(5):
        hosts.fail(0, 1, now)
        seen.append(hosts.out_until(0, now, step=1.0))
        now += seen[-1]
    assert seen == [10.0, 20.0, 25.0, 25.0, 25.0]
    assert hosts.hosts[0].ejection_multiplier <= 4, "it does not grow where that would change nothing"


def test_a_base_beyond_the_longest_time_counts() -> None:
    hosts = Hosts(1, consecutive_5xx=1, interval=1.0, base_ejection_time=400.0)
    hosts.fail(0, 1, 0.0)
    assert hosts.out_until(0, 0.0, step=1.0) == 400.0


def test_jitter_is_added() -> None:
    seen = set()
    for seed in range(20):
        hosts = Hosts(
            1, seed, consecutive_5xx=1, interval=0.1, base_ejection_time=1.0, max_ejection_time_jitter=1.0
        )
        hosts.fail(0, 1, 0.0)
        seen.add(round(hosts.out_until(0, 0.0), 1))
    assert min(seen) >= 1.0
    assert max(seen) <= 2.2
    assert len(seen) > 5


@pytest.mark.parametrize(
    ("size", "percent", "ejected"),
    [
        (4, 10, 0),
        (9, 10, 0),
        (10, 10, 1),
        (20, 10, 2),
        (4, 50, 2),
        (4, 100, 4),
        (3, 34, 1),
        (3, 33, 0),
        (4, 0, 0),
    ],
)
def test_max_ejection_percent(size: int, percent: int, ejected: int) -> None:
    """Seen: with fewer than ten hosts the default of 10 % ejects none; 3 of 4 bad with 50 %: two are ejected."""
    hosts = Hosts(size, max_ejection_percent=percent)
    for number in range(size):
        hosts.fail(number, 5, 0.0)
    assert len(hosts.ejected) == ejected
    assert hosts.stat("ejections_overflow") == size - ejected
    assert hosts.stat("ejections_detected_consecutive_5xx") == size


def test_always_eject_one_host() -> None:
    hosts = Hosts(4, max_ejection_percent=10, always_eject_one_host=True)
    for number in range(4):
        hosts.fail(number, 5, 0.0)
    assert hosts.ejected == [0]


def test_a_refusal_counts_from_the_beginning() -> None:
    hosts = Hosts(4, max_ejection_percent=10)
    hosts.fail(0, 5, 0.0)
    hosts.fail(0, 4, 0.0)
    assert hosts.stat("ejections_overflow") == 1
    hosts.fail(0, 1, 0.0)
    assert hosts.stat("ejections_overflow") == 2


@pytest.mark.parametrize(("percent", "low", "high"), [(0, 0, 0), (100, 400, 400), (30, 85, 155)])
def test_the_share_that_is_enforced(percent: int, low: int, high: int) -> None:
    ejected = 0
    for seed in range(400):
        hosts = Hosts(1, seed, enforcing_consecutive_5xx=percent, consecutive_5xx=1)
        ejected += hosts.fail(0, 1, 0.0)
        assert hosts.stat("ejections_detected_consecutive_5xx") == 1
    assert low <= ejected <= high


def test_failures_of_an_ejected_endpoint_change_nothing() -> None:
    hosts = Hosts(1, consecutive_5xx=2)
    hosts.fail(0, 2, 0.0)
    assert not hosts.fail(0, 9, 1.0)
    host = hosts.hosts[0]
    assert (host.ejected_at, host.ejection_multiplier) == (0.0, 1)
    hosts.detector.sweep(40.0)
    assert host.consecutive_5xx == 0, "it starts anew when it is taken back"


def test_missed_ticks_are_run_in_order() -> None:
    """No call for a long time: the endpoint is taken back at the tick at which it would have been, then decays."""
    hosts = Hosts(1, consecutive_5xx=1, interval=10.0, base_ejection_time=30.0)
    hosts.fail(0, 1, 5.0)
    assert hosts.detector.sweep(1_000.0), "back at the tick at 40 s"
    assert hosts.hosts[0].ejection_multiplier == 0, "and the tick at 50 s made it forget"
    assert hosts.detector.next_sweep == 1_010.0


def test_ticks_without_work_cost_nothing() -> None:
    hosts = Hosts(1, interval=0.001)
    assert not hosts.detector.sweep(1e9)
    assert hosts.detector.next_sweep == pytest.approx(1e9, abs=0.002)
    assert hosts.detector.next_sweep > 1e9


def test_endpoints_that_left_do_not_count() -> None:
    hosts = Hosts(4, max_ejection_percent=50)
    hosts.fail(0, 5, 0.0)
    hosts.fail(1, 5, 0.0)
    assert not hosts.fail(2, 5, 0.0)
    hosts.state.depart(hosts.hosts, {hosts.hosts[n].key for n in (1, 2, 3)})
    hosts.detector.members(hosts)
    assert hosts.state.stats.ejections_active.value == 1
    assert hosts.fail(2, 5, 0.0)
    assert not hosts.fail(0, 5, 0.0), "what still answers on its connection is not ejected again"
    hosts.detector.sweep(40.0)
    assert hosts.state.stats.ejections_active.value == 0


def test_an_endpoint_that_left_is_not_ejected() -> None:
    hosts = Hosts(2)
    hosts.state.take_request(hosts.hosts[0], hosts.state.default)
    hosts.state.depart(hosts.hosts, {hosts.hosts[1].key})
    assert not hosts.fail(0, 5, 0.0)
    assert hosts.ejected == []


def test_a_new_configuration_keeps_what_is_in_force() -> None:
    hosts = Hosts(2, consecutive_5xx=3, interval=1.0, base_ejection_time=10.0)
    hosts.fail(0, 3, 0.0)
    hosts.fail(1, 2, 0.0)
    hosts.detector.configure(OutlierDetection(consecutive_5xx=2, interval=1.0, base_ejection_time=5.0))
    assert hosts.ejected == [0]
    assert hosts.out_until(0, 0.0, step=1.0) == 5.0


def test_release_takes_all_back() -> None:
    hosts = Hosts(3)
    hosts.fail(0, 5, 0.0)
    hosts.detector.release()
    assert hosts.ejected == []
    assert hosts.stat("ejections_active") == 0


@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.booleans(), st.floats(0, 3)),
        min_size=1,
        max_size=150,
    ),
    st.integers(0, 100),
)
def test_whatever_happens(script: list[tuple[int, bool, float]], percent: int) -> None:
    hosts = Hosts(6, consecutive_5xx=2, interval=1.0, base_ejection_time=2.0, max_ejection_percent=percent)
    now = 0.0
    for number, ok, pause in script:
        now += pause
        if now >= hosts.detector.next_sweep:
            hosts.detector.sweep(now)
            assert hosts.detector.next_sweep > now
        before: list[EndpointState] = [host for host in hosts.hosts if host.ejected]
        changed = hosts.detector.record(hosts.hosts[number], ok, now)
        after = [host for host in hosts.hosts if host.ejected]
        assert changed is (len(after) > len(before))
        assert 100 * len(after) / 6 <= percent
        assert hosts.state.stats.ejections_active.value == len(after)
        assert all(host.consecutive_5xx < 2 for host in hosts.hosts)
        assert all(0 <= host.ejection_multiplier <= 152 for host in hosts.hosts)
    hosts.detector.sweep(now + 1_000)
    assert hosts.ejected == []

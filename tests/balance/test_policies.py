"""ROUND_ROBIN, LEAST_REQUEST, RANDOM, and Envoy's EDF scheduler."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections import Counter
from fractions import Fraction
from math import sqrt
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshlib.balance.edf import MAX_CYCLE, EdfScheduler, cycle_of
from meshlib.balance.hosts import HostTable
from meshlib.balance.policies import make_pick
from meshlib.resources.cluster import LeastRequestConfig, LocalityLbConfig, RandomConfig, RoundRobinConfig
from meshlib.state import ClusterState
from meshlib.stats import Registry
from tests.balance.support import Balanced, key, locality

NO_PANIC = LocalityLbConfig(healthy_panic_threshold=0)


def reference(weights: list[int], picks: int) -> list[int]:
    """The scheduler in exact fractions, without a heap: earliest deadline first, ties by insertion."""
    queue = [(Fraction(1, weight), order, order) for order, weight in enumerate(weights)]
    picked = []
    for count in range(picks):
        best = min(queue)
        queue.remove(best)
        queue.append((best[0] + Fraction(1, weights[best[2]]), len(weights) + count, best[2]))
        picked.append(best[2])
    return picked


class TestEdf:
    @given(st.lists(st.integers(1, 12), min_size=1, max_size=7))
    def test_a_cycle_is_what_the_scheduler_would_pick(self, weights: list[int]) -> None:
        entries = list(range(len(weights)))
        cycle = cycle_of(entries, weights)
        assert cycle is not None
        assert cycle == reference(weights, len(cycle))
        assert reference(weights, 2 * len(cycle))[len(cycle) :] == cycle, "and then it begins again"

    @given(st.lists(st.sampled_from([1, 2, 4, 8]), min_size=1, max_size=7))
    def test_the_scheduler_is_exact_where_its_numbers_are(self, weights: list[int]) -> None:
        scheduler = EdfScheduler(range(len(weights)), lambda entry: float(weights[entry]))
        assert [scheduler.pick() for _ in range(40)] == reference(weights, 40)

    def test_weights_may_change_between_picks(self) -> None:
        weights = [1.0, 1.0]
        scheduler = EdfScheduler([0, 1], weights.__getitem__)
        first = Counter(scheduler.pick() for _ in range(100))
        weights[0] = 3.0
        scheduler.pick()
        second = Counter(scheduler.pick() for _ in range(400))
        assert first == {0: 50, 1: 50}
        assert abs(second[0] - 300) <= 2

    def test_a_fork_in_the_middle_of_a_pick(self) -> None:
        """The child's picks do not wait for a thread that only the parent has."""
        code = """
import os, signal
from meshlib.balance.edf import EdfScheduler
scheduler = EdfScheduler([0, 1], lambda entry: 1.0)
with scheduler._lock:
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        os._exit(scheduler.pick())
assert os.waitpid(child, 0)[1] == 0
"""
        subprocess.run([sys.executable, "-c", code], check=True, timeout=60)

    def test_a_cycle_that_is_too_long_is_not_made(self) -> None:
        assert cycle_of([0, 1], [MAX_CYCLE, 1]) is None
        cycle = cycle_of([0, 1], [MAX_CYCLE - 1, 1])
        assert cycle is not None
        assert len(cycle) == MAX_CYCLE
        assert cycle_of([0, 1], [MAX_CYCLE * 10, MAX_CYCLE * 10]) == [0, 1]


class TestRoundRobin:
    def test_equal_weights_take_turns(self) -> None:
        balanced = Balanced([locality(1, 5)])
        order = [balanced.pick() for _ in range(20)]
        assert len(set(order[:5])) == 5
        assert order == order[:5] * 4

    def test_the_start_is_random(self) -> None:
        assert len({Balanced([locality(1, 5)], seed=seed).pick() for seed in range(40)}) == 5

    def test_weights_are_exact(self) -> None:
        """Seen on Envoy: weights 1:2:5 and 800 calls give exactly 100/200/500, in the order BCCCBCCA."""
        balanced = Balanced([locality(1, 3, weights=(1, 2, 5))])
        assert balanced.counts(800) == {key(1): 100, key(2): 200, key(3): 500}
        names = {key(1): "A", key(2): "B", key(3): "C"}
        order = "".join(names[balanced.pick() or ""] for _ in range(16))
        assert order in "BCCCBCCA" * 4

    def test_weights_without_a_short_cycle(self) -> None:
        weights = (7919, 10007, 3)
        counts = Balanced([locality(1, 3, weights=weights)]).counts(17929)
        for number, weight in enumerate(weights, 1):
            assert abs(counts[key(number)] - weight) <= 3

    def test_only_what_is_there_takes_part(self) -> None:
        balanced = Balanced([locality(1, 4, bad=1, weights=(1, 2, 5, 8))])
        assert balanced.counts(800) == {key(1): 100, key(2): 200, key(3): 500}

    def test_threads_share_the_turns(self) -> None:
        balanced = Balanced([locality(1, 4, weights=(1, 1, 2, 4))])
        found: list[Counter[str | None]] = []
        threads = [threading.Thread(target=lambda: found.append(balanced.counts(2_000))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        total = sum(found, Counter())
        assert total == {key(1): 1_000, key(2): 1_000, key(3): 2_000, key(4): 4_000}


class TestLeastRequest:
    def test_idle_hosts_get_their_weights(self) -> None:
        """Seen on Envoy: idle hosts of weights 1:2:5 get 100/200/500 of 800."""
        balanced = Balanced([locality(1, 3, weights=(1, 2, 5))], {"lb_policy": LeastRequestConfig()})
        assert balanced.counts(800) == {key(1): 100, key(2): 200, key(3): 500}

    def test_a_busy_host_gets_less(self) -> None:
        balanced = Balanced([locality(1, 2, weights=(1, 2))], {"lb_policy": LeastRequestConfig()})
        balanced.counts(10)
        balanced.state.endpoints[key(2)].active = 3
        counts = balanced.counts(900)
        assert abs(counts[key(2)] - 300) <= 2, "its weight is 2 / (3 + 1)"

    def test_the_bias(self) -> None:
        policy = LeastRequestConfig(active_request_bias=0.0)
        balanced = Balanced([locality(1, 2)], {"lb_policy": policy})
        balanced.counts(10)
        balanced.state.endpoints[key(1)].active = 50
        counts = balanced.counts(100)
        assert counts == {key(1): 50, key(2): 50}, (
            "without a bias only the weight counts; explicit, it is weighted"
        )

    def test_all_choices_find_the_least(self) -> None:
        balanced = Balanced([locality(1, 3)], {"lb_policy": LeastRequestConfig(choice_count=60)})
        balanced.counts(30)
        for number, active in ((1, 4), (2, 1), (3, 9)):
            balanced.state.endpoints[key(number)].active = active
        assert balanced.counts(200) == {key(2): 200}

    def test_two_choices(self) -> None:
        """The busier of two is picked only when both draws hit it: one time in four."""
        balanced = Balanced([locality(1, 2)], {"lb_policy": LeastRequestConfig()})
        balanced.counts(20)
        balanced.state.endpoints[key(1)].active = 1
        counts = balanced.counts(4_000)
        assert abs(counts[key(1)] - 1_000) < 3.5 * sqrt(4_000 * 0.25 * 0.75)

    def test_the_first_draw_wins_a_tie(self) -> None:
        class Draws(Random):
            values = iter([0.9, 0.1, 0.1, 0.9])

            def random(self) -> float:
                return next(self.values)

        table = HostTable([locality(1, 2)], ClusterState("c", Registry()))
        pick = make_pick(LeastRequestConfig(), table, range(2), None, Draws())
        assert [pick(), pick()] == [1, 0]


class TestRandom:
    @pytest.mark.parametrize("weights", [(), (1, 2, 5)])
    def test_it_is_uniform_and_ignores_weights(self, weights: tuple[int, ...]) -> None:
        balanced = Balanced([locality(1, 3, weights=weights)], {"lb_policy": RandomConfig()})
        counts = balanced.counts(3_000)
        for number in (1, 2, 3):
            assert abs(counts[key(number)] - 1_000) < 3.5 * sqrt(3_000 * 1 / 3 * 2 / 3)


@pytest.mark.parametrize("policy", [RoundRobinConfig(), LeastRequestConfig(), RandomConfig()])
@given(data=st.data())
def test_only_healthy_hosts_are_picked(policy: RoundRobinConfig, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 9))
    bad = data.draw(st.integers(0, count - 1))
    weights = data.draw(st.none() | st.lists(st.integers(1, 9), min_size=count, max_size=count))
    balanced = Balanced(
        [locality(1, count, bad=bad, weights=weights or ())],
        {"lb_policy": policy, "locality": NO_PANIC},
        seed=data.draw(st.integers(0, 99)),
    )
    assert set(balanced.counts(60)) <= {key(number) for number in range(1, 1 + count - bad)}

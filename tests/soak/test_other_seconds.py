"""Which calls are compared with those around rotations."""

from __future__ import annotations

import random

from benchmarks.soak.record import other_seconds, spread


def test_seconds_around_rotations_are_left_out() -> None:
    calls = [(10.0 + number / 4, 0.02 * number) for number in range(24)]
    found = other_seconds(calls, [12.5], 10.0)
    assert [[round(took * 50) for took in second] for second in found] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [15, 16, 17, 18, 19],
        [19, 20, 21, 22, 23],
        [23],
    ], "those under way in two seconds count in both"


def test_a_rotation_begins_while_contexts_are_built_for_it() -> None:
    calls = [(10.5 + number, 0.01) for number in range(6)]
    assert len(other_seconds(calls, [13.05], 10.0)) == 3, "not the third, fourth and fifth"


def test_what_the_machine_does_by_itself() -> None:
    draw = random.Random(1)
    seconds = [[draw.expovariate(1.0) for _ in range(100)] for _ in range(100)]
    found = spread(seconds, 10, 0.99)
    assert found is not None
    low, high = found
    assert 3.0 < low < 4.6 < high < 7.0
    assert spread(seconds, 51, 0.99) is None
    assert spread([], 0, 0.99) is None

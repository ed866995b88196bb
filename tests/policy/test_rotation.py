"""When connections are exchanged."""

from __future__ import annotations

from itertools import pairwise
from math import inf

import pytest

from meshlib.policy.rotation import delays, within


@pytest.mark.parametrize(
    ("left", "expected"), [(60.0, 15.0), (3600.0, 30.0), (inf, 30.0), (0.0, 0.0), (-5.0, 0.0)]
)
def test_at_most_half_a_minute_and_long_before_the_end(left: float, expected: float) -> None:
    assert within(left) == expected


def test_one_in_each_part_of_the_time() -> None:
    found = delays(10, 40.0)
    assert [int(delay) for delay in found] == list(range(10))
    assert delays(10, 40.0) != found
    assert all(first < second for first, second in pairwise(found))


def test_nothing_to_exchange() -> None:
    assert delays(0, 40.0) == []


def test_only_one_draws_from_all_of_the_time(exchanged_late: None) -> None:
    assert delays(1, 40.0) == [pytest.approx(9.99)]

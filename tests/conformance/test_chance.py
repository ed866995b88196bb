"""The statistics of the comparers: they must accept what is equal and refuse what is not."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conformance import chance

names = st.lists(st.sampled_from("ABC"), min_size=1, max_size=12)


@given(names, st.integers(0, 11))
def test_every_rotation_is_recognised(sequence: list[str], start: int) -> None:
    start %= len(sequence)
    assert chance.is_rotation(sequence, sequence[start:] + sequence[:start])


@given(names, names)
def test_rotation_agrees_with_trying_all(one: list[str], other: list[str]) -> None:
    expected = any(one[start:] + one[:start] == other for start in range(len(one)))
    assert chance.is_rotation(one, other) is expected


@pytest.mark.parametrize(
    ("one", "other"),
    [("ABCABC", "ACBACB"), ("AABB", "ABAB"), ("AB", "ABAB"), ("ABC", "ABD"), ("", "A")],
)
def test_other_orders_are_no_rotation(one: str, other: str) -> None:
    assert not chance.is_rotation(one, other)


def test_empty_sequences_are_rotations() -> None:
    assert chance.is_rotation([], [])


def test_counts() -> None:
    assert chance.same_counts("ABBA", "BBAA")
    assert not chance.same_counts("ABBA", "BBBA")


def test_z_of_known_values() -> None:
    # 1380 of 2000 at 0.7: (1400 - 1380) / sqrt(2000 * 0.7 * 0.3)
    assert chance.z_expected(1380, 2000, 0.7) == pytest.approx(20 / math.sqrt(420))
    assert chance.z_expected(0, 10, 0.0) == 0.0
    assert chance.z_expected(1, 10, 0.0) == math.inf
    assert chance.z_expected(9, 10, 1.0) == math.inf


def test_z_of_two_samples() -> None:
    # pooled 0.5, standard error sqrt(0.25 * 2 / 1000)
    assert chance.z_two_samples(540, 1000, 460, 1000) == pytest.approx(0.08 / math.sqrt(0.0005))
    assert chance.z_two_samples(0, 1000, 0, 1000) == 0.0


def test_a_fair_sample_passes_and_a_skewed_one_does_not() -> None:
    draw = random.Random(7)
    expected = {"A": 0.7, "B": 0.2, "C": 0.1}
    fair = Counter(draw.choices(list(expected), list(expected.values()), k=2000))
    skewed = Counter(draw.choices(list(expected), [0.64, 0.26, 0.1], k=2000))
    assert chance.worst_expected(fair, expected)[1] < 3.5
    assert chance.worst_expected(skewed, expected)[1] > 3.5
    assert chance.worst_two_samples(fair, skewed)[1] > 3.5


def test_an_unexpected_value_is_infinitely_far_away() -> None:
    assert chance.worst_expected({"A": 999, "D": 1}, {"A": 1.0})[1] == math.inf


def test_nothing_against_something() -> None:
    assert chance.worst_two_samples({}, {"A": 3})[1] == math.inf
    assert chance.worst_two_samples({}, {})[1] == 0.0

"""The Maglev table: Envoy's own examples, and what a table promises whatever its hosts are."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshlib.balance import maglev
from meshlib.balance.balancer import no_pause
from meshlib.balance.maglev import Maglev, build_maglev
from meshlib.resources.cluster import MaglevConfig


def table(names: list[str], size: int, weights: list[float] | None = None) -> Maglev:
    given = [1.0] * len(names) if weights is None else weights
    total = sum(given)
    config = MaglevConfig(table_size=size)
    return build_maglev(config, names, [weight / total for weight in given], no_pause)


def test_the_table_of_envoys_test() -> None:
    made = table([f"127.0.0.1:{port}" for port in range(90, 96)], 7)
    assert list(made.owners) == [2, 4, 0, 1, 5, 0, 3]
    assert (made.least, made.most) == (1, 2)
    assert [made.pick(value) for value in range(21)] == list(made.owners) * 3


def test_the_weighted_table_of_envoys_test() -> None:
    made = table(["127.0.0.1:90", "127.0.0.1:91"], 17, [1.0, 2.0])
    assert list(made.owners) == [1, 0, 0, 1, 0, 1, 1, 0, 1, 1, 1, 1, 1, 0, 1, 0, 1]
    assert (made.least, made.most) == (6, 11)


def test_the_order_of_the_hosts_does_not_matter() -> None:
    names = [f"10.0.0.{number}:80" for number in range(9)]
    one, two = table(names, 251), table(names[::-1], 251)
    assert [names[owner] for owner in one.owners] == [names[::-1][owner] for owner in two.owners]


def test_more_hosts_than_places() -> None:
    made = table([str(number) for number in range(5)], 3)
    assert len(set(made.owners)) == 3
    assert (made.least, made.most) == (0, 1)


@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 3.0, 1.0, 1.0]])
def test_pauses_change_nothing(monkeypatch: pytest.MonkeyPatch, weights: list[float] | None) -> None:
    names = [str(number) for number in range(5)]
    whole = table(names, 251, weights)
    monkeypatch.setattr(maglev, "SLICE", 2)
    assert list(table(names, 251, weights).owners) == list(whole.owners)


@given(given=st.lists(st.integers(1, 20), min_size=1, max_size=12))
def test_places_are_in_proportion_to_weights(given: list[int]) -> None:
    names = [f"10.0.0.{number}:80" for number in range(len(given))]
    size = 1009
    made = table(names, size, [float(weight) for weight in given])
    counts = Counter(made.owners)
    for owner, weight in enumerate(given):
        # Whole turns: at the end a host may be one place short or ahead, and so may each of the others.
        assert abs(counts[owner] - weight / sum(given) * size) <= len(given)
    assert set(counts) == set(range(len(given))), "every host can be reached"


@settings(max_examples=30)
@given(size=st.integers(3, 12), gone=st.integers(0, 11))
def test_few_other_places_change_hands_when_a_host_leaves(size: int, gone: int) -> None:
    names = [f"10.0.0.{number}:80" for number in range(size)]
    left = [name for index, name in enumerate(names) if index != gone % size]
    before = [names[owner] for owner in table(names, 1009).owners]
    after = [left[owner] for owner in table(left, 1009).owners]
    moved = sum(one != two for one, two in zip(before, after) if one in left)
    assert moved < 0.2 * 1009

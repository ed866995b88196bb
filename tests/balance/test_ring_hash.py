"""The ring: Envoy's own examples, and what a ring promises whatever its hosts are."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshlib.balance import ring_hash
from meshlib.balance.balancer import no_pause
from meshlib.balance.murmur import murmur_hash_2
from meshlib.balance.ring_hash import Ring, build_ring
from meshlib.resources.cluster import HashFunction, RingHashConfig

TOP = 2**64 - 1

XX_RING = {
    833437586790550860: 94,
    928266305478181108: 92,
    1033482794131418490: 90,
    3551244743356806947: 95,
    3851675632748031481: 93,
    5583722120771150861: 91,
    6311230543546372928: 91,
    7700377290971790572: 93,
    13144177310400110813: 95,
    13444792449719432967: 92,
    15516499411664133160: 94,
    16117243373044804889: 90,
}
MURMUR_RING = {
    1358027074129602068: 85,
    4361834613929391114: 83,
    7224494972555149682: 84,
    7701421856454313576: 81,
    8649315368077433379: 82,
    8739448859063030639: 84,
    9887544217113020895: 81,
    10150910876324007731: 82,
    15168472011420622455: 83,
    15427156902705414897: 80,
    16375050414328759093: 85,
    17613279263364193813: 80,
}
"""The rings of Envoy's own tests (ring_hash_lb_test.cc): hash -> port of 127.0.0.1, 12 entries."""


def ring(names: list[str], weights: list[float] | None = None, **fields: Any) -> Ring:
    given = [1.0] * len(names) if weights is None else weights
    total = sum(given)
    return build_ring(RingHashConfig(**fields), names, [weight / total for weight in given], no_pause)


@pytest.mark.parametrize(
    ("function", "first", "expected"),
    [(HashFunction.XX_HASH, 90, XX_RING), (HashFunction.MURMUR_HASH_2, 80, MURMUR_RING)],
)
def test_the_rings_of_envoys_tests(function: HashFunction, first: int, expected: dict[int, int]) -> None:
    names = [f"127.0.0.1:{port}" for port in range(first, first + 6)]
    config = RingHashConfig(minimum_ring_size=12, hash_function=function)
    made = build_ring(config, names, [1 / 6] * 6, no_pause)
    assert list(made.hashes) == sorted(expected)
    assert [first + owner for owner in made.owners] == [expected[value] for value in sorted(expected)]
    assert (made.size, made.least, made.most) == (12, 2, 2)
    for value, port in expected.items():
        assert made.pick(value) == port - first
    assert made.pick(0) == made.pick(TOP) == expected[min(expected)] - first


def test_the_next_entry_clockwise() -> None:
    made = Ring([10, 20, 20, 30], [0, 1, 2, 3], size=4, least=1, most=1)
    picked = [made.pick(value) for value in (0, 10, 11, 20, 21, 30, 31, TOP)]
    assert picked == [0, 0, 1, 1, 3, 3, 0, 0]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b"", 6142509188972423790),
        (b"foo", 9631199822919835226),
        (b"bar", 11474628671133349555),
        (b"foo\nbar", 16306510975912980159),
        (b"lyft", 12847078931730529320),
        (b"longer than seven chars", 15194079855121201171),
    ],
)
def test_murmur_like_libstdcxx(text: bytes, value: int) -> None:
    assert murmur_hash_2(text) == value


def test_fractions_of_an_entry_go_to_the_next_host() -> None:
    made = ring(["a", "b", "c", "d"], minimum_ring_size=6, maximum_ring_size=6)
    assert Counter(made.owners) == {0: 2, 1: 1, 2: 2, 3: 1}
    assert (made.size, made.least, made.most) == (6, 1, 2)


def test_some_hosts_get_no_entry() -> None:
    made = ring(["a", "b", "c", "d", "e"], minimum_ring_size=2, maximum_ring_size=3)
    # Five times 0.6 is a little more than 3 in doubles, in Envoy too: one entry more than planned.
    assert (len(made.hashes), made.size, made.least, made.most) == (4, 3, 0, 1)


def test_a_ring_without_entries() -> None:
    made = ring(["a", "b"], minimum_ring_size=0, maximum_ring_size=0)
    assert made.pick(1) is None


def test_the_least_weight_gets_whole_entries() -> None:
    made = ring(["a", "b", "c"], [1.0, 2.0, 5.0], minimum_ring_size=20)
    assert Counter(made.owners) == {0: 3, 1: 6, 2: 15}


def test_a_large_ring_is_sorted_in_parts_and_kept_compactly(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"host-{number}" for number in range(10)]
    whole = ring(names, minimum_ring_size=1000)
    pauses: list[None] = []
    monkeypatch.setattr(ring_hash, "SLICE", 64)
    monkeypatch.setattr(ring_hash, "COMPACT", 100)
    parts = build_ring(RingHashConfig(minimum_ring_size=1000), names, [0.1] * 10, lambda: pauses.append(None))
    assert type(parts.hashes) is not type(whole.hashes)
    assert list(parts.hashes) == list(whole.hashes)
    assert list(parts.owners) == list(whole.owners)
    assert len(pauses) >= 16


weights = st.lists(st.integers(1, 100), min_size=1, max_size=20)
hashes = st.lists(st.integers(0, TOP), min_size=1, max_size=50)


@given(given=weights, minimum=st.integers(1, 2000))
def test_entries_are_in_proportion_to_weights(given: list[int], minimum: int) -> None:
    names = [f"10.0.0.{number}:80" for number in range(len(given))]
    made = ring(names, [float(weight) for weight in given], minimum_ring_size=minimum)
    counts = Counter(made.owners)
    assert set(counts) == set(range(len(given))), "every host can be reached"
    assert len(made.hashes) >= min(minimum, made.size)
    for owner, weight in enumerate(given):
        assert abs(counts[owner] - weight / sum(given) * len(made.hashes)) < 2
    assert (min(counts.values()), max(counts.values())) == (made.least, made.most)


@given(size=st.integers(2, 12), gone=st.integers(0, 11), values=hashes)
def test_only_the_keys_of_a_host_that_leaves_move(size: int, gone: int, values: list[int]) -> None:
    names = [f"10.0.0.{number}:80" for number in range(size)]
    left = [name for index, name in enumerate(names) if index != gone % size]
    # As many entries for each host before and after.
    before, after = ring(names, minimum_ring_size=50 * size), ring(left, minimum_ring_size=50 * (size - 1))
    for value in values:
        owner = before.pick(value)
        now = after.pick(value)
        assert owner is not None
        assert now is not None
        if names[owner] in left:
            assert left[now] == names[owner]


@given(size=st.integers(1, 12), values=hashes)
def test_a_pick_is_the_first_entry_from_the_hash_on(size: int, values: list[int]) -> None:
    made = ring([str(number) for number in range(size)], minimum_ring_size=30)
    for value in values:
        index = bisect_left(list(made.hashes), value) % len(made.hashes)
        assert made.pick(value) == made.owners[index]

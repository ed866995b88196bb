"""Of a large cluster each process calls a few endpoints: which ones, and what changes them."""

from __future__ import annotations

from collections import Counter
from math import sqrt
from random import Random
from typing import Any

import pytest
import xxhash

from meshlib.balance.factory import make_balancer
from meshlib.resources.cluster import (
    Cluster,
    DiscoveryType,
    LeastRequestConfig,
    LocalityLbConfig,
    MaglevConfig,
    RandomConfig,
    RingHashConfig,
    RoundRobinConfig,
)
from meshlib.resources.endpoint import ClusterLoadAssignment
from meshlib.state import ClusterState
from meshlib.stats import Registry
from tests.balance.support import Balanced, key, locality

PICKS = 300


def subset_of(size: int, **fields: Any) -> dict[str, Any]:
    return {"locality": LocalityLbConfig(subset_size=size, **fields)}


def used(balanced: Balanced) -> set[str | None]:
    return set(balanced.counts(PICKS))


@pytest.mark.parametrize("policy", [RoundRobinConfig(), LeastRequestConfig(), RandomConfig()])
def test_so_many_are_called(policy: Any) -> None:
    balanced = Balanced([locality(1, 50)], {"lb_policy": policy, **subset_of(4)})
    assert len(used(balanced)) == 4
    assert len(used(Balanced([locality(1, 3)], {"lb_policy": policy, **subset_of(4)}))) == 3


@pytest.mark.parametrize("policy", [RingHashConfig(), MaglevConfig()])
def test_by_hash(policy: Any) -> None:
    load = ClusterLoadAssignment(cluster_name="c", localities=(locality(1, 50),))
    cluster = Cluster(name="c", discovery=DiscoveryType.STATIC, lb_policy=policy, **subset_of(4))
    balancer = make_balancer(cluster, load, ClusterState("c", Registry()), Random(1))
    draw = Random(2)
    found = [balancer.pick(0.0, draw.getrandbits(64)) for _ in range(PICKS)]
    assert len({endpoint.key for endpoint in found if endpoint is not None}) == 4


def test_they_are_those_of_the_lowest_hashes_with_a_seed() -> None:
    balanced = Balanced([locality(1, 50)], subset_of(4))
    seed = balanced.state.subset_seed
    assert seed is not None
    names = sorted(map(key, range(1, 51)), key=lambda name: xxhash.xxh64_intdigest(name.encode(), seed))
    assert used(balanced) == set(names[:4])


def test_a_push_keeps_them_and_a_newcomer_takes_one_place_at_most() -> None:
    balanced = Balanced([locality(1, 50)], subset_of(10))
    before = used(balanced)
    balanced.again([locality(1, 50)])
    assert used(balanced) == before
    moved = 0
    for count in range(51, 101):
        balanced.again([locality(1, count)])
        after = used(balanced)
        assert len(after - before) <= 1
        assert after <= before | {key(count)}
        moved += after != before
        before = after
    assert 0 < moved < 25


def test_one_that_goes_or_is_ejected_is_replaced_by_the_next() -> None:
    balanced = Balanced([locality(1, 50)], subset_of(10))
    before = used(balanced)
    number = next(number for number in range(1, 51) if key(number) in before)
    balanced.eject(number)
    during = used(balanced)
    assert before - during == {key(number)}
    assert len(during) == 10
    balanced.eject(number, ejected=False)
    assert used(balanced) == before
    balanced.again([locality(1, number - 1), locality(number + 1, 50 - number)])
    assert used(balanced) == during


def test_clients_spread_over_the_endpoints() -> None:
    clients, size, endpoints = 1000, 3, 10
    found: Counter[str | None] = Counter()
    for seed in range(clients):
        found.update(used(Balanced([locality(1, endpoints)], subset_of(size), seed=seed)))
    share = size / endpoints
    spread = sqrt(clients * share * (1 - share))
    assert len(found) == endpoints
    assert all(abs(count - clients * share) < 3.5 * spread for count in found.values())


def test_priorities_go_by_the_health_of_all() -> None:
    balanced = Balanced([locality(1, 100, bad=50), locality(201, 100, priority=1)], subset_of(2))
    counts = balanced.counts(2000)
    first = sum(count for name, count in counts.items() if name in {key(each) for each in range(1, 51)})
    assert len(counts) == 4
    assert abs(first - 1400) < 3.5 * sqrt(2000 * 0.7 * 0.3)


def test_panic_has_a_subset_too() -> None:
    assert len(used(Balanced([locality(1, 40, bad=30)], subset_of(4)))) == 4


def test_of_each_locality_or_of_all() -> None:
    places = [locality(1, 20, weight=1), locality(101, 20, weight=3), locality(201, 20, weight=1)]
    each = Balanced(places, subset_of(2, locality_weighted=True, subset_of_locality=True)).counts(2000)
    assert sorted(Counter(_place(name) for name in each).items()) == [(0, 2), (1, 2), (2, 2)]
    assert abs(sum(count for name, count in each.items() if _place(name) == 1) - 1200) < 10
    seen: set[int] = set()
    for seed in range(20):
        whole = used(Balanced(places, subset_of(2, locality_weighted=True), seed=seed))
        assert len(whole) == 2
        seen |= {_place(name) for name in whole}
    assert seen == {0, 1, 2}


def _place(name: str | None) -> int:
    return [key(each) for each in range(1, 301)].index(str(name)) // 100


def test_a_forked_child_has_its_own() -> None:
    parent = Balanced([locality(1, 1000)], subset_of(10))
    before = used(parent)
    parent.balancer.renew_lock()
    child = used(parent)
    assert len(child) == 10
    assert child != before


def test_without_it_nothing_is_drawn() -> None:
    assert Balanced([locality(1, 5)]).state.subset_seed is None

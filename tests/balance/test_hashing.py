"""From a hash to a host: priorities, panic, localities, ejections, and tables that are used again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

import pytest
from xxhash import xxh64_intdigest

from meshlib.balance import hashing
from meshlib.balance.balancer import LoadBalancer
from meshlib.balance.factory import make_balancer
from meshlib.balance.hashing import HashingLoadBalancer
from meshlib.resources.cluster import (
    Cluster,
    DiscoveryType,
    LocalityLbConfig,
    MaglevConfig,
    RingHashConfig,
    RoundRobinConfig,
)
from meshlib.resources.endpoint import ClusterLoadAssignment, Endpoint, Locality, LocalityEndpoints
from meshlib.state import ClusterState
from meshlib.stats import Registry
from tests.balance.support import key, locality

HASHES = [xxh64_intdigest(b"%d" % number) for number in range(2_000)]
POLICIES = [RingHashConfig(minimum_ring_size=4096), MaglevConfig(table_size=4099)]


@dataclass
class Hashed:
    """A cluster that balances by hash; `again` is its next push."""

    localities: list[LocalityEndpoints]
    policy: Any = field(default_factory=RingHashConfig)
    fields: dict[str, Any] = field(default_factory=dict)
    registry: Registry = field(default_factory=Registry)
    balancer: LoadBalancer | None = None

    def __post_init__(self) -> None:
        self.state = ClusterState("c", self.registry)
        self.again(self.localities)

    deferred: list[Callable[[], None]] | None = None

    def again(self, localities: list[LocalityEndpoints], **fields: Any) -> None:
        load = ClusterLoadAssignment(cluster_name="c", localities=tuple(localities))
        cluster = Cluster(
            name="c", discovery=DiscoveryType.STATIC, lb_policy=self.policy, **(self.fields | fields)
        )
        self.balancer = make_balancer(
            cluster,
            load,
            self.state,
            Random(1),
            previous=self.balancer,
            defer=None if self.deferred is None else self.deferred.append,
        )

    def pick(self, value: int | None) -> str | None:
        assert self.balancer is not None
        endpoint = self.balancer.pick(0.0, value)
        return None if endpoint is None else endpoint.key

    def picks(self) -> list[str | None]:
        return [self.pick(value) for value in HASHES]

    def eject(self, number: int, ejected: bool = True) -> None:
        assert self.balancer is not None
        self.state.endpoint(key(number), key(number).removesuffix(":80"), 80).ejected = ejected
        self.balancer.refresh()

    def gauge(self, name: str) -> float:
        return self.registry.gauge(f"cluster.c.{name}").value


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of names of each table that is built."""
    sizes: list[int] = []
    for name in ("build_ring", "build_maglev"):
        build = getattr(hashing, name)

        def counted(config: Any, names: Any, weights: Any, pause: Any, build: Any = build) -> Any:
            sizes.append(len(names))
            return build(config, names, weights, pause)

        monkeypatch.setattr(hashing, name, counted)
    return sizes


def test_other_policies_do_not_hash() -> None:
    assert Hashed([locality(1, 2)]).balancer.hashed  # type: ignore[union-attr]
    assert not Hashed([locality(1, 2)], RoundRobinConfig()).balancer.hashed  # type: ignore[union-attr]


@pytest.mark.parametrize("policy", POLICIES)
class TestBoth:
    def test_the_same_hash_the_same_host(self, policy: Any) -> None:
        one, two = Hashed([locality(1, 7)], policy), Hashed([locality(1, 7)], policy)
        assert one.picks() == two.picks()
        assert set(one.picks()) == {key(number) for number in range(1, 8)}

    def test_without_a_hash_at_random(self, policy: Any) -> None:
        hashed = Hashed([locality(1, 4)], policy)
        counts = Counter(hashed.pick(None) for _ in range(2_000))
        assert all(300 < counts[key(number)] < 700 for number in range(1, 5))

    def test_weights(self, policy: Any) -> None:
        counts = Counter(Hashed([locality(1, 3, weights=[1, 2, 5])], policy).picks())
        for number, share in ((1, 250), (2, 500), (3, 1250)):
            assert abs(counts[key(number)] - share) < 150

    def test_no_endpoints(self, policy: Any) -> None:
        assert Hashed([], policy).picks()[:1] == [None]
        assert Hashed([locality(1, 0)], policy).picks()[:1] == [None]

    def test_an_unhealthy_host_is_not_in_the_table(self, policy: Any) -> None:
        hashed, smaller = Hashed([locality(1, 4, bad=1)], policy), Hashed([locality(1, 3)], policy)
        assert hashed.picks() == smaller.picks()

    def test_panic_takes_all(self, policy: Any) -> None:
        hashed, healthy = Hashed([locality(1, 4, bad=3)], policy), Hashed([locality(1, 4)], policy)
        assert hashed.picks() == healthy.picks()
        assert hashed.state.stats.lb_healthy_panic.value == len(HASHES)

    def test_no_host_and_no_panic(self, policy: Any) -> None:
        never = LocalityLbConfig(healthy_panic_threshold=0.0)
        assert set(Hashed([locality(1, 2, bad=2)], policy, {"locality": never}).picks()) == {None}

    def test_the_hash_chooses_the_priority(self, policy: Any) -> None:
        hashed = Hashed([locality(1, 4, bad=2), locality(11, 4, priority=1)], policy)
        first, second = Hashed([locality(1, 2)], policy), Hashed([locality(11, 4)], policy)
        for value in HASHES:
            table = first if value % 100 + 1 <= 70 else second
            assert hashed.pick(value) == table.pick(value)

    def test_degraded_hosts_are_in_no_table(self, policy: Any) -> None:
        hashed = Hashed([locality(1, 4, bad=2, degraded=2), locality(11, 4, bad=3, priority=1)], policy)
        picks = set(hashed.picks())
        assert None in picks
        assert not picks & {key(1), key(2)}

    @pytest.mark.interpreted
    def test_an_ejected_host_leaves_and_comes_back(self, policy: Any, built: list[int]) -> None:
        hashed = Hashed([locality(1, 5)], policy)
        before = hashed.picks()
        hashed.eject(2)
        during = hashed.picks()
        assert key(2) not in during
        assert built == [5, 4]
        hashed.eject(2, ejected=False)
        assert hashed.picks() == before
        assert built == [5, 4], "the first table is used again"

    def test_one_that_was_ejected_without_a_word(self, policy: Any) -> None:
        hashed = Hashed([locality(1, 5)], policy)
        value = HASHES[0]
        first = hashed.pick(value)
        assert first is not None
        hashed.state.endpoints[first].ejected = True
        assert hashed.pick(value) not in (None, first)

    @pytest.mark.interpreted
    def test_a_push_that_changes_nothing_keeps_the_table(self, policy: Any, built: list[int]) -> None:
        hashed = Hashed([locality(1, 5)], policy)
        hashed.again([locality(1, 5)], connect_timeout=9.0)
        assert built == [5]
        hashed.again([locality(1, 6)])
        hashed.again([locality(1, 5)])
        assert built == [5, 6]

    def test_localities(self, policy: Any) -> None:
        weighted = {"locality": LocalityLbConfig(locality_weighted=True)}
        places = [locality(1, 2, weight=1), locality(11, 2, weight=3), locality(21, 2)]
        counts = Counter(Hashed(places, policy, weighted).picks())
        assert abs(counts[key(1)] + counts[key(2)] - 500) < 150
        assert abs(counts[key(11)] + counts[key(12)] - 1500) < 150
        assert set(Hashed([locality(1, 2)], policy, weighted).picks()) == {None}, "none has a weight"
        assert key(21) in Hashed(places, policy).picks(), "unless the cluster asks, they do not matter"

    def test_the_pieces_of_one_locality(self, policy: Any) -> None:
        weighted = {"locality": LocalityLbConfig(locality_weighted=True)}
        same, other = Locality(zone="same"), Locality(zone="other")
        pieces = [
            LocalityEndpoints(locality=same, weight=1, endpoints=(Endpoint("10.0.0.1", 80),)),
            LocalityEndpoints(locality=other, weight=1, endpoints=(Endpoint("10.0.0.2", 80),)),
            LocalityEndpoints(locality=same, weight=1, endpoints=(Endpoint("10.0.0.3", 80),)),
        ]
        counts = Counter(Hashed(pieces, policy, weighted).picks())
        assert abs(counts[key(2)] - 1000) < 150


class TestLater:
    """A large table is not made by the call that ejects a host."""

    def hashed(self, policy: Any = None) -> Hashed:
        return Hashed([locality(1, 5)], policy or MaglevConfig(table_size=9001), deferred=[])

    @pytest.mark.interpreted
    def test_another_host_until_the_table_is_there(self, built: list[int]) -> None:
        hashed = self.hashed()
        assert hashed.deferred is not None
        before = hashed.picks()
        hashed.eject(2)
        during = hashed.picks()
        assert built == [5]
        assert len(hashed.deferred) == 1, "it is asked for once"
        assert key(2) not in during
        assert during == hashed.picks(), "the same key, the same host"
        assert all(was in (now, key(2)) for was, now in zip(before, during))
        hashed.deferred.pop()()
        assert built == [5, 4]
        left = [locality(1, 1), locality(3, 3)]
        assert hashed.picks() == Hashed(left, MaglevConfig(table_size=9001)).picks()

    def test_asked_for_again_in_a_forked_child(self, monkeypatch: pytest.MonkeyPatch) -> None:
        hashed = self.hashed()
        assert hashed.deferred is not None
        hashed.eject(2)
        monkeypatch.setattr("os.getpid", lambda: -1)
        assert key(2) not in hashed.picks()
        assert len(hashed.deferred) == 2

    def test_every_host_is_ejected(self) -> None:
        never = {"locality": LocalityLbConfig(healthy_panic_threshold=0.0)}
        hashed = Hashed([locality(1, 2)], MaglevConfig(table_size=9001), never, deferred=[])
        hashed.eject(1)
        hashed.eject(2)
        assert hashed.pick(HASHES[0]) in (key(1), key(2))
        assert hashed.deferred is not None
        hashed.deferred.pop()()
        assert hashed.pick(HASHES[0]) is None

    @pytest.mark.interpreted
    def test_weights_far_apart_make_a_ring_large(self, built: list[int]) -> None:
        """Its least host has one entry, so the others have thousands, whatever minimum_ring_size says."""
        hashed = Hashed([locality(1, 3, weights=(1, 10_000, 10_000))], RingHashConfig(), deferred=[])
        hashed.eject(2)
        assert hashed.deferred is not None
        assert len(hashed.deferred) == 1
        assert built == [3]

    @pytest.mark.interpreted
    def test_a_small_table_at_once(self, built: list[int]) -> None:
        hashed = self.hashed(RingHashConfig())
        hashed.eject(2)
        assert hashed.deferred == []
        assert built == [5, 4]


def test_names() -> None:
    hosts = (
        Endpoint("10.0.0.1", 80, hostname="a.example"),
        Endpoint("10.0.0.2", 80, hostname="b.example", hash_key="second"),
        Endpoint("::1", 80, hostname="c.example"),
    )
    place = [LocalityEndpoints(endpoints=hosts)]

    def names(policy: RingHashConfig) -> tuple[str, ...]:
        balancer = Hashed(place, policy).balancer
        assert isinstance(balancer, HashingLoadBalancer)
        return tuple(balancer._made[0].names)

    assert names(RingHashConfig()) == ("10.0.0.1:80", "second", "[::1]:80")
    by_hostname = RingHashConfig(use_hostname_for_hashing=True)
    assert names(by_hostname) == ("a.example", "second", "c.example")


def test_gauges() -> None:
    ring = Hashed([locality(1, 3)])
    names = ("size", "min_hashes_per_host", "max_hashes_per_host")
    assert [ring.gauge(f"ring_hash_lb.{name}") for name in names] == [1026, 342, 342]
    maglev = Hashed([locality(1, 3)], MaglevConfig(table_size=31))
    assert maglev.gauge("maglev_lb.min_entries_per_host") == 10
    assert maglev.gauge("maglev_lb.max_entries_per_host") == 11


def test_bounded_load_counts_the_requests_of_the_cluster() -> None:
    hashed = Hashed([locality(1, 3)], RingHashConfig(hash_balance_factor=100))
    value = HASHES[0]
    first = hashed.pick(value)
    assert first is not None
    host = hashed.state.endpoints[first]
    for _ in range(2):
        assert hashed.state.take_request(host, hashed.state.default)
    other = hashed.pick(value)
    assert other not in (None, first)
    hashed.state.return_request(host, hashed.state.default)
    assert hashed.pick(value) == first

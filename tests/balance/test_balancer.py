"""From a cluster to a host: priorities, panic, degraded hosts, localities, ejected hosts, large and changing assignments."""

from __future__ import annotations

import threading
from collections import Counter
from math import sqrt
from random import Random
from typing import Any

import pytest

from meshlib.balance.balancer import EAGER, LoadBalancer
from meshlib.balance.hosts import HostTable
from meshlib.balance.membership import find
from meshlib.resources.cluster import Cluster, DiscoveryType, LocalityLbConfig
from meshlib.resources.endpoint import ClusterLoadAssignment, Endpoint, LocalityEndpoints
from meshlib.resources.metadata import NO_METADATA, SocketMetadata
from meshlib.state import ClusterState, EndpointState
from meshlib.stats import Registry
from tests.balance.support import Balanced, key, locality, wire


def share(counts: Counter[str | None], numbers: range) -> int:
    return sum(counts[key(number)] for number in numbers)


def near(seen: int, expected: float, times: int) -> bool:
    p = expected / times
    return abs(seen - expected) <= 3.5 * sqrt(times * p * (1 - p))


def nothing() -> None:
    return


class TestPriorities:
    @pytest.mark.parametrize(("bad", "first"), [(0, 2000), (1, 2000), (2, 1400), (3, 700), (4, 0)])
    def test_failover(self, bad: int, first: int) -> None:
        balanced = Balanced([locality(1, 4, bad=bad), locality(11, 4, priority=1)])
        counts = balanced.counts(2_000)
        assert near(share(counts, range(1, 5)), first, 2_000)
        assert share(counts, range(1, 5 - bad)) == share(counts, range(1, 5)), "the bad hosts get nothing"

    def test_each_percent_goes_where_it_belongs(self) -> None:
        class EachPercent(Random):
            step = -1

            def random(self) -> float:
                self.step += 1
                return (self.step % 100 + 0.5) / 100

        load = ClusterLoadAssignment(
            cluster_name="c", localities=(locality(1, 4, bad=3), locality(11, 1, priority=1))
        )
        state = ClusterState("c", Registry())
        balancer = LoadBalancer(Cluster(name="c", discovery=DiscoveryType.STATIC), load, state, EachPercent())
        picked = [balancer.pick(0.0) for _ in range(100)]
        assert Counter(endpoint.key for endpoint in picked if endpoint) == {key(1): 35, key(11): 65}

    def test_both_in_panic_use_all_hosts(self) -> None:
        balanced = Balanced([locality(1, 4, bad=3), locality(11, 4, bad=3, priority=1)])
        counts = balanced.counts(4_000)
        assert len(counts) == 8
        assert near(share(counts, range(1, 5)), 2_000, 4_000)
        assert balanced.state.stats.lb_healthy_panic.value == 4_000

    def test_a_gap_in_the_priorities(self) -> None:
        balanced = Balanced([locality(1, 1, priority=2)])
        assert balanced.counts(10) == {key(1): 10}


class TestPanic:
    def test_one_of_four(self) -> None:
        counts = Balanced([locality(1, 4, bad=3)]).counts(400)
        assert set(counts.values()) == {100}
        assert len(counts) == 4

    def test_hosts_that_are_draining_do_not_count(self) -> None:
        balanced = Balanced([locality(1, 6, bad=4, draining=2)])
        assert set(balanced.counts(100)) == {key(1), key(2)}, "two of four"
        worse = Balanced([locality(1, 6, bad=5, draining=2)])
        assert len(worse.counts(100)) == 6, "one of four is panic, for all of them"

    def test_two_of_four_is_none(self) -> None:
        assert set(Balanced([locality(1, 4, bad=2)]).counts(100)) == {key(1), key(2)}

    def test_traffic_can_fail_instead(self) -> None:
        balanced = Balanced(
            [locality(1, 4, bad=3)], {"locality": LocalityLbConfig(fail_traffic_on_panic=True)}
        )
        assert balanced.counts(10) == {None: 10}
        assert balanced.state.stats.lb_healthy_panic.value == 10

    @pytest.mark.parametrize(("bad", "seen"), [(3, {key(1): 10}), (4, {None: 10})])
    def test_without_a_threshold(self, bad: int, seen: dict[str | None, int]) -> None:
        balanced = Balanced(
            [locality(1, 4, bad=bad)], {"locality": LocalityLbConfig(healthy_panic_threshold=0)}
        )
        assert balanced.counts(10) == seen


class TestDegraded:
    def test_they_wait_until_the_healthy_ones_are_too_few(self) -> None:
        counts = Balanced([locality(1, 4, degraded=1)]).counts(300)
        assert counts[key(4)] == 0
        counts = Balanced([locality(1, 4, degraded=3)]).counts(2_000)
        assert near(counts[key(1)], 700, 2_000)

    def test_alone_they_take_everything(self) -> None:
        assert len(Balanced([locality(1, 4, degraded=4)]).counts(100)) == 4


class TestLocalities:
    WEIGHTED = {"locality": LocalityLbConfig(locality_weighted=True)}  # noqa: RUF012

    def test_without_the_configuration_weights_do_not_matter(self) -> None:
        counts = Balanced([locality(1, 2, weight=1), locality(11, 2, weight=9)]).counts(400)
        assert set(counts.values()) == {100}

    def test_effective_weights(self) -> None:
        """Seen on Envoy: weight 1 with 2 of 4 healthy and weight 2 with 2 of 2: the first gets 25.9 %."""
        balanced = Balanced([locality(1, 4, bad=2, weight=1), locality(11, 2, weight=2)], self.WEIGHTED)
        counts = balanced.counts(1_000)
        assert abs(share(counts, range(1, 5)) - 1_000 * 0.7 / 2.7) <= 2
        assert set(counts) == {key(1), key(2), key(11), key(12)}

    def test_one_without_weight_gets_nothing(self) -> None:
        balanced = Balanced(
            [locality(1, 2), locality(5, 2, weight=0), locality(11, 2, weight=2)], self.WEIGHTED
        )
        assert set(balanced.counts(100)) == {key(11), key(12)}

    def test_where_none_has_a_weight_they_do_not_matter(self) -> None:
        assert len(Balanced([locality(1, 2), locality(11, 2)], self.WEIGHTED).counts(100)) == 4

    def test_one_that_is_down(self) -> None:
        balanced = Balanced([locality(1, 2, bad=2, weight=9), locality(11, 3, weight=1)], self.WEIGHTED)
        assert set(balanced.counts(100)) == {key(11), key(12), key(13)}


class TestEjected:
    def test_they_are_left_out_and_taken_back(self) -> None:
        balanced = Balanced([locality(1, 4)])
        balanced.counts(4)
        balanced.eject(2)
        assert set(balanced.counts(30)) == {key(1), key(3), key(4)}
        balanced.eject(2, ejected=False)
        assert len(balanced.counts(40)) == 4

    def test_they_count_for_failover_and_panic(self) -> None:
        balanced = Balanced([locality(1, 4), locality(11, 4, priority=1)])
        balanced.counts(10)
        for number in (1, 2, 3):
            balanced.eject(number)
        assert near(balanced.counts(2_000)[key(4)], 700, 2_000)

    def test_one_that_was_ejected_before_a_push_is_found_after_it(self) -> None:
        balanced = Balanced([locality(1, 4)])
        balanced.counts(4)
        balanced.eject(2)
        balanced.again([locality(0, 6)])
        assert set(balanced.counts(50)) == {key(number) for number in (0, 1, 3, 4, 5)}

    def test_one_that_stands_twice_is_left_out_twice(self) -> None:
        balanced = Balanced([locality(1, 2), locality(1, 2)])
        balanced.counts(4)
        balanced.eject(1)
        assert balanced.counts(20) == {key(2): 20}
        assert [len(health.healthy) for health in balanced.balancer.health] == [2]

    def test_one_that_no_call_met_is_found_too(self) -> None:
        balanced = Balanced([locality(1, 4)])
        balanced.eject(3)
        assert set(balanced.counts(30)) == {key(1), key(2), key(4)}

    def test_in_a_large_assignment_it_is_found_when_it_is_met(self) -> None:
        balanced = Balanced([locality(1, EAGER + 1)])
        balanced.eject(5)
        assert key(5) not in balanced.counts(EAGER + 1)

    def test_or_when_the_push_has_settled(self) -> None:
        balanced = Balanced([locality(1, EAGER + 1)])
        balanced.eject(5)
        balanced.balancer.settle(nothing)
        assert [len(health.healthy) for health in balanced.balancer.health] == [EAGER]


def known(number: int, *, ipv6: bool = False) -> EndpointState:
    if ipv6:
        return EndpointState(f"[fd00::{number:x}]:80", f"fd00::{number:x}", 80)
    return EndpointState(key(number), key(number).removesuffix(":80"), 80)


class TestMembership:
    @pytest.mark.parametrize("kind", ["lazy", "lazy ipv6", "plain"])
    def test_what_is_there_is_found_where_it_stands(self, kind: str) -> None:
        ipv6 = kind == "lazy ipv6"
        place = locality(1, 3000) if kind == "plain" else wire(3000, first=1, ipv6=ipv6).localities[0]
        endpoints = place.endpoints
        states = [known(number, ipv6=ipv6) for number in (1, 700, 1024, 1025, 3000, 3001, 9000)]
        pauses: list[int] = []
        found = list(find(endpoints, states, lambda: pauses.append(1)))
        assert [index for index, _ in found] == [0, 699, 1023, 1024, 2999]
        assert [state for _, state in found] == states[:5]
        assert len(pauses) == (3 if kind == "lazy" else 3 + 47)

    def test_nothing_is_looked_for_in_vain(self) -> None:
        class Untouchable(tuple[Endpoint, ...]):
            __slots__ = ()

            def __len__(self) -> int:
                raise AssertionError

        assert list(find(Untouchable(), [])) == []

    def test_no_endpoint_is_made(self) -> None:
        endpoints = wire(2000).localities[0].endpoints
        list(find(endpoints, [known(5)]))
        assert not endpoints._made  # type: ignore[attr-defined]


class TestLargeAssignments:
    def test_a_push_of_100_000_makes_only_what_is_picked(self) -> None:
        assignment = wire(100_000)
        balanced = Balanced(assignment.localities)
        picked = balanced.counts(50)
        assert len(picked) == 50
        assert len(balanced.state.endpoints) == 50
        assert len(assignment.localities[0].endpoints._made) <= 51  # type: ignore[attr-defined]
        balanced.again(wire(100_000).localities)
        assert len(balanced.state.endpoints) == 50
        balanced.balancer.settle(nothing)
        assert len(balanced.state.endpoints) == 50
        assert not any(endpoint.departed for endpoint in balanced.state.endpoints.values())

    def test_hosts_that_left_are_told_apart(self) -> None:
        balanced = Balanced(wire(100).localities)
        balanced.counts(100)
        balanced.state.endpoints[key(3)].active = 1
        kept = balanced.state.endpoints[key(60)]
        balanced.again(wire(100, first=50).localities)
        balanced.balancer.settle(nothing)
        assert set(balanced.state.endpoints) == {key(3), *(key(number) for number in range(50, 100))}
        assert balanced.state.endpoints[key(3)].departed
        assert balanced.state.endpoints[key(60)] is kept
        assert not kept.departed


def test_weighted_health() -> None:
    hosts = locality(1, 2, bad=1, weights=(1, 9))
    other = locality(11, 1, priority=1)
    balanced = Balanced([hosts, other], assignment={"weighted_priority_health": True})
    assert near(balanced.counts(2_000)[key(1)], 2_000 * 0.14, 2_000)
    plain = Balanced([hosts, other])
    assert near(plain.counts(2_000)[key(1)], 2_000 * 0.70, 2_000)


def test_threads_pick_while_hosts_come_and_go() -> None:
    balanced = Balanced([locality(1, 8), locality(11, 4, priority=1)])
    balanced.counts(40)
    stop = threading.Event()
    failures: list[object] = []

    def pick() -> None:
        try:
            while not stop.is_set():
                if balanced.pick() is None:
                    failures.append("no host")
        except Exception as error:  # noqa: BLE001
            failures.append(error)

    threads = [threading.Thread(target=pick) for _ in range(3)]
    for thread in threads:
        thread.start()
    for turn in range(400):
        balanced.eject(1 + turn % 8, ejected=turn % 3 != 0)
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures


def test_an_empty_locality_is_no_trouble() -> None:
    balanced = Balanced(
        [LocalityEndpoints(endpoints=()), locality(1, 2), LocalityEndpoints(endpoints=(), weight=3)]
    )
    assert balanced.counts(10) == {key(1): 5, key(2): 5}


def test_metadata_follows_the_latest_assignment() -> None:
    """What a host is connected to with must not be what an earlier assignment said, whoever knows the host already."""

    def labelled(metadata: Any) -> LocalityEndpoints:
        host = Endpoint("10.0.0.1", 80, transport_socket_metadata=metadata)
        return LocalityEndpoints(endpoints=(host,), has_metadata=bool(metadata))

    state = ClusterState("c", Registry())
    labels: list[Any] = [
        NO_METADATA,
        SocketMetadata({}, {"zone": "plain"}),
        NO_METADATA,
        {"mode": 1.0},
        {"mode": True},
        SocketMetadata({"mode": True}, {"zone": "z"}),
        SocketMetadata({"mode": True}),
    ]
    known: list[Any] = []
    for metadata in labels:
        table = HostTable([labelled(metadata)], state)
        table.adopt(known)
        host = table.host(0)
        assert host.metadata is metadata
        known = [host]
    for metadata in labels:  # and where nobody adopts
        assert HostTable([labelled(metadata)], state).host(0).metadata is metadata


def test_the_workload_follows_the_latest_assignment() -> None:
    def worked(workload: str) -> LocalityEndpoints:
        host = Endpoint("10.0.0.1", 80, workload=workload)
        return LocalityEndpoints(endpoints=(host,), has_metadata=bool(workload))

    state = ClusterState("c", Registry())
    known: list[Any] = []
    for workload in ("a;n;a;v1;", "b;n;b;v1;", "", "a;n;a;v1;"):
        table = HostTable([worked(workload)], state)
        table.adopt(known)
        assert all(host.workload == workload for host in known)
        known = [table.host(0)]
        assert known[0].workload == workload

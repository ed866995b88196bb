"""Balancing by hash: the request's hash chooses the priority, and then the host in that priority's table.

There is one table for each priority, of its healthy hosts, or of all of them in panic; degraded hosts are in none, as in
Envoy. A request without a hash gets a random one. Weights are made fractions of the whole in Envoy's order of arithmetic:
of the priority, or, with locality weights, of the locality, which has its own fraction; a locality without a weight has no
host in the table, and if none has one the table is empty.

Tables are made when the cluster is compiled, and again when a host is ejected or taken back. A table that would be made of
the same names and weights as one of the last few is that one, across pushes too. An ejection is found by a call, which must
not wait for a large table: it has it made on the publishing thread, and until then the keys of an ejected host go to another
one, the same for the same key.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from random import Random

from meshlib.balance.balancer import LoadBalancer, no_pause
from meshlib.balance.bounded_load import bounded
from meshlib.balance.hosts import HostTable
from meshlib.balance.maglev import Maglev, build_maglev
from meshlib.balance.priorities import Loads
from meshlib.balance.ring_hash import Ring, build_ring
from meshlib.resources.cluster import Cluster, HashingConfig, MaglevConfig, RingHashConfig
from meshlib.resources.endpoint import ClusterLoadAssignment, Locality
from meshlib.routing.hash_policy import compile_hash_policy
from meshlib.runtime.threads import Slicer
from meshlib.state import ClusterState, EndpointState

__all__ = ["HashingLoadBalancer"]

KEPT = 4
"""How many tables of a cluster are kept for when the same hosts are back."""

SMALL = 8192
"""Where the tables had so many entries, the next one is made at once (3 ms), by whoever needs it."""

TRIES = 16
"""How many other places are looked at for a host that is not ejected."""

Defer = Callable[[Callable[[], None]], None]

ChooseBy = Callable[[int], EndpointState | None]


@dataclass(frozen=True, slots=True)
class _Made:
    """A table and what it was made of. config: without what does not go into it."""

    config: HashingConfig
    names: Sequence[str]
    weights: Sequence[float]
    table: Ring | Maglev


class HashingLoadBalancer(LoadBalancer):
    """RING_HASH and MAGLEV."""

    __slots__ = ("_choose_by", "_defer", "_made", "_policy", "_stale_in", "hash_of")

    hashed = True

    def __init__(
        self,
        cluster: Cluster,
        assignment: ClusterLoadAssignment | None,
        state: ClusterState,
        random: Random,
        *,
        previous: LoadBalancer | None = None,
        pause: Callable[[], None] = no_pause,
        defer: Defer | None = None,
    ) -> None:
        """previous: the cluster's balancer before this push, whose tables may still be right.

        defer: runs a task on the publishing thread a little later; None where there is none.
        """
        policy = cluster.lb_policy
        assert isinstance(policy, HashingConfig)
        self._policy = policy
        self.hash_of = compile_hash_policy(policy.hash_policy)
        self._made: tuple[_Made, ...] = previous._made if isinstance(previous, HashingLoadBalancer) else ()
        self._stale_in = 0
        self._defer: Defer | None = None
        super().__init__(cluster, assignment, state, random, pause=pause)
        self._defer = defer

    def pick(self, now: float, hash_value: int | None = None) -> EndpointState | None:
        if hash_value is None:
            hash_value = self._random.getrandbits(64)
        endpoint = self._choose_by(hash_value)
        if endpoint is None or not endpoint.ejected or self._panic:
            return endpoint
        self.refresh()
        endpoint = self._choose_by(hash_value)
        if self._stale_in:
            for number in range(1, TRIES + 1):
                if endpoint is None or not endpoint.ejected:
                    break
                endpoint = self._choose_by(hash_value ^ (2**64 - number))
        return endpoint

    def refresh(self, pause: Callable[[], None] = no_pause) -> None:
        if self._defer is None or all(len(made.table.owners) <= SMALL for made in self._made):
            super().refresh(pause)
        elif self._stale_in != os.getpid():  # a task that a fork left behind runs nowhere
            self._stale_in = os.getpid()
            self._defer(self._catch_up)

    def _catch_up(self) -> None:
        self._stale_in = 0
        super().refresh(Slicer().pause)

    def _adopt(self, loads: Loads, pause: Callable[[], None]) -> None:
        places = [
            self._place(priority, panic=panic, pause=pause) for priority, panic in enumerate(loads.panic)
        ]
        if len(places) < 2:
            self._choose_by = places[0] if places else lambda _: None
            return
        ends = list(accumulate((*loads.healthy, *loads.degraded)))
        order = (*places, *places)
        self._choose_by = lambda hash_value: order[bisect_left(ends, hash_value % 100 + 1)](hash_value)

    def _place(self, priority: int, *, panic: bool, pause: Callable[[], None]) -> ChooseBy:
        """The hosts of one priority."""
        hosts = self._tables[priority]
        members = self._used(hosts, range(hosts.size) if panic else self.health[priority].healthy)
        if self._cluster.locality.locality_weighted:
            members, weights = _by_locality(hosts, members)
        else:
            weights = _fractions(hosts, members, 1.0)
        pick: Callable[[int], int | None] | None = None
        if weights:
            names = hosts.names(hostnames=self._policy.use_hostname_for_hashing, pause=pause)
            pick = self._pick(hosts, members, [names[position] for position in members], weights, pause)
        counter = self._state.stats.lb_healthy_panic
        known, make = hosts.known, hosts.host

        def choose(hash_value: int) -> EndpointState | None:
            if panic:
                counter.value += 1
            index = None if pick is None else pick(hash_value)
            if index is None:
                return None
            position = members[index]
            return known[position] or make(position)

        return choose

    def _pick(
        self,
        hosts: HostTable,
        members: Sequence[int],
        names: Sequence[str],
        weights: Sequence[float],
        pause: Callable[[], None],
    ) -> Callable[[int], int | None]:
        """From a hash to an index into the members."""
        table = self._table(names, weights, pause)
        factor = self._policy.hash_balance_factor
        if not factor:
            return table.pick
        known, state = hosts.known, self._state

        def active(index: int) -> int:
            host = known[members[index]]
            return 0 if host is None else host.active

        return bounded(
            table.pick, weights, factor, active, lambda: state.default.requests + state.high.requests
        )

    def _table(
        self, names: Sequence[str], weights: Sequence[float], pause: Callable[[], None]
    ) -> Ring | Maglev:
        config = replace(self._policy, hash_balance_factor=0, hash_policy=(), use_hostname_for_hashing=False)
        for made in self._made:
            if made.config == config and made.names == names and made.weights == weights:
                break
        else:
            table = (
                build_ring(config, names, weights, pause)
                if isinstance(config, RingHashConfig)
                else build_maglev(_maglev(config), names, weights, pause)
            )
            made = _Made(config, names, weights, table)
        self._made = (made, *(each for each in self._made if each is not made))[:KEPT]
        self._show(made.table)
        return made.table

    def _show(self, table: Ring | Maglev) -> None:
        """The figures of the table that was made last, as in Envoy."""
        gauge = self._state.gauge
        if isinstance(table, Ring):
            gauge("ring_hash_lb.size").value = float(table.size)
            gauge("ring_hash_lb.min_hashes_per_host").value = float(table.least)
            gauge("ring_hash_lb.max_hashes_per_host").value = float(table.most)
        else:
            gauge("maglev_lb.min_entries_per_host").value = float(table.least)
            gauge("maglev_lb.max_entries_per_host").value = float(table.most)


def _maglev(config: HashingConfig) -> MaglevConfig:
    assert isinstance(config, MaglevConfig)
    return config


def _fractions(hosts: HostTable, members: Sequence[int], whole: float) -> list[float]:
    """The members' weights as fractions of `whole`. Envoy's order: weight * whole / sum."""
    weights = hosts.weights()
    if weights is None:
        weight = hosts.common_weight
        return [weight * whole / (weight * len(members))] * len(members) if members else []
    total = sum(weights[position] for position in members)
    return [weights[position] * whole / total for position in members]


def _by_locality(hosts: HostTable, members: Sequence[int]) -> tuple[Sequence[int], list[float]]:
    """Members by locality, in the order of their names, with their weights."""
    positions: dict[Locality, list[int]] = {}
    weight_of: dict[Locality, int] = {}
    for index, place in enumerate(hosts.localities):
        within = hosts.range_of(index)
        if not within:
            continue
        positions.setdefault(place.locality, []).extend(within)
        weight_of[place.locality] = place.weight or weight_of.get(place.locality, 0)
    total = sum(weight_of.values())
    inside = set(members)
    found: list[int] = []
    fractions: list[float] = []
    for key in sorted(positions, key=lambda each: (each.region, each.zone, each.sub_zone)):
        if weight_of[key]:
            mine = [position for position in positions[key] if position in inside]
            found += mine
            fractions += _fractions(hosts, mine, weight_of[key] / total)
    return found, fractions

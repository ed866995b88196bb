"""From a cluster to an endpoint.

The hosts of each priority fall into healthy, degraded and all. `priorities.spread` says how much of the traffic each of
these sets gets; the set's own pick (the cluster's policy, by locality where the cluster asks for it) gives the host. All of
it is worked out when the membership or a host's health changes, and swapped in as one attribute; a pick only reads it.

Ejected hosts count as unhealthy. A host that was ejected before a push is found again by its address: at once in an
assignment of up to `EAGER` endpoints; in a larger one by `settle`, or when it is first picked, which then leads to a new
pick, so that a push never has to walk 100,000 endpoints before it takes effect.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, compress
from random import Random

from meshlib.balance.edf import EdfScheduler
from meshlib.balance.hosts import HostTable
from meshlib.balance.policies import make_pick
from meshlib.balance.priorities import Loads, Membership, spread
from meshlib.balance.subsetting import subset
from meshlib.resources.cluster import Cluster, HashingConfig
from meshlib.resources.endpoint import ClusterLoadAssignment
from meshlib.routing.hash_policy import HashOf
from meshlib.state import ClusterState, EndpointState

__all__ = ["LoadBalancer", "no_pause"]

EAGER = 10_000

Choose = Callable[[], EndpointState | None]


def no_pause() -> None:
    """For work that nobody waits behind."""


@dataclass(frozen=True, slots=True)
class _Health:
    """The positions of one priority by health; sequences in ascending order.

    draining: those that are not counted. total: the number of all of them.
    """

    healthy: Sequence[int]
    degraded: Sequence[int]
    draining: Sequence[int]
    total: int


class LoadBalancer:
    """Picks the endpoint of each attempt for one version of a cluster and its endpoints.

    hashed: whether a pick asks for the hash of the request. hash_of: the policy's own way to hash, None leaves it to the
    route.
    """

    hashed = False
    hash_of: HashOf | None = None

    __slots__ = (
        "_assignment",
        "_choose",
        "_cluster",
        "_lock",
        "_panic",
        "_random",
        "_state",
        "_tables",
        "health",
    )

    def __init__(
        self,
        cluster: Cluster,
        assignment: ClusterLoadAssignment | None,
        state: ClusterState,
        random: Random,
        *,
        pause: Callable[[], None] = no_pause,
    ) -> None:
        """assignment None: no endpoints are known, every pick gives None. pause: called between slices of long work."""
        self._cluster = cluster
        self._assignment = assignment
        self._state = state
        self._random = random
        self._lock = threading.Lock()
        localities = assignment.localities if assignment is not None else ()
        count = 1 + max((locality.priority for locality in localities), default=-1)
        self._tables = [
            HostTable([each for each in localities if each.priority == priority], state)
            for priority in range(count)
        ]
        self.refresh(pause)

    def pick(self, now: float, hash_value: int | None = None) -> EndpointState | None:
        """The endpoint of the next attempt; None when there is no healthy upstream.

        hash_value: of the request, where the policy is `hashed`; None: it has none, and goes to a random host.
        """
        endpoint = self._choose()
        if endpoint is None or not endpoint.ejected or self._panic:
            return endpoint
        # Ejected since the last refresh, or before the push that brought this assignment and met only now.
        self.refresh()
        return self._choose()

    @property
    def size(self) -> int:
        """How many endpoints there are, whatever their health."""
        return sum(table.size for table in self._tables)

    def refresh(self, pause: Callable[[], None] = no_pause) -> None:
        """A host was ejected or taken back: work out the loads and picks again."""
        with self._lock:
            for table in self._tables:
                self._ranks(table, pause)
            if self.size <= EAGER:
                self._adopt_ejected()
            self.health = [self._health_of(table) for table in self._tables]
            self._show_members()
            loads = self._loads()
            self._panic = any(loads.panic)
            self._adopt(loads, pause)

    def settle(self, pause: Callable[[], None]) -> None:
        """After publication: tell the endpoints that have left the assignment from those that are still in it.

        Only endpoints that were picked at some time are looked for. pause: called between slices of the work.
        """
        known = list(self._state.endpoints.values())
        present: set[str] = set()
        for table in self._tables:
            present |= table.present(known, pause)
        self._state.depart(known, present)
        if any(endpoint.ejected and not endpoint.departed for endpoint in known):
            self._adopt_ejected()
            self.refresh()

    def renew_lock(self) -> None:
        """In a forked child: another thread of the parent may have been in `refresh`. A subset is of each process's own."""
        self._lock = threading.Lock()
        if self._cluster.locality.subset_size is not None:
            self._state.subset_seed = None
            self._choose = self._choose_anew

    def _choose_anew(self) -> EndpointState | None:
        self.refresh()
        return self._choose()

    # --- membership --------------------------------------------------------------------------------------------------

    def _adopt_ejected(self) -> None:
        """Find the ejected hosts that no call has met in this assignment."""
        strangers = [
            endpoint
            for endpoint in list(self._state.endpoints.values())
            if endpoint.ejected
            and not endpoint.departed
            and not any(table.positions(endpoint) for table in self._tables)
        ]
        if strangers:
            for table in self._tables:
                table.adopt(strangers)

    def _show_members(self) -> None:
        members = (
            ("total", sum(health.total for health in self.health)),
            ("healthy", sum(len(health.healthy) for health in self.health)),
            ("degraded", sum(len(health.degraded) for health in self.health)),
            ("excluded", sum(len(health.draining) for health in self.health)),
        )
        for name, number in members:
            self._state.gauge(f"membership_{name}").value = float(number)

    def _health_of(self, table: HostTable) -> _Health:
        unhealthy: list[int] = []
        degraded: list[int] = []
        draining: list[int] = []
        for index, locality in enumerate(table.localities):
            base = table.range_of(index).start
            unhealthy.extend([base + each for each in locality.unhealthy] if base else locality.unhealthy)
            degraded.extend([base + each for each in locality.degraded] if base else locality.degraded)
            draining.extend(base + each for each in locality.draining)
        ejected: set[int] = set()
        for endpoint in list(self._state.endpoints.values()):
            if endpoint.ejected:
                ejected.update(table.positions(endpoint))
        if not unhealthy and not degraded and not ejected:
            return _Health(range(table.size), (), (), table.size)
        out = ejected.union(unhealthy)
        left = [position for position in degraded if position not in out] if degraded else []
        out.update(degraded)
        return _Health(_without(table.size, out), left, draining, table.size)

    def _loads(self) -> Loads:
        locality = self._cluster.locality
        assignment = self._assignment
        weighted = assignment is not None and assignment.weighted_priority_health
        return spread(
            [
                _membership(table.weights() if weighted else None, health)
                for table, health in zip(self._tables, self.health, strict=True)
            ],
            factor=140 if assignment is None else assignment.overprovisioning_factor,
            panic_threshold=locality.healthy_panic_threshold,
        )

    # --- picks -------------------------------------------------------------------------------------------------------

    def _adopt(self, loads: Loads, pause: Callable[[], None]) -> None:
        """Let picks follow these loads from now on."""
        self._choose = self._make_choose(loads)

    def _make_choose(self, loads: Loads) -> Choose:
        shares: list[tuple[int, Choose]] = []
        for kind, load in (("healthy", loads.healthy), ("degraded", loads.degraded)):
            for priority, percent in enumerate(load):
                if percent:
                    shares.append((percent, self._choose_in(priority, kind, panic=loads.panic[priority])))
        if not shares:
            panics = self._assignment is not None and self._cluster.locality.healthy_panic_threshold > 0
            return self._counted(_none) if panics else _none
        if len(shares) == 1:
            return shares[0][1]
        return self._by_share(shares)

    def _by_share(self, shares: Sequence[tuple[int, Choose]]) -> Choose:
        ends = list(accumulate(percent for percent, _ in shares))
        choices = [choose for _, choose in shares]
        draw = self._random.random

        def choose() -> EndpointState | None:
            return choices[bisect_left(ends, int(draw() * 100) + 1)]()

        return choose

    def _choose_in(self, priority: int, kind: str, *, panic: bool) -> Choose:
        table = self._tables[priority]
        health = self.health[priority]
        if panic:
            if self._cluster.locality.fail_traffic_on_panic:
                return self._counted(_none)
            return self._counted(self._among(table, self._used(table, range(table.size))))
        members = health.healthy if kind == "healthy" else health.degraded
        if self._cluster.locality.locality_weighted:
            return self._by_locality(table, members)
        return self._among(table, self._used(table, members))

    def _used(self, table: HostTable, members: Sequence[int]) -> Sequence[int]:
        """Those of the members that this process calls."""
        size = self._cluster.locality.subset_size
        return members if size is None else subset(members, size, self._ranks(table, no_pause))

    def _ranks(self, table: HostTable, pause: Callable[[], None]) -> Sequence[int]:
        """Of each host of the table, where the cluster asks for a subset."""
        if self._cluster.locality.subset_size is None:
            return ()
        state, policy = self._state, self._cluster.lb_policy
        if state.subset_seed is None:
            state.subset_seed = self._random.getrandbits(64)
        hostnames = isinstance(policy, HashingConfig) and policy.use_hostname_for_hashing
        return table.ranks(state.subset_seed, hostnames=hostnames, pause=pause)

    def _counted(self, choose: Choose) -> Choose:
        counter = self._state.stats.lb_healthy_panic

        def count() -> EndpointState | None:
            counter.value += 1
            return choose()

        return count

    def _among(self, table: HostTable, members: Sequence[int]) -> Choose:
        if not members:
            return _none
        weights = table.weights()
        if weights is not None and len(members) != table.size:
            weights = [weights[position] for position in members]
        pick = make_pick(self._cluster.lb_policy, table, members, weights, self._random)
        known = table.known
        make = table.host

        def choose() -> EndpointState | None:
            position = pick()
            return known[position] or make(position)

        return choose

    def _by_locality(self, table: HostTable, members: Sequence[int]) -> Choose:
        """Localities by weight * min(1, factor * available / total); one without weight gets nothing.

        Where none has a weight, they do not matter (Envoy then has no locality scheduler).
        """
        assignment = self._assignment
        assert assignment is not None
        of_each = self._cluster.locality.subset_of_locality
        used = members if of_each else self._used(table, members)
        weights: list[float] = []
        choices: list[Choose] = []
        for index, locality in enumerate(table.localities):
            positions = table.range_of(index)
            mine = _within(members, positions)
            called = self._used(table, mine) if of_each else _within(used, positions)
            if not called or not locality.weight:
                continue
            counted = len(positions) - len(locality.draining)
            available = assignment.overprovisioning_factor / 100 * len(mine) / counted
            weights.append(locality.weight * min(1.0, available))
            choices.append(self._among(table, called))
        if not choices:
            return self._among(table, self._used(table, members))
        if len(choices) == 1:
            return choices[0]
        scheduler = EdfScheduler(range(len(choices)), weights.__getitem__)
        for _ in range(self._random.randrange(len(choices))):
            scheduler.pick()

        def choose() -> EndpointState | None:
            return choices[scheduler.pick()]()

        return choose


def _none() -> EndpointState | None:
    return None


def _without(size: int, out: set[int]) -> list[int]:
    """The positions 0 .. size-1 that are not in `out`."""
    keep = bytearray(b"\x01") * size
    for position in out:
        keep[position] = 0
    return list(compress(range(size), keep))


def _within(members: Sequence[int], positions: range) -> Sequence[int]:
    """The members, in ascending order, that lie in the range."""
    if isinstance(members, range):
        return range(max(members.start, positions.start), min(members.stop, positions.stop))
    return members[bisect_left(members, positions.start) : bisect_left(members, positions.stop)]


def _membership(weights: Sequence[int] | None, health: _Health) -> Membership:
    """weights: by position, where they count instead of the number of hosts."""
    healthy, degraded = len(health.healthy), len(health.degraded)
    total = health.total - len(health.draining)
    percent = 100.0 * (healthy + degraded) / total if total else 0.0
    if weights is not None:
        healthy, degraded = (
            sum(weights[position] for position in some) for some in (health.healthy, health.degraded)
        )
        total = sum(weights) - sum(weights[position] for position in health.draining)
    return Membership(total, healthy, degraded, hosts=health.total, percent_up=percent)

"""The hosts of one priority, made one by one when they are picked.

A host is known by its position: the localities of the priority one after the other. Its EndpointState is looked up at the
first use, so that a push of 100,000 endpoints makes no object for those that no call reaches.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate

from meshlib.balance.membership import SLICE, find
from meshlib.balance.subsetting import ranks
from meshlib.resources.endpoint import LocalityEndpoints
from meshlib.resources.endpoint_wire import LazyEndpoints, hash_name
from meshlib.state import ClusterState, EndpointState

__all__ = ["HostTable"]


class HostTable:
    """localities: all of one priority. known: EndpointState by position, None for a host that was not picked yet."""

    __slots__ = ("_ends", "_names", "_ranks", "_state", "_where", "known", "localities", "size")

    def __init__(self, localities: Sequence[LocalityEndpoints], state: ClusterState) -> None:
        self.localities = localities
        self._state = state
        self._ends = list(accumulate(len(locality.endpoints) for locality in localities))
        self.size = self._ends[-1] if self._ends else 0
        self.known: list[EndpointState | None] = [None] * self.size
        self._where: dict[str, tuple[int, ...]] = {}
        self._names: list[str] | None = None
        self._ranks: tuple[int, list[int]] | None = None

    def host(self, position: int) -> EndpointState:
        """The host at this position."""
        found = self.known[position]
        return self._make(position) if found is None else found

    def positions(self, endpoint: EndpointState) -> Sequence[int]:
        """Where a host stands that was picked from this table or adopted; several times when its address does."""
        return self._where.get(endpoint.key, ())

    def adopt(self, states: Iterable[EndpointState]) -> None:
        """Find the hosts with these states, wherever they stand."""
        states = tuple(states)
        for index, locality in enumerate(self.localities):
            first = self.range_of(index).start
            for offset, state in find(locality.endpoints, states):
                if locality.has_metadata or state.metadata or state.workload:
                    endpoint = locality.endpoints[offset]
                    self._state.describe(state, endpoint.transport_socket_metadata)
                    state.workload = endpoint.workload
                self._know(first + offset, state)

    def present(self, states: Iterable[EndpointState], pause: Callable[[], None]) -> set[str]:
        """The keys of those of the states that stand here."""
        states = tuple(states)
        return {
            state.key for locality in self.localities for _, state in find(locality.endpoints, states, pause)
        }

    def range_of(self, index: int) -> range:
        """The positions of one locality."""
        return range(self._ends[index - 1] if index else 0, self._ends[index])

    def weights(self) -> list[int] | None:
        """One weight for each position, None when all are equal."""
        each = {
            locality.endpoints[0].weight if locality.weights is None else 0 for locality in self._filled()
        }
        if len(each) <= 1 and 0 not in each:
            return None
        weights: list[int] = []
        for locality in self._filled():
            if locality.weights is not None:
                weights.extend(locality.weights)
            else:
                weights.extend([locality.endpoints[0].weight] * len(locality.endpoints))
        return weights

    @property
    def common_weight(self) -> int:
        """The weight of every host, where all are equal."""
        return next((locality.endpoints[0].weight for locality in self._filled()), 1)

    def names(self, *, hostnames: bool, pause: Callable[[], None]) -> list[str]:
        """What each host is known by to the policies that hash, by position. hostnames: always the same for one table.

        pause: called between slices.
        """
        if self._names is None:
            names: list[str] = []
            for locality in self._filled():
                endpoints = locality.endpoints
                for start in range(0, len(endpoints), SLICE):
                    stop = min(start + SLICE, len(endpoints))
                    if isinstance(endpoints, LazyEndpoints):
                        names += endpoints.names(start, stop, hostnames=hostnames)
                    else:
                        names += [hash_name(each, hostnames=hostnames) for each in endpoints[start:stop]]
                    pause()
            self._names = names
        return self._names

    def ranks(self, seed: int, *, hostnames: bool, pause: Callable[[], None]) -> list[int]:
        """The rank of each host in this process, by position. hostnames, pause: as for `names`."""
        known = self._ranks
        if known is None or known[0] != seed:
            known = seed, ranks(self.names(hostnames=hostnames, pause=pause), seed, pause)
            self._ranks = known
        return known[1]

    def _filled(self) -> list[LocalityEndpoints]:
        return [locality for locality in self.localities if len(locality.endpoints)]

    def _make(self, position: int) -> EndpointState:
        index = bisect_right(self._ends, position)
        endpoint = self.localities[index].endpoints[position - self.range_of(index).start]
        state = self._state.endpoint(
            endpoint.key,
            endpoint.address,
            endpoint.port,
            endpoint.hostname,
            endpoint.transport_socket_metadata,
        )
        state.workload = endpoint.workload
        self._know(position, state)
        return state

    def _know(self, position: int, state: EndpointState) -> None:
        places = self._where.get(state.key, ())
        if position not in places:
            self._where[state.key] = (*places, position)
        self.known[position] = state

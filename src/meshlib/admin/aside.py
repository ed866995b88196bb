"""The configuration in force for a question: to be asked changes nothing for the calls that go on.

A pick moves a balancer on: the next call would go elsewhere than it would have gone. So a question gets balancers of its own,
made when they are asked for, which see the same endpoints, ejections and loads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from random import Random

from meshlib.balance.factory import make_balancer
from meshlib.engine.program import ClusterProgram, Program

__all__ = ["aside"]


def aside(program: Program, random: Random) -> Program:
    """random: for the picks."""
    clusters = _Clusters(program.clusters, random)
    return Program(program.snapshot, program.listeners, clusters, program.sole)


class _Clusters(Mapping[str, ClusterProgram]):
    def __init__(self, clusters: Mapping[str, ClusterProgram], random: Random) -> None:
        self._clusters = clusters
        self._random = random

    def __getitem__(self, name: str) -> ClusterProgram:
        found = self._clusters[name]
        if found.balancer.hashed:  # a pick by hash moves nothing, and its table is dear
            return found
        own = make_balancer(found.cluster, found.assignment, found.state, self._random)
        return ClusterProgram(
            found.cluster,
            found.assignment,
            found.awaited,
            found.state,
            own,
            found.outlier,
            found.breaker,
            found.secure_by,
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self._clusters)

    def __len__(self) -> int:
        return len(self._clusters)

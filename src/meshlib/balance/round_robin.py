"""ROUND_ROBIN: in turn for equal weights, otherwise by Envoy's EDF schedule. The start is random, as in Envoy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count, cycle
from random import Random

from meshlib.balance.edf import EdfScheduler, cycle_of
from meshlib.balance.hosts import HostTable
from meshlib.resources.cluster import RoundRobinConfig

__all__ = ["round_robin"]

FEW = 64
"""Up to so many hosts the turns are written down."""


def round_robin(
    policy: RoundRobinConfig,
    hosts: HostTable,
    members: Sequence[int],
    weights: Sequence[int] | None,
    random: Random,
) -> Callable[[], int]:
    if weights is None:
        return _in_turn(members, random)
    cycle = cycle_of(members, weights)
    if cycle is not None:
        return _in_turn(cycle, random)
    weight_of = dict(zip(members, weights, strict=True))
    scheduler = EdfScheduler(members, lambda position: float(weight_of[position]))
    for _ in range(random.randrange(len(members))):
        scheduler.pick()
    return scheduler.pick


def _in_turn(order: Sequence[int], random: Random) -> Callable[[], int]:
    # `next` on a C iterator is one atomic step under the GIL: no lock, and no two threads get the same turn.
    size = len(order)
    start = random.randrange(size)
    if size <= FEW:
        return cycle([*order[start:], *order[:start]]).__next__
    turn = count(start).__next__
    return lambda: order[turn() % size]

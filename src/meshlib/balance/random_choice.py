"""RANDOM: uniform; weights are ignored, as in Envoy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from meshlib.balance.hosts import HostTable
from meshlib.resources.cluster import RandomConfig

__all__ = ["random_choice"]


def random_choice(
    policy: RandomConfig,
    hosts: HostTable,
    members: Sequence[int],
    weights: Sequence[int] | None,
    random: Random,
) -> Callable[[], int]:
    size = len(members)
    draw = random.random
    return lambda: members[int(draw() * size)]

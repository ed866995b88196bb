"""The table of load-balancing policies. A new policy is a module with its picker and one line here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from meshlib.balance.hosts import HostTable
from meshlib.balance.least_request import least_request
from meshlib.balance.random_choice import random_choice
from meshlib.balance.round_robin import round_robin
from meshlib.resources.cluster import LbPolicy, LeastRequestConfig, RandomConfig, RoundRobinConfig

__all__ = ["PICKERS", "Pick", "make_pick"]

Pick = Callable[[], int]
"""Gives the position of the next host. Thread safe, O(1) or O(log n)."""

PICKERS: dict[type[Any], Callable[[Any, HostTable, Sequence[int], Sequence[int] | None, Random], Pick]] = {
    RoundRobinConfig: round_robin,
    LeastRequestConfig: least_request,
    RandomConfig: random_choice,
}


def make_pick(
    policy: LbPolicy, hosts: HostTable, members: Sequence[int], weights: Sequence[int] | None, random: Random
) -> Pick:
    """The pick of this policy among the members.

    members: positions in hosts, never empty. weights: one for each member, None when all are equal.
    """
    if weights is not None and min(weights) == max(weights):
        weights = None
    return PICKERS[type(policy)](policy, hosts, members, weights, random)

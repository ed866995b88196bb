"""LEAST_REQUEST: the least loaded of a few random hosts; with weights, EDF by weight / (active + 1) ** bias."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from meshlib.balance.edf import EdfScheduler
from meshlib.balance.hosts import HostTable
from meshlib.resources.cluster import LeastRequestConfig

__all__ = ["least_request"]


def least_request(
    policy: LeastRequestConfig,
    hosts: HostTable,
    members: Sequence[int],
    weights: Sequence[int] | None,
    random: Random,
) -> Callable[[], int]:
    """Equal weights: choice_count hosts are drawn with replacement, the first of the least active ones wins.

    An explicit active_request_bias forces the weighted mode (Envoy 1.40).
    """
    if weights is None and policy.active_request_bias is None:
        return _least_of(policy.choice_count, hosts, members, random)
    bias = 1.0 if policy.active_request_bias is None else policy.active_request_bias
    weight_of = dict.fromkeys(members, 1) if weights is None else dict(zip(members, weights, strict=True))

    def weight(position: int) -> float:
        known = hosts.known[position]
        active = 0 if known is None else known.active
        return weight_of[position] / (active + 1) ** bias if bias else float(weight_of[position])

    return EdfScheduler(members, weight).pick


def _least_of(choices: int, hosts: HostTable, members: Sequence[int], random: Random) -> Callable[[], int]:
    size = len(members)
    draw = random.random
    known = hosts.known

    def pick() -> int:
        best = members[int(draw() * size)]
        host = known[best]
        least = 0 if host is None else host.active
        for _ in range(choices - 1):
            position = members[int(draw() * size)]
            host = known[position]
            active = 0 if host is None else host.active
            if active < least:
                best, least = position, active
        return best

    return pick

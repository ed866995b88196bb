"""`hash_balance_factor`: a host that has more than its share of the requests under way is passed over.

A host may have `ceil(weight * ceil((requests + 1) * factor / 100))` requests, at least one. If the host of the hash has more,
the others are tried in an order that only depends on the hash, so that the same key moves to the same host each time: a
shuffle by a Mersenne twister that starts from the hash. When all have more, the one that is least over its share is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import ceil
from random import Random

__all__ = ["bounded", "shuffled"]

_STATE = 624


def bounded(
    pick: Callable[[int], int | None],
    weights: Sequence[float],
    factor: int,
    active: Callable[[int], int],
    total: Callable[[], int],
) -> Callable[[int], int | None]:
    """`pick` within bounds. weights: of the hosts, their sum is 1. active: requests under way to a host; total: to all."""

    def load(host: int) -> float:
        slots = max(ceil(((total() + 1) * factor + 99) // 100 * weights[host]), 1)
        return active(host) / slots

    def choose(hash_value: int) -> int | None:
        first = pick(hash_value)
        if first is None:
            return None
        least = load(first)
        if least <= 1.0:
            return first
        best = first
        for host in shuffled(hash_value, len(weights)):
            if host == first:
                continue
            over = load(host)
            if over <= 1.0:
                return host
            if over < least:
                best, least = host, over
        return best

    return choose


def shuffled(seed: int, size: int) -> Iterator[int]:
    """The numbers 0 .. size-1 in the order that C++'s `std::mt19937(seed)` and Envoy's shuffle give."""
    draw = _mt19937(seed).getrandbits
    order = list(range(size))
    for index in range(size):
        left = size - index
        width = 2**32 // left
        jump = left
        while jump >= left:
            jump = draw(32) // width
        order[index], order[index + jump] = order[index + jump], order[index]
        yield order[index]


def _mt19937(seed: int) -> Random:
    """Python's generator in the state that C++'s gives itself: Python's own seeding is another."""
    state = [seed & 0xFFFFFFFF]
    for index in range(1, _STATE):
        before = state[-1]
        state.append((1812433253 * (before ^ before >> 30) + index) & 0xFFFFFFFF)
    generator = Random()
    generator.setstate((3, (*state, _STATE), None))
    return generator

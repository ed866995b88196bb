"""The choice among weighted clusters (config.route.v3.WeightedCluster)."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from itertools import accumulate
from random import Random

from meshlib.resources.route import WeightedClusters
from meshlib.routing.hash_policy import HashOf
from meshlib.routing.numbers import parse_unsigned
from meshlib.routing.request import RequestView

__all__ = ["Choice", "compile_choice"]

Choice = Callable[[RequestView, Random], int]
"""The index of the entry that this request goes to."""


def compile_choice(weighted: WeightedClusters, hash_of: HashOf | None = None) -> Choice:
    """Intervals in list order: entry i has [sum of the weights before it, + its own) of `value % total`.

    The value is the request's random number, or what header_name says: exactly one value, an unsigned 64-bit decimal
    number; or with use_hash_policy what `hash_of`, the route's hash policy, gives. Anything else falls back to the random
    number.
    """
    ends = list(accumulate(entry.weight for entry in weighted.clusters))
    total, name = ends[-1], weighted.header_name

    def at_random(request: RequestView, random: Random) -> int:
        number = request.draw(random) % total
        for index, end in enumerate(ends):  # nearly always two or three
            if number < end:
                return index
        raise AssertionError("a remainder is less than what it is one of")

    if weighted.use_hash_policy and hash_of is not None:

        def by_hash(request: RequestView, random: Random) -> int:
            number = hash_of(request, None)
            return at_random(request, random) if number is None else bisect_right(ends, number % total)

        return by_hash
    if name is None:
        return at_random

    def by_header(request: RequestView, random: Random) -> int:
        values = request.values(name)
        number = parse_unsigned(values[0]) if len(values) == 1 else None
        if number is not None:
            return bisect_right(ends, number % total)
        return at_random(request, random)

    return by_header

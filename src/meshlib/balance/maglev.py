"""MAGLEV: a table of a prime number of places, each of which belongs to a host; a request goes to place `hash % size`.

Every host has its own order of all places: it starts at `xxHash64(name) % size` and goes on in steps of
`xxHash64(name, 1) % (size - 1) + 1`, which meets each place once because the size is prime. The hosts, sorted by name, take
turns, and each takes the first place in its order that is still free, until none is. A host with less than the greatest
weight sits out some turns: it takes its next place in turn number t once `t * weight` has reached the greatest weight times
the number of places that it has. When a host leaves, its places go to others and few other places change hands.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence

from xxhash import xxh64_intdigest

from meshlib.resources.cluster import MaglevConfig

__all__ = ["Maglev", "build_maglev"]

SLICE = 512
"""How many places are given away between two pauses (about 0.2 ms)."""


class Maglev:
    """Immutable. owners: the host of each place, as an index into the names it was made of. least, most: places of a host."""

    __slots__ = ("least", "most", "owners")

    def __init__(self, owners: Sequence[int], *, least: int, most: int) -> None:
        self.owners = owners
        self.least = least
        self.most = most

    def pick(self, hash_value: int) -> int:
        """The host for a hash."""
        owners = self.owners
        return owners[hash_value % len(owners)]


def build_maglev(
    config: MaglevConfig, names: Sequence[str], weights: Sequence[float], pause: Callable[[], None]
) -> Maglev:
    """The table of these hosts. weights: one for each name, their sum is 1; never empty. pause: called between slices."""
    size = config.table_size
    keys = [name.encode("utf-8", "surrogateescape") for name in names]
    turns = sorted(range(len(keys)), key=keys.__getitem__)
    places = [xxh64_intdigest(keys[owner]) % size for owner in turns]
    steps = [xxh64_intdigest(keys[owner], 1) % (size - 1) + 1 for owner in turns]
    greatest = max(weights)
    shares = None if min(weights) == greatest else [weights[owner] for owner in turns]
    targets = [0.0] * len(turns)
    owners = array("I", bytes(4 * size))
    taken = bytearray(size)
    counts = [0] * len(turns)
    free, number, since = size, 0, 0
    while free:
        number += 1
        for start in range(0, len(turns), SLICE):
            for index in range(start, min(start + SLICE, len(turns))):
                if shares is not None:
                    if number * shares[index] < targets[index]:
                        continue
                    targets[index] += greatest
                place, step = places[index], steps[index]
                while taken[place]:
                    place += step
                    if place >= size:
                        place -= size
                taken[place] = 1
                owners[place] = turns[index]
                place += step
                places[index] = place - size if place >= size else place
                counts[index] += 1
                free -= 1
                if not free:
                    return Maglev(owners, least=min(counts), most=max(counts))
            since += min(len(turns), SLICE)
            if since >= SLICE:
                since = 0
                pause()
    raise AssertionError("a table has at least one place")

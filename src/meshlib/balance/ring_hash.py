"""RING_HASH: each host stands at many places of a ring of 64-bit numbers; a request goes to the next place after its hash.

A host has a share of the ring's entries that is proportional to its weight. Envoy scales the ring so that the host with the
least weight gets whole entries: `scale = min(ceil(least * minimum_ring_size) / least, maximum_ring_size)`, and then walks
the hosts in order with a running sum of `scale * weight`, giving each as many entries as bring the count up to the sum. So a
fraction of an entry that one host is owed goes to the next, and no host is short by more than one. Entry number i of a host
is the hash of `<name>_<i>`: when a host leaves, only its own entries go, and what hashed to them moves on to the next host.

The sums are doubles, and rounding decides who gets the odd entry: they are taken in exactly Envoy's order.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Callable, Sequence
from math import ceil

from xxhash import xxh64_intdigest

from meshlib.balance.murmur import murmur_hash_2
from meshlib.resources.cluster import HashFunction, RingHashConfig

__all__ = ["Ring", "build_ring"]

SLICE = 4096
"""How many entries are hashed, or sorted, between two pauses (about 0.5 ms)."""

COMPACT = 131_072
"""From so many entries on the ring is kept in 12 bytes each, which makes a pick slower by a fifth of a microsecond."""

_FUNCTIONS: dict[HashFunction, Callable[[bytes], int]] = {
    HashFunction.XX_HASH: xxh64_intdigest,
    HashFunction.MURMUR_HASH_2: murmur_hash_2,
}


class Ring:
    """Immutable. hashes: ascending. owners: the host at each, as an index into the names it was made of.

    size: what Envoy reports, the planned number of entries; least, most: entries of a host.
    """

    __slots__ = ("hashes", "least", "most", "owners", "size")

    def __init__(
        self, hashes: Sequence[int], owners: Sequence[int], *, size: int, least: int, most: int
    ) -> None:
        self.hashes = hashes
        self.owners = owners
        self.size = size
        self.least = least
        self.most = most

    def pick(self, hash_value: int) -> int | None:
        """The host for a hash; None when the ring has no entry (maximum_ring_size 0)."""
        index = bisect_left(self.hashes, hash_value)
        if index == len(self.owners):
            if not index:
                return None
            index = 0
        return self.owners[index]


def build_ring(
    config: RingHashConfig, names: Sequence[str], weights: Sequence[float], pause: Callable[[], None]
) -> Ring:
    """The ring of these hosts. weights: one for each name, their sum is 1; never empty. pause: called between slices."""
    least = min(1.0, *weights)
    scale = min(ceil(least * config.minimum_ring_size) / least, float(config.maximum_ring_size))
    function = _FUNCTIONS[config.hash_function]
    numbers: list[bytes] = []
    hashes: list[int] = []
    owners = array("I")
    fewest, most = ceil(scale), 0
    target, paused = 0.0, 0
    for owner, (name, weight) in enumerate(zip(names, weights, strict=True)):
        target += scale * weight
        count = max(0, ceil(target) - len(hashes))
        while len(numbers) < count:
            numbers.append(b"%d" % len(numbers))
        prefix = name.encode("utf-8", "surrogateescape") + b"_"
        hashes += [function(prefix + number) for number in numbers[:count]]
        owners.extend([owner] * count)
        fewest, most = min(fewest, count), max(most, count)
        if len(hashes) - paused >= SLICE:
            paused = len(hashes)
            pause()
    order = _ascending(hashes, pause)
    ring = [hashes[index] for index in order]
    return Ring(
        ring if len(ring) < COMPACT else array("Q", ring),
        array("I", [owners[index] for index in order]),
        size=ceil(scale),
        least=fewest,
        most=most,
    )


def _ascending(hashes: Sequence[int], pause: Callable[[], None]) -> list[int]:
    """The indexes in the order of the hashes, stable. Sorted in parts, since a sort holds the interpreter until it is done."""
    parts = len(hashes) // SLICE
    if parts < 2:
        return sorted(range(len(hashes)), key=hashes.__getitem__)
    shift = 64 - (parts - 1).bit_length()
    buckets: list[list[int]] = [[] for _ in range(1 << 64 - shift)]
    for index, value in enumerate(hashes):
        buckets[value >> shift].append(index)
    order: list[int] = []
    for bucket in buckets:
        bucket.sort(key=hashes.__getitem__)
        order += bucket
        pause()
    return order

"""Random subsetting (gRFC A68): of a large cluster each process calls a few endpoints only.

So it has few connections, on which calls share writes and reads, and no endpoint has a connection from every client. The
endpoints are ranked by the hash of their names with a seed of the process's own (rendezvous hashing), and the first ones that
can be picked are its subset: an endpoint that comes, goes or is ejected changes one place in it.

As in Envoy, not in gRPC, priorities and panic still go by the health of all endpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from heapq import nsmallest

import xxhash

from meshlib.balance.membership import SLICE

__all__ = ["ranks", "subset"]


def ranks(names: Sequence[str], seed: int, pause: Callable[[], None]) -> list[int]:
    """One for each name. seed: 64 bits. pause: called between slices."""
    digest = xxhash.xxh64_intdigest
    found: list[int] = []
    for start in range(0, len(names), SLICE):
        found += [digest(name.encode(), seed) for name in names[start : start + SLICE]]
        pause()
    return found


def subset(members: Sequence[int], size: int, ranked: Sequence[int]) -> Sequence[int]:
    """The `size` members of the lowest ranks, in ascending order; all where there are no more. ranked: by position."""
    if len(members) <= size:
        return members
    return sorted(nsmallest(size, members, key=ranked.__getitem__))

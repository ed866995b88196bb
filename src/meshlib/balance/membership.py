"""Which of the endpoints that are known by state stand in an assignment, and where.

An assignment may have 100,000 endpoints of which few were ever picked. So the question is asked the other way round: the
addresses of the known ones are looked for among the bytes of the assignment, a slice at a time, and no Endpoint is made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from meshlib.errors import ResourceError
from meshlib.resources.endpoint import ClusterLoadAssignment, Endpoint
from meshlib.resources.endpoint_address import identity
from meshlib.resources.endpoint_keys import keys_of
from meshlib.resources.endpoint_wire import LazyEndpoints
from meshlib.state import EndpointState

__all__ = ["changed_priorities", "find"]

SLICE = 1024
"""How many endpoints are looked at between two pauses."""

READ = 64
"""The same for endpoints whose addresses have to be read one by one."""

COMPARED = 10_000
"""Larger priorities are not compared endpoint by endpoint: each new version of one is a change."""


def _no_pause() -> None:
    return


def find(
    endpoints: Sequence[Endpoint], states: Iterable[EndpointState], pause: Callable[[], None] = _no_pause
) -> Iterator[tuple[int, EndpointState]]:
    """Index and state of each of `states` that stands in `endpoints`, as often as it stands there, in ascending order.

    pause: called between slices.
    """
    wanted = {identity(state.address, state.port): state for state in states}
    if not wanted:
        return
    for start, identities in _identities(endpoints, pause):
        if not wanted.keys().isdisjoint(identities):
            for index, each in enumerate(identities, start):
                state = wanted.get(each)
                if state is not None:
                    yield index, state


def changed_priorities(
    before: ClusterLoadAssignment | None,
    after: ClusterLoadAssignment | None,
    pause: Callable[[], None] = _no_pause,
) -> int:
    """In how many priorities endpoints have come or gone. None: there were none. pause: called between slices."""
    old, new = _by_priority(before), _by_priority(after)
    return sum(_differ(old.get(each, []), new.get(each, []), pause) for each in {*old, *new})


def _by_priority(assignment: ClusterLoadAssignment | None) -> dict[int, list[Sequence[Endpoint]]]:
    found: dict[int, list[Sequence[Endpoint]]] = {}
    for locality in () if assignment is None else assignment.localities:
        if len(locality.endpoints):
            found.setdefault(locality.priority, []).append(locality.endpoints)
    return found


def _differ(old: list[Sequence[Endpoint]], new: list[Sequence[Endpoint]], pause: Callable[[], None]) -> bool:
    if len(old) == len(new) and all(one is other for one, other in zip(old, new, strict=True)):
        return False
    sizes = [sum(map(len, each)) for each in (old, new)]
    if sizes[0] != sizes[1] or sizes[0] > COMPARED:
        return True
    known: set[bytes] = set()
    for endpoints in old:
        for _, identities in _identities(endpoints, pause):
            known.update(identities)
    seen: set[bytes] = set()
    for endpoints in new:
        for _, identities in _identities(endpoints, pause):
            if not known.issuperset(identities):
                return True
            seen.update(identities)
    return len(seen) != len(known)


def _identities(
    endpoints: Sequence[Endpoint], pause: Callable[[], None]
) -> Iterator[tuple[int, list[bytes]]]:
    """Slices: the first index, and what is the same for the same address and port. A lazy endpoint is read and not kept."""
    for start in range(0, len(endpoints), SLICE):
        stop = min(start + SLICE, len(endpoints))
        keys = keys_of(endpoints.items[start:stop]) if isinstance(endpoints, LazyEndpoints) else None
        if keys is None:
            keys = []
            for index in range(start, stop):
                keys.append(_identity(endpoints, index))
                if index % READ == 0:
                    pause()
        yield start, keys
        pause()


def _identity(endpoints: Sequence[Endpoint], index: int) -> bytes:
    """Empty when the endpoint's bytes are wrong."""
    try:
        endpoint = endpoints.read(index) if isinstance(endpoints, LazyEndpoints) else endpoints[index]
    except ResourceError:
        return b""
    return identity(endpoint.address, endpoint.port)

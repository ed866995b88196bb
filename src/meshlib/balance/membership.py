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
    by_key = {state.key: state for state in states}
    if not by_key:
        return
    lazy = isinstance(endpoints, LazyEndpoints)
    by_bytes = {identity(state.address, state.port): state for state in by_key.values()} if lazy else {}
    for start in range(0, len(endpoints), SLICE):
        stop = min(start + SLICE, len(endpoints))
        keys = keys_of(endpoints.items[start:stop]) if isinstance(endpoints, LazyEndpoints) else None
        if keys is None:
            for index in range(start, stop):
                state = by_key.get(_key(endpoints, index))
                if state is not None:
                    yield index, state
        elif not by_bytes.keys().isdisjoint(keys):
            for index, key in enumerate(keys, start):
                state = by_bytes.get(key)
                if state is not None:
                    yield index, state
        pause()


def changed_priorities(before: ClusterLoadAssignment | None, after: ClusterLoadAssignment | None) -> int:
    """In how many priorities endpoints have come or gone. None: there were none."""
    old, new = _by_priority(before), _by_priority(after)
    return sum(_differ(old.get(each, []), new.get(each, [])) for each in {*old, *new})


def _by_priority(assignment: ClusterLoadAssignment | None) -> dict[int, list[Sequence[Endpoint]]]:
    found: dict[int, list[Sequence[Endpoint]]] = {}
    for locality in () if assignment is None else assignment.localities:
        if len(locality.endpoints):
            found.setdefault(locality.priority, []).append(locality.endpoints)
    return found


def _differ(old: list[Sequence[Endpoint]], new: list[Sequence[Endpoint]]) -> bool:
    if len(old) == len(new) and all(one is other for one, other in zip(old, new, strict=True)):
        return False
    sizes = [sum(map(len, each)) for each in (old, new)]
    if sizes[0] != sizes[1] or sizes[0] > COMPARED:
        return True
    return _keys(old) != _keys(new)


def _keys(lists: list[Sequence[Endpoint]]) -> set[str]:
    return {_key(endpoints, index) for endpoints in lists for index in range(len(endpoints))}


def _key(endpoints: Sequence[Endpoint], index: int) -> str:
    """The endpoint's key; empty when its bytes are wrong. A lazy endpoint is read and not kept."""
    if not isinstance(endpoints, LazyEndpoints):
        return endpoints[index].key
    try:
        return endpoints.read(index).key
    except ResourceError:
        return ""

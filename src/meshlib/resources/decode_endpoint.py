"""ClusterLoadAssignment: health and weight of all endpoints at once, addresses when there are not too many.

A push of 100,000 endpoints must take effect in milliseconds and must not hold the interpreter while it is read. So only what
decides where traffic goes is read here (`endpoint_wire` says how): health, weight, priority, and up to CHECKED endpoints also
address and port, with duplicates. Above that, `check_addresses` does the rest after publication, and `without` drops what
it found. All work is done in slices, with a call of `pause` between them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from meshlib import proto
from meshlib.errors import ResourceError
from meshlib.resources.endpoint import OUT, ClusterLoadAssignment, Health, Locality, LocalityEndpoints
from meshlib.resources.endpoint_address import identity, read_address, unapplied
from meshlib.resources.endpoint_keys import all_canonical, cut, have_keys, is_canonical, keys_of, with_tail
from meshlib.resources.endpoint_wire import LazyEndpoints, Tails, socket_metadata, split
from meshlib.resources.reader import Reading

__all__ = ["CHECKED", "EndpointProblem", "check_addresses", "decode_load_assignment", "without"]

CHECKED = 10_000
"""Up to so many endpoints, addresses are checked before the assignment is used."""

SLICE = 512
"""How many endpoints are read between two pauses (about 0.2 ms when addresses are checked)."""

Pause = Callable[[], None]

T = TypeVar("T")


def _no_pause() -> None:
    return


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointProblem:
    """An endpoint that can't be used. locality: index into `localities`; index: into its endpoints.

    reason begins with the path within the LbEndpoint.
    """

    locality: int
    index: int
    reason: str


def decode_load_assignment(
    data: bytes,
    reading: Reading,
    *,
    path: str = "",
    hostnames: bool = False,
    unique: bool = True,
) -> ClusterLoadAssignment:
    """The assignment in data, the bytes of a ClusterLoadAssignment message.

    path: where it stands, for errors. hostnames: addresses may be names to resolve (the DNS cluster types). unique: of
    endpoints with one address the first counts, as in Envoy's EDS; otherwise all count, as in its STATIC clusters.
    Raises ResourceError.
    """
    try:
        shadow: Any = proto.parse("meshlib.shadow.ClusterLoadAssignment", data)
    except proto.DecodeError:
        raise ResourceError(path, "the bytes are not an encoding of a ClusterLoadAssignment") from None
    base = f"{path}.endpoints" if path else "endpoints"
    scan = _Scan(
        reading,
        read=functools.partial(read_address, hostnames=hostnames),
        check=sum(len(place.lb_endpoints) for place in shadow.endpoints) <= CHECKED,
        unique=unique,
        pause=reading.pause,
    )
    localities = [scan.locality(place, f"{base}[{index}]") for index, place in enumerate(shadow.endpoints)]
    if scan.duplicates:
        reading.warnings.append(
            f"{base}: {scan.duplicates} endpoints have the address of an earlier one and are left out"
        )
    shadow.ClearField("endpoints")
    top = reading.root(_parse("ClusterLoadAssignment", shadow, path), path)
    policy = top.child("policy")
    factor = None
    if policy is not None:
        factor = policy.boxed("overprovisioning_factor")
        policy.duration("endpoint_stale_after")
        if len(policy.message.drop_overloads) > 1:
            raise policy.fail("drop_overloads", "at most one category is supported, as in Envoy")
        for field in ("drop_overloads", "endpoint_stale_after"):
            if any(descriptor.name == field for descriptor, _ in policy.message.ListFields()):
                policy.unsupported(field)
    return ClusterLoadAssignment(
        cluster_name=top.text("cluster_name"),
        localities=_without_gaps(localities),
        overprovisioning_factor=140 if factor is None else factor,
        weighted_priority_health=policy is not None and policy.flag("weighted_priority_health"),
    )


class _Scan:
    """Goes through the endpoints of all localities, a slice at a time."""

    def __init__(self, reading: Reading, *, read: Any, check: bool, unique: bool, pause: Pause) -> None:
        self._reading = reading
        self._read = read
        self._check = check
        self._unique = unique
        self._pause = pause
        self._tails = Tails()
        self._seen: set[bytes] = set()
        self._earlier: list[list[bytes]] = []
        self._reported: set[str] = set()
        self.duplicates = 0

    def locality(self, shadow: Any, path: str) -> LocalityEndpoints:
        items: list[bytes] = []
        slices: list[tuple[int, dict[int, bytes]]] = []
        unhealthy: list[int] = []
        degraded: list[int] = []
        draining: list[int] = []
        weights: set[int] = set()
        labelled = False
        source = shadow.lb_endpoints
        for start in range(0, len(source), SLICE):
            if start:
                self._pause()
            part: list[bytes] = source[start : start + SLICE]
            keys, tails = self._cut(part, start, path)
            if self._check:
                part, tails = self._checked(part, keys, tails, start, path)
            if len(tails) < len(part):
                weights.add(1)
            healths = {tail: self._tails[tail].health for tail in set(tails.values())}
            weights.update(self._tails[tail].weight or 1 for tail in healths)
            labelled = labelled or any(
                self._tails[tail].metadata or self._tails[tail].workload for tail in healths
            )
            for kinds, found in (
                (OUT, unhealthy),
                ({Health.DEGRADED}, degraded),
                ({Health.DRAINING}, draining),
            ):
                wanted = {tail for tail, health in healths.items() if health in kinds}
                if wanted:
                    found += with_tail(tails, wanted, len(items))
            items += part
            slices.append((len(part), tails))
        shadow.ClearField("lb_endpoints")
        reader = self._reading.root(_parse("LocalityLbEndpoints", shadow, path), path)
        locality = reader.child("locality")
        metadata = socket_metadata(reader.message.metadata)
        names = ("region", "zone", "sub_zone")
        return LocalityEndpoints(
            locality=Locality() if locality is None else Locality(**{n: locality.text(n) for n in names}),
            priority=reader.number("priority"),
            weight=reader.boxed("load_balancing_weight"),
            endpoints=LazyEndpoints(items, self._tails, self._read, metadata),
            unhealthy=tuple(unhealthy),
            degraded=tuple(degraded),
            draining=tuple(draining),
            weights=self._weights(slices) if len(weights) > 1 else None,
            has_metadata=labelled or bool(metadata),
        )

    def _weights(self, slices: list[tuple[int, dict[int, bytes]]]) -> tuple[int, ...]:
        weights: list[int] = []
        for count, tails in slices:
            part = [1] * count
            for index, tail in tails.items():
                part[index] = self._tails[tail].weight or 1
            weights += part
            self._pause()
        return tuple(weights)

    def _cut(self, part: list[bytes], start: int, path: str) -> tuple[list[bytes] | None, dict[int, bytes]]:
        """Keys, None unless all are known to be valid; and the tails that are not empty, by index."""
        keys = None
        pieces = cut(part)
        if pieces is not None and (all_canonical(pieces[0]) if self._check else have_keys(part)):
            keys, tails = pieces
        else:
            ends = [_within(_place(path, start + i), split, item)[1] for i, item in enumerate(part)]
            tails = {index: tail for index, tail in enumerate(ends) if tail}
        if not self._tails.keys() >= set(tails.values()):
            for index, tail in tails.items():
                if tail not in self._tails:
                    place = _place(path, start + index)
                    if not _within(place, self._tails.__getitem__, tail).known:
                        self._unsupported(place, "health_status")
        return keys, tails

    def _checked(
        self, part: list[bytes], keys: list[bytes] | None, tails: dict[int, bytes], start: int, path: str
    ) -> tuple[list[bytes], dict[int, bytes]]:
        """Check all addresses, and leave out the endpoints whose address stood before."""
        if keys is None:
            keys = [self._address(item, _place(path, start + i)) for i, item in enumerate(part)]
        if not self._unique:
            return part, tails
        before, seen = len(self._seen), self._seen
        seen.update(keys)
        if len(seen) == before + len(keys):
            self._earlier.append(keys)
            return part, tails
        self._seen = seen = set().union(*self._earlier)
        kept = []
        for index, key in enumerate(keys):
            if key not in seen:
                seen.add(key)
                kept.append(index)
        self._earlier.append([keys[index] for index in kept])
        self.duplicates += len(keys) - len(kept)
        moved = {place: tails[index] for place, index in enumerate(kept) if index in tails}
        return [part[index] for index in kept], moved

    def _address(self, item: bytes, place: str) -> bytes:
        key, _ = split(item)
        if is_canonical(key):
            return key
        address, port, _ = _within(place, self._read, item)
        for field in unapplied(item):
            self._unsupported(place, field)
        return identity(address, port)

    def _unsupported(self, place: str, field: str) -> None:
        """Report a field at the first endpoint that has it."""
        if field not in self._reported:
            self._reported.add(field)
            self._reading.unsupported(f"{place}.{field}")


def check_addresses(
    assignment: ClusterLoadAssignment, pause: Pause = _no_pause, *, hostnames: bool = False
) -> list[EndpointProblem]:
    """Every endpoint of a large assignment that can't be used: a wrong address or port, or an address that stood before."""
    problems: list[EndpointProblem] = []
    seen: set[bytes] = set()
    for number, locality in enumerate(assignment.localities):
        endpoints = locality.endpoints
        if not isinstance(endpoints, LazyEndpoints):
            continue
        for start in range(0, len(endpoints), SLICE):
            part = endpoints.items[start : start + SLICE]
            keys = keys_of(part)
            fresh = set(keys or ())
            if len(fresh) == len(part) and seen.isdisjoint(fresh):
                seen |= fresh
            else:
                for index in range(start, start + len(part)):
                    reason = _problem(endpoints, index, seen)
                    if reason is not None:
                        problems.append(EndpointProblem(locality=number, index=index, reason=reason))
            pause()
    return problems


def _problem(endpoints: LazyEndpoints, index: int, seen: set[bytes]) -> str | None:
    try:
        endpoint = endpoints.read(index)
    except ResourceError as error:
        return str(error)
    key = identity(endpoint.address, endpoint.port)
    if key in seen:
        return f"{endpoint.key} stood before"
    seen.add(key)
    return None


def without(assignment: ClusterLoadAssignment, problems: Iterable[EndpointProblem]) -> ClusterLoadAssignment:
    """The assignment without these endpoints."""
    bad: dict[int, set[int]] = {}
    for problem in problems:
        bad.setdefault(problem.locality, set()).add(problem.index)
    if not bad:
        return assignment
    localities = list(assignment.localities)
    for number, indexes in bad.items():
        localities[number] = _drop(localities[number], indexes)
    return replace(assignment, localities=tuple(localities))


def _drop(locality: LocalityEndpoints, bad: set[int]) -> LocalityEndpoints:
    endpoints = locality.endpoints
    assert isinstance(endpoints, LazyEndpoints)
    kept = [index for index in range(len(endpoints)) if index not in bad]
    place = {index: position for position, index in enumerate(kept)}
    weights = locality.weights
    return replace(
        locality,
        endpoints=endpoints.only(kept),
        unhealthy=tuple(place[i] for i in locality.unhealthy if i in place),
        degraded=tuple(place[i] for i in locality.degraded if i in place),
        draining=tuple(place[i] for i in locality.draining if i in place),
        weights=None if weights is None else tuple(weights[i] for i in kept),
    )


def _without_gaps(localities: list[LocalityEndpoints]) -> tuple[LocalityEndpoints, ...]:
    """Envoy treats a priority that is not there as one without endpoints."""
    present = {locality.priority for locality in localities}
    missing = set(range(max(present, default=-1) + 1)) - present
    return (*localities, *(LocalityEndpoints(priority=p, endpoints=()) for p in sorted(missing)))


def _parse(name: str, shadow: Any, path: str) -> Any:
    """What is left of a shadow message, as the real message."""
    try:
        return proto.parse(f"envoy.config.endpoint.v3.{name}", shadow.SerializeToString())
    except proto.DecodeError:
        raise ResourceError(path, f"the bytes are not an encoding of a {name}") from None


def _place(path: str, index: int) -> str:
    return f"{path}.lb_endpoints[{index}]"


def _within(place: str, function: Callable[[bytes], T], item: bytes) -> T:
    try:
        return function(item)
    except ResourceError as error:
        raise ResourceError(f"{place}.{error.path}" if error.path else place, error.reason) from None

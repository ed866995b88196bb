"""How traffic is spread over priorities. Envoy's arithmetic, all of it in integers.

health[p] = min(100, factor * healthy[p] // hosts[p])          degraded[p] likewise; factor is 140 by default
N         = min(100, sum(health) + sum(degraded))
load[p]   = min(what is left of 100, health[p] * 100 // N), in order; then the degraded share with what is left;
            what rounding leaves goes to the first priority that has any
panic[p]  = N is not 100 and the healthy and degraded hosts of p are less than the panic threshold; here it is always the
            number of hosts that counts, never their weight
all panic : every priority gets load by its number of hosts, whatever their health
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Loads", "Membership", "spread"]


@dataclass(frozen=True, slots=True)
class Membership:
    """How many hosts a priority has, or, with weighted_priority_health, how much weight, without those that are draining.

    hosts: their number with those that are draining; None is total. percent_up: how many of the others, 0 .. 100, are
    healthy or degraded; None is the same part of total.
    """

    total: int
    healthy: int
    degraded: int = 0
    hosts: int | None = None
    percent_up: float | None = None


@dataclass(frozen=True, slots=True)
class Loads:
    """Percent of the traffic by priority. healthy and degraded together add up to 100. panic: use all hosts there."""

    healthy: tuple[int, ...]
    degraded: tuple[int, ...]
    panic: tuple[bool, ...]


def spread(priorities: Sequence[Membership], *, factor: int = 140, panic_threshold: float = 50.0) -> Loads:
    """The loads for these priorities, in order. factor: overprovisioning, percent. panic_threshold: percent, 0 for never."""
    if not priorities:
        return Loads((), (), ())
    health = [_availability(each.healthy, each.total, factor) for each in priorities]
    degraded = [_availability(each.degraded, each.total, factor) for each in priorities]
    total = min(100, sum(health) + sum(degraded))
    panic = tuple(total != 100 and _percent_up(each) < panic_threshold for each in priorities)
    if all(panic):
        return Loads(_by_size(priorities), (0,) * len(priorities), panic)
    if total == 0:
        return Loads((100,) + (0,) * (len(priorities) - 1), (0,) * len(priorities), panic)
    healthy_load, left = _share(health, total, 100)
    degraded_load, left = _share(degraded, total, left)
    if left:
        if any(health):
            healthy_load[_first(health)] += left
        else:
            degraded_load[_first(degraded)] += left
    return Loads(tuple(healthy_load), tuple(degraded_load), panic)


def _availability(up: int, total: int, factor: int) -> int:
    return min(100, factor * up // total) if total else 0


def _percent_up(each: Membership) -> float:
    if each.percent_up is not None:
        return each.percent_up
    return 100.0 * (each.healthy + each.degraded) / each.total if each.total else 0.0


def _share(availability: Sequence[int], total: int, left: int) -> tuple[list[int], int]:
    load = []
    for each in availability:
        given = min(left, each * 100 // total)
        load.append(given)
        left -= given
    return load, left


def _by_size(priorities: Sequence[Membership]) -> tuple[int, ...]:
    sizes = [each.total if each.hosts is None else each.hosts for each in priorities]
    hosts = sum(sizes)
    if not hosts:
        return (100,) + (0,) * (len(priorities) - 1)
    load = [100 * size // hosts for size in sizes]
    load[_first(sizes)] += 100 - sum(load)
    return tuple(load)


def _first(values: Sequence[int]) -> int:
    return next(index for index, value in enumerate(values) if value)

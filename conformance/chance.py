"""When two random sequences count as equal. Pure functions."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def is_rotation(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether ``other`` is ``one`` begun at another place."""
    if len(one) != len(other):
        return False
    doubled = list(one) * 2
    return not one or any(doubled[start : start + len(one)] == list(other) for start in range(len(one)))


def same_counts(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether both hold each value equally often."""
    return Counter(one) == Counter(other)


def z_expected(count: int, total: int, probability: float) -> float:
    """How many standard deviations ``count`` of ``total`` lies from ``probability``.

    Infinite where a certain event (probability 0 or 1) went the other way.
    """
    deviation = math.sqrt(total * probability * (1 - probability))
    distance = abs(count - total * probability)
    if deviation == 0:
        return 0.0 if distance == 0 else math.inf
    return distance / deviation


def z_two_samples(count: int, total: int, other_count: int, other_total: int) -> float:
    """The two-proportion z of two samples, with the pooled estimate."""
    pooled = (count + other_count) / (total + other_total)
    error = math.sqrt(pooled * (1 - pooled) * (1 / total + 1 / other_total))
    if error == 0:
        return 0.0
    return abs(count / total - other_count / other_total) / error


def worst_expected(counts: Mapping[str, int], expected: Mapping[str, float]) -> tuple[str, float]:
    """The value that lies farthest from its probability, and its z. A value that is not expected has probability 0."""
    total = sum(counts.values())
    names = sorted({*counts, *expected})
    return max(
        ((name, z_expected(counts.get(name, 0), total, expected.get(name, 0.0))) for name in names),
        key=lambda entry: entry[1],
        default=("", 0.0),
    )


def worst_two_samples(one: Mapping[str, int], other: Mapping[str, int]) -> tuple[str, float]:
    """The value whose share differs most between two samples, and its z."""
    total, other_total = sum(one.values()), sum(other.values())
    if not total or not other_total:
        return ("", 0.0 if total == other_total else math.inf)
    names = sorted({*one, *other})
    return max(
        ((name, z_two_samples(one.get(name, 0), total, other.get(name, 0), other_total)) for name in names),
        key=lambda entry: entry[1],
    )

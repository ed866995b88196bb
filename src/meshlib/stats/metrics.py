"""What is counted with: plain attributes, bound once.

`counter.value += 1` is one attribute store with no call inside, which the GIL keeps exact. A metric knows its place (scope
and leaf); its name, its family and its labels are put together when somebody looks, since there are many more metrics than
looks.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from typing import TYPE_CHECKING

from meshlib.stats.tags import Labels

if TYPE_CHECKING:
    from meshlib.stats.scope import Scope

__all__ = ["ENVOY_BOUNDS", "Counter", "Gauge", "Histogram", "Metric", "Reading"]

ENVOY_BOUNDS = (
    0.5, 1.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 2500.0, 5000.0, 10_000.0, 30_000.0, 60_000.0,
    300_000.0, 600_000.0, 1_800_000.0, 3_600_000.0,
)  # fmt: skip
"""Envoy's buckets when the configuration sets none. Its times are in milliseconds."""


class Metric:
    """The place of a metric. leaf: what it is called within its scope."""

    __slots__ = ("leaf", "scope")

    def __init__(self, scope: Scope, leaf: str) -> None:
        self.scope = scope
        self.leaf = leaf

    @property
    def name(self) -> str:
        """Envoy's dotted name, `cluster.reviews.upstream_rq_503`: one in a registry."""
        return self.scope.name_of(self.leaf)

    @property
    def family(self) -> str:
        """The name without what differs between metrics of its kind: `cluster.upstream_rq`."""
        return self.scope.family_of(self.leaf)[0]

    @property
    def labels(self) -> Labels:
        """What differs: `(("envoy_response_code", "503"), ("envoy_cluster_name", "reviews"))`."""
        return self.scope.family_of(self.leaf)[1]

    @property
    def native(self) -> bool:
        """The family has a name of its own (`istio_requests_total`), which is shown without `envoy_` before it."""
        return self.scope.native


class Counter(Metric):
    """A number that only grows. Count with `counter.value += 1`."""

    __slots__ = ("value",)

    def __init__(self, scope: Scope, leaf: str) -> None:
        super().__init__(scope, leaf)
        self.value = 0


class Gauge(Metric):
    """A number that goes up and down; the owner of what it measures sets `gauge.value`."""

    __slots__ = ("value",)

    def __init__(self, scope: Scope, leaf: str) -> None:
        super().__init__(scope, leaf)
        self.value = 0.0


class Reading(Metric):
    """A gauge that costs nothing until it is read: `value` asks for the number when somebody looks."""

    __slots__ = ("_read",)

    def __init__(self, scope: Scope, leaf: str, read: Callable[[], float]) -> None:
        super().__init__(scope, leaf)
        self._read = read

    @property
    def value(self) -> float:
        return self._read()


class Histogram(Metric):
    """Counts by upper bound (inclusive); the last bucket has no bound. The unit is the name's; times are in milliseconds."""

    __slots__ = ("bounds", "buckets", "total")

    def __init__(self, scope: Scope, leaf: str, bounds: tuple[float, ...] = ENVOY_BOUNDS) -> None:
        super().__init__(scope, leaf)
        self.bounds = bounds
        self.buckets = [0] * (len(bounds) + 1)
        self.total = 0.0

    @property
    def count(self) -> int:
        return sum(self.buckets)

    def record(self, value: float) -> None:
        self.buckets[bisect_left(self.bounds, value)] += 1
        self.total += value

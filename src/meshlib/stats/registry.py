"""Metrics as plain attributes.

A metric is bound once (`registry.counter("cluster.reviews.upstream_rq_total")`) and then counted with `metric.value += 1`:
one attribute store with no call inside, which the GIL keeps exact. Names are Envoy's, so that dashboards carry over.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Iterator
from typing import TypeVar

__all__ = ["Counter", "Gauge", "Histogram", "Reading", "Registry"]

DURATION_BOUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Counter:
    """A number that only grows. Count with `counter.value += 1`."""

    __slots__ = ("name", "value")

    def __init__(self, name: str) -> None:
        self.name = name
        self.value = 0


class Gauge:
    """A number that goes up and down; the owner of what it measures sets `gauge.value`."""

    __slots__ = ("name", "value")

    def __init__(self, name: str) -> None:
        self.name = name
        self.value = 0.0


class Reading:
    """A gauge that costs nothing until it is read: `value` asks for the number when somebody looks."""

    __slots__ = ("_read", "name")

    def __init__(self, name: str, read: Callable[[], float]) -> None:
        self.name = name
        self._read = read

    @property
    def value(self) -> float:
        return self._read()


class Histogram:
    """Counts by upper bound (inclusive); the last bucket has no bound. The unit is the name's, seconds for durations."""

    __slots__ = ("bounds", "buckets", "name", "total")

    def __init__(self, name: str, bounds: tuple[float, ...] = DURATION_BOUNDS) -> None:
        self.name = name
        self.bounds = bounds
        self.buckets = [0] * (len(bounds) + 1)
        self.total = 0.0

    @property
    def count(self) -> int:
        return sum(self.buckets)

    def record(self, value: float) -> None:
        self.buckets[bisect_left(self.bounds, value)] += 1
        self.total += value


M = TypeVar("M", Counter, Gauge, Histogram)


class Registry:
    """All metrics of one Mesh, by name. Asking for a name again gives the same object."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._metrics: dict[str, Counter | Gauge | Histogram | Reading] = {}

    def counter(self, name: str) -> Counter:
        return self._bind(name, Counter)

    def gauge(self, name: str) -> Gauge:
        return self._bind(name, Gauge)

    def histogram(self, name: str) -> Histogram:
        return self._bind(name, Histogram)

    def reading(self, name: str, read: Callable[[], float]) -> Reading:
        """Bind a gauge to what it measures; a later one of the same name takes its place. read: from any thread, no lock."""
        with self._lock:
            metric = self._metrics[name] = Reading(name, read)
        return metric

    def forget(self, name: str) -> None:
        """Forget the metric of this name, if there is one: what it measured no longer exists."""
        with self._lock:
            self._metrics.pop(name, None)

    def renew_lock(self) -> None:
        """Replace the lock in a forked child, where its owner may not exist."""
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[Counter | Gauge | Histogram | Reading]:
        with self._lock:
            metrics = sorted(self._metrics.items())
        return iter([metric for _, metric in metrics])

    def _bind(self, name: str, kind: type[M]) -> M:
        with self._lock:
            metric = self._metrics.get(name)
            if metric is None:
                metric = self._metrics[name] = kind(name)
        if not isinstance(metric, kind):
            raise TypeError(f"{name} is a {type(metric).__name__}, not a {kind.__name__}")
        return metric

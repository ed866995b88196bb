"""The golden signals of what this process calls, over the last seconds: rate, errors, latency.

The metrics count from the process's beginning (`meshlib.observe.metrics`). Whoever looks leaves a sample behind, and the next
look compares with the one that is about `WINDOW` seconds old. So nothing runs while nobody looks; the first look compares with
the beginning.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from operator import add, sub
from typing import Any, NamedTuple

from meshlib.admin.statistics import percentiles
from meshlib.stats import ENVOY_BOUNDS, Counter, Histogram, Registry

__all__ = ["WINDOW", "Golden", "RouteKey", "Signals", "Totals", "View"]

WINDOW = 10.0
"""Seconds that rates and latencies are about, where somebody has looked so often."""

_BETWEEN = 1.0
_KEPT = 24

REQUESTS = "meshlib_route_requests_total"
DURATION = "meshlib_route_duration_milliseconds"


class RouteKey(NamedTuple):
    """What calls are counted by. cluster: empty where none was chosen; route: empty where none matched."""

    cluster: str
    route_config: str
    virtual_host: str
    route: str


class Totals(NamedTuple):
    """Counts since the beginning. buckets: of the duration in milliseconds, by ENVOY_BOUNDS."""

    success: int = 0
    error: int = 0
    cancelled: int = 0
    buckets: tuple[int, ...] = ()

    @property
    def requests(self) -> int:
        return self.success + self.error + self.cancelled

    def plus(self, other: Totals) -> Totals:
        if self is NOTHING or other is NOTHING:
            return other if self is NOTHING else self
        return Totals(
            self.success + other.success,
            self.error + other.error,
            self.cancelled + other.cancelled,
            _each(add, self.buckets, other.buckets),
        )

    def since(self, before: Totals) -> Totals:
        """What has been counted since then; all of it where counting has begun anew (after a fork)."""
        if before.requests > self.requests:
            return self
        if before is self:
            return NOTHING
        return Totals(
            self.success - before.success,
            self.error - before.error,
            self.cancelled - before.cancelled,
            _each(sub, self.buckets, before.buckets),
        )


NOTHING = Totals()


@dataclass(frozen=True, slots=True, kw_only=True)
class Signals:
    """total: calls since the beginning; errors_total: those that failed. The rest is about the last `window` seconds: calls and
    failures per second, and percentiles of the duration in milliseconds, None where there was no call."""

    total: int
    errors_total: int
    window: float
    rate: float
    error_rate: float
    p50: float | None
    p90: float | None
    p99: float | None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "total": self.total,
            "errors_total": self.errors_total,
            "rate": round(self.rate, 3),
            "error_rate": round(self.error_rate, 3),
            "p50": _rounded(self.p50),
            "p90": _rounded(self.p90),
            "p99": _rounded(self.p99),
        }


class View:
    """One look. now: totals by key; before: those of `window` seconds ago.

    What has been worked out stays with it: services, edges and routes are often about the same keys.
    """

    def __init__(
        self, now: Mapping[RouteKey, Totals], before: Mapping[RouteKey, Totals], window: float
    ) -> None:
        self.now = now
        self.before = before
        self.window = window
        self._signals: dict[tuple[RouteKey, ...], Signals] = {}

    @cached_property
    def by_cluster(self) -> dict[str, tuple[RouteKey, ...]]:
        """The keys of each cluster that was called; of calls that no cluster was chosen for under the empty name."""
        found: dict[str, list[RouteKey]] = {}
        for key in self.now:
            found.setdefault(key.cluster, []).append(key)
        return {name: tuple(keys) for name, keys in found.items()}

    def signals(self, keys: Iterable[RouteKey]) -> Signals:
        """Of these keys together."""
        chosen = tuple(keys)
        found = self._signals.get(chosen)
        if found is None:
            found = self._signals[chosen] = self._summed(chosen)
        return found

    def _summed(self, keys: tuple[RouteKey, ...]) -> Signals:
        total = recent = NOTHING
        for key in keys:
            now = self.now.get(key)
            if now is not None:
                total = total.plus(now)
                recent = recent.plus(now.since(self.before.get(key, NOTHING)))
        p50, p90, p99 = percentiles(ENVOY_BOUNDS, recent.buckets, (0.5, 0.9, 0.99))
        return Signals(
            total=total.requests,
            errors_total=total.error,
            window=self.window,
            rate=recent.requests / self.window,
            error_rate=recent.error / self.window,
            p50=p50,
            p90=p90,
            p99=p99,
        )


class Golden:
    """Thread safe. monotonic: seconds."""

    def __init__(self, registry: Registry, monotonic: Callable[[], float]) -> None:
        self._registry = registry
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._samples: deque[tuple[float, Mapping[RouteKey, Totals]]] = deque(maxlen=_KEPT)
        self._samples.append((monotonic(), {}))

    def renew_lock(self) -> None:
        """In a forked child, which counts from zero."""
        self._lock = threading.Lock()
        self._samples.clear()
        self._samples.append((self._monotonic(), {}))

    def look(self) -> View:
        now = self._monotonic()
        with self._lock:
            current = totals(self._registry, self._samples[-1][1])
            base = self._samples[0]
            for sample in self._samples:
                if sample[0] > now - WINDOW:
                    break
                base = sample
            if now - self._samples[-1][0] >= _BETWEEN:
                self._samples.append((now, current))
        return View(current, base[1], max(now - base[0], 0.001))


def totals(registry: Registry, before: Mapping[RouteKey, Totals]) -> Mapping[RouteKey, Totals]:
    """What the registry holds. before: an earlier sample; what has not changed since is the same object."""
    counts: dict[RouteKey, dict[str, int]] = {}
    for labels, metric in registry.natives(REQUESTS):
        found = dict(labels)
        if isinstance(metric, Counter):
            by_outcome = counts.setdefault(_key(found), {})
            by_outcome[found.get("outcome", "")] = metric.value
    made: dict[RouteKey, Totals] = {}
    for labels, metric in registry.natives(DURATION):
        key = _key(dict(labels))
        if isinstance(metric, Histogram):
            outcomes = counts.get(key, {})
            made[key] = Totals(
                outcomes.get("success", 0),
                sum(value for name, value in outcomes.items() if name not in ("success", "cancelled")),
                outcomes.get("cancelled", 0),
                tuple(metric.buckets),
            )
            if before.get(key) == made[key]:
                made[key] = before[key]
    return made


def _key(labels: Mapping[str, str]) -> RouteKey:
    return RouteKey(
        labels.get("cluster", ""),
        labels.get("route_config", ""),
        labels.get("virtual_host", ""),
        labels.get("route", ""),
    )


def _each(
    operation: Callable[[int, int], int], one: tuple[int, ...], other: tuple[int, ...]
) -> tuple[int, ...]:
    if not other:
        return one
    return tuple(map(operation, one, other)) if one else tuple(operation(0, each) for each in other)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)

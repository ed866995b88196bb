"""What was measured, round by round, and the ratios between cases.

A ratio is taken inside each round, where both cases met the same conditions of the machine, and quoted as
the median over the rounds with its quartiles.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One case in one round. Latencies in seconds; CPU seconds by kind of process, over the whole sample.

    sent: TCP segments with data, of all processes.
    """

    latencies: tuple[float, ...]
    rps: float
    client_cpu: float
    envoy_cpu: float
    upstream_cpu: float
    sent: int = 0

    @property
    def requests(self) -> int:
        return len(self.latencies)

    @property
    def p50(self) -> float:
        return statistics.median(self.latencies)

    @property
    def cpu(self) -> float:
        """CPU seconds for each request, every process counted."""
        return (self.client_cpu + self.envoy_cpu + self.upstream_cpu) / self.requests

    @property
    def segments(self) -> float:
        """For each request: the fewer, the more requests travel together."""
        return self.sent / self.requests


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """Median over the rounds, with the quartiles."""

    value: float
    low: float
    high: float


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest-rank percentile of a non-empty sequence; `share` in 0..1."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def p50(sample: Sample) -> float:
    return sample.p50


def rps(sample: Sample) -> float:
    return sample.rps


def cpu(sample: Sample) -> float:
    return sample.cpu


def segments(sample: Sample) -> float:
    return sample.segments


@dataclass(slots=True)
class Samples:
    """Samples by case name, in the order of the rounds; a case takes part in every round or in none."""

    by_case: dict[str, list[Sample]] = field(default_factory=lambda: defaultdict(list))

    def add(self, case: str, sample: Sample) -> None:
        self.by_case[case].append(sample)

    def ratio(self, case: str, base: str, metric: Callable[[Sample], float]) -> Ratio | None:
        """None when one of the two was not measured, or the base is 0."""
        bases = [metric(sample) for sample in self.by_case.get(base, ())]
        if case not in self.by_case or not bases or not all(bases):
            return None
        pairs = zip(self.by_case[case], bases, strict=True)
        ratios = [metric(sample) / other for sample, other in pairs]
        return Ratio(
            value=statistics.median(ratios), low=percentile(ratios, 0.25), high=percentile(ratios, 0.75)
        )

    def summary(self, case: str) -> dict[str, float | int | str]:
        """One row of the table: microseconds, requests per second, CPU microseconds per request."""
        samples = self.by_case[case]
        pooled = [latency for sample in samples for latency in sample.latencies]
        requests = sum(sample.requests for sample in samples)

        def microseconds(total: float) -> float:
            return round(total / requests * 1e6, 1)

        return {
            "case": case,
            "p50_us": round(statistics.median(sample.p50 for sample in samples) * 1e6, 1),
            "p99_us": round(percentile(pooled, 0.99) * 1e6, 1),
            "rps": round(statistics.median(sample.rps for sample in samples), 1),
            "client_cpu_us": microseconds(sum(sample.client_cpu for sample in samples)),
            "envoy_cpu_us": microseconds(sum(sample.envoy_cpu for sample in samples)),
            "upstream_cpu_us": microseconds(sum(sample.upstream_cpu for sample in samples)),
            "cpu_us": round(statistics.median(sample.cpu for sample in samples) * 1e6, 1),
            "segments": round(sum(sample.sent for sample in samples) / requests, 2),
            "requests": requests,
            "rounds": len(samples),
        }

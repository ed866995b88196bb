"""`/stats`: every metric by Envoy's name, as text or JSON; `/stats/prometheus` for one process or for its whole application."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from meshlib.stats import Counter, Gauge, Histogram, Reading, Registry

if TYPE_CHECKING:
    from meshlib.stats.metrics import Metric

__all__ = ["percentile", "percentiles", "stats_json", "stats_text"]

Sample = Counter | Gauge | Histogram | Reading

PERCENTILES = (0.5, 0.75, 0.9, 0.95, 0.99)


def stats_text(registry: Registry, *, used_only: bool, matches: Callable[[str], object] | None) -> str:
    """`NAME: VALUE` a line, sorted; histograms after all others as `NAME: P50(...) ...`."""
    plain: list[str] = []
    histograms: list[str] = []
    for metric in _chosen(registry, used_only, matches):
        if isinstance(metric, Histogram):
            histograms.append(f"{metric.name}: {_summary(metric)}")
        else:
            plain.append(f"{metric.name}: {_number(metric.value)}")
    return "".join(f"{line}\n" for line in (*plain, *histograms))


def stats_json(
    registry: Registry, *, used_only: bool, matches: Callable[[str], object] | None
) -> dict[str, Any]:
    """`{"stats": [{"name", "value"}, ..., {"histograms": {"supported_quantiles", "computed_quantiles"}}]}`, as Envoy's."""
    found: list[dict[str, Any]] = []
    computed: list[dict[str, Any]] = []
    for metric in _chosen(registry, used_only, matches):
        if isinstance(metric, Histogram):
            values = [
                {"interval": None, "cumulative": value}
                for value in percentiles(metric.bounds, metric.buckets, PERCENTILES)
            ]
            computed.append({"name": metric.name, "values": values})
        else:
            found.append({"name": metric.name, "value": _plain(metric.value)})
    if computed:
        quantiles = [share * 100 for share in PERCENTILES]
        found.append({"histograms": {"supported_quantiles": quantiles, "computed_quantiles": computed}})
    return {"stats": found}


def percentile(bounds: Sequence[float], buckets: Sequence[int], share: float) -> float | None:
    """The value below which that share of the recorded ones lies, linear within its bucket; None without any.

    What is beyond the last bound counts as that bound: nothing more is known of it.
    """
    return percentiles(bounds, buckets, (share,))[0]


def percentiles(
    bounds: Sequence[float], buckets: Sequence[int], shares: Iterable[float]
) -> list[float | None]:
    """Several at once. shares: the smallest first."""
    total = sum(buckets)
    if not total:
        return [None for _ in shares]
    found: list[float | None] = []
    at, seen, last = 0, 0, len(bounds)
    for share in shares:
        rank = share * total
        while at < last and (not buckets[at] or seen + buckets[at] < rank):
            seen += buckets[at]
            at += 1
        if at == last:
            found.append(bounds[-1] if bounds else 0.0)
            continue
        below = bounds[at - 1] if at else 0.0
        found.append(below + (bounds[at] - below) * max(0.0, rank - seen) / buckets[at])
    return found


def _chosen(registry: Registry, used_only: bool, matches: Callable[[str], object] | None) -> Iterator[Sample]:
    for metric in registry:
        if matches is not None and not matches(metric.name):
            continue
        if used_only and not _used(metric):
            continue
        yield metric


def _used(metric: Metric) -> bool:
    if isinstance(metric, Histogram):
        return metric.count > 0
    return not isinstance(metric, Counter) or metric.value != 0


def _summary(metric: Histogram) -> str:
    if not metric.count:
        return "No recorded values"
    values = percentiles(metric.bounds, metric.buckets, PERCENTILES)
    return " ".join(
        f"P{share * 100:g}({_number(value or 0.0)})" for share, value in zip(PERCENTILES, values, strict=True)
    )


def _number(value: float) -> str:
    return f"{value:.6g}" if not float(value).is_integer() else str(int(value))


def _plain(value: float) -> float:
    return int(value) if float(value).is_integer() else value

"""The metrics of a Mesh as OpenTelemetry's: for an application that already exports its own to a collector.

Counters and gauges are observable instruments, made family by family: they cost nothing until somebody collects. OpenTelemetry
has no observable histogram, and recording each call once more would cost more than all other counting together. So histograms
are put into what the SDK has collected, bucket by bucket as they are, right before its reader passes it on. That is where
families that are new get their instruments, too: inside a callback the SDK holds the lock that it takes for a new instrument.

The SDK offers no place for that, so `MetricReader._collect` is replaced by a function that calls it. Where a provider is not the
SDK's, or its readers are not found, there are three counters in the place of each histogram (`NAME.count`, `.sum`, and `.bucket`
with the attribute `le`), and families that begin later are not exported.

Names are those of the registry, `envoy.cluster.upstream_rq_total`; labels become attributes. What Prometheus makes of it
is what a scrape gives.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from typing import Any

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation

from meshlib import __version__
from meshlib.observe.document import COUNTER, HISTOGRAM, Document, Times, document, used
from meshlib.observe.words import HELP
from meshlib.stats import Labels, Registry

__all__ = ["OtelMetrics"]

logger = logging.getLogger("meshlib.observe")

SCOPE = "meshlib"
_NO_NAME = re.compile(r"[^A-Za-z0-9_.\-/]")


class OtelMetrics:
    """provider: None for the global one, which may be set later. epoch: seconds since 1970."""

    def __init__(
        self, registry: Registry, epoch: Callable[[], float], provider: MeterProvider | None = None
    ) -> None:
        self._registry = registry
        self._epoch = epoch
        self._since = epoch()
        self._provider = provider
        self._meter = metrics.get_meter(SCOPE, __version__, provider)
        self._instruments: set[str] = set()
        self._hooked: Any = None
        self._current: Document | None = None
        self._hook()
        self._histograms_as_counters = self._real() is not self._hooked and not self._may_come()
        if self._histograms_as_counters:
            logger.warning(
                "the OpenTelemetry meter provider %r is not the SDK's: histograms are exported as counters",
                type(self._real()).__name__,
            )
        self._meter.create_observable_gauge(
            "meshlib.up", callbacks=[self._up], description="1 while there is a Mesh."
        )
        self.refresh()

    def refresh(self) -> None:
        """Make the instruments of families that are new."""
        found = document(self._registry)
        for family in found.families.values():
            name = _name(family.source, found)
            if name in self._instruments:
                continue
            self._instruments.add(name)
            words = HELP.get(family.source, "")
            source = family.source
            if family.kind == COUNTER:
                self._meter.create_observable_counter(
                    name, callbacks=[self._numbers(source)], description=words
                )
            elif family.kind != HISTOGRAM:
                self._meter.create_observable_gauge(
                    name, callbacks=[self._numbers(source)], description=words
                )
            elif self._histograms_as_counters:
                for part in (_count, _sum, _bucket):
                    self._meter.create_observable_counter(
                        f"{name}.{part.__name__[1:]}",
                        callbacks=[self._parts(source, part)],
                        description=words,
                    )

    # --- what instruments say ----------------------------------------------------------------------------------------

    def _up(self, _options: CallbackOptions) -> Iterable[Observation]:
        self._hook()  # the SDK may have been set up after the Mesh
        return [Observation(1)]

    def _samples(self, source: str) -> Iterator[tuple[Labels, Any]]:
        found = self._current or document(self._registry)
        for family in found.families.values():
            if family.source == source:
                yield from family.samples.items()

    def _numbers(self, source: str) -> Callable[[CallbackOptions], Iterable[Observation]]:
        return lambda _options: [Observation(value, dict(labels)) for labels, value in self._samples(source)]

    def _parts(
        self, source: str, part: Callable[[Times], Iterable[tuple[float, Labels]]]
    ) -> Callable[[CallbackOptions], Iterable[Observation]]:
        return lambda _options: [
            Observation(value, dict((*labels, *more)))
            for labels, times in self._samples(source)
            for value, more in part(times)
        ]

    # --- histograms: into what the SDK has collected -----------------------------------------------------------------

    def _real(self) -> Any:
        return self._provider or metrics.get_meter_provider()

    def _may_come(self) -> bool:
        """The application has not set a provider yet."""
        return self._provider is None and "Proxy" in type(self._real()).__name__

    def _hook(self) -> None:
        provider = self._real()
        if self._hooked is provider:
            return
        readers = getattr(provider, "_metric_readers", None)
        if not isinstance(readers, (list, tuple, set, frozenset)):
            return
        if not all(callable(getattr(reader, "_collect", None)) for reader in readers):
            return
        self._hooked = provider
        for reader in readers:
            reader._collect = _Collect(self, provider, reader._collect)

    def collected(self, provider: Any, collect: Callable[..., Any], reader: Any, options: Any) -> Any:
        """What the SDK collects for this reader, and our histograms."""
        self.refresh()
        self._current = document(self._registry)
        try:
            found = collect(reader, **options)
            return _with(found, self._points(self._current, reader), provider)
        finally:
            self._current = None

    def _points(self, found: Document, reader: Any) -> list[Any]:
        from opentelemetry.sdk.metrics import Histogram as Instrument
        from opentelemetry.sdk.metrics.export import (
            AggregationTemporality,
            Histogram,
            HistogramDataPoint,
            Metric,
        )

        wanted = getattr(reader, "_preferred_temporality", None) or {}
        delta = wanted.get(Instrument) is AggregationTemporality.DELTA
        before: dict[tuple[str, Labels], Times] = getattr(reader._collect, "before", {})
        since, now = int(self._since * 1e9), int(self._epoch() * 1e9)
        made = []
        for family in found.families.values():
            if family.kind != HISTOGRAM:
                continue
            points = []
            for labels, value in family.samples.items():
                assert isinstance(value, Times)
                shown = value
                if delta:
                    shown = _difference(value, before.get((family.source, labels)))
                    before[family.source, labels] = value
                if used(shown):
                    points.append(
                        HistogramDataPoint(
                            attributes=dict(labels),
                            start_time_unix_nano=since,
                            time_unix_nano=now,
                            count=shown.count,
                            sum=shown.total,
                            bucket_counts=shown.buckets,
                            explicit_bounds=shown.bounds,
                            min=None,  # type: ignore[arg-type]  # unknown: the field is optional in OTLP
                            max=None,  # type: ignore[arg-type]
                        )
                    )
            if points:
                temporality = AggregationTemporality.DELTA if delta else AggregationTemporality.CUMULATIVE
                data = Histogram(data_points=points, aggregation_temporality=temporality)
                name, words = _name(family.source, found), HELP.get(family.source, "")
                made.append(Metric(name=name, description=words, unit="", data=data))
        return made


class _Collect:
    """Stands in the place of a reader's `_collect`. before: what was told of each histogram last, for deltas."""

    def __init__(self, owner: OtelMetrics, provider: Any, collect: Callable[..., Any]) -> None:
        self._owner = owner
        self._provider = provider
        self._collect = collect
        self.before: dict[tuple[str, Labels], Times] = {}

    def __call__(self, reader: Any, **options: Any) -> Any:
        return self._owner.collected(self._provider, self._collect, reader, options)


def _with(found: Any, made: list[Any], provider: Any) -> Any:
    """MetricsData with these metrics in our scope."""
    from opentelemetry.sdk.metrics.export import MetricsData, ResourceMetrics, ScopeMetrics
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope

    if not made:
        return found
    scope = InstrumentationScope(SCOPE, __version__)
    own = ScopeMetrics(scope=scope, metrics=made, schema_url="")
    if found is None:
        resource = provider._sdk_config.resource
        place = ResourceMetrics(resource=resource, scope_metrics=[own], schema_url=resource.schema_url)
        return MetricsData(resource_metrics=[place])
    for place in found.resource_metrics:
        for each in place.scope_metrics:
            if each.scope.name == SCOPE:
                each.metrics.extend(made)
                return found
    found.resource_metrics[0].scope_metrics.append(own)
    return found


def _difference(value: Times, before: Times | None) -> Times:
    if before is None or before.bounds != value.bounds:
        return value
    buckets = tuple(map(int.__sub__, value.buckets, before.buckets))
    return Times(value.bounds, buckets, value.total - before.total)


def _name(source: str, found: Document) -> str:
    """`envoy.` before Envoy's names, as in Prometheus's."""
    name = source if source in found.families else f"envoy.{source}"
    return _NO_NAME.sub("_", name)[:255]


def _count(times: Times) -> Iterable[tuple[float, Labels]]:
    return [(times.count, ())]


def _sum(times: Times) -> Iterable[tuple[float, Labels]]:
    return [(times.total, ())]


def _bucket(times: Times) -> Iterable[tuple[float, Labels]]:
    bounds = [*map(str, times.bounds), "+Inf"]
    return [(below, (("le", bound),)) for bound, below in zip(bounds, accumulate(times.buckets), strict=True)]

"""Metrics as a document that one process can send to another, and the sum of several.

A document is what Prometheus wants to know: families by their Prometheus name, each with its type and its samples by labels.
`merge` adds the documents of the workers of one application. Counters and histograms add up. For gauges there is no one answer,
so they go by name: what is under way adds up (`..._active`, `remaining_...`), a connection that any worker lacks is lacking
(`connected_state`: the least), and of all others the largest is shown, a limit that is reached in one worker or its slowest loop.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from meshlib.stats import Counter, Histogram, Labels, Registry

__all__ = ["Document", "Family", "Times", "document", "merge"]

COUNTER, GAUGE, HISTOGRAM = "counter", "gauge", "histogram"

_NO_NAME = re.compile(r"[^a-zA-Z0-9_]")
_PREFIX = "envoy_"


@dataclass(frozen=True, slots=True)
class Times:
    """A histogram. buckets: counts for each bound and one more for what is beyond the last, not cumulative."""

    bounds: tuple[float, ...]
    buckets: tuple[int, ...]
    total: float

    @property
    def count(self) -> int:
        return sum(self.buckets)

    def plus(self, other: Times) -> Times:
        """The sum; with other bounds (another version of the program) by those that both have."""
        if self.bounds == other.bounds:
            added = tuple(map(int.__add__, self.buckets, other.buckets))
            return Times(self.bounds, added, self.total + other.total)
        common = tuple(bound for bound in self.bounds if bound in other.bounds)
        return self._by(common).plus(other._by(common))

    def _by(self, bounds: tuple[float, ...]) -> Times:
        buckets = [0] * (len(bounds) + 1)
        at = 0
        for bound, count in zip((*self.bounds, float("inf")), self.buckets, strict=True):
            while at < len(bounds) and bound > bounds[at]:
                at += 1
            buckets[at] += count
        return Times(bounds, tuple(buckets), self.total)


Value = float | Times


@dataclass(slots=True)
class Family:
    """kind: `counter`, `gauge` or `histogram`. source: Envoy's name of it, `cluster.upstream_rq_total`. samples: by labels, whose
    names are Prometheus's; the value of a histogram is Times."""

    kind: str
    source: str
    samples: dict[Labels, Value] = field(default_factory=dict)


@dataclass(slots=True)
class Document:
    """Families by their Prometheus names."""

    families: dict[str, Family] = field(default_factory=dict)

    def only(self, *, used_only: bool = False, matches: Callable[[str], object] | None = None) -> Document:
        """A part of it: see `document`, but for families, of which Prometheus's name or Envoy's may match."""
        kept: dict[str, Family] = {}
        for name, family in self.families.items():
            if matches is not None and not matches(name) and not matches(family.source):
                continue
            samples = family.samples
            if used_only and family.kind != GAUGE:
                samples = {labels: value for labels, value in samples.items() if used(value)}
            if samples:
                kept[name] = Family(family.kind, family.source, samples)
        return Document(kept)

    def totals(self) -> Document:
        """What outlives a process: its counters and histograms that have counted anything."""
        counted = {name: family for name, family in self.families.items() if family.kind != GAUGE}
        return Document(counted).only(used_only=True)

    def to_json(self) -> bytes:
        families = {
            name: {
                "type": family.kind,
                "source": family.source,
                "samples": [[labels, _plain(value)] for labels, value in family.samples.items()],
            }
            for name, family in self.families.items()
        }
        return json.dumps({"families": families}, separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Document:
        """Raises ValueError: it is not the JSON of a document."""
        try:
            found = json.loads(data)["families"]
            return cls({name: _family(each) for name, each in found.items()})
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a document of metrics: {error!r}") from error


def document(
    registry: Registry, *, used_only: bool = False, matches: Callable[[str], object] | None = None
) -> Document:
    """What the registry holds now. used_only: no counter or histogram that has counted nothing (Envoy's `usedonly`). matches: of
    Envoy's dotted names, those for which it says yes (`filter`)."""
    families: dict[str, Family] = {}
    for metric in registry.metrics():
        if matches is not None and not matches(metric.name):
            continue
        value: Value
        if isinstance(metric, Histogram):
            kind, value = HISTOGRAM, Times(metric.bounds, tuple(metric.buckets), metric.total)
        elif isinstance(metric, Counter):
            kind, value = COUNTER, metric.value
        else:
            kind, value = GAUGE, metric.value
        if used_only and kind != GAUGE and not used(value):
            continue
        source, labels = metric.scope.family_of(metric.leaf)
        name = source if metric.native else _prometheus_name(source)
        family = families.get(name)
        if family is None:
            family = families[name] = Family(kind, source)
        if family.kind == kind:  # two of Envoy's names may become one here; the first one's kind counts
            family.samples[labels] = value
    return Document(families)


@lru_cache(4096)
def _prometheus_name(source: str) -> str:
    return _PREFIX + _NO_NAME.sub("_", source)


def merge(documents: Iterable[Document]) -> Document:
    """The sum over processes; see the module's text."""
    families: dict[str, Family] = {}
    for each in documents:
        for name, family in each.families.items():
            into = families.get(name)
            if into is None:
                families[name] = Family(family.kind, family.source, dict(family.samples))
            elif into.kind == family.kind:
                add = _gauges(family.source) if family.kind == GAUGE else _plus
                for labels, value in family.samples.items():
                    known = into.samples.get(labels)
                    into.samples[labels] = value if known is None else add(known, value)
    return Document(families)


def used(value: Value) -> bool:
    return value.count > 0 if isinstance(value, Times) else value != 0


def _plus(one: Value, other: Value) -> Value:
    if isinstance(one, Times):
        return one.plus(other) if isinstance(other, Times) else one
    return one if isinstance(other, Times) else one + other


def _gauges(source: str) -> Callable[[Any, Any], Any]:
    name = source.rpartition(".")[2]
    if name == "connected_state":
        return min
    if name.startswith("remaining_") or name == "active_faults":
        return _plus
    return _plus if name.endswith("_active") and name != "ejections_active" else max


def _plain(value: Value) -> object:
    if isinstance(value, Times):
        return {"bounds": value.bounds, "buckets": value.buckets, "sum": value.total}
    return value


def _family(found: Mapping[str, Any]) -> Family:
    samples = {
        tuple((str(name), str(text)) for name, text in labels): _value(value)
        for labels, value in found["samples"]
    }
    return Family(str(found["type"]), str(found["source"]), samples)


def _value(found: Any) -> Value:
    if isinstance(found, Mapping):
        return Times(tuple(found["bounds"]), tuple(found["buckets"]), float(found["sum"]))
    if isinstance(found, (int, float)):
        return found
    raise TypeError(f"{found!r} is not a number")

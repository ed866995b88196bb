"""Bound counters, gauges and histograms: the registry that everything may count into."""

from __future__ import annotations

from meshlib.stats.registry import Counter, Gauge, Histogram, Reading, Registry

__all__ = ["Counter", "Gauge", "Histogram", "Reading", "Registry"]

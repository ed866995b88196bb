"""Bound counters, gauges and histograms: the registry that everything may count into."""

from __future__ import annotations

from meshlib.stats.metrics import ENVOY_BOUNDS, Counter, Gauge, Histogram, Reading
from meshlib.stats.registry import Registry
from meshlib.stats.scope import Scope
from meshlib.stats.tags import Labels

__all__ = ["ENVOY_BOUNDS", "Counter", "Gauge", "Histogram", "Labels", "Reading", "Registry", "Scope"]

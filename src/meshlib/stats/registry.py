"""Metrics of one Mesh, by Envoy's names, so that dashboards carry over.

A metric is bound once, `registry.scope("cluster", ("envoy_cluster_name", "reviews")).counter("upstream_rq_total")`, and
counted with `metric.value += 1`. A scope holds its metrics by the last part of their names, which all clusters have in
common; so a thousand clusters cost a thousand small dictionaries and not a hundred thousand names.

Three things to look at: the whole *name* (`cluster.reviews.upstream_rq_total`), which is unique; the *family*
(`cluster.upstream_rq_total`) and the *labels*, which Prometheus wants and which Envoy takes out of its names.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

from meshlib.stats.metrics import ENVOY_BOUNDS, Counter, Gauge, Histogram, Reading
from meshlib.stats.scope import Scope, extended
from meshlib.stats.tags import Labels

__all__ = ["Registry"]


class Registry:
    """All metrics of one Mesh. Asking for a name again gives the same object; one name has one kind (TypeError)."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.root = Scope(self, "", "", ())
        self._scopes: dict[str, Scope] = {}
        self._labelled: dict[Labels, Scope] = {}
        self._before_reading: list[Callable[[], None]] = []

    def scope(self, name: str, tag: tuple[str, str] | None = None, *, within: Scope | None = None) -> Scope:
        """The scope with the prefix `NAME.`, `NAME.VALUE.` with a tag (label, value)."""
        parent = within or self.root
        prefix, family, labels = extended(parent, name, tag)
        with self.lock:
            scope = self._scopes.get(prefix)
            if scope is None:
                scope = self._scopes[prefix] = Scope(self, prefix, family, labels, parent)
        return scope

    def labelled(self, labels: Labels) -> Scope:
        """The metrics of families with names of their own (`istio_requests_total`) that have these labels."""
        scope = self._labelled.get(labels)
        if scope is None:
            with self.lock:
                scope = self._labelled.setdefault(labels, Scope(self, "", "", labels, native=True))
        return scope

    def labelled_counter(self, family: str, labels: Labels) -> Counter:
        return self.labelled(labels).counter(family)

    def labelled_histogram(
        self, family: str, labels: Labels, bounds: tuple[float, ...] = ENVOY_BOUNDS
    ) -> Histogram:
        return self.labelled(labels).histogram(family, bounds)

    def counter(self, name: str) -> Counter:
        """By its whole name: that of a scope's metric, or one of its own without labels."""
        scope, leaf = self._find(name)
        return scope.counter(leaf)

    def gauge(self, name: str) -> Gauge:
        scope, leaf = self._find(name)
        return scope.gauge(leaf)

    def histogram(self, name: str, bounds: tuple[float, ...] = ENVOY_BOUNDS) -> Histogram:
        scope, leaf = self._find(name)
        return scope.histogram(leaf, bounds)

    def reading(self, name: str, read: Callable[[], float]) -> Reading:
        scope, leaf = self._find(name)
        return scope.reading(leaf, read)

    def forget(self, prefix: str) -> None:
        """Forget the metric of this name, or the scope with this prefix (`cluster.reviews.`) and all below it.

        What is bound already goes on counting, unseen.
        """
        gone = self._scopes.get(prefix)
        if gone is None:
            scope, leaf = self._find(prefix)
            scope.forget(leaf)
            return
        with self.lock:
            self._scopes = {name: scope for name, scope in self._scopes.items() if not scope.within(gone)}

    def forget_labelled(self, label: tuple[str, str]) -> None:
        """Forget the metrics of families with names of their own that have this label."""
        with self.lock:
            self._labelled = {
                labels: scope for labels, scope in self._labelled.items() if label not in labels
            }

    def knows(self, labels: Labels) -> bool:
        """Whether there are metrics of families with names of their own that have exactly these labels."""
        return labels in self._labelled

    @property
    def labelled_sets(self) -> int:
        """How many sets of labels families with names of their own have."""
        return len(self._labelled)

    def after_fork_in_child(self) -> None:
        """A new lock: nobody here holds the old one. Counts begin at zero: the parent goes on with those of before."""
        self.lock = threading.Lock()
        for metric in self.metrics():
            if isinstance(metric, Counter):
                metric.value = 0
            elif isinstance(metric, Histogram):
                metric.buckets[:] = [0] * len(metric.buckets)
                metric.total = 0.0

    def before_reading(self, settle: Callable[[], None]) -> None:
        """Have this called before metrics are read: it adds what its owner has not added yet. Any thread; no lock is held."""
        self._before_reading.append(settle)

    def settle(self) -> None:
        """Before bound metrics are read one by one: have all of them complete."""
        for settle in self._before_reading:
            settle()

    def natives(self, family: str) -> list[tuple[Labels, Counter | Gauge | Histogram | Reading]]:
        """The metrics of a family with a name of its own, with their labels, in no order."""
        self.settle()
        with self.lock:
            scopes = list(self._labelled.values())
        return [(scope.labels, scope.metrics[family]) for scope in scopes if family in scope.metrics]

    def metrics(self) -> list[Counter | Gauge | Histogram | Reading]:
        """All of them, in no order: names take longer to put together than values to read."""
        self.settle()
        with self.lock:
            scopes = [self.root, *self._scopes.values(), *self._labelled.values()]
            return [metric for scope in scopes for metric in scope.metrics.values()]

    def __iter__(self) -> Iterator[Counter | Gauge | Histogram | Reading]:
        """In the order of their names."""
        return iter(sorted(self.metrics(), key=lambda metric: metric.name))

    def _find(self, name: str) -> tuple[Scope, str]:
        """The scope that has a metric of this name, else the root, and what it is called there."""
        at = name.rfind(".") + 1
        while at > 0:
            scope = self._scopes.get(name[:at])
            if scope is not None and name[at:] in scope.metrics:
                return scope, name[at:]
            at = name.rfind(".", 0, at - 1) + 1
        return self.root, name

"""A place for metrics: what their names begin with, and the labels that they share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from meshlib.stats.metrics import ENVOY_BOUNDS, Counter, Gauge, Histogram, Reading
from meshlib.stats.tags import Labels, clean, tagged

if TYPE_CHECKING:
    from meshlib.stats.registry import Registry

__all__ = ["Scope", "extended"]

M = TypeVar("M", Counter, Gauge)


class Scope:
    """The metrics whose names begin with `prefix`. Made by `Registry.scope` and `Scope.scope`.

    prefix: `cluster.reviews.`. family: what their families begin with, `cluster.`. labels: `(("envoy_cluster_name",
    "reviews"),)`. native: the families' names stand as they are, and labels are all that tells the metrics apart.
    """

    __slots__ = ("family", "labels", "metrics", "native", "parent", "prefix", "registry")

    def __init__(
        self,
        registry: Registry,
        prefix: str,
        family: str,
        labels: Labels,
        parent: Scope | None = None,
        native: bool = False,
    ) -> None:
        self.registry = registry
        self.prefix = prefix
        self.family = family
        self.labels = labels
        self.parent = parent
        self.native = native
        self.metrics: dict[str, Counter | Gauge | Histogram | Reading] = {}

    def scope(self, name: str, tag: tuple[str, str] | None = None) -> Scope:
        """The scope `name` within this one, `NAME.VALUE` with a tag. Asking again gives the same.

        tag: the label's name and its value. An empty name leaves the value alone in the name.
        """
        return self.registry.scope(name, tag, within=self)

    def counter(self, leaf: str) -> Counter:
        return self._bind(leaf, Counter)

    def gauge(self, leaf: str) -> Gauge:
        return self._bind(leaf, Gauge)

    def histogram(self, leaf: str, bounds: tuple[float, ...] = ENVOY_BOUNDS) -> Histogram:
        with self.registry.lock:
            found = self.known(leaf)
            if found is None:
                found = self.metrics[leaf] = Histogram(self, leaf, bounds)
        if not isinstance(found, Histogram):
            raise TypeError(f"{found.name} is a {type(found).__name__}, not a Histogram")
        return found

    def reading(self, leaf: str, read: Callable[[], float]) -> Reading:
        """Bind a gauge to what it measures; a later one of the same name takes its place. read: from any thread, no lock."""
        with self.registry.lock:
            metric = self.metrics[leaf] = Reading(self, leaf, read)
        return metric

    def forget(self, leaf: str) -> None:
        """Forget one metric, if it is there: what it measured no longer exists."""
        with self.registry.lock:
            self.metrics.pop(leaf, None)

    def name_of(self, leaf: str) -> str:
        if self.native:
            return leaf + "{" + ",".join(f'{name}="{value}"' for name, value in self.labels) + "}"
        return self.prefix + leaf

    def family_of(self, leaf: str) -> tuple[str, Labels]:
        """The family of the metric and all its labels, the most special ones first as in Envoy."""
        if self.native or not self.family:
            return leaf, self.labels
        family, labels = tagged(self.family, leaf)
        return family, labels + self.labels

    def within(self, scope: Scope) -> bool:
        """This is that scope, or stands below it."""
        at: Scope | None = self
        while at is not None and at is not scope:
            at = at.parent
        return at is scope

    def known(self, leaf: str) -> Counter | Gauge | Histogram | Reading | None:
        """The metric of this name; one that was asked for by its whole name before comes in. The caller holds the lock."""
        found = self.metrics.get(leaf)
        if found is None and not self.native and self.parent is not None:
            found = self.registry.root.metrics.pop(self.prefix + leaf, None)
            if found is not None:
                found.scope, found.leaf = self, leaf
                self.metrics[leaf] = found
        return found

    def _bind(self, leaf: str, kind: type[M]) -> M:
        with self.registry.lock:
            found = self.known(leaf)
            if found is None:
                found = self.metrics[leaf] = kind(self, leaf)
        if not isinstance(found, kind):
            raise TypeError(f"{found.name} is a {type(found).__name__}, not a {kind.__name__}")
        return found


def extended(parent: Scope, name: str, tag: tuple[str, str] | None) -> tuple[str, str, Labels]:
    """Prefix, family and labels of the scope `name` within another."""
    name = f"{clean(name)}." if name else ""
    if tag is None:
        return parent.prefix + name, parent.family + name, parent.labels
    label, value = tag[0], clean(tag[1])
    return f"{parent.prefix}{name}{value}.", parent.family + name, ((label, value), *parent.labels)

"""Metrics: one object for a name, exact counts from many threads, histogram buckets."""

from __future__ import annotations

import threading

import pytest

from meshlib.stats import Counter, Gauge, Histogram, Registry


def test_a_name_gives_the_same_object() -> None:
    registry = Registry()
    counter = registry.counter("cluster.a.upstream_rq_total")
    counter.value += 2
    assert registry.counter("cluster.a.upstream_rq_total") is counter
    assert isinstance(registry.gauge("g"), Gauge)
    assert isinstance(registry.histogram("h"), Histogram)


def test_a_name_has_one_kind() -> None:
    registry = Registry()
    registry.counter("x")
    with pytest.raises(TypeError, match="x is a Counter, not a Gauge"):
        registry.gauge("x")


def test_metrics_come_in_the_order_of_their_names() -> None:
    registry = Registry()
    for name in ("b", "a", "c"):
        registry.counter(name)
    assert [metric.name for metric in registry] == ["a", "b", "c"]


def test_a_reading_asks_when_it_is_read() -> None:
    registry, held = Registry(), [1.0]
    reading = registry.reading("r", lambda: held[0])
    held[0] = 2.0
    assert reading.value == 2.0
    later = registry.reading("r", lambda: 7.0)
    assert list(registry) == [later]
    with pytest.raises(TypeError, match="r is a Reading, not a Gauge"):
        registry.gauge("r")


def test_forget_forgets_one_metric_and_nothing_else() -> None:
    registry = Registry()
    kept = registry.counter("cluster.a.xy")
    registry.counter("cluster.a.x")
    registry.forget("cluster.a.x")
    registry.forget("cluster.a.x")
    assert [metric.name for metric in registry] == ["cluster.a.xy"]
    assert registry.counter("cluster.a.xy") is kept


@pytest.mark.parametrize(
    ("value", "bucket"), [(0.0, 0), (0.1, 0), (0.10001, 1), (1.0, 1), (5.0, 2), (5.1, 3), (1e9, 3)]
)
def test_bounds_are_inclusive(value: float, bucket: int) -> None:
    histogram = Histogram("h", (0.1, 1.0, 5.0))
    histogram.record(value)
    assert histogram.buckets == [int(index == bucket) for index in range(4)]
    assert histogram.total == value
    assert histogram.count == 1


def test_counts_of_many_threads_are_exact() -> None:
    counter = Registry().counter("c")

    def count(metric: Counter) -> None:
        for _ in range(20_000):
            metric.value += 1

    threads = [threading.Thread(target=count, args=(counter,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counter.value == 80_000


def test_a_lock_held_at_the_fork_does_not_block_the_child() -> None:
    registry = Registry()
    held = registry._lock
    with held:
        registry.renew_lock()
        registry.counter("after")
    assert [metric.name for metric in registry] == ["after"]

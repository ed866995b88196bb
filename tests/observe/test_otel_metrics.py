"""Metrics through OpenTelemetry's SDK: the same numbers, histograms bucket by bucket, families that begin later."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from opentelemetry import metrics as api
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.sdk.metrics import Counter, Histogram, MeterProvider
from opentelemetry.sdk.metrics.export import AggregationTemporality, InMemoryMetricReader, MetricsData

import meshlib
from meshlib.httpx import MeshTransport
from meshlib.observe.otel_metrics import OtelMetrics
from meshlib.stats import Registry
from meshlib.testing.upstream import Upstream
from tests.observe.counting import configuration

CLUSTER = ("envoy_cluster_name", "a")


@pytest.fixture
def registry() -> Registry:
    made = Registry()
    scope = made.scope("cluster", CLUSTER)
    scope.counter("upstream_rq_total").value = 3
    scope.gauge("upstream_rq_active").value = 2.0
    histogram = scope.histogram("upstream_rq_time", (1.0, 5.0))
    for value in (0.5, 2.0, 9.0, 9.0):
        histogram.record(value)
    return made


@pytest.fixture
def reader() -> InMemoryMetricReader:
    return InMemoryMetricReader()


@pytest.fixture
def provider(reader: InMemoryMetricReader) -> Iterator[MeterProvider]:
    made = MeterProvider([reader], shutdown_on_exit=False)
    yield made
    made.shutdown()


def read(reader: InMemoryMetricReader) -> dict[str, Any]:
    """The data of each metric of our scope."""
    found = reader.get_metrics_data()
    assert isinstance(found, MetricsData)
    return {
        metric.name: metric.data
        for resource in found.resource_metrics
        for scope in resource.scope_metrics
        if scope.scope.name == "meshlib"
        for metric in scope.metrics
    }


def values(data: Any) -> dict[str, Any]:
    return {point.attributes["envoy_cluster_name"]: point.value for point in data.data_points}


def test_the_same_numbers(registry: Registry, reader: InMemoryMetricReader, provider: MeterProvider) -> None:
    OtelMetrics(registry, lambda: 100.0, provider)
    found = read(reader)
    assert values(found["envoy.cluster.upstream_rq_total"]) == {"a": 3}
    assert found["envoy.cluster.upstream_rq_total"].is_monotonic
    assert values(found["envoy.cluster.upstream_rq_active"]) == {"a": 2.0}
    (point,) = found["envoy.cluster.upstream_rq_time"].data_points
    assert (point.count, point.sum, tuple(point.bucket_counts)) == (4, 20.5, (1, 1, 2))
    assert tuple(point.explicit_bounds) == (1.0, 5.0)
    assert point.attributes == dict([CLUSTER])
    registry.scope("cluster", CLUSTER).counter("upstream_rq_total").value = 5
    assert values(read(reader)["envoy.cluster.upstream_rq_total"]) == {"a": 5}


def test_families_and_series_that_begin_later(
    registry: Registry, reader: InMemoryMetricReader, provider: MeterProvider
) -> None:
    OtelMetrics(registry, lambda: 100.0, provider)
    read(reader)
    registry.scope("cluster", ("envoy_cluster_name", "b")).counter("upstream_rq_total").value = 7
    registry.labelled_counter("istio_requests_total", (CLUSTER,)).value = 1
    registry.labelled_histogram("istio_request_bytes", (CLUSTER,), (8.0,)).record(3)
    found = read(reader)
    assert values(found["envoy.cluster.upstream_rq_total"]) == {"a": 3, "b": 7}
    assert values(found["istio_requests_total"]) == {"a": 1}
    assert found["istio_request_bytes"].data_points[0].count == 1


def test_it_can_be_sent(registry: Registry, reader: InMemoryMetricReader, provider: MeterProvider) -> None:
    OtelMetrics(registry, lambda: 100.0, provider)
    encoded = encode_metrics(reader.get_metrics_data())  # type: ignore[arg-type]
    sent = {metric.name: metric for metric in encoded.resource_metrics[0].scope_metrics[0].metrics}
    point = sent["envoy.cluster.upstream_rq_time"].histogram.data_points[0]
    assert list(point.bucket_counts) == [1, 1, 2]
    assert not point.HasField("min")
    assert point.start_time_unix_nano == 100 * 10**9


def test_only_histograms(reader: InMemoryMetricReader, provider: MeterProvider) -> None:
    registry = Registry()
    OtelMetrics(registry, lambda: 100.0, provider)
    registry.histogram("h", (1.0,)).record(2.0)
    found = read(reader)
    assert set(found) == {"meshlib.up", "envoy.h"}
    provider.get_meter("other").create_counter("theirs").add(1)
    assert "envoy.h" in read(reader)


def test_deltas(registry: Registry) -> None:
    delta = AggregationTemporality.DELTA
    reader = InMemoryMetricReader(preferred_temporality={Histogram: delta, Counter: delta})
    provider = MeterProvider([reader], shutdown_on_exit=False)
    OtelMetrics(registry, lambda: 100.0, provider)
    first = read(reader)["envoy.cluster.upstream_rq_time"]
    assert first.aggregation_temporality is delta
    assert first.data_points[0].count == 4
    assert "envoy.cluster.upstream_rq_time" not in read(reader)
    registry.scope("cluster", CLUSTER).histogram("upstream_rq_time").record(2.0)
    (point,) = read(reader)["envoy.cluster.upstream_rq_time"].data_points
    assert (point.count, point.sum, tuple(point.bucket_counts)) == (1, 2.0, (0, 1, 0))
    provider.shutdown()


def test_an_sdk_that_is_set_up_later(
    registry: Registry, reader: InMemoryMetricReader, provider: MeterProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = api._internal._ProxyMeterProvider()
    current: list[Any] = [proxy]
    monkeypatch.setattr(api, "get_meter_provider", lambda: current[0])
    monkeypatch.setattr(api._internal, "get_meter_provider", lambda: current[0])
    OtelMetrics(registry, lambda: 100.0)
    current[0] = provider
    proxy.on_set_meter_provider(provider)
    assert values(read(reader)["envoy.cluster.upstream_rq_total"]) == {"a": 3}
    assert read(reader)["envoy.cluster.upstream_rq_time"].data_points[0].count == 4, "from the second time on"


def test_a_mesh_exports_its_own(reader: InMemoryMetricReader, provider: MeterProvider) -> None:
    with Upstream() as upstream:
        settings = meshlib.Observe(otel_metrics=provider)
        with meshlib.Mesh(config=configuration(upstream.port), observe=settings) as mesh:
            with httpx.Client(transport=MeshTransport(mesh)) as client:
                for _ in range(3):
                    client.get("http://backend/")
            found = read(reader)
            (point,) = found["istio_requests_total"].data_points
            assert (point.value, point.attributes["destination_service"]) == (3, "backend")
            assert found["istio_request_duration_milliseconds"].data_points[0].count == 3
            assert values(found["envoy.cluster.upstream_rq_total"]) == {"backend": 3}


def test_a_provider_that_is_not_the_sdks(
    registry: Registry,
    reader: InMemoryMetricReader,
    provider: MeterProvider,
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Foreign(api.MeterProvider):
        def get_meter(self, *arguments: Any, **options: Any) -> Any:
            return provider.get_meter(*arguments, **options)

    OtelMetrics(registry, lambda: 100.0, Foreign())
    assert "histograms are exported as counters" in caplog.text
    found = read(reader)
    assert values(found["envoy.cluster.upstream_rq_time.count"]) == {"a": 4}
    assert values(found["envoy.cluster.upstream_rq_time.sum"]) == {"a": 20.5}
    buckets = {
        point.attributes["le"]: point.value
        for point in found["envoy.cluster.upstream_rq_time.bucket"].data_points
    }
    assert buckets == {"1.0": 1, "5.0": 2, "+Inf": 4}

"""Metrics as documents: what is in them, their JSON, their sums."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshlib.observe.document import Document, Family, Times, document, merge
from meshlib.stats import Registry

CLUSTER = ("envoy_cluster_name", "a")
REQUESTS = "envoy_cluster_upstream_rq_total"


def registry() -> Registry:
    made = Registry()
    scope = made.scope("cluster", CLUSTER)
    scope.counter("upstream_rq_total").value = 3
    scope.counter("upstream_rq_503").value = 1
    scope.counter("upstream_rq_timeout")
    scope.gauge("upstream_rq_active").value = 2.0
    scope.reading("membership_total", lambda: 5)
    scope.histogram("upstream_rq_time", (1.0, 5.0)).record(2.0)
    made.labelled_counter("istio_requests_total", (("reporter", "source"),)).value = 7
    return made


def test_families_have_prometheus_names() -> None:
    families = document(registry()).families
    assert families[REQUESTS].samples == {(CLUSTER,): 3}
    assert families["envoy_cluster_upstream_rq"].samples == {(("envoy_response_code", "503"), CLUSTER): 1}
    assert families["istio_requests_total"].samples == {(("reporter", "source"),): 7}
    assert families["envoy_cluster_membership_total"].kind == "gauge"
    assert families["envoy_cluster_upstream_rq_time"].samples == {
        (CLUSTER,): Times((1.0, 5.0), (0, 1, 0), 2.0)
    }


def test_some_of_them() -> None:
    assert "envoy_cluster_upstream_rq_timeout" in document(registry()).families
    used = document(registry(), used_only=True).families
    assert "envoy_cluster_upstream_rq_timeout" not in used
    assert "envoy_cluster_membership_total" in used
    chosen = document(registry(), matches=lambda name: name.startswith("cluster.a.upstream_rq_5"))
    assert list(chosen.families) == ["envoy_cluster_upstream_rq"]


def test_json_and_back() -> None:
    made = document(registry())
    assert Document.from_json(made.to_json()) == made


@pytest.mark.parametrize(
    "text", [b"", b"[]", b"{}", b'{"families": 3}', b'{"families": {"x": {"type": "counter"}}}']
)
def test_something_else_is_no_document(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"not a document|Expecting value"):
        Document.from_json(text)


def test_totals_are_what_outlives_a_process() -> None:
    kept = document(registry()).totals().families
    assert set(kept) == {
        REQUESTS, "envoy_cluster_upstream_rq", "envoy_cluster_upstream_rq_time", "istio_requests_total",
    }  # fmt: skip


def test_counters_and_histograms_add_up() -> None:
    one, other = registry(), registry()
    other.scope("cluster", ("envoy_cluster_name", "b")).counter("upstream_rq_total").value = 9
    families = merge([document(one), document(other)]).families
    assert families[REQUESTS].samples == {(CLUSTER,): 6, (("envoy_cluster_name", "b"),): 9}
    assert families["envoy_cluster_upstream_rq_time"].samples[(CLUSTER,)] == Times((1.0, 5.0), (0, 2, 0), 4.0)
    assert document(one).families[REQUESTS].samples == {(CLUSTER,): 3}, "the parts stay as they are"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("cluster.upstream_rq_active", 5.0),
        ("cluster.circuit_breakers.default.remaining_rq", 5.0),
        ("http.fault.active_faults", 5.0),
        ("control_plane.connected_state", 2.0),
        ("cluster.circuit_breakers.default.rq_open", 3.0),
        ("cluster.outlier_detection.ejections_active", 3.0),
        ("cluster.membership_total", 3.0),
        ("meshlib_event_loop_lag_seconds", 3.0),
    ],
)
def test_gauges_go_by_what_they_say(source: str, expected: float) -> None:
    parts = [Document({"x": Family("gauge", source, {(): value})}) for value in (3.0, 2.0)]
    assert merge(parts).families["x"].samples == {(): expected}


BOUNDS = st.lists(st.integers(1, 9).map(float), unique=True, max_size=6).map(
    lambda found: tuple(sorted(found))
)


@st.composite
def times(draw: st.DrawFn) -> tuple[Times, list[float]]:
    bounds = draw(BOUNDS)
    values = draw(st.lists(st.integers(0, 12).map(float), max_size=8))
    histogram = Registry().histogram("h", bounds)
    for value in values:
        histogram.record(value)
    return Times(bounds, tuple(histogram.buckets), histogram.total), values


@given(times(), times())
def test_histograms_with_other_bounds_add_up_by_those_they_share(
    one: tuple[Times, list[float]], other: tuple[Times, list[float]]
) -> None:
    added = one[0].plus(other[0])
    values = one[1] + other[1]
    assert added.bounds == tuple(bound for bound in one[0].bounds if bound in other[0].bounds)
    assert added.count == len(values)
    assert added.total == sum(values)
    for index, bound in enumerate(added.bounds):
        assert sum(added.buckets[: index + 1]) == sum(value <= bound for value in values)


LABELS = st.lists(st.tuples(st.sampled_from("abc"), st.text(max_size=3)), max_size=2).map(tuple)
DOCUMENTS = st.dictionaries(
    st.sampled_from(["x_total", "y"]),
    st.dictionaries(LABELS, st.integers(0, 9), max_size=4).map(
        lambda found: Family("counter", "s", dict(found))
    ),
).map(Document)


@given(st.lists(DOCUMENTS, max_size=4))
def test_a_sum_is_a_sum(parts: list[Document]) -> None:
    merged = merge(parts)
    for name, family in merged.families.items():
        for labels, value in family.samples.items():
            each = [part.families[name].samples.get(labels, 0) for part in parts if name in part.families]
            assert value == sum(each)  # type: ignore[arg-type]
    assert {name for part in parts for name in part.families} == set(merged.families)
    assert Document.from_json(merged.to_json()) == merged

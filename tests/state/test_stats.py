"""The counters of clusters, listeners and requests beyond what calls show."""

from __future__ import annotations

import pytest

from meshlib.resources.cluster import CircuitBreakers, Thresholds
from meshlib.state import ClusterState, HttpStats, ResponseCodes, StateStore
from meshlib.stats import Registry


def values(registry: Registry, prefix: str) -> dict[str, float]:
    found = {metric.name.removeprefix(prefix): getattr(metric, "value", 0) for metric in registry}
    return {name: value for name, value in found.items() if value}


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (204, {"completed": 1, "204": 1, "2xx": 1}),
        (599, {"completed": 1, "599": 1, "5xx": 1}),
        (600, {"completed": 1, "unknown": 1}),
        (99, {"completed": 1, "unknown": 1}),
    ],
)
def test_a_status(status: int, expected: dict[str, int]) -> None:
    registry = Registry()
    ResponseCodes(registry.scope("a"), registry.scope("b")).count(status)
    for scope in ("a.", "b."):
        named = {f"{scope}upstream_rq_{name}": number for name, number in expected.items()}
        assert {
            name: value for name, value in values(registry, "").items() if name.startswith(scope)
        } == named


def test_a_status_makes_its_counters_when_it_comes() -> None:
    registry = Registry()
    codes = ResponseCodes(registry.scope("a"))
    assert [metric.name for metric in registry] == []
    codes.count(200)
    codes.count(200)
    assert registry.counter("a.upstream_rq_200").value == 2


def test_labels_as_in_envoy() -> None:
    registry = Registry()
    ClusterState("reviews", registry).stats.external.count(503)
    found = {metric.name: (metric.family, dict(metric.labels)) for metric in registry}
    assert found["cluster.reviews.external.upstream_rq_503"] == (
        "cluster.external.upstream_rq",
        {"envoy_response_code": "503", "envoy_cluster_name": "reviews"},
    )
    StateStore(registry).requests("shop", "route", "books").codes.count(200)
    found = {metric.name: (metric.family, dict(metric.labels)) for metric in registry}
    assert found["vhost.shop.route.books.upstream_rq_2xx"] == (
        "vhost.route.upstream_rq_xx",
        {"envoy_response_code_class": "2", "envoy_route": "books", "envoy_virtual_host": "shop"},
    )


def test_times_are_milliseconds_and_split() -> None:
    registry = Registry()
    stats = ClusterState("c", registry).stats
    stats.time(7.0, False)
    stats.time(70.0, True)
    for name, total in (("", 77.0), ("external.", 7.0), ("internal.", 70.0)):
        assert registry.histogram(f"cluster.c.{name}upstream_rq_time").total == total


def test_listeners_of_one_stat_prefix_count_together() -> None:
    store = StateStore(Registry())
    assert store.http("a") is store.http("a")
    assert store.http("a") is not store.http("b")
    assert store.requests("v", "route", "r") is not store.requests("v", "vcluster", "r")


def test_a_child_begins_at_zero() -> None:
    registry = Registry()
    store = StateStore(registry)
    http = store.http("a")
    http.downstream_rq_total.value += 3
    http.ended += 1
    assert values(registry, "http.a.")["downstream_rq_active"] == 2
    store.renew_locks()
    assert "downstream_rq_active" not in values(registry, "http.a.")
    http.ended += 1
    assert "downstream_rq_active" not in values(registry, "http.a."), "a call of the parent ended here"


def test_an_odd_status_has_no_class() -> None:
    registry = Registry()
    stats = HttpStats(registry.scope("http", ("envoy_http_conn_manager_prefix", "a")))
    stats.responded(999)
    assert values(registry, "http.a.") == {"downstream_rq_completed": 1}


def test_a_limit_of_none_is_reached_when_there_was_one() -> None:
    """As in Envoy, whose gauges move when something is taken or given back."""
    registry = Registry()
    state = ClusterState("c", registry)
    state.limit(CircuitBreakers(default=Thresholds(max_connections=0, max_requests=0)))
    prefix = "cluster.c.circuit_breakers.default."
    assert values(registry, prefix) == {}
    host = state.endpoint("10.0.0.1:80", "10.0.0.1", 80)
    assert not state.take_request(host, state.default)
    assert state.connect_beside(host, state.default), "every endpoint may have one"
    state.connection_closed(host, state.default)
    assert values(registry, prefix) == {"cx_open": 1}

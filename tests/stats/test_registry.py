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
    histogram = Registry().histogram("h", (0.1, 1.0, 5.0))
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


def test_after_a_fork_counts_begin_at_zero_and_the_parents_lock_blocks_nobody() -> None:
    registry = Registry()
    counter = registry.scope("cluster", CLUSTER).counter("upstream_rq_total")
    histogram, gauge = registry.histogram("h"), registry.gauge("g")
    counter.value, gauge.value = 3, 5.0
    histogram.record(1)
    with registry.lock:
        registry.after_fork_in_child()
        registry.counter("after")
    assert (counter.value, histogram.count, histogram.total, gauge.value) == (0, 0, 0.0, 5.0)
    assert [metric.name for metric in registry] == ["after", "cluster.a.b.upstream_rq_total", "g", "h"]
    assert registry.scope("cluster", CLUSTER).counter("upstream_rq_total") is counter


CLUSTER = ("envoy_cluster_name", "a.b")
HTTP = ("envoy_http_conn_manager_prefix", "in")


def test_a_scope_says_what_names_begin_with_and_which_labels_they_have() -> None:
    registry = Registry()
    scope = registry.scope("cluster", CLUSTER)
    counter = scope.counter("upstream_rq_total")
    assert counter.name == "cluster.a.b.upstream_rq_total"
    assert counter.family == "cluster.upstream_rq_total"
    assert counter.labels == (CLUSTER,)
    assert not counter.native
    assert registry.scope("cluster", CLUSTER) is scope
    assert scope.counter("upstream_rq_total") is counter
    deeper = scope.scope("outlier_detection").gauge("ejections_active")
    assert deeper.name == "cluster.a.b.outlier_detection.ejections_active"
    assert deeper.family == "cluster.outlier_detection.ejections_active"
    assert deeper.labels == (CLUSTER,)
    with pytest.raises(TypeError, match=r"cluster.a.b.upstream_rq_total is a Counter, not a Histogram"):
        scope.histogram("upstream_rq_total")


def test_a_name_alone_has_no_labels() -> None:
    counter = Registry().counter("cluster.a.upstream_rq_503")
    assert (counter.family, counter.labels) == ("cluster.a.upstream_rq_503", ())


def test_the_whole_name_finds_what_is_in_a_scope() -> None:
    registry = Registry()
    scope = registry.scope("cluster", CLUSTER)
    inner = scope.scope("circuit_breakers").scope("default").gauge("rq_open")
    assert registry.gauge("cluster.a.b.circuit_breakers.default.rq_open") is inner
    early = registry.counter("cluster.a.b.update_success")
    early.value = 4
    assert scope.counter("update_success") is early
    assert registry.counter("cluster.a.b.update_success") is early
    assert (early.family, early.value) == ("cluster.update_success", 4)
    assert [metric.name for metric in registry] == [early.name, inner.name][::-1]


@pytest.mark.parametrize(
    ("leaf", "family", "label"),
    [
        ("upstream_rq_503", "cluster.upstream_rq", ("envoy_response_code", "503")),
        ("upstream_rq_5xx", "cluster.upstream_rq_xx", ("envoy_response_code_class", "5")),
        ("external.upstream_rq_200", "cluster.external.upstream_rq", ("envoy_response_code", "200")),
        ("ssl.versions.TLSv1.3", "cluster.ssl.versions", ("envoy_ssl_version", "TLSv1.3")),
        (
            "ssl.ciphers.TLS_AES_256_GCM_SHA384",
            "cluster.ssl.ciphers",
            ("cipher_suite", "TLS_AES_256_GCM_SHA384"),
        ),
        ("ssl.curves.X25519", "cluster.ssl.curves", ("envoy_ssl_curve", "X25519")),
        (
            "ssl.sigalgs.ecdsa_secp256r1_sha256",
            "cluster.ssl.sigalgs",
            ("envoy_ssl_sigalg", "ecdsa_secp256r1_sha256"),
        ),
    ],
)
def test_values_at_the_end_of_a_name_are_labels(leaf: str, family: str, label: tuple[str, str]) -> None:
    counter = Registry().scope("cluster", CLUSTER).counter(leaf)
    assert counter.name == "cluster.a.b." + leaf
    assert counter.family == family
    assert counter.labels == (label, CLUSTER)


def test_servers_have_another_label_for_ciphers() -> None:
    listener = Registry().scope("listener", ("envoy_listener_address", "127.0.0.1_80"))
    assert listener.counter("ssl.ciphers.X").labels[0] == ("envoy_ssl_cipher", "X")


def test_a_tag_without_a_word_of_its_own() -> None:
    registry = Registry()
    fault = registry.scope("http", HTTP).scope("fault")
    counter = fault.scope("", ("envoy_fault_downstream_cluster", "web")).counter("aborts_injected")
    assert counter.name == "http.in.fault.web.aborts_injected"
    assert counter.family == "http.fault.aborts_injected"
    assert counter.labels == (("envoy_fault_downstream_cluster", "web"), HTTP)
    network = registry.scope("", ("envoy_rbac_prefix", "net.")).scope("rbac").counter("allowed")
    assert (network.name, network.family) == ("net.rbac.allowed", "rbac.allowed")


def test_colons_are_written_as_envoy_writes_them() -> None:
    scope = Registry().scope("cluster", ("envoy_cluster_name", "a://b:1"))
    assert scope.prefix == "cluster.a_b_1."
    assert scope.labels == (("envoy_cluster_name", "a_b_1"),)


def test_families_with_names_of_their_own() -> None:
    registry = Registry()
    labels = (("reporter", "source"), ("response_code", "200"))
    counter = registry.labelled_counter("istio_requests_total", labels)
    other = registry.labelled_counter("istio_requests_total", labels[:1])
    times = registry.labelled_histogram("istio_request_duration_milliseconds", labels, (1.0, 2.0))
    assert counter.native
    assert counter.family == "istio_requests_total"
    assert counter.labels == labels
    assert counter.name == 'istio_requests_total{reporter="source",response_code="200"}'
    assert times.bounds == (1.0, 2.0)
    assert registry.labelled_counter("istio_requests_total", labels) is counter
    assert other is not counter
    assert list(registry) == [times, counter, other]


def test_forget_a_scope() -> None:
    registry = Registry()
    for name in ("a", "a.b", "ab"):
        scope = registry.scope("cluster", ("envoy_cluster_name", name))
        scope.counter("x")
        scope.scope("ssl").counter("handshake")
    registry.forget("cluster.a.")
    assert [metric.name for metric in registry] == [
        "cluster.a.b.ssl.handshake",
        "cluster.a.b.x",
        "cluster.ab.ssl.handshake",
        "cluster.ab.x",
    ]
    registry.forget("cluster.ab.x")
    registry.forget("cluster.nobody.")
    assert "cluster.ab.x" not in [metric.name for metric in registry]
    anew = registry.scope("cluster", ("envoy_cluster_name", "a")).counter("x")
    assert anew.value == 0

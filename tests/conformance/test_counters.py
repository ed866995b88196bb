"""The counters of a run: what of them is compared, and what a difference is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from conformance.case import Case
from conformance.compare import Difference
from conformance.counters import compared, differing, own, shortened, since
from conformance.listed import COUNTERS, Listed, load_listed
from conformance.report import Report, Verdict
from tests.conformance.helpers import case_of
from tests.conformance.test_report import a_report

CASE = """
    cases:
    - name: one
      upstreams: {A: {}}
      routes: [{match: {prefix: /}, route: {cluster: A}}]
      requests: [{repeat: 1000}]
"""
OF_A_CLUSTER = """
upstream_rq_total upstream_rq_active upstream_rq_completed upstream_rq_2xx upstream_rq_503 upstream_rq_time
upstream_rq_timeout upstream_rq_per_try_timeout upstream_rq_cancelled upstream_rq_rx_reset
upstream_rq_tx_reset upstream_rq_pending_total upstream_rq_pending_active upstream_rq_pending_overflow
upstream_rq_active_overflow upstream_rq_pending_failure_eject upstream_rq_maintenance_mode
upstream_rq_max_duration_reached upstream_rq_retry upstream_rq_retry_success upstream_rq_retry_overflow
upstream_rq_retry_limit_exceeded upstream_rq_retry_backoff_exponential upstream_rq_retry_backoff_ratelimited
upstream_cx_total upstream_cx_active upstream_cx_connect_fail upstream_cx_connect_timeout
upstream_cx_overflow upstream_cx_none_healthy upstream_cx_http1_total upstream_cx_http2_total
membership_total membership_healthy membership_degraded membership_excluded membership_change
lb_healthy_panic lb_subsets_active lb_zone_routing_all_directly retry_or_shadow_abandoned update_attempt
update_success update_failure update_rejected update_empty update_no_rebuild
circuit_breakers.default.cx_open circuit_breakers.high.cx_pool_open circuit_breakers.default.rq_pending_open
circuit_breakers.default.rq_open circuit_breakers.high.rq_retry_open circuit_breakers.default.remaining_cx
circuit_breakers.default.remaining_pending circuit_breakers.default.remaining_rq
circuit_breakers.default.remaining_retries outlier_detection.ejections_active
outlier_detection.ejections_enforced_total outlier_detection.ejections_enforced_consecutive_5xx
outlier_detection.ejections_detected_consecutive_5xx outlier_detection.ejections_overflow
health_check.attempt health_check.success health_check.failure health_check.network_failure
health_check.healthy ring_hash_lb.size ring_hash_lb.min_hashes_per_host ring_hash_lb.max_hashes_per_host
maglev_lb.min_entries_per_host maglev_lb.max_entries_per_host retry.upstream_rq_503 canary.upstream_rq_200
internal.upstream_rq_2xx external.upstream_rq_completed
"""
OF_A_LISTENER = """
no_route no_cluster rq_redirect rq_direct_response rq_total downstream_rq_total downstream_rq_active
downstream_rq_completed downstream_rq_2xx downstream_rq_rx_reset downstream_rq_tx_reset
downstream_rq_idle_timeout downstream_rq_max_duration_reached rbac.allowed rbac.denied rbac.shadow_denied
ratelimit.ok ext_authz.denied fault.aborts_injected cors.origin_valid
"""
TOTAL = Difference(field="counters.cluster.A.upstream_cx_total", where="", envoy=1, other=2)


def entry(**changes: str) -> Listed:
    fields = {
        "case": "*",
        "runner": "*",
        "field": "counters.cluster.*.upstream_cx_total",
        "category": "by-design",
    }
    return Listed(**{**fields, "reason": "because", **changes})  # type: ignore[arg-type]


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return case_of(tmp_path, CASE)


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("cluster.area/one.A.upstream_rq_503", "cluster.A.upstream_rq_503"),
        ("cluster.area/one.A.outlier_detection.ejections_active", "cluster.A.outlier_detection.ejections_active"),
        ("cluster.area/one.A.circuit_breakers.high.rq_open", "cluster.A.circuit_breakers.high.rq_open"),
        ("http.area/one.fault.aborts_injected", "http.fault.aborts_injected"),
        ("vhost.v.vcluster.c.upstream_rq_2xx", "vhost.v.vcluster.c.upstream_rq_2xx"),
        ("cluster.area/one-two.A.upstream_rq_total", None),
        ("cluster.area/one.A.upstream_cx_tx_bytes_total", None),
        ("http.area/one.downstream_rq_http1_total", None),
        ("http.area/one.downstream_cx_total", None),
        ("server.live", None),
    ],
)  # fmt: skip
def test_names(case: Case, name: str, short: str | None) -> None:
    assert shortened([(name, 3)], case) == ({} if short is None else {short: 3})


@pytest.mark.parametrize("name", OF_A_CLUSTER.split())
def test_what_is_compared_of_a_cluster(case: Case, name: str) -> None:
    """The names of Envoy that users look for."""
    assert shortened([(f"cluster.area/one.A.{name}", 1)], case) == {f"cluster.A.{name}": 1}


@pytest.mark.parametrize("name", OF_A_LISTENER.split())
def test_what_is_compared_of_a_listener(case: Case, name: str) -> None:
    assert shortened([(f"http.area/one.{name}", 1)], case) == {f"http.{name}": 1}


def test_what_is_missing_is_zero(case: Case) -> None:
    (difference,) = differing(case, {"http.no_route": 1, "http.rq_total": 0}, {})
    assert (difference.field, difference.envoy, difference.other) == ("counters.http.no_route", 1, 0)
    assert compared({"a": 1, "b": 0}, {"b": 0, "c": 2}) == 2


def test_where_a_case_draws_at_random_only_zero_counts(tmp_path: Path) -> None:
    case = case_of(
        tmp_path, CASE.replace("requests:", "compare: {distribution: {of: upstream}}\n      requests:")
    )
    assert differing(case, {"a": 480}, {"a": 520}) == []
    assert len(differing(case, {"a": 480}, {})) == 1


def test_a_second_run_counts_as_the_first() -> None:
    configured = {"cluster.A.membership_change": 1.0, "cluster.A.membership_total": 2.0}
    before = {**configured, "cluster.A.upstream_rq_total": 7.0, "vhost.v.route.r.upstream_rq_total": 7.0}
    now = {**before, "cluster.A.upstream_rq_total": 9.0, "vhost.v.route.r.upstream_rq_total": 9.0}
    assert since(now, before, configured) == {
        "cluster.A.membership_change": 1, "cluster.A.membership_total": 2,
        "cluster.A.upstream_rq_total": 2, "vhost.v.route.r.upstream_rq_total": 2,
    }  # fmt: skip
    assert own("cluster.A.x")
    assert not own("vhost.v.x")


def test_entries_about_counters_are_patterns() -> None:
    some = entry(case="retries/* hedging/*", runner="httpx*", field="counters.*.upstream_cx_total counters.b")
    assert some.covers("retries/x", "httpx-async", TOTAL)
    assert not some.covers("limits/x", "httpx", TOTAL)
    assert not some.covers("retries/x", "grpc", TOTAL)
    assert not some.covers("retries/x", "httpx", Difference(field="status", where="", envoy=1, other=2))


def test_an_entry_that_covers_a_case_covers_its_counters() -> None:
    assert entry(case="a/b", field="*").covers("a/b", "httpx", TOTAL)


def test_how_far_apart_counters_may_be() -> None:
    close = replace(entry(category="chance"), by=1)
    assert close.covers("a/b", "httpx", TOTAL)
    assert close.covers("a/b", "httpx", replace(TOTAL, envoy=3))
    assert not close.covers("a/b", "httpx", replace(TOTAL, envoy=0))


def test_when_an_entry_must_show() -> None:
    given = {"retries/a", "retries/b", "limits/a"}
    some = entry(case="retries/*")
    assert some.applies("httpx", {"retries/a", "retries/b"}, given)
    assert not some.applies("httpx", {"retries/a"}, given), (
        "the one that is not run may be the one that differs"
    )
    assert not entry(case="retries/*", category="chance").applies("httpx", given, given)
    assert not entry(runner="grpc").applies("httpx", given, given)


def test_names_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "listed.yaml"
    path.write_text("counters: [{counter: a.* b.c, runner: grpc, category: chance, reason: r, by: 2}]")
    (found,) = load_listed(path)
    assert (found.case, found.field, found.by) == ("*", f"{COUNTERS}a.* {COUNTERS}b.c", 2)


def _report(*verdicts: Verdict) -> Report:
    return a_report(list(verdicts), [], set())


def test_counters_that_are_listed_leave_the_case_equal() -> None:
    report = _report(Verdict(counters=10, miscounted=[TOTAL]), Verdict(counters=5))
    assert not report.failed
    assert report.counts()["httpx"]["equal"] == 2
    assert report.counters() == {"httpx": {"compared": 15, "equal": 14, "listed": 1, "unexplained": 0}}


def test_counters_that_are_not_listed_fail() -> None:
    report = _report(Verdict(counters=10, unexplained=[TOTAL]))
    assert report.failed
    assert report.counters()["httpx"]["unexplained"] == 1

"""The text formats: names, labels, escaping, buckets, what OpenMetrics wants otherwise."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshlib.observe.document import Document, Family, document
from meshlib.observe.exposition import OPENMETRICS, TEXT, exposition, number
from meshlib.stats import Registry

CLUSTER = ("envoy_cluster_name", "outbound|80||a.b")


def registry() -> Registry:
    made = Registry()
    scope = made.scope("cluster", CLUSTER)
    scope.counter("upstream_rq_total").value = 3
    scope.counter("upstream_rq_503").value = 1
    scope.counter("upstream_cx_total").value = 2
    scope.gauge("upstream_rq_active").value = 0.5
    histogram = scope.histogram("upstream_rq_time", (0.5, 10.0, 3_600_000.0))
    for value in (0.25, 0.5, 11.0, 4e6):
        histogram.record(value)
    made.counter("xds.lds.update_success").value = 1
    return made


def test_the_text() -> None:
    kind, text = exposition(document(registry()))
    assert kind == TEXT
    assert (
        text
        == """\
# HELP envoy_cluster_upstream_cx_total Connections that were opened.
# TYPE envoy_cluster_upstream_cx_total counter
envoy_cluster_upstream_cx_total{envoy_cluster_name="outbound|80||a.b"} 2
# HELP envoy_cluster_upstream_rq Responses, by status.
# TYPE envoy_cluster_upstream_rq counter
envoy_cluster_upstream_rq{envoy_response_code="503",envoy_cluster_name="outbound|80||a.b"} 1
# HELP envoy_cluster_upstream_rq_active Attempts under way.
# TYPE envoy_cluster_upstream_rq_active gauge
envoy_cluster_upstream_rq_active{envoy_cluster_name="outbound|80||a.b"} 0.5
# HELP envoy_cluster_upstream_rq_time Milliseconds from an attempt's beginning to the end of its response.
# TYPE envoy_cluster_upstream_rq_time histogram
envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name="outbound|80||a.b",le="0.5"} 2
envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name="outbound|80||a.b",le="10"} 2
envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name="outbound|80||a.b",le="3600000"} 3
envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name="outbound|80||a.b",le="+Inf"} 4
envoy_cluster_upstream_rq_time_sum{envoy_cluster_name="outbound|80||a.b"} 4000011.75
envoy_cluster_upstream_rq_time_count{envoy_cluster_name="outbound|80||a.b"} 4
# HELP envoy_cluster_upstream_rq_total Attempts, retries included.
# TYPE envoy_cluster_upstream_rq_total counter
envoy_cluster_upstream_rq_total{envoy_cluster_name="outbound|80||a.b"} 3
# HELP envoy_xds_lds_update_success Envoy's xds.lds.update_success.
# TYPE envoy_xds_lds_update_success counter
envoy_xds_lds_update_success 1
"""
    )


def test_openmetrics_has_the_same_samples() -> None:
    plain = exposition(document(registry()))[1]
    kind, text = exposition(document(registry()), "application/openmetrics-text; version=1.0.0")
    assert kind == OPENMETRICS
    assert text.endswith("\n# EOF\n")

    def samples(whole: str) -> list[str]:
        return sorted(line for line in whole.splitlines() if not line.startswith("#"))

    assert samples(text) == samples(plain)
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    assert kinds["envoy_cluster_upstream_cx"] == "counter"
    assert kinds["envoy_cluster_upstream_rq_total"] == "unknown", "its stem is another family"
    assert kinds["envoy_cluster_upstream_rq"] == "unknown"


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", TEXT),
        ("*/*", TEXT),
        ("text/html, application/openmetrics-text;q=0", TEXT),
        ("application/openmetrics-text; version=0.0.1", TEXT),
        ("application/openmetrics-text;q=0.3, text/plain;q=0.9", TEXT),
        ("application/openmetrics-text;q=x", TEXT),
        ("application/openmetrics-text", OPENMETRICS),
        (
            "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            OPENMETRICS,
        ),
    ],
)
def test_what_is_asked_for(accept: str, expected: str) -> None:
    assert exposition(Document(), accept)[0] == expected


@pytest.mark.parametrize(
    ("value", "text"),
    [(3, "3"), (3.0, "3"), (0.1, "0.1"), (1e21, "1000000000000000000000"), (float("inf"), "+Inf"),
     (float("-inf"), "-Inf"), (float("nan"), "NaN"), (-2.5, "-2.5")],
)  # fmt: skip
def test_numbers(value: float, text: str) -> None:
    assert number(value) == text


@given(st.text())
def test_any_label_value_can_be_read_back(value: str) -> None:
    text = exposition(Document({"x": Family("gauge", "x", {(("l", value),): 1})}))[1]
    line = text.removeprefix("# HELP x Envoy's x.\n# TYPE x gauge\n")
    found = re.fullmatch(r'x\{l="((?:[^"\\\n]|\\[\\"n])*)"\} 1\n', line)
    assert found is not None
    plain = {"\\\\": "\\", '\\"': '"', "\\n": "\n"}
    assert re.sub(r"\\.", lambda each: plain[each[0]], found[1]) == value


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool here (Debian: prometheus)")
def test_promtool_finds_no_fault_with_it() -> None:
    text = exposition(document(registry()))[1]
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=text, text=True, capture_output=True, check=False
    )
    assert "error" not in done.stderr.lower(), done.stderr

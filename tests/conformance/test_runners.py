"""The runners beside Envoy: which cases they are given, what of their answers counts, and C-core in its own process."""

from __future__ import annotations

from pathlib import Path

import pytest

from conformance.resources import compile_case
from conformance.runners.ccore import _resources
from conformance.runners.registry import DEFAULT_RUNNERS, RUNNERS
from conformance.suite import run_suite
from tests.conformance.helpers import case_of

CASE = """
    cases:
    - name: one
      upstreams: {A: {responses: [{code: NOT_FOUND, message: none}]}}
      routes:
      - {match: {prefix: /p.S/}, name: only, route: {cluster: A}}
      - {match: {prefix: /}, direct_response: {status: 403}}
      requests: [{rpc: /p.S/M}]
      expect: {code: NOT_FOUND, message: none, flags: "-", details: via_upstream, attempts: 1, upstreams: [A]}
"""


def test_the_default_runners_exist() -> None:
    assert set(DEFAULT_RUNNERS) <= set(RUNNERS)


@pytest.mark.parametrize(
    ("field", "counts"),
    [
        ("code", True),
        ("messages", True),
        ("message", False),
        ("details", False),
        ("headers.x-envoy-attempt-count", False),
        ("upstream[0].headers.x-request-id", False),
        ("upstream[0].headers.x-added", True),
    ],
)
def test_what_counts_of_c_core(field: str, counts: bool) -> None:
    assert RUNNERS["ccore"].says(field) is counts
    assert RUNNERS["grpc"].says(field)


def test_resources_as_grpc_wants_them(tmp_path: Path) -> None:
    case = case_of(tmp_path, CASE)
    listener, assignment, cluster = _resources(case, compile_case(case, {"A": 4711}))
    assert listener["name"] == "area.one"
    assert cluster["type"] == "EDS"
    assert assignment["cluster_name"] == cluster["name"]
    (locality,) = assignment["endpoints"]
    assert locality["load_balancing_weight"] == 1


@pytest.mark.envoy
def test_envoy_and_c_core_on_a_grpc_case(tmp_path: Path) -> None:
    report = run_suite([case_of(tmp_path, CASE)], ("envoy", "envoy-grpc", "ccore"), [])
    (result,) = report.results
    assert not report.failed
    assert list(result.runners) == ["envoy-grpc", "ccore"]
    assert result.runners["ccore"].word == "NOT_FOUND"
    assert result.runners["ccore"].kind == "equal"


@pytest.mark.envoy
def test_c_core_informs_only(tmp_path: Path) -> None:
    text = CASE.replace("rpc: /p.S/M", "rpc: /q.S/M").replace("expect:", "expect: {} #")
    report = run_suite([case_of(tmp_path, text)], ("ccore",), [])
    (result,) = report.results
    assert (result.envoy, result.runners["ccore"].cell) == ("PERMISSION_DENIED", "!= UNAVAILABLE")
    assert not report.failed
    assert report.summary()["runners"] == {
        "ccore": {"cases": 1, "equal": 0, "listed": 0, "unexplained": 0, "different": 1}
    }

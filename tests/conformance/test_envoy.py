"""The real Envoy in the harness, on a handful of cases of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from conformance.case import Case
from conformance.envoy_process import EnvoyError
from conformance.suite import run_suite
from tests.conformance.helpers import case_of

pytestmark = pytest.mark.envoy

CASE = """
    cases:
    - name: one
      upstreams: {A: {responses: [{status: 503}, {}]}}
      routes: [{match: {prefix: /}, name: only, route: {cluster: A, retry_policy: {retry_on: 5xx}}}]
      requests: [{}]
      expect: {status: 200, attempts: 2, flags: "-", details: via_upstream, upstreams: [A, A]}
"""


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return case_of(tmp_path, CASE)


def test_envoy_agrees_with_a_second_envoy(case: Case) -> None:
    report = run_suite([case], ("envoy",), [])
    assert not report.failed
    assert report.summary()["equal"] == 1


def test_a_wrong_expectation_is_found(tmp_path: Path) -> None:
    report = run_suite([case_of(tmp_path, CASE.replace("attempts: 2", "attempts: 3"))], (), [])
    (result,) = report.results
    assert [difference.field for difference in result.wrong_expectation] == ["attempts"]


def test_a_case_that_envoy_refuses_is_named(tmp_path: Path) -> None:
    bad = case_of(tmp_path, CASE.replace("{prefix: /}", '{safe_regex: {regex: "("}}'))
    with pytest.raises(EnvoyError, match=r"area.yaml: case area/one: Envoy refuses it: .*missing"):
        run_suite([bad], (), [])


def test_rejected_cases(tmp_path: Path) -> None:
    text = (
        CASE.replace("name: one", "name: one\n      rejected: true")
        .replace("requests: [{}]", "")
        .replace("expect", "#")
    )
    assert run_suite([case_of(tmp_path, text)], (), []).failed
    assert not run_suite([case_of(tmp_path, text.replace("prefix: /", "prefix: 7"))], (), []).failed

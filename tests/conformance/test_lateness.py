"""Lateness of the machine: it is measured, and what differs meanwhile is looked at again, no more than a few times."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import pytest

from conformance import suite
from conformance.case import Case, load_file
from conformance.lateness import Lateness, kept_waiting
from conformance.outcome import Run
from conformance.report import Report
from conformance.runners.registry import RUNNERS, Kind
from tests.conformance.helpers import outcome

CASES = """
cases:
- {name: one, routes: [{match: {prefix: /}, direct_response: {status: 200}}], requests: [{}]}
- {name: two, routes: [{match: {prefix: /}, direct_response: {status: 200}}], requests: [{}]}
- {name: three, routes: [{match: {prefix: /}, direct_response: {status: 200}}], requests: [{}]}
"""


@pytest.fixture
def cases(tmp_path: Path) -> list[Case]:
    path = tmp_path / "area.yaml"
    path.write_text(CASES)
    return load_file(path, tmp_path)


class FakeEnvoy:
    """Answers 200, and is always as late as it is told to be."""

    started = 0
    late = 0.0

    def __init__(self, cases: object) -> None:
        self._waited = 0.0

    def __enter__(self) -> Self:
        FakeEnvoy.started += 1
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    @property
    def kept_waiting(self) -> float:
        waited, self._waited = self._waited, self._waited + FakeEnvoy.late
        return waited

    def run(self, case: Case, compiled: object) -> Run:
        return Run(outcomes=[outcome()])


class FakeRunner:
    """Is asked for a case, and for the how manieth time; answers with its status."""

    def __init__(self, status: Callable[[str, int], int]) -> None:
        self._status = status
        self.asked: dict[str, int] = {}

    def run(self, case: Case, compiled: object) -> Run:
        name = case.name.partition("/")[2]
        self.asked[name] = self.asked.get(name, 0) + 1
        return Run(outcomes=[outcome(status=self._status(name, self.asked[name]), hits=())])


Ask = Callable[..., tuple[Report, dict[str, int]]]


@pytest.fixture
def ask(cases: list[Case], monkeypatch: pytest.MonkeyPatch) -> Ask:
    """Run the cases with a machine that is late by so many seconds, and a runner whose status is a function of case and turn."""
    monkeypatch.setattr(suite, "Envoy", FakeEnvoy)
    monkeypatch.setattr(Lateness, "worst", lambda self, since: 0.0)
    monkeypatch.setattr(FakeEnvoy, "started", 0)

    def asked(late: float, status: Callable[[str, int], int]) -> tuple[Report, dict[str, int]]:
        monkeypatch.setattr(FakeEnvoy, "late", late)
        fake = FakeRunner(status)

        def make(cases: Any, stack: contextlib.ExitStack) -> Any:
            return fake

        monkeypatch.setitem(RUNNERS, "fake", Kind(protocol="http", make=make))
        return suite.run_suite(cases, ("fake",), []), fake.asked

    return asked


def wrong_at_first(name: str, turn: int) -> int:
    return 503 if name == "two" and turn == 1 else 200


def test_what_was_late_is_looked_at_again_with_a_new_envoy(ask: Ask) -> None:
    report, asked = ask(0.1, wrong_at_first)
    assert not report.failed
    assert asked == {"one": 1, "two": 2, "three": 1}
    assert FakeEnvoy.started == 2
    assert report.summary()["asked_again"] == ["area/two"]
    (before,) = report.results[1].before
    assert before == "100 ms late: fake: request 0: status: Envoy 200, here 503"


def test_on_a_machine_that_is_in_time_a_difference_is_one(ask: Ask) -> None:
    report, asked = ask(0.001, wrong_at_first)
    assert report.failed
    assert asked == {"one": 1, "two": 1, "three": 1}


def test_what_is_wrong_stays_so(ask: Ask) -> None:
    report, asked = ask(0.1, lambda name, turn: 503 if name == "two" else 200)
    assert report.failed
    assert asked["two"] == 1 + suite.LOOKS
    assert len(report.results[1].before) == suite.LOOKS


def test_lateness_does_not_explain_many_differences(ask: Ask) -> None:
    report, asked = ask(0.1, lambda name, turn: 503 if turn == 1 and name != "one" else 200)
    assert report.failed
    assert asked == {"one": 1, "two": 1, "three": 1}


def test_the_worst_since() -> None:
    lateness = Lateness()
    for begun, ended in ((0.0, 0.2), (1.0, 1.03), (2.0, 2.0101)):
        lateness.note(begun, ended)
    assert lateness.worst(0.0) == pytest.approx(0.19)
    assert lateness.worst(0.5) == pytest.approx(0.02)
    assert lateness.worst(1.5) == 0.0


def test_it_watches_while_the_context_lasts() -> None:
    with Lateness() as lateness:
        assert lateness.worst(0.0) >= 0.0


def test_how_long_a_process_was_kept_waiting() -> None:
    assert kept_waiting(os.getpid()) >= 0.0
    assert kept_waiting(0) == 0.0

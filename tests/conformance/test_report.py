"""Verdicts: listed differences are explained, stale entries and too many of them fail the run."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from conformance.compare import Difference
from conformance.listed import LISTED, Listed, check_cases, load_listed
from conformance.reader import CaseError
from conformance.report import CaseResult, Report, Verdict

DETAILS = Difference(field="details", where="request 0: ", envoy="a", other="b")
ENTRY = Listed(case="a/0", runner="httpx", field="details", category="by-design", reason="because")


def a_report(verdicts: list[Verdict], listed: list[Listed], used: set[Listed]) -> Report:
    results = [
        CaseResult(name=f"a/{index}", envoy="200", runners={"httpx": verdict})
        for index, verdict in enumerate(verdicts)
    ]
    return Report(results=results, runners=("httpx",), listed=listed, used=used)


def test_all_equal() -> None:
    report = a_report([Verdict(), Verdict()], [], set())
    assert not report.failed
    assert report.summary() == {
        "cases": 2,
        "equal": 2,
        "listed": 0,
        "unexplained": 0,
        "asked_again": [],
        "runners": {"httpx": {"cases": 2, "equal": 2, "listed": 0, "unexplained": 0}},
        "counters": {},
    }


def test_a_difference_fails() -> None:
    report = a_report([Verdict(unexplained=[DETAILS])], [], set())
    assert report.failed
    assert report.summary()["unexplained"] == 1


def test_an_error_of_a_runner_fails() -> None:
    assert a_report([Verdict(error="boom")], [], set()).failed


def test_a_listed_difference_passes_up_to_five_percent() -> None:
    explained = Verdict(explained=[DETAILS])
    assert not a_report([explained, *(Verdict() for _ in range(19))], [ENTRY], {ENTRY}).failed
    assert a_report([explained, *(Verdict() for _ in range(18))], [ENTRY], {ENTRY}).failed


def test_a_listed_difference_does_not_hide_another() -> None:
    verdict = Verdict(explained=[DETAILS], unexplained=[DETAILS])
    assert verdict.kind == "unexplained"


def test_a_stale_entry_fails() -> None:
    report = a_report([Verdict() for _ in range(40)], [ENTRY], set())
    assert report.failed
    assert report.problems() == ["listed.yaml: a/0: details (httpx) is equal now: take the entry out"]


def test_a_wrong_expectation_fails() -> None:
    result = CaseResult(name="a/0", envoy="200", wrong_expectation=[DETAILS], runners={"httpx": Verdict()})
    assert Report(results=[result], runners=("httpx",), listed=[], used=set()).failed


def test_the_table_shows_differences_in_full() -> None:
    out = io.StringIO()
    a_report([Verdict(), Verdict(unexplained=[DETAILS])], [], set()).write(out)
    assert "request 0: details: Envoy 'a', here 'b'" in out.getvalue()
    assert "2 cases, 1 equal, 0 listed, 1 unexplained" in out.getvalue()


@pytest.mark.parametrize(
    ("field", "covered"),
    [("details", True), ("detail", False), ("*", True), ("headers.*", False)],
)
def test_fields_of_an_entry(field: str, covered: bool) -> None:
    entry = Listed(case="a/0", runner="*", field=field, category="by-design", reason="because")
    assert entry.covers("a/0", "httpx", DETAILS) is covered


def test_an_entry_is_for_its_case_and_runner() -> None:
    assert ENTRY.covers("a/0", "httpx", DETAILS)
    assert not ENTRY.covers("a/1", "httpx", DETAILS)
    assert not ENTRY.covers("a/0", "httpx-async", DETAILS)


def test_brackets_in_a_field_are_plain() -> None:
    entry = Listed(
        case="a/0", runner="*", field="upstream[0].headers.*", category="by-design", reason="because"
    )
    assert entry.covers("a/0", "x", Difference(field="upstream[0].headers.te", where="", envoy=1, other=2))
    assert not entry.covers("a/0", "x", Difference(field="upstream0.headers.te", where="", envoy=1, other=2))


def test_the_real_list_is_read() -> None:
    load_listed(LISTED)


@pytest.mark.parametrize(
    ("entry", "complaint"),
    [
        ("{case: a/b, field: x, category: by-design}", "needs case, field, category and reason"),
        ("{case: a/b, field: x, reason: r}", "category: '' is not one of"),
        ("{case: a/b, field: x, category: mood, reason: r}", "category: 'mood' is not one of"),
        ("{case: a/b, field: x, category: by-design, reason: r, why: y}", "why: unknown field"),
        ("{case: a/b, field: x, category: by-design, reason: r, by: 1}", "by: unknown field"),
    ],
)
def test_a_bad_entry(tmp_path: Path, entry: str, complaint: str) -> None:
    path = tmp_path / "listed.yaml"
    path.write_text(f"listed: [{entry}]")
    with pytest.raises(CaseError, match=complaint):
        load_listed(path)


def test_an_entry_for_no_case() -> None:
    with pytest.raises(CaseError, match="a/0: there is no such case"):
        check_cases([ENTRY], {"a/1"})

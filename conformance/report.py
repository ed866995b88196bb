"""The result of a run: verdicts, the table and the JSON summary."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TextIO

from conformance.lateness import LATE
from conformance.listed import COUNTERS, MAX_SHARE, Listed

if TYPE_CHECKING:
    from conformance.compare import Difference

EQUAL, LISTED, UNEXPLAINED = "equal", "listed", "unexplained"
DIFFERENT = "different"
_ORDER = (EQUAL, LISTED, UNEXPLAINED)


@dataclass(slots=True, kw_only=True)
class Verdict:
    """What a runner made of a case, and in a word. ``explained`` and ``unexplained`` together are all differences.

    A runner that only ``informs`` has its differences ``beside`` and is never wrong. ``counters``: how many were compared;
    ``miscounted``: the listed differences among them, which do not make the case a listed one.
    """

    word: str = ""
    informs: bool = False
    beside: list[Difference] = field(default_factory=list)
    explained: list[Difference] = field(default_factory=list)
    unexplained: list[Difference] = field(default_factory=list)
    error: str = ""
    counters: int = 0
    miscounted: list[Difference] = field(default_factory=list)

    @property
    def kind(self) -> str:
        """``equal``, ``listed`` or ``unexplained``; of a runner that informs ``equal`` or ``different``."""
        if self.informs:
            return DIFFERENT if self.beside or self.error else EQUAL
        if self.unexplained or self.error:
            return UNEXPLAINED
        return LISTED if self.explained else EQUAL

    @property
    def cell(self) -> str:
        """What the table says: of a runner that informs its own outcome, and whether it is Envoy's."""
        if not self.informs:
            return self.kind
        return f"{'=' if self.kind == EQUAL else '!='} {self.word or 'error'}"


@dataclass(slots=True, kw_only=True)
class CaseResult:
    """One case: Envoy's own outcome in a word, its quarrels with ``expect``, and every runner's verdict.

    ``late``: by how many seconds the machine was late meanwhile. ``before``: what differed in earlier looks, when it was.
    """

    name: str
    envoy: str
    wrong_expectation: list[Difference] = field(default_factory=list)
    error: str = ""
    runners: dict[str, Verdict] = field(default_factory=dict)
    seconds: float = 0.0
    late: float = 0.0
    before: list[str] = field(default_factory=list)

    @property
    def doubtful(self) -> bool:
        """Whether it differs, and the machine may be to blame."""
        return self.kind == UNEXPLAINED and self.late > LATE

    @property
    def in_short(self) -> str:
        """What is unexplained, in a line."""
        found = [f"Envoy: {difference}" for difference in self.wrong_expectation]
        for name, verdict in self.runners.items():
            if verdict.error:
                found.append(f"{name}: {verdict.error.splitlines()[-1]}")
            found += [f"{name}: {difference}" for difference in verdict.unexplained]
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        return f"{self.late * 1000:.0f} ms late: {''.join(found[:1])}{more}"

    @property
    def kind(self) -> str:
        """The worst verdict of any runner."""
        if self.wrong_expectation or self.error:
            return UNEXPLAINED
        kinds = [verdict.kind for verdict in self.runners.values() if not verdict.informs]
        return max(kinds, key=_ORDER.index, default=EQUAL)


@dataclass(slots=True, kw_only=True)
class Report:
    """A whole run. ``listed`` are the entries that apply to its cases and runners."""

    results: list[CaseResult]
    runners: tuple[str, ...]
    listed: list[Listed]
    used: set[Listed]

    def problems(self) -> list[str]:
        """Why the run fails, apart from unexplained differences: stale entries, too many listed cases."""
        found = [
            f"listed.yaml: {entry.case}: {entry.field} ({entry.runner}) is equal now: take the entry out"
            for entry in self.listed
            if entry not in self.used
        ]
        for runner, counts in self.counts().items():
            if counts[LISTED] > MAX_SHARE * counts["cases"]:
                found.append(
                    f"{runner}: {counts[LISTED]} of {counts['cases']} cases are listed, at most 5 % may be"
                )
        return found

    def counts(self) -> dict[str, dict[str, int]]:
        """For each runner, how many cases are equal, listed and unexplained; or different, where it only informs."""
        counts = {}
        for runner in self.runners:
            verdicts = [result.runners[runner] for result in self.results if runner in result.runners]
            kinds = [verdict.kind for verdict in verdicts]
            counts[runner] = _tally(kinds)
            if any(verdict.informs for verdict in verdicts):
                counts[runner][DIFFERENT] = kinds.count(DIFFERENT)
        return counts

    def counters(self) -> dict[str, dict[str, int]]:
        """For each runner that counts, how many counters of cases were compared, and what came of it."""
        found = {}
        for runner in self.runners:
            verdicts = [result.runners[runner] for result in self.results if runner in result.runners]
            total = sum(verdict.counters for verdict in verdicts)
            listed = sum(len(verdict.miscounted) for verdict in verdicts)
            wrong = sum(
                difference.field.startswith(COUNTERS)
                for verdict in verdicts
                for difference in verdict.unexplained
            )
            if total:
                found[runner] = {
                    "compared": total,
                    EQUAL: total - listed - wrong,
                    LISTED: listed,
                    UNEXPLAINED: wrong,
                }
        return found

    def summary(self) -> dict[str, object]:
        """The JSON summary."""
        tally = _tally([result.kind for result in self.results])
        again = [result.name for result in self.results if result.before]
        return {**tally, "asked_again": again, "runners": self.counts(), "counters": self.counters()}

    @property
    def failed(self) -> bool:
        """Whether the run must exit with 1."""
        return bool(self.problems()) or any(result.kind == UNEXPLAINED for result in self.results)

    def write(self, out: TextIO, *, verbose: bool = True) -> None:
        """The tables, one for the runners that are given the same cases; every difference in full; the totals."""
        rows = self.results if verbose else [result for result in self.results if result.kind != EQUAL]
        tables: dict[tuple[str, ...], list[CaseResult]] = {}
        for result in rows:
            tables.setdefault(tuple(result.runners), []).append(result)
        for runners, results in tables.items():
            _write_table(runners, results, out)
        self._write_differences(out)
        for result in self.results:
            for before in result.before:
                print(f"asked again: {result.name}: {before}", file=out)
        for problem in self.problems():
            print(problem, file=out)
        total = _tally([result.kind for result in self.results])
        print(f"\n{_in_words(total)}", file=out)
        for runner, counters in self.counters().items():
            print(f"counters, {runner}: {_in_words(counters)}", file=out)

    def _write_differences(self, out: TextIO) -> None:
        for result in self.results:
            alone = all(verdict.informs for verdict in result.runners.values())
            if result.kind == EQUAL and not (alone and any(v.beside for v in result.runners.values())):
                continue
            print(f"\n{result.name}", file=out)
            if result.error:
                print(f"  harness: {result.error}", file=out)
            for difference in result.wrong_expectation[:20]:
                print(f"  Envoy is not as the case expects: {difference}", file=out)
            for name, verdict in result.runners.items():
                if verdict.error:
                    print(f"  {name}: {verdict.error}", file=out)
                for difference in verdict.unexplained[:40]:
                    print(f"  {name}: {difference}", file=out)
                for difference in verdict.beside if alone else ():
                    print(f"  {name}: {difference}", file=out)
                for difference in verdict.explained[:5]:
                    print(f"  {name}: listed: {difference}", file=out)


def _in_words(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def _write_table(runners: tuple[str, ...], results: list[CaseResult], out: TextIO) -> None:
    width = max(len(result.name) for result in results)
    rows = [
        [result.name, result.envoy, *(result.runners[name].cell for name in runners)] for result in results
    ]
    widths = [width, 30] + [
        30 if any(result.runners[name].informs for result in results) else 12 for name in runners
    ]
    for number, row in enumerate([["case", "Envoy", *runners], *rows]):
        line = "  ".join(f"{text[:size]:<{size}}" for text, size in zip(row, widths)).rstrip()
        print(line, *(["-" * len(line)] if number == 0 else []), sep="\n", file=out)
    print(file=out)


def _tally(kinds: list[str]) -> dict[str, int]:
    return {"cases": len(kinds), **{kind: kinds.count(kind) for kind in _ORDER}}

"""The result of a run: verdicts, the table and the JSON summary."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TextIO

from conformance.listed import MAX_SHARE, Listed

if TYPE_CHECKING:
    from conformance.compare import Difference

EQUAL, LISTED, UNEXPLAINED = "equal", "listed", "unexplained"
_ORDER = (EQUAL, LISTED, UNEXPLAINED)


@dataclass(slots=True, kw_only=True)
class Verdict:
    """What a runner made of a case. ``explained`` and ``unexplained`` together are all differences."""

    explained: list[Difference] = field(default_factory=list)
    unexplained: list[Difference] = field(default_factory=list)
    error: str = ""

    @property
    def kind(self) -> str:
        """``equal``, ``listed`` or ``unexplained``."""
        if self.unexplained or self.error:
            return UNEXPLAINED
        return LISTED if self.explained else EQUAL


@dataclass(slots=True, kw_only=True)
class CaseResult:
    """One case: Envoy's own outcome in a word, its quarrels with ``expect``, and every runner's verdict."""

    name: str
    envoy: str
    wrong_expectation: list[Difference] = field(default_factory=list)
    error: str = ""
    runners: dict[str, Verdict] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def kind(self) -> str:
        """The worst verdict of any runner."""
        if self.wrong_expectation or self.error:
            return UNEXPLAINED
        return max((verdict.kind for verdict in self.runners.values()), key=_ORDER.index, default=EQUAL)


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
        """For each runner, how many cases are equal, listed and unexplained."""
        return {
            runner: _tally(
                [result.runners[runner].kind for result in self.results if runner in result.runners]
            )
            for runner in self.runners
        }

    def summary(self) -> dict[str, object]:
        """The JSON summary."""
        return {**_tally([result.kind for result in self.results]), "runners": self.counts()}

    @property
    def failed(self) -> bool:
        """Whether the run must exit with 1."""
        return bool(self.problems()) or any(result.kind == UNEXPLAINED for result in self.results)

    def write(self, out: TextIO, *, verbose: bool = True) -> None:
        """The table, then every difference in full, then the totals."""
        width = max((len(result.name) for result in self.results), default=4)
        header = f"{'case':<{width}}  {'Envoy':<28}" + "".join(f"  {name:<12}" for name in self.runners)
        rows = self.results if verbose else [result for result in self.results if result.kind != EQUAL]
        print(header, "-" * len(header), sep="\n", file=out)
        for result in rows:
            kinds = "".join(
                f"  {result.runners[name].kind if name in result.runners else '-':<12}"
                for name in self.runners
            )
            print(f"{result.name:<{width}}  {result.envoy[:28]:<28}{kinds}".rstrip(), file=out)
        self._write_differences(out)
        for problem in self.problems():
            print(problem, file=out)
        total = _tally([result.kind for result in self.results])
        words = ", ".join(f"{count} {name}" for name, count in total.items())
        print(f"\n{words}", file=out)

    def _write_differences(self, out: TextIO) -> None:
        for result in self.results:
            if result.kind == EQUAL:
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
                for difference in verdict.explained[:5]:
                    print(f"  {name}: listed: {difference}", file=out)


def _tally(kinds: list[str]) -> dict[str, int]:
    return {"cases": len(kinds), **{kind: kinds.count(kind) for kind in _ORDER}}

"""The deliberate differences: ``listed.yaml``, and what may stand in it."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from conformance.reader import CaseError, Fields

if TYPE_CHECKING:
    from collections.abc import Iterable

    from conformance.compare import Difference

LISTED = Path(__file__).parent / "listed.yaml"
CHANCE = "chance"
CATEGORIES = ("by-design", "host-library", "not-yet", CHANCE)
MAX_SHARE = 0.05

COUNTERS = "counters."
"""How the field of a difference between counters begins."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """One deliberate difference. ``runner`` ``*`` is every runner; ``field`` may use ``*`` (``headers.*``).

    One between counters is about names rather than about cases: ``case``, ``runner`` and ``field`` are patterns then, several of
    them apart by blanks, and what it explains does not make a case a listed one. ``chance``: the difference comes and goes.
    ``by``: how far apart the values of such a counter may be.
    """

    case: str
    runner: str
    field: str
    category: str
    reason: str
    by: float = inf

    def covers(self, case: str, runner: str, difference: Difference) -> bool:
        """Whether this entry explains ``difference``."""
        return (
            _matches(case, self.case)
            and _matches(runner, self.runner)
            and _matches(difference.field, self.field.replace("[", "[[]"))
            and (self.by == inf or _apart(difference) <= self.by)
        )

    @property
    def about_counters(self) -> bool:
        """Whether it explains differences between counters, and nothing else."""
        return self.field.startswith(COUNTERS)

    def applies(self, runner: str, run: set[str], given: set[str]) -> bool:
        """Whether a run of these cases must show the difference, of those that the runner is given.

        An entry about several cases must only where all of them are run.
        """
        meant = {name for name in given if _matches(name, self.case)}
        return self.category != CHANCE and bool(meant) and meant <= run and _matches(runner, self.runner)


def _apart(difference: Difference) -> float:
    """How far apart the values of a counter are."""
    assert isinstance(difference.envoy, int | float)
    assert isinstance(difference.other, int | float)
    return abs(difference.envoy - difference.other)


def _matches(text: str, patterns: str) -> bool:
    return any(fnmatchcase(text, pattern) for pattern in patterns.split())


def load_listed(path: Path = LISTED) -> list[Listed]:
    """The entries of ``path``. Raises :class:`CaseError` for an entry that lacks a case, a field, a category or a reason."""
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    top = Fields(document, path.name)
    found = []
    for child in (*top.children("listed"), *top.children("counters")):
        names = " ".join(COUNTERS + name for name in child.text("counter").split())
        entry = Listed(
            case=child.text("case", "*" if names else ""),
            runner=child.text("runner", "*"),
            field=names or child.text("field"),
            category=child.choice("category", CATEGORIES, ""),
            reason=child.text("reason"),
            by=child.integer("by", 1, 1) if names and child.has("by") else inf,
        )
        if not (entry.case and entry.field and entry.reason):
            raise child.error("needs case, field, category and reason")
        child.close()
        found.append(entry)
    top.close()
    return found


def check_cases(listed: Iterable[Listed], names: set[str]) -> None:
    """Complain about entries for cases that do not exist."""
    for entry in listed:
        if not all(any(fnmatchcase(name, pattern) for name in names) for pattern in entry.case.split()):
            raise CaseError(f"listed.yaml: {entry.case}: there is no such case")

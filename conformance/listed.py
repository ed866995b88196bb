"""The deliberate differences: ``listed.yaml``, and what may stand in it."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from conformance.reader import CaseError, Fields

if TYPE_CHECKING:
    from collections.abc import Iterable

    from conformance.compare import Difference

LISTED = Path(__file__).parent / "listed.yaml"
CATEGORIES = ("by-design", "host-library", "not-yet")
MAX_SHARE = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """One deliberate difference. ``runner`` ``*`` is every runner; ``field`` may use ``*`` (``headers.*``)."""

    case: str
    runner: str
    field: str
    category: str
    reason: str

    def covers(self, case: str, runner: str, difference: Difference) -> bool:
        """Whether this entry explains ``difference``."""
        return (
            self.case == case
            and self.runner in ("*", runner)
            and fnmatchcase(difference.field, self.field.replace("[", "[[]"))
        )


def load_listed(path: Path = LISTED) -> list[Listed]:
    """The entries of ``path``. Raises :class:`CaseError` for an entry that lacks a case, a field, a category or a reason."""
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    top = Fields(document, path.name)
    found = []
    for child in top.children("listed"):
        entry = Listed(
            case=child.text("case"),
            runner=child.text("runner", "*"),
            field=child.text("field"),
            category=child.choice("category", CATEGORIES, ""),
            reason=child.text("reason"),
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
        if entry.case not in names:
            raise CaseError(f"listed.yaml: {entry.case}: there is no such case")

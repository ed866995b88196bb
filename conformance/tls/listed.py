"""Differences of the TLS cases that stay, with the reason of each: conformance/tls/listed.yaml."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from conformance.reader import CaseError

if TYPE_CHECKING:
    from collections.abc import Iterable

LISTED = Path(__file__).with_name("listed.yaml")
CATEGORIES = ("by-design", "host-library", "not-yet")


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """One reason. cases, pairs and fields are names, or patterns with `*`."""

    cases: tuple[str, ...]
    pairs: tuple[str, ...]
    fields: tuple[str, ...]
    category: str
    reason: str

    def covers(self, pair: str, case: str, field: str) -> bool:
        return all(
            any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
            for name, patterns in ((pair, self.pairs), (case, self.cases), (field, self.fields))
        )


def load_listed(path: Path = LISTED) -> list[Listed]:
    """Raises CaseError: a category that there is not, or an entry that lacks something."""
    found = []
    for entry in yaml.safe_load(path.read_text(encoding="utf-8")) or []:
        if set(entry) != {"cases", "pairs", "fields", "category", "reason"}:
            raise CaseError(f"{path.name}: an entry has cases, pairs, fields, category and reason: {entry}")
        if entry["category"] not in CATEGORIES:
            raise CaseError(
                f"{path.name}: category is {entry['category']!r}, not one of {', '.join(CATEGORIES)}"
            )
        made = Listed(
            cases=tuple(entry["cases"]),
            pairs=tuple(entry["pairs"]),
            fields=tuple(entry["fields"]),
            category=entry["category"],
            reason=entry["reason"],
        )
        found.append(made)
    return found


def unused(listed: Iterable[Listed], differences: Iterable[tuple[str, str, str]]) -> list[str]:
    """`case pair` of each listed combination, by its patterns, that covers no (pair, case, field) any longer."""
    seen = list(differences)
    stale = []
    for entry in listed:
        for name in entry.cases:
            for pair in entry.pairs:
                one = Listed(
                    cases=(name,),
                    pairs=(pair,),
                    fields=entry.fields,
                    category=entry.category,
                    reason=entry.reason,
                )
                if not any(one.covers(*difference) for difference in seen):
                    stale.append(f"{name} {pair}")
    return stale

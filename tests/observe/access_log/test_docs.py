"""docs/observability.md names exactly the operators that have no value."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from pathlib import Path

from meshlib.resources import operators

PAGE = Path(__file__).parents[3] / "docs" / "observability.md"


def test_operators_without_a_value() -> None:
    section = PAGE.read_text().partition("### Operators without a value")[2]
    table = section.partition("Known, and missing")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    patterns = [pattern for row in rows for pattern in re.findall("`([A-Z0-9_*]+)`", row)]
    every = (
        operators.PLAIN
        | operators.OPTIONAL
        | operators.OPTIONAL_WITH_LENGTH
        | operators.REQUIRED
        | operators.REQUIRED_WITHOUT_LENGTH
    )
    named = {name for name in every if any(fnmatchcase(name, pattern) for pattern in patterns)}
    assert named == every - operators.LOGGED
    assert all(any(fnmatchcase(name, pattern) for name in named) for pattern in patterns)

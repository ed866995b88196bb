"""The path specifier of RouteMatch (config.route.v3), on the path without its query.

Each kind is a function of (path, value), so that a table of routes is walked without a closure for each: `str.startswith`
for a prefix costs 50 ns.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from meshlib.resources.route import PathKind, PathMatch
from meshlib.routing.authority import ascii_lower

__all__ = ["PathTest", "compile_path"]

PathTest = Callable[[str, Any], bool]
"""(path without query, the compiled value) -> whether it matches."""


def compile_path(match: PathMatch) -> tuple[PathTest, Any]:
    """The test and its second argument."""
    if match.kind is PathKind.SAFE_REGEX:
        assert match.regex is not None
        assert match.regex.regex is not None
        return _call, match.regex.regex.fullmatch
    if match.case_sensitive:
        return _TESTS[match.kind], match.value
    return _FOLDED[match.kind], ascii_lower(match.value)


def _call(path: str, test: Callable[[str], bool]) -> bool:
    return test(path)


def _separated(path: str, prefix: str) -> bool:
    """`/api/dev` matches itself and `/api/dev/...`, not `/api/developer`."""
    if not path.startswith(prefix):
        return False
    size = len(prefix)
    return len(path) == size or path[size] == "/"


def _folded(test: PathTest) -> PathTest:
    return lambda path, value: test(ascii_lower(path), value)


_TESTS: dict[PathKind, PathTest] = {
    PathKind.PREFIX: str.startswith,
    PathKind.PATH: operator.eq,
    PathKind.PATH_SEPARATED_PREFIX: _separated,
}
_FOLDED = {kind: _folded(test) for kind, test in _TESTS.items()}

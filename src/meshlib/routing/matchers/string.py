"""StringMatcher (envoy.type.matcher.v3)."""

from __future__ import annotations

from collections.abc import Callable

from meshlib.resources.matching import StringKind, StringMatch
from meshlib.routing.authority import ascii_lower

__all__ = ["compile_string"]

TextPredicate = Callable[[str], bool]


def compile_string(match: StringMatch) -> TextPredicate:
    """A predicate on one text. Regular expressions match the whole text; ignore_case folds A to Z only."""
    if match.kind is StringKind.REGEX:
        assert match.regex is not None
        return match.regex.fullmatch
    if not match.ignore_case:
        return _case_sensitive(match.kind, match.value)
    folded = _case_sensitive(match.kind, ascii_lower(match.value))
    return lambda text: folded(ascii_lower(text))


def _case_sensitive(kind: StringKind, value: str) -> TextPredicate:
    if kind is StringKind.EXACT:
        return lambda text: text == value
    if kind is StringKind.PREFIX:
        return lambda text: text.startswith(value)
    if kind is StringKind.SUFFIX:
        return lambda text: text.endswith(value)
    return lambda text: value in text

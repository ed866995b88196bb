"""HeaderMatcher (config.route.v3).

A header that is missing matches no value, not even with `invert_match`, unless `treat_missing_header_as_empty` makes it the
empty text. A header that stands several times is matched value by value and one match is enough (Envoy 1.39); `invert_match`
turns the outcome of that round.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from meshlib.resources.matching import HeaderMatch, Int64Range
from meshlib.routing.matchers.string import TextPredicate, compile_string
from meshlib.routing.numbers import parse_signed

__all__ = ["HasHeaders", "HeaderPredicate", "compile_header", "compile_headers"]


class HasHeaders(Protocol):
    """A request or a response: whatever knows the values of a header by its lower-case name."""

    def values(self, name: str, /) -> Sequence[str]: ...


HeaderPredicate = Callable[[HasHeaders], bool]


def compile_header(match: HeaderMatch) -> HeaderPredicate:
    """A predicate on a message's headers."""
    name, invert = match.name, match.invert
    test = _value_test(match)
    if test is None:
        wanted = (match.present is not False) is not invert
        if match.treat_missing_as_empty:
            return lambda message: wanted
        return lambda message: bool(message.values(name)) is wanted
    missing = match.treat_missing_as_empty and test("") is not invert

    def matches(message: HasHeaders) -> bool:
        values = message.values(name)
        if not values:
            return missing
        for value in values:
            if test(value):
                return not invert
        return invert

    return matches


def compile_headers(matches: Sequence[HeaderMatch]) -> HeaderPredicate | None:
    """A predicate for all of them together; None when there are none."""
    predicates = tuple(compile_header(match) for match in matches)
    if not predicates:
        return None
    if len(predicates) == 1:
        return predicates[0]
    return lambda message: all(predicate(message) for predicate in predicates)


def _value_test(match: HeaderMatch) -> TextPredicate | None:
    if match.string is not None:
        return compile_string(match.string)
    if match.range is not None:
        return _range_test(match.range)
    return None


def _range_test(wanted: Int64Range) -> TextPredicate:
    start, end = wanted.start, wanted.end

    def within(text: str) -> bool:
        number = parse_signed(text)
        return number is not None and start <= number < end

    return within

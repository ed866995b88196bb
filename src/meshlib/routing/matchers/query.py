"""QueryParameterMatcher (config.route.v3): raw text, first occurrence."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from meshlib.resources.matching import QueryParameterMatch
from meshlib.routing.matchers.string import compile_string

__all__ = ["compile_queries", "compile_query", "parse_query"]

Parameters = dict[str, str]
QueryPredicate = Callable[[Parameters], bool]


def parse_query(path: str) -> Parameters:
    """The parameters of a path with its query: the first value of each name, not percent-decoded.

    A name without `=` is there with an empty value.
    """
    start = path.find("?")
    parameters: Parameters = {}
    if start < 0:
        return parameters
    for pair in path[start + 1 :].split("&"):
        name, _, value = pair.partition("=")
        parameters.setdefault(name, value)
    return parameters


def compile_query(match: QueryParameterMatch) -> QueryPredicate:
    """A predicate on parsed parameters. A parameter that is missing matches only `present_match: false`."""
    name = match.name
    if match.string is None:
        present = match.present
        return lambda parameters: (name in parameters) is present
    test = compile_string(match.string)

    def matches(parameters: Parameters) -> bool:
        value = parameters.get(name)
        return value is not None and test(value)

    return matches


def compile_queries(matches: Sequence[QueryParameterMatch]) -> Callable[[str], bool] | None:
    """A predicate on the path with its query; None when nothing is asked."""
    predicates = tuple(compile_query(match) for match in matches)
    if not predicates:
        return None

    def matched(path: str) -> bool:
        parameters = parse_query(path)
        return all(predicate(parameters) for predicate in predicates)

    return matched

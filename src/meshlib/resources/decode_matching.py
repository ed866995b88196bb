"""Matchers and rewrites: strings, headers, query parameters, regular expressions."""

from __future__ import annotations

from meshlib.resources.matching import (
    HeaderMatch,
    Int64Range,
    QueryParameterMatch,
    RegexRewrite,
    StringKind,
    StringMatch,
)
from meshlib.resources.reader import Reader
from meshlib.runtime.regex import RegexError

__all__ = ["header_match", "query_parameter_match", "regex_match", "regex_rewrite", "string_match"]

_KINDS = {
    "exact": StringKind.EXACT,
    "prefix": StringKind.PREFIX,
    "suffix": StringKind.SUFFIX,
    "contains": StringKind.CONTAINS,
}
# The deprecated fields of HeaderMatcher.
_LEGACY_KINDS = {f"{name}_match": kind for name, kind in _KINDS.items()}


def string_match(reader: Reader) -> StringMatch:
    """type.matcher.v3.StringMatcher. Raises ResourceError."""
    kind = reader.which("match_pattern")
    ignore_case = reader.flag("ignore_case")
    if kind == "safe_regex":
        if ignore_case:
            raise reader.fail("ignore_case", "has no effect for safe_regex; write (?i) in the pattern")
        return regex_match(reader, "safe_regex")
    if kind not in _KINDS:
        raise reader.fail(
            kind or "", f"a {kind} matcher is not implemented" if kind else "must say what to match"
        )
    return StringMatch(kind=_KINDS[kind], value=reader.text(kind), ignore_case=ignore_case)


def regex_match(reader: Reader, field: str) -> StringMatch:
    """A type.matcher.v3.RegexMatcher as a StringMatch."""
    pattern = reader.pattern(field)
    return StringMatch(kind=StringKind.REGEX, value=pattern.pattern, regex=pattern)


def header_match(reader: Reader) -> HeaderMatch:
    """config.route.v3.HeaderMatcher. Raises ResourceError."""
    kind = reader.which("header_match_specifier")
    string: StringMatch | None = None
    span: Int64Range | None = None
    present: bool | None = None
    if kind is None:
        present = True
    elif kind == "string_match":
        string = string_match(reader.required(kind))
    elif kind == "safe_regex_match":
        string = regex_match(reader, kind)
    elif kind in _LEGACY_KINDS:
        string = StringMatch(kind=_LEGACY_KINDS[kind], value=reader.text(kind))
    elif kind == "range_match":
        limits = reader.required(kind)
        span = Int64Range(start=limits.number("start"), end=limits.number("end"))
    elif kind == "present_match":
        present = reader.flag(kind)
    else:
        raise reader.fail(kind, "this matcher is not implemented")
    return HeaderMatch(
        name=reader.text("name").lower(),
        string=string,
        range=span,
        present=present,
        invert=reader.flag("invert_match"),
        treat_missing_as_empty=reader.flag("treat_missing_header_as_empty"),
    )


def query_parameter_match(reader: Reader) -> QueryParameterMatch:
    """config.route.v3.QueryParameterMatcher. Raises ResourceError."""
    name = reader.text("name")
    kind = reader.which("query_parameter_match_specifier")
    if kind == "string_match":
        return QueryParameterMatch(name=name, string=string_match(reader.required(kind)))
    if kind is None:
        return QueryParameterMatch(name=name)
    if kind != "present_match":
        raise reader.fail(kind, "this matcher is not implemented")
    return QueryParameterMatch(name=name, present=reader.flag(kind))


def regex_rewrite(reader: Reader) -> RegexRewrite:
    """type.matcher.v3.RegexMatchAndSubstitute. Raises ResourceError, also for a substitution that RE2 could not do."""
    pattern = reader.pattern("pattern", unanchored=True)
    substitution = reader.text("substitution")
    try:
        pattern.check_substitution(substitution)
    except RegexError as error:
        raise reader.fail("substitution", error.reason) from None
    return RegexRewrite(pattern=pattern, substitution=substitution)

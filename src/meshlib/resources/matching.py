"""What a request is matched with: strings, headers, query parameters, fractions (envoy.type.matcher.v3, config.route.v3)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from meshlib.runtime.regex import Regex

__all__ = [
    "FractionalPercent",
    "HeaderMatch",
    "Int64Range",
    "QueryParameterMatch",
    "RegexRewrite",
    "StringKind",
    "StringMatch",
]


class StringKind(Enum):
    """How a StringMatch compares. REGEX is a full match."""

    EXACT = "exact"
    PREFIX = "prefix"
    SUFFIX = "suffix"
    CONTAINS = "contains"
    REGEX = "safe_regex"


@dataclass(frozen=True, slots=True, kw_only=True)
class StringMatch:
    """envoy.type.matcher.v3.StringMatcher.

    value: what to compare with, the pattern's text for REGEX. ignore_case: ASCII case folding; never set with REGEX.
    regex: the compiled pattern, present exactly when kind is REGEX.
    """

    kind: StringKind
    value: str
    ignore_case: bool = False
    regex: Regex | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Int64Range:
    """[start, end), signed 64-bit."""

    start: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HeaderMatch:
    """config.route.v3.HeaderMatcher. name is lower case; `:path`, `:method`, `:authority` and `:scheme` are headers too.

    At most one of string, range, present is set; none set means `present=True`. The deprecated exact_match, prefix_match
    and so on arrive here as `string`.
    """

    name: str
    string: StringMatch | None = None
    range: Int64Range | None = None
    present: bool | None = None
    invert: bool = False
    treat_missing_as_empty: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryParameterMatch:
    """config.route.v3.QueryParameterMatcher on the raw (not percent-decoded) first value. string None: presence decides."""

    name: str
    string: StringMatch | None = None
    present: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class FractionalPercent:
    """type.v3.FractionalPercent: matches when `random % denominator < numerator`. denominator is 100, 10_000 or 1_000_000."""

    numerator: int
    denominator: int = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class RegexRewrite:
    """type.matcher.v3.RegexMatchAndSubstitute: every match of pattern is replaced; `\\1` in substitution names a group."""

    pattern: Regex
    substitution: str

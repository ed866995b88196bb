"""Access-log format strings: `%REQ(x-user?:path):10% via %PROTOCOL%`.

Only the syntax is here; `meshlib.routing.format` compiles it, for header values, bodies and access logs. Grammar (Envoy's):
`%NAME%`, `%NAME(ARGUMENT)%`, `%NAME(ARGUMENT):LENGTH%` and `%NAME:LENGTH%`; `%%` is a percent sign. An argument is on one line
and ends at the first `)` that is followed by `%` or `:LENGTH%`.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, field

from meshlib.resources import operators
from meshlib.resources.operator_arguments import check_argument

__all__ = ["Format", "FormatError", "Operator", "parse"]


class FormatError(ValueError):
    """The text is not a format that Envoy accepts. `reason` says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """One `%...%`.

    name: the long name (`REQUEST_HEADER` for REQ, `RESPONSE_HEADER` for RESP, `RESPONSE_TRAILER` for TRAILER). argument: what
    stands in the parentheses, for the header operators the lower-case name; empty when there is none. alternative: the
    header that is used when the first is missing, empty when there is none. max_length: in bytes, None for no limit.
    """

    name: str
    argument: str = ""
    alternative: str = ""
    max_length: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A parsed format string.

    literal: the whole text when it holds no operator (`%%` is `%` there), otherwise None. segments: literal texts and
    operators in order; never two texts side by side.
    """

    text: str
    literal: str | None
    segments: tuple[str | Operator, ...] = field(compare=False)

    def operators(self) -> tuple[str, ...]:
        """The names of the operators in it, each once."""
        return tuple(dict.fromkeys(each.name for each in self.segments if isinstance(each, Operator)))


_OPERATOR = re.compile(r"%([A-Z0-9_]+)(?:\((.*?)\))?(?::([0-9]+))?%")
_HEADER_NAME = re.compile(r"(?::?[!#$%&'*+.^_`|~0-9A-Za-z-]+)?")
_HEADERS = frozenset({"REQUEST_HEADER", "RESPONSE_HEADER", "RESPONSE_TRAILER", "REQ_WITHOUT_QUERY"})
_MAX_LENGTH = 2**64 - 1


@functools.lru_cache(maxsize=4096)
def parse(text: str, extra: frozenset[str] = frozenset()) -> Format:
    """Parse text. Raises FormatError: a lone `%`, an operator that Envoy does not know, or one with a wrong argument.

    extra: names of operators that are known in this place only; they need an argument.
    """
    segments: list[str | Operator] = []
    literal: list[str] = []
    position = 0
    while True:
        percent = text.find("%", position)
        literal.append(text[position:] if percent < 0 else text[position:percent])
        if percent < 0:
            break
        if text.startswith("%%", percent):
            literal.append("%")
            position = percent + 2
            continue
        match = _OPERATOR.match(text, percent)
        if match is None:
            raise FormatError(f"no operator at position {percent} of {text!r}; a percent sign is written %%")
        _flush(literal, segments)
        segments.append(_operator(match[1], match[2], match[3], extra))
        position = match.end()
    _flush(literal, segments)
    literals = [segment for segment in segments if isinstance(segment, str)]
    return Format(
        text=text,
        literal="".join(literals) if len(literals) == len(segments) else None,
        segments=tuple(segments),
    )


def _flush(literal: list[str], segments: list[str | Operator]) -> None:
    joined = "".join(literal)
    if joined:
        segments.append(joined)
    literal.clear()


def _operator(written: str, argument: str | None, length: str | None, extra: frozenset[str]) -> Operator:
    name = operators.ALIASES.get(written, written)
    argument = argument or ""
    max_length = None if length is None else int(length[:21])
    if max_length is not None and max_length > _MAX_LENGTH:
        raise FormatError(f"%{written}%: length {length} is too large")
    if name in operators.PLAIN:
        if argument or length is not None:
            raise FormatError(f"%{written}% takes neither argument nor length")
    elif name in operators.OPTIONAL:
        if length is not None:
            raise FormatError(f"%{written}% takes no length")
    elif name in operators.REQUIRED or name in operators.REQUIRED_WITHOUT_LENGTH or name in extra:
        if not argument:
            raise FormatError(f"%{written}% needs an argument")
        if length is not None and (
            name in operators.REQUIRED_WITHOUT_LENGTH or name in operators.HEADERS_ONLY
        ):
            raise FormatError(f"%{written}% takes no length")
    elif name not in operators.OPTIONAL_WITH_LENGTH:
        raise FormatError(f"%{written}% is not an operator of Envoy's")
    wrong = check_argument(name, argument)
    if wrong is not None:
        raise FormatError(f"%{written}({argument})%: {wrong}")
    if name not in _HEADERS:
        return Operator(name=name, argument=argument, max_length=max_length)
    main, _, alternative = argument.partition("?")
    if "?" in alternative:
        raise FormatError(f"%{written}({argument})%: more than one alternative header")
    for header in (main, alternative):
        if not _HEADER_NAME.fullmatch(header):
            raise FormatError(f"%{written}({argument})%: {header!r} is not a header name")
    return Operator(name=name, argument=main.lower(), alternative=alternative.lower(), max_length=max_length)

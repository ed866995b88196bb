"""Regular expressions with RE2's syntax, meaning and promise: matching takes time linear in the text.

google-re2 does the work where it is installed. Without it the standard library's backtracking matcher is
used, and only for patterns that `meshlib.runtime.backtracking` has shown to be harmless; any other pattern
is refused when it is compiled, which is when the resource that holds it is decoded. Patterns that are a
literal, a prefix or a suffix never reach a matcher.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import AnyStr, Protocol

__all__ = ["HAS_RE2", "Regex", "RegexError", "compile"]

try:
    import re2
except ImportError:
    re2 = None

HAS_RE2 = re2 is not None
"""Whether google-re2 is installed."""

Span = tuple[int, int]
Groups = tuple[Span, ...]


class RegexError(ValueError):
    """The pattern is not RE2's syntax, or can't be run safely here. `reason` says which."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class _Engine(Protocol):
    """Matches text in the engine's own representation (bytes for google-re2, str for the standard library)."""

    groups: int

    def fullmatch(self, text: str) -> bool: ...
    def search(self, text: str) -> bool: ...
    def sub(self, pieces: tuple[str | int, ...], text: str) -> str: ...


class Regex:
    """A compiled pattern. Immutable; equal and hashed by its pattern."""

    __slots__ = ("_engine", "_fullmatch", "pattern", "unanchored")

    def __init__(
        self, pattern: str, *, engine: _Engine, fast: Callable[[str], bool] | None, unanchored: bool
    ) -> None:
        self.pattern = pattern
        self.unanchored = unanchored
        self._engine = engine
        self._fullmatch = fast or engine.fullmatch

    def fullmatch(self, text: str) -> bool:
        """Whether the whole of text matches."""
        return self._fullmatch(text)

    def search(self, text: str) -> bool:
        """Whether the pattern matches somewhere in text. Needs `unanchored=True` at compile time."""
        self._need_unanchored()
        return self._engine.search(text)

    def sub(self, substitution: str, text: str) -> str:
        """Replace every match (RE2::GlobalReplace). `\\0` .. `\\9` in substitution are groups, `\\\\` is a backslash.

        An invalid substitution raises RegexError (`check_substitution` finds that beforehand).
        """
        self._need_unanchored()
        return self._engine.sub(_pieces(substitution, self._engine.groups), text)

    def check_substitution(self, substitution: str) -> None:
        """Raise RegexError when `sub` could not use substitution (RE2::CheckRewriteString)."""
        _pieces(substitution, self._engine.groups)

    def _need_unanchored(self) -> None:
        if not self.unanchored:
            raise RegexError("compiled for full matches only")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Regex) and other.pattern == self.pattern

    def __hash__(self) -> int:
        return hash(self.pattern)

    def __repr__(self) -> str:
        return f"Regex({self.pattern!r})"

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (self.pattern, self.unanchored)


def _rebuild(pattern: str, unanchored: bool) -> Regex:
    return compile(pattern, unanchored=unanchored)


@functools.lru_cache(maxsize=4096)
def compile(pattern: str, *, unanchored: bool = False) -> Regex:  # noqa: A001
    """Compile pattern. unanchored: `search` and `sub` will be used too, which fewer patterns allow without google-re2.

    Raises RegexError: not RE2's syntax, or (without google-re2) a pattern that could take long.
    """
    engine: _Engine
    if re2 is not None:
        engine = _Re2(pattern)
    else:
        from meshlib.runtime.backtracking import Backtracking

        engine = Backtracking(pattern, unanchored=unanchored)
    return Regex(pattern, engine=engine, fast=_fast_path(pattern), unanchored=unanchored)


_LITERAL = r"(?:[^\\.+*?()|\[\]{}^$\n]|\\[^A-Za-z0-9\n\x80-\U0010ffff])*"
_SHAPE = re.compile(rf"\^?(?P<lead>\.\*)?(?P<literal>{_LITERAL})(?P<tail>\.\*)?\$?")


def _fast_path(pattern: str) -> Callable[[str], bool] | None:
    """A full match without a matcher for `lit`, `lit.*`, `.*lit` and `.*lit.*`. `.` is anything but a line feed."""
    shape = _SHAPE.fullmatch(pattern)
    if shape is None:
        return None
    literal = re.sub(r"\\(.)", r"\1", shape["literal"])
    lead, tail = shape["lead"], shape["tail"]
    if lead is None and tail is None:
        return literal.__eq__
    if "\n" in literal:
        return None
    if lead is None:
        return lambda text: text.startswith(literal) and "\n" not in text
    if tail is None:
        return lambda text: text.endswith(literal) and "\n" not in text
    return lambda text: literal in text and "\n" not in text


@functools.lru_cache(maxsize=1024)
def _pieces(substitution: str, groups: int) -> tuple[str | int, ...]:
    pieces: list[str | int] = []
    for literal, escape in re.findall(r"([^\\]+)|\\(.|$)", substitution, re.DOTALL):
        if literal or escape == "\\":
            pieces.append(literal or escape)
        elif not (escape.isascii() and escape.isdigit()):
            raise RegexError(f"invalid substitution {substitution!r}: \\ must be followed by a digit or \\")
        elif int(escape) > groups:
            raise RegexError(
                f"invalid substitution {substitution!r}: group {escape} of a pattern with {groups}"
            )
        else:
            pieces.append(int(escape))
    return tuple(pieces)


def global_replace(
    find: Callable[[int], Groups | None],
    text: AnyStr,
    pieces: tuple[AnyStr | int, ...],
    step: Callable[[int], int],
) -> AnyStr:
    """RE2::GlobalReplace: an empty match where the previous match ended is skipped, `step` characters further on.

    find(position) gives the spans of the leftmost match from there on, (-1, -1) for a group that took no part.
    """
    out: list[AnyStr] = []
    position, last_end = 0, -1
    while position <= len(text):
        groups = find(position)
        if groups is None:
            break
        start, end = groups[0]
        out.append(text[position:start])
        if start == end == last_end:
            position = start + step(start)
            out.append(text[start:position])
            continue
        for piece in pieces:
            if isinstance(piece, int):
                group_start, group_end = groups[piece]
                out.append(text[max(group_start, 0) : max(group_end, 0)])
            else:
                out.append(piece)
        position = last_end = end
    out.append(text[position:])
    return text[:0].join(out)


class _Re2:
    """google-re2 on UTF-8 bytes, which is 2.6 times as fast as on str."""

    __slots__ = ("_compiled", "groups")

    def __init__(self, pattern: str) -> None:
        options = re2.Options()
        options.log_errors = False
        try:
            self._compiled = re2.compile(pattern, options)
        except re2.error as error:
            detail = error.args[0] if error.args else ""
            text = detail.decode("utf-8", "replace") if isinstance(detail, bytes) else str(detail)
            raise RegexError(f"RE2 does not accept {pattern!r}: {text}") from None
        except UnicodeEncodeError:
            raise RegexError(f"RE2 does not accept {pattern!r}: not valid Unicode") from None
        self.groups: int = self._compiled.groups

    def fullmatch(self, text: str) -> bool:
        return self._compiled.fullmatch(text.encode("utf-8", "surrogatepass")) is not None

    def search(self, text: str) -> bool:
        return self._compiled.search(text.encode("utf-8", "surrogatepass")) is not None

    def sub(self, pieces: tuple[str | int, ...], text: str) -> str:
        data = text.encode("utf-8", "surrogatepass")
        encoded = tuple(p if isinstance(p, int) else p.encode("utf-8", "surrogatepass") for p in pieces)

        def find(position: int) -> Groups | None:
            match = self._compiled.search(data, position)
            return None if match is None else tuple(match.span(group) for group in range(self.groups + 1))

        def step(position: int) -> int:
            end = position + 1
            while end < len(data) and 0x80 <= data[end] < 0xC0:
                end += 1
            return end - position

        return global_replace(find, data, encoded, step).decode("utf-8", "surrogatepass")

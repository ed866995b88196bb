"""The standard library's matcher, made safe: only patterns that it can't be slow on are let through.

A backtracking matcher is slow when one text can be read through the pattern in many ways, because on a
mismatch it tries them all: 2**n ways for `(a+)+$`, n ways for `.*a.*b`. So the ways are counted. The
pattern becomes a Glushkov automaton: one position for each character that it may consume, counted repeats
unrolled, and for each position the positions that may come next, with how many ways lead there (without
consuming anything). All that any text can do to it is then walked as in the construction of a deterministic
automaton, but with vectors of counts in place of sets. When no reachable vector adds up to more than WAYS,
the work on a text of n characters is at most WAYS * n; otherwise the pattern is refused.

Syntax that RE2 does not have, or reads differently, is refused as well, so that a pattern means the same
with google-re2.
"""

from __future__ import annotations

import importlib
import re
import warnings
from bisect import bisect_right
from collections.abc import Iterable
from typing import Any

from meshlib.runtime.regex import Groups, RegexError, global_replace

__all__ = ["Backtracking"]

WAYS = 50
WORK = 200_000
POSITIONS = 1000
LENGTH = 2000
INSTALL = "install meshlib-xds[re2] to use it"

# What Python understands otherwise than RE2 without saying so: `{,n}`, \Z, \u, \N, a POSIX class in a set, flags.
_FOREIGN = re.compile(r"\{,|(?<!\\)(?:\\\\)*\\[ZuUN]|\[[^\]]*\[:|\(\?#|\(\?[ims]*-?[ims]*[aLux]")
_parser: Any = importlib.import_module("re._parser")
_LAST = 0x10FFFF

Ranges = tuple[tuple[int, int], ...]


class Backtracking:
    """A pattern that has been shown to take linear time. Raises RegexError for any other."""

    __slots__ = ("_compiled", "groups")

    def __init__(self, pattern: str, *, unanchored: bool) -> None:
        self._compiled = _compiled(pattern, unanchored=unanchored)
        self.groups = self._compiled.groups

    def fullmatch(self, text: str) -> bool:
        return self._compiled.fullmatch(text) is not None

    def search(self, text: str) -> bool:
        return self._compiled.search(text) is not None

    def sub(self, pieces: tuple[str | int, ...], text: str) -> str:
        def find(position: int) -> Groups | None:
            match = self._compiled.search(text, position)
            return None if match is None else tuple(match.span(group) for group in range(self.groups + 1))

        return global_replace(find, text, pieces, lambda position: 1)


def _compiled(pattern: str, *, unanchored: bool) -> re.Pattern[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            if len(pattern) > LENGTH or _FOREIGN.search(pattern):
                raise RegexError(f"not understood without google-re2; {INSTALL}")
            _Automaton(_parser.parse(pattern, re.ASCII), unanchored=unanchored).check()
            return re.compile(pattern, re.ASCII)
    except RegexError:
        raise
    except (re.error, Warning, RecursionError, OverflowError, ValueError) as error:
        raise RegexError(f"{error} (the whole syntax of RE2 needs meshlib-xds[re2])") from None


class _Part:
    """A piece of the pattern: in how many ways it matches nothing; its first and last positions with counts."""

    __slots__ = ("empty", "first", "last")

    def __init__(self, empty: int, first: dict[int, int], last: dict[int, int]) -> None:
        self.empty = empty
        self.first = first
        self.last = last


class _Automaton:
    """Raises RegexError while it is built when the pattern is too large or not RE2's."""

    def __init__(self, tree: Any, *, unanchored: bool) -> None:
        self._ranges: list[Ranges] = []
        self._follow: list[dict[int, int]] = []
        self._work = 0
        items = list(tree)
        anchored = bool(items) and str(items[0][0]) == "AT" and "BEGINNING" in str(items[0][1])
        lead = _Part(1, {}, {})
        if unanchored and not anchored:
            # Searching tries every start, as a leading loop over any character would.
            lead = self._star(self._position(((0, _LAST),)))
        self._start = self._join(
            lead, self._sequence(_without_tail(items, free=unanchored), tree.state.flags)
        )

    def check(self) -> None:
        bounds = sorted(
            {0, *(edge for ranges in self._ranges for low, high in ranges for edge in (low, high + 1))}
        )
        members: list[list[int]] = [[] for _ in bounds]
        for position, ranges in enumerate(self._ranges):
            for low, high in ranges:
                for index in range(bisect_right(bounds, low) - 1, bisect_right(bounds, high)):
                    members[index].append(position)
        atoms = {frozenset(positions) for positions in members}
        first = frozenset(self._start.first.items())
        # A vector says in how many ways the text so far leads to the point just before each position.
        seen, todo = {first}, [first]
        while todo:
            ways = dict(todo.pop())
            for atom in atoms:
                after: dict[int, int] = {}
                for number in atom & ways.keys():
                    self._worked(len(self._follow[number]))
                    for following, times in self._follow[number].items():
                        after[following] = after.get(following, 0) + ways[number] * times
                self._worked(1)
                if sum(after.values()) > WAYS:
                    raise RegexError(f"nested or overlapping repeats could take very long; {INSTALL}")
                vector = frozenset(after.items())
                if vector not in seen:
                    seen.add(vector)
                    todo.append(vector)

    def _worked(self, amount: int) -> None:
        self._work += amount
        if self._work > WORK:
            raise RegexError(f"too complex to be shown harmless; {INSTALL}")

    def _position(self, ranges: Ranges) -> _Part:
        if len(self._ranges) >= POSITIONS:
            raise RegexError(f"too long to be shown harmless; {INSTALL}")
        self._ranges.append(ranges)
        self._follow.append({})
        number = len(self._ranges) - 1
        return _Part(0, {number: 1}, {number: 1})

    def _join(self, left: _Part, right: _Part) -> _Part:
        self._link(left.last, right.first)
        return _Part(
            min(left.empty * right.empty, WAYS + 1),
            _add(left.first, _times(right.first, left.empty)),
            _add(right.last, _times(left.last, right.empty)),
        )

    def _link(self, last: dict[int, int], first: dict[int, int]) -> None:
        self._worked(len(last) * len(first))
        for position, count in last.items():
            self._follow[position] = _add(self._follow[position], _times(first, count))

    def _star(self, part: _Part) -> _Part:
        if part.empty:
            raise RegexError(f"a repeat of something that may be empty could take very long; {INSTALL}")
        self._link(part.last, part.first)
        return _Part(1, part.first, part.last)

    def _sequence(self, items: Iterable[Any], flags: int) -> _Part:
        part = _Part(1, {}, {})
        for op, argument in items:
            part = self._join(part, self._item(str(op), argument, flags))
        return part

    def _item(self, op: str, argument: Any, flags: int) -> _Part:
        self._worked(10)
        if op in ("LITERAL", "NOT_LITERAL", "ANY", "IN"):
            return self._position(_ranges(op, argument, flags))
        if op == "SUBPATTERN":
            _, add, remove, body = argument
            return self._sequence(body, (flags | add) & ~remove)
        if op == "BRANCH":
            part = _Part(0, {}, {})
            for body in argument[1]:
                branch = self._sequence(body, flags)
                part = _Part(
                    part.empty + branch.empty, _add(part.first, branch.first), _add(part.last, branch.last)
                )
            return part
        if op in ("MAX_REPEAT", "MIN_REPEAT"):
            low, high, body = argument
            return self._repeat(low, high, body, flags)
        if op == "AT":
            return _Part(1, {}, {})
        raise RegexError(f"not RE2's syntax: {op.lower().replace('_', ' ')}")

    def _repeat(self, low: int, high: int, body: Any, flags: int) -> _Part:
        unbounded = high is _parser.MAXREPEAT
        if low > 1000 or (high > 1000 and not unbounded):
            raise RegexError("not RE2's syntax: a repeat of more than 1000")
        copies = [self._sequence(body, flags) for _ in range(max(low, 1) if unbounded else high)]
        if unbounded:
            star = self._star(copies.pop())
            part = _Part(0 if low else 1, star.first, star.last)
        else:
            part = _Part(1, {}, {})
            for copy in reversed(copies[low:]):
                rest = self._join(copy, part)
                part = _Part(rest.empty + 1, rest.first, rest.last)
            copies = copies[:low]
        for copy in reversed(copies):
            part = self._join(copy, part)
        return part


def _without_tail(items: list[Any], *, free: bool) -> list[Any]:
    """Leave out a last loop that can't make the match fail: `.*` in a full match, any when the end is free."""
    while items and not free and str(items[-1][0]) == "AT" and "END" in str(items[-1][1]):
        items = items[:-1]
    if not items:
        return items
    op, argument = items[-1]
    if str(op) == "SUBPATTERN":
        group, add, remove, body = argument
        return [*items[:-1], (op, (group, add, remove, _without_tail(list(body), free=free)))]
    if str(op) in ("MAX_REPEAT", "MIN_REPEAT"):
        low, high, body = argument
        kind = str(body[0][0]) if len(body) == 1 else ""
        if high is _parser.MAXREPEAT and (
            kind == "ANY" or (free and kind in ("IN", "LITERAL", "NOT_LITERAL"))
        ):
            return [*items[:-1], *(list(body) * min(low, 1))]
    return items


def _ranges(op: str, argument: Any, flags: int) -> Ranges:
    if op == "ANY":
        return ((0, _LAST),) if flags & re.DOTALL else _inverted(((10, 10),))
    if op == "LITERAL":
        return _folded(((argument, argument),), flags)
    if op == "NOT_LITERAL":
        return _inverted(_folded(((argument, argument),), flags))
    found: list[tuple[int, int]] = []
    negated = False
    for kind, value in argument:
        match str(kind):
            case "NEGATE":
                negated = True
            case "LITERAL":
                found.append((value, value))
            case "RANGE":
                found.append(value)
            case "CATEGORY":
                found.extend(_CATEGORIES[str(value)])
            case other:
                raise RegexError(f"not RE2's syntax: {other.lower()} in a set")
    ranges = _folded(tuple(found), flags)
    return _inverted(ranges) if negated else ranges


def _folded(ranges: Ranges, flags: int) -> Ranges:
    if not flags & re.IGNORECASE:
        return ranges
    both = list(ranges)
    for low, high in ranges:
        for base, other in ((65, 97), (97, 65)):
            start, end = max(low, base), min(high, base + 25)
            if start <= end:
                both.append((start - base + other, end - base + other))
    return tuple(both)


def _inverted(ranges: Ranges) -> Ranges:
    out, start = [], 0
    for low, high in sorted(ranges):
        if low > start:
            out.append((start, low - 1))
        start = max(start, high + 1)
    if start <= _LAST:
        out.append((start, _LAST))
    return tuple(out)


_DIGIT: Ranges = ((48, 57),)
_SPACE: Ranges = ((9, 13), (32, 32))
_WORD: Ranges = ((48, 57), (65, 90), (95, 95), (97, 122))
_CATEGORIES = {
    "CATEGORY_DIGIT": _DIGIT,
    "CATEGORY_NOT_DIGIT": _inverted(_DIGIT),
    "CATEGORY_SPACE": _SPACE,
    "CATEGORY_NOT_SPACE": _inverted(_SPACE),
    "CATEGORY_WORD": _WORD,
    "CATEGORY_NOT_WORD": _inverted(_WORD),
}


def _add(left: dict[int, int], right: dict[int, int]) -> dict[int, int]:
    out = dict(left)
    for position, count in right.items():
        out[position] = out.get(position, 0) + count
    return out


def _times(counts: dict[int, int], factor: int) -> dict[int, int]:
    return {position: count * factor for position, count in counts.items()} if factor else {}

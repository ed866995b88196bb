"""%START_TIME(FORMAT)% and its kin: a moment as Envoy prints it, in UTC or in the process's own time zone.

Envoy's formats are strftime's with fractions of a second on top: `%3f` (digits of the fraction; `%f` is nine), `%E3S`
(seconds with three digits), `%E*S` (as many as there are), `%E3f` (the three digits alone), `%s` (seconds since the epoch),
`%Ez` (`+02:00`). The default is `%Y-%m-%dT%H:%M:%E3SZ`, of local time `%Y-%m-%dT%H:%M:%E3S%z`.

A format is taken apart once. What does not change within a second is made once a second: a busy process prints many moments
of the same one.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime

__all__ = ["compile_time"]

_DEFAULT = "%Y-%m-%dT%H:%M:%E3SZ"
_DEFAULT_LOCAL = "%Y-%m-%dT%H:%M:%E3S%z"
_EXTENSIONS = re.compile(
    r"%(?:(?P<percent>%)|(?P<digits>[1-9]?)f|E(?P<extended>[0-9]{1,2}|\*)(?P<unit>[Sf])|(?P<epoch>s)|E\*?(?P<zone>z)|E4(?P<year>Y))"
)

_STAR = -1
"""As many digits as there are."""

_MOST_DIGITS = 99

Render = Callable[[float], str]


def compile_time(text: str, *, local: bool = False) -> Render:
    """What prints a moment (seconds since the epoch) in this format; empty is the default."""
    pieces, digits = _split(text or (_DEFAULT_LOCAL if local else _DEFAULT))
    if len(digits) == 1 and digits[0] == ("", 3):
        return _with_milliseconds(pieces[0], pieces[1], local)

    def render(moment: float) -> str:
        microseconds = round(moment * 1_000_000)
        seconds, fraction = divmod(microseconds, 1_000_000)
        when = _broken_down(seconds, local)
        nine = f"{fraction:06d}".ljust(_MOST_DIGITS, "0")
        out = [_strftime(pieces[0], when, seconds)]
        for (dot, count), piece in zip(digits, pieces[1:]):
            shown = nine.rstrip("0") if count == _STAR else nine[:count]
            out.append(dot + shown if shown else "0" if count == _STAR and not dot else "")
            out.append(_strftime(piece, when, seconds))
        return "".join(out)

    return render


def _with_milliseconds(before: str, after: str, local: bool) -> Render:
    """Of the default formats, and of those like them."""
    known: tuple[int, str, str] = (-1, "", "")

    def render(moment: float) -> str:
        nonlocal known
        milliseconds = int(moment * 1000 + 0.0005)  # as if it were rounded to microseconds first
        seconds = milliseconds // 1000
        second, head, tail = known
        if second != seconds:
            when = _broken_down(seconds, local)
            head, tail = _strftime(before, when, seconds), _strftime(after, when, seconds)
            known = (seconds, head, tail)
        return f"{head}{milliseconds - seconds * 1000:03d}{tail}"

    return render


def _split(text: str) -> tuple[list[str], list[tuple[str, int]]]:
    """Texts for strftime, and between them fractions: a dot or nothing before them, and how many digits."""
    pieces = [""]
    digits: list[tuple[str, int]] = []
    position = 0
    for match in _EXTENSIONS.finditer(text):
        pieces[-1] += text[position : match.start()]
        position = match.end()
        if match["percent"]:
            pieces[-1] += "%%"
        elif match["epoch"]:
            pieces[-1] += _EPOCH
        elif match["zone"]:
            pieces[-1] += _ZONE
        elif match["year"]:
            pieces[-1] += "%Y"
        elif match["extended"] is None:
            digits.append(("", int(match["digits"] or 9)))
            pieces.append("")
        else:
            count = _STAR if match["extended"] == "*" else int(match["extended"])
            if match["unit"] == "S":
                pieces[-1] += "%S" if count == 0 or count == _STAR else "%S."
            if count or match["unit"] == "f":
                digits.append(("." if count == _STAR and match["unit"] == "S" else "", count))
                pieces.append("")
    pieces[-1] += text[position:]
    return pieces, digits


# Places of what strftime does not know, or knows only on some platforms.
_EPOCH = "\x00s"
_ZONE = "\x00z"


def _broken_down(seconds: int, local: bool) -> datetime:
    utc = datetime.fromtimestamp(seconds, UTC)
    return utc.astimezone() if local else utc


def _strftime(text: str, when: datetime, seconds: int) -> str:
    if "\x00" in text:
        zone = when.strftime("%z")
        text = text.replace(_EPOCH, str(seconds)).replace(_ZONE, f"{zone[:3]}:{zone[3:]}")
    return when.strftime(text) if "%" in text else text

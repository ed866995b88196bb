"""%START_TIME(FORMAT)%: a moment as Envoy prints it, in UTC.

Envoy's formats are strftime's with fractions of a second on top: `%3f` (digits of the fraction; `%f` is nine), `%E3S`
(seconds with three digits), `%E*S` (as many as there are), `%E3f` (the three digits alone), `%s` (seconds since
the epoch). The default is
`%Y-%m-%dT%H:%M:%E3SZ`.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime

__all__ = ["format_time"]

DEFAULT = "%Y-%m-%dT%H:%M:%E3SZ"
_EXTENSIONS = re.compile(
    r"%(?:(?P<percent>%)|(?P<digits>[1-9]?)f|E(?P<extended>[0-9*])(?P<unit>[Sf])|(?P<epoch>s))"
)


def format_time(text: str, moment: float) -> str:
    """moment: seconds since the epoch. text: the format, empty for the default."""
    nanoseconds = round(moment * 1_000_000) * 1000
    seconds, fraction = divmod(nanoseconds, 1_000_000_000)
    digits = f"{fraction:09d}"
    utc = datetime.fromtimestamp(seconds, UTC)

    def extension(match: re.Match[str]) -> str:
        if match["percent"]:
            return "%%"
        if match["epoch"]:
            return str(seconds)
        if match["extended"] is None:
            return digits[: int(match["digits"] or 9)]
        shown = digits.rstrip("0") if match["extended"] == "*" else digits[: int(match["extended"])]
        if match["unit"] == "f":
            return shown or "0"
        return f"{utc:%S}.{shown}" if shown else f"{utc:%S}"

    return utc.strftime(_EXTENSIONS.sub(extension, text or DEFAULT))

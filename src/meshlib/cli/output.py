"""Tables: with rich on a terminal, plain columns in a pipe."""

from __future__ import annotations

import datetime as dt
import sys
from collections.abc import Sequence

import click

__all__ = ["ago", "clean", "moment", "span", "table"]


def table(title: str, headings: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print it. Nothing when there are no rows."""
    if not rows:
        return
    cells = [[clean(str(cell)) for cell in row] for row in rows]
    if sys.stdout.isatty():
        _rich(title, headings, cells)
        return
    if title:
        click.echo(title)
    lines = [[heading.upper() for heading in headings], *cells]
    widths = [max(len(line[index]) for line in lines) for index in range(len(headings))]
    for line in lines:
        text = "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        click.echo(f"  {text}".rstrip())


def _rich(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    drawn = Table(title=escape(title) or None, title_justify="left", title_style="bold")
    for heading in headings:
        drawn.add_column(heading, overflow="fold")
    for row in rows:
        drawn.add_row(*map(escape, row))
    Console().print(drawn)


def clean(text: str) -> str:
    """What another process says, without what a terminal would obey."""
    return "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text
    )


def moment(epoch: float | None) -> str:
    """A time of day in UTC, `-` for none."""
    if epoch is None:
        return "-"
    return dt.datetime.fromtimestamp(epoch, dt.UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def ago(epoch: float | None, now: float) -> str:
    """`3m 20s ago`, `-` for never."""
    return "-" if epoch is None else f"{span(max(now - epoch, 0.0))} ago"


def span(seconds: float) -> str:
    """Of a length of time, the two largest units."""
    rest = int(seconds)
    parts: list[str] = []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, rest = divmod(rest, size)
        if count or (unit == "s" and not parts):
            parts.append(f"{count}{unit}")
    return " ".join(parts[:2])

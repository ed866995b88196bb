"""What the demo shows: a live table on a terminal, plain lines anywhere else."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Protocol

from meshlib.cli.demo.window import Window

__all__ = ["View", "open_view"]

BAR = 40


class View(Protocol):
    """Where the demo writes."""

    def chapter(self, number: int, title: str, sentence: str) -> None:
        """A new part begins."""

    def traffic(self, window: Window) -> None:
        """The last second of traffic; called ten times a second."""

    def verdict(self, ok: bool, sentence: str) -> None:
        """Whether a promise was kept."""

    def __enter__(self) -> View: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


class PlainView:
    """One line a second."""

    def __init__(self) -> None:
        self._calls = 0

    def chapter(self, number: int, title: str, sentence: str) -> None:
        _say(f"\n[{number}] {title}: {sentence}")
        self._calls = 0

    def traffic(self, window: Window) -> None:
        self._calls += 1
        if self._calls % 10 == 0:
            shares = "  ".join(f"{version} {share:4.0%}" for version, share in window.shares().items())
            _say(f"    {shares}   {window.requests} requests in the last second, {window.failed} failed")

    def verdict(self, ok: bool, sentence: str) -> None:
        _say(f"    {'ok' if ok else 'BROKEN'}: {sentence}")

    def __enter__(self) -> PlainView:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        return None


class LiveView:
    """A table that is redrawn in place; what has been said stays above it."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self._console = Console()
        self._live = Live(console=self._console, refresh_per_second=10, transient=True)

    def chapter(self, number: int, title: str, sentence: str) -> None:
        self._console.print(f"\n[bold][{number}] {title}[/bold]  {sentence}", highlight=False)

    def traffic(self, window: Window) -> None:
        from rich.table import Table

        table = Table(box=None, padding=(0, 2, 0, 2))
        table.add_column("version")
        table.add_column("share of the last second", min_width=BAR)
        table.add_column("", justify="right")
        for version, share in window.shares().items():
            table.add_row(version, "[green]" + "█" * round(share * BAR) + "[/green]", f"{share:.0%}")
        failed = f"[red]{window.failed} failed[/red]" if window.failed else "none failed"
        table.caption = f"{window.requests} requests in the last second, {failed}"
        self._live.update(table)

    def verdict(self, ok: bool, sentence: str) -> None:
        mark = "[green]kept[/green]  " if ok else "[bold red]BROKEN[/bold red]"
        self._console.print(f"    {mark} {sentence}", highlight=False)

    def __enter__(self) -> LiveView:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._live.stop()


def open_view() -> View:
    """The live table on a terminal, plain lines on a pipe or where rich is not installed."""
    if not sys.stdout.isatty():
        return PlainView()
    try:
        return LiveView()
    except ModuleNotFoundError:
        return PlainView()


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()

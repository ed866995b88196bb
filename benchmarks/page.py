"""What the admin's page costs with 200 services and 5,000 endpoints, in the machine's own Chromium.

A load is a navigation with an empty cache, until the view's last row (and of the graph, its drawing) is on the screen. A refresh
is one of those that the page makes every two seconds, from its first question to the frame that shows the answer; every service
has been called once since the last one, so that every row has changed. CPU is that of all threads of the process which is looked
at: what it costs the application that somebody looks. `page_ms` is the CPU time of the page's own thread in the browser.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.page_process import ENDPOINTS, SERVICES
from benchmarks.worker import Worker

if TYPE_CHECKING:
    from playwright.sync_api import Browser, CDPSession, Page

__all__ = ["missing", "run"]

VIEWS = {"services": SERVICES, "graph": SERVICES, "endpoints": ENDPOINTS, "routes": SERVICES, "calls": 100}
"""How many rows show that a view is complete."""

_WATCH = """(([view, rows]) => {
  const complete = () => document.querySelectorAll("main tbody tr").length >= rows
      && (view !== "graph" || document.querySelector("main svg.graph .edge"));
  const look = () => requestAnimationFrame(() => setTimeout(() => {
    window.shown = performance.now();
    if (complete()) window.loaded ??= window.shown;
  }));
  new MutationObserver(look).observe(document, { childList: true, subtree: true, characterData: true, attributes: true });
})"""
"""Notes when the screen last changed, and when the view was complete: milliseconds since the navigation began."""

_FETCHED = """performance.getEntriesByType("navigation").concat(performance.getEntriesByType("resource"))
    .map(({ startTime, responseEnd, transferSize }) => [startTime, responseEnd, transferSize])"""
_REFRESHED = f"""number => {{
  const fetched = {_FETCHED};
  return fetched.length > number && fetched.every(([, end]) => end && end < window.shown);
}}"""
_SETTLE_MS = 100.0
"""A refresh that asks twice is not over after the first answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """One load or refresh. kilobytes: received, with headers."""

    ms: float
    cpu_ms: float
    page_ms: float
    kilobytes: float
    requests: int


def missing() -> str | None:
    """Why there is nothing to measure with; None when there is."""
    if importlib.util.find_spec("playwright") is None:
        return "playwright is not installed"
    return "there is no Chromium on this machine" if _chromium() is None else None


def _chromium() -> str | None:
    named = os.environ.get("MESHLIB_CHROMIUM")
    return named or shutil.which("chromium") or shutil.which("chromium-browser")


def run(rounds: int) -> list[dict[str, Any]]:
    """A row for the load of each view and for its refresh: medians over the rounds, and the slowest of them."""
    from playwright.sync_api import sync_playwright

    looks: dict[str, list[Look]] = {f"{kind} {view}": [] for kind in ("load", "refresh") for view in VIEWS}
    with sync_playwright() as driver, Worker("benchmarks.page_process") as process:
        url = process.answer()["url"]
        browser = driver.chromium.launch(executable_path=_chromium(), args=["--no-sandbox", "--disable-gpu"])
        for _ in range(rounds + 1):
            for view in VIEWS:
                with _opened(browser, process, view) as visit:
                    looks[f"load {view}"].append(visit.load(url))
                    process.ask(do="call")
                    looks[f"refresh {view}"].append(visit.refresh())
        browser.close()
    # The first round finds a browser and a process that have done none of this before.
    return [_row(f"page/{name}", found[1:]) for name, found in looks.items()]


def _row(case: str, looks: list[Look]) -> dict[str, Any]:
    columns = {name: [asdict(look)[name] for look in looks] for name in asdict(looks[0])}
    medians = {name: round(statistics.median(values), 1) for name, values in columns.items()}
    return {"case": case, **medians, "slowest_ms": round(max(columns["ms"]), 1)}


@contextmanager
def _opened(browser: Browser, process: Worker, view: str) -> Iterator[Visit]:
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    page = context.new_page()
    page.add_init_script(f"{_WATCH}([{view!r}, {VIEWS[view]}])")
    session = context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})
    yield Visit(page, session, process, view)
    context.close()


class Visit:
    """One reader, who looks at one view."""

    def __init__(self, page: Page, session: CDPSession, process: Worker, view: str) -> None:
        self._page = page
        self._session = session
        self._process = process
        self._view = view

    def load(self, url: str) -> Look:
        before = self._used()
        self._page.goto(f"{url}/#/{self._view}")
        self._page.wait_for_function("() => window.loaded")
        used = self._used()
        return self._look(0, "loaded", before, used)

    def refresh(self) -> Look:
        known = len(self._page.evaluate(_FETCHED))
        before = self._used()
        self._page.evaluate(
            "document.dispatchEvent(new Event('visibilitychange'))"
        )  # as when it is looked at again
        self._page.wait_for_function(_REFRESHED, arg=known)
        self._page.wait_for_timeout(_SETTLE_MS)
        return self._look(known, "shown", before, self._used())

    def _look(self, known: int, moment: str, before: tuple[float, float], after: tuple[float, float]) -> Look:
        fetched = self._page.evaluate(_FETCHED)[known:]
        return Look(
            ms=self._page.evaluate(f"window.{moment}") - fetched[0][0],
            cpu_ms=(after[0] - before[0]) * 1e3,
            page_ms=(after[1] - before[1]) * 1e3,
            kilobytes=sum(size for *_, size in fetched) / 1000,
            requests=len(fetched),
        )

    def _used(self) -> tuple[float, float]:
        """CPU seconds of the process, and of the page's own thread."""
        cpu = self._process.ask(do="cpu")["cpu"]
        metrics = self._session.send("Performance.getMetrics")["metrics"]
        return cpu, next(float(metric["value"]) for metric in metrics if metric["name"] == "TaskDuration")

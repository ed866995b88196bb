"""The demo's five parts. Each does one thing to the mesh, watches the traffic, and says whether a promise was kept."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from math import sqrt
from pathlib import Path

from meshlib.cli.demo.config import by_weight, together, write
from meshlib.cli.demo.processes import Backends, Client, ControlPlaneProcess
from meshlib.cli.demo.view import View
from meshlib.cli.demo.window import Window

__all__ = ["Story"]

VERSIONS = ("v1", "v2", "v3")
Z = 4.0
"""How many standard deviations a share may be off."""


class Story:
    """Runs the parts in order. broken: the promises that were not kept."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._recent = Window(VERSIONS, size=10)
        self.total = Window(VERSIONS)
        self.broken: list[str] = []
        self.kept = 0

    def run(self) -> None:
        with tempfile.TemporaryDirectory(prefix="meshlib-demo-") as folder, Backends(VERSIONS) as backends:
            file = Path(folder) / "mesh.yaml"
            write(file, by_weight({"v1": 90, "v2": 10}, backends.ports))
            with ControlPlaneProcess(file) as control_plane, Client(control_plane.address) as client:
                self._client = client
                self._watch(1)
                self._canary()
                self._shift(file, backends)
                self._crash(file, backends)
                self._ejection(backends)
                self._without_control_plane(control_plane)

    def _canary(self) -> None:
        self._view.chapter(1, "canary", "the route sends 90 % to v1 and 10 % to v2")
        window = self._watch(35)
        self._expect_share(window, "v2", 0.10)
        self._expect_no_failure(window)

    def _shift(self, file: Path, backends: Backends) -> None:
        self._view.chapter(2, "shift", "the file is edited to 50/50; nobody restarts anything")
        write(file, by_weight({"v1": 50, "v2": 50}, backends.ports))
        waiting = self._until(lambda recent: recent.shares()["v2"] > 0.3, "the new weights take effect")
        window = self._watch(30)
        self._expect_share(window, "v2", 0.50)
        self._expect_no_failure(waiting, window)

    def _crash(self, file: Path, backends: Backends) -> None:
        self._view.chapter(
            3, "crash", "all three versions take turns in one cluster; then v3 is killed with SIGKILL"
        )
        write(file, together(backends.ports))
        before = self._until(lambda recent: recent.shares()["v3"] > 0.25, "v3 gets its third")
        backends.crash("v3")
        window = self._watch(30)
        self._expect(window.requests > 0 and self._recent.shares()["v3"] == 0, "v3 answers nothing any more")
        self._expect_no_failure(before, window)
        backends.restart("v3")
        back = self._until(lambda recent: recent.shares()["v3"] > 0.25, "restarted, v3 is back in turn")
        self._expect_no_failure(back)

    def _ejection(self, backends: Backends) -> None:
        self._view.chapter(
            4, "ejection", "v2 starts to answer 500; after five in a row it is left alone for 2 s or more"
        )
        backends.tell("v2", "fail")
        window = self._watch(15)
        self._expect(
            self._recent.shares()["v2"] == 0 and window.rejected < 15,
            f"v2 is ejected after {window.rejected} bad answers, each of them retried elsewhere",
        )
        backends.tell("v2", "heal")
        back = self._until(lambda recent: recent.shares()["v2"] > 0.25, "healed, v2 is taken back")
        self._expect_no_failure(window, back)

    def _without_control_plane(self, control_plane: ControlPlaneProcess) -> None:
        self._view.chapter(
            5, "control plane lost", "the control plane is killed; the last good configuration stays"
        )
        control_plane.kill()
        window = self._watch(30)
        even = all(abs(share - 1 / 3) < 0.05 for share in window.shares().values())
        self._expect(window.requests > 0 and even, "traffic goes on, a third to each version")
        self._expect_no_failure(window)

    # --- watching ----------------------------------------------------------------------------------------------------

    def _watch(self, reports: int) -> Window:
        window = Window(VERSIONS)
        for _ in range(reports):
            self._next(window)
        return window

    def _until(self, condition: Callable[[Window], bool], promise: str, limit: int = 60) -> Window:
        """Watch until the last second of traffic meets the condition; a broken promise after `limit` reports."""
        window = Window(VERSIONS)
        for _ in range(limit):
            self._next(window)
            if condition(self._recent):
                self._expect(True, promise)
                return window
        self._expect(False, promise)
        return window

    def _next(self, window: Window) -> None:
        report = self._client.report()
        for each in (window, self._recent, self.total):
            each.add(report)
        self._view.traffic(self._recent)

    # --- promises ----------------------------------------------------------------------------------------------------

    def _expect(self, ok: bool, promise: str) -> None:
        self._view.verdict(ok, promise)
        if ok:
            self.kept += 1
        else:
            self.broken.append(promise)

    def _expect_share(self, window: Window, version: str, expected: float) -> None:
        requests = window.requests
        tolerance = Z * sqrt(expected * (1 - expected) / requests) if requests else 0.0
        share = window.shares()[version]
        text = f"{version} got {share:.1%} of {requests} requests; {expected:.0%} was promised, give or take {tolerance:.1%}"
        self._expect(requests > 0 and abs(share - expected) <= tolerance, text)

    def _expect_no_failure(self, *windows: Window) -> None:
        failed = sum(window.failed for window in windows)
        requests = sum(window.requests for window in windows)
        last = next((window.last_failure for window in windows if window.last_failure), "")
        self._expect(
            failed == 0,
            f"{failed} of {requests} requests failed" + (f", the last with {last}" if last else ""),
        )

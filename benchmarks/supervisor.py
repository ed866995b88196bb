"""A process of its own that starts servers and outlives none of them.

Envoy ends when the process that started it ends, and a benchmark that is interrupted must leave nothing
behind. So servers are children of this process, which ends all of them when the benchmark's end of its input closes.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from benchmarks.worker import ROOT, Worker, serve


class Supervisor(Worker):
    """The benchmark's end of the supervisor process."""

    def __init__(self) -> None:
        super().__init__("benchmarks.supervisor")
        self.pids: list[int] = []

    def start(self, argv: list[str], log: Path) -> int:
        """Starts a server, its output in `log`; returns its process id."""
        pid = int(self.ask(start=argv, log=str(log))["pid"])
        self.pids.append(pid)
        return pid

    def ended(self, pid: int) -> bool:
        return bool(self.ask(ended=pid)["ended"])


def _end(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        child.wait(timeout=5)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def main() -> None:
    children: dict[int, subprocess.Popen[bytes]] = {}

    def handle(command: dict[str, Any]) -> dict[str, Any]:
        if "ended" in command:
            return {"ended": children[command["ended"]].poll() is not None}
        with Path(command["log"]).open("ab") as log:
            child = subprocess.Popen(
                command["start"], stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=ROOT
            )
        children[child.pid] = child
        return {"pid": child.pid}

    try:
        serve(handle)
    finally:
        for child in children.values():
            _end(child)


if __name__ == "__main__":
    main()

"""Each line once, whoever wrote it, when a process forks between lines."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.observe.access_log.forking import LINES

ROOT = Path(__file__).parents[3]


def test_each_line_is_written_once(tmp_path: Path) -> None:
    path = tmp_path / "log"
    quiet = ["-W", "ignore:This process:DeprecationWarning"]  # Python 3.12 warns of threads at a fork
    command = [sys.executable, *quiet, "-m", "tests.observe.access_log.forking", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=50)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)
    names = ["before", *(f"{who}{number}" for number in range(3) for who in ("child", "after"))]
    expected = [f"/{name}/{number}" for name in names for number in range(LINES)]
    lines = path.read_text().splitlines()
    assert sorted(lines) == sorted(expected)
    assert lines[:LINES] == expected[:LINES]

"""examples/flask_app, as its README starts it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("gunicorn")
pytest.importorskip("flask")

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 50.0


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "examples/flask_app/run.py", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[str, str]:
    try:
        return process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # its own session: this process and what it started
        output, errors = process.communicate()
        pytest.fail(f"still running after {LIMIT} s: {output}{errors}")


def processes_of(session: int) -> list[str]:
    """Command lines of the session's processes that are alive."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] != "Z":
                found.append((entry / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue  # ended meanwhile
    return found


@pytest.mark.timeout(120)
def test_it_runs_once() -> None:
    with start("--once") as process:
        output, errors = finish(process)
    assert process.returncode == 0, output + errors
    assert "100 requests, 0 failed\n" in output
    shares = {version: int(count) for version, count in re.findall(r"by reviews (v\d): (\d+)", output)}
    assert sum(shares.values()) == 100
    assert 5 <= shares["v2"] <= 40  # 20 expected, standard deviation 4
    assert re.search(r"through gunicorn's worker \d+: \d+", output)
    assert processes_of(process.pid) == []


@pytest.mark.timeout(120)
def test_it_runs_until_it_is_told_to_end() -> None:
    with start() as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "the front end is at" in line:
                break
        process.send_signal(signal.SIGINT)
        output, errors = finish(process)
    assert process.returncode == 0, output + errors
    assert processes_of(process.pid) == []

"""Examples as processes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

__all__ = ["end", "finish", "processes_of", "start"]

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 50.0


@contextlib.contextmanager
def start(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """This Python with these arguments, from the root of the repository, in a session of its own; all of it is killed when the
    block is left before its end."""
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process:
        try:
            yield process
        finally:
            if process.poll() is None:
                end(process.pid)


def finish(process: subprocess.Popen[str]) -> tuple[str, str]:
    """What it wrote to standard output and standard error by its end."""
    try:
        return process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        end(process.pid)
        output, errors = process.communicate()
        pytest.fail(f"still running after {LIMIT} s: {output}{errors}")


def processes_of(session: int) -> list[str]:
    """Command lines of the session's processes that are alive."""
    return list(_alive(session).values())


def end(session: int) -> None:
    """Kill the first process of a session, and all that it has started."""
    for pid in _alive(session):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _alive(session: int) -> dict[int, str]:
    """Command lines by pid."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] != "Z":
                found[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ")
        except OSError:
            continue  # ended meanwhile
    return found

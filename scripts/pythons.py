"""Find the Python interpreters of this machine that the project supports.

A name on PATH proves nothing (pyenv leaves a shim for each version that was ever installed, and the shim fails when
that version is not selected), so each candidate is run before it is believed.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

SUPPORTED = ("3.11", "3.12", "3.13")
"""Minor versions that the project is tested on, oldest first."""


def version_of(executable: str) -> str | None:
    """The "major.minor" that ``executable`` really runs, or None when it does not run or cannot make environments."""
    probe = "import sys, venv, ensurepip; print('%d.%d' % sys.version_info[:2])"
    try:
        done = subprocess.run(
            [executable, "-c", probe], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _pyenv_candidates(version: str) -> Iterator[str]:
    pyenv = shutil.which("pyenv")
    if pyenv is None:
        return
    listed = subprocess.run([pyenv, "versions", "--bare"], capture_output=True, text=True, check=False)
    for name in reversed(listed.stdout.split()):
        if name == version or name.startswith(version + "."):
            prefix = subprocess.run([pyenv, "prefix", name], capture_output=True, text=True, check=False)
            if prefix.returncode == 0:
                yield str(Path(prefix.stdout.strip()) / "bin" / "python")


def _candidates(version: str) -> Iterator[str]:
    yield getattr(sys, "_base_executable", sys.executable)
    for name in (f"python{version}", "python3", "python"):
        found = shutil.which(name)
        if found is not None:
            yield found
    yield from _pyenv_candidates(version)


def find(version: str) -> str | None:
    """An executable of Python ``version`` ("3.12") that runs and can make environments, or None."""
    return next((path for path in _candidates(version) if version_of(path) == version), None)

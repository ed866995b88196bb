"""Make or refresh the virtual environment that the Makefile's targets run in.

Runs on nothing but the standard library. An environment is made anew when the interpreter, pyproject.toml or the pinned
versions have changed; otherwise the command returns at once.

    python3 -m scripts.env [--for demo|dev] [--venv .venv] [--python EXECUTABLE]
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

from scripts.pythons import SUPPORTED, find, version_of

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / "scripts" / "constraints.txt"
EXTRAS = {"demo": "cli,re2", "dev": "dev"}
STAMP = "meshlib-stamp"


class SetupFailed(Exception):
    """The environment could not be made; the message says what to do."""


def _fingerprint(purpose: str, version: str) -> str:
    digest = hashlib.sha256()
    for part in (version, str(ROOT), (ROOT / "pyproject.toml").read_text(), CONSTRAINTS.read_text()):
        digest.update(part.encode() + b"\0")
    return f"{purpose} {digest.hexdigest()}"


def _is_current(venv: Path, purpose: str, version: str) -> bool:
    try:
        stamp = (venv / STAMP).read_text()
    except OSError:
        return False
    wanted = {
        _fingerprint(name, version) for name in (purpose, "dev")
    }  # dev holds everything that demo needs
    return stamp in wanted and (venv / "bin" / "python").exists()


def _run(command: list[str], log: Path) -> None:
    with log.open("a") as out:
        done = subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, cwd=ROOT, check=False)
    if done.returncode != 0:
        tail = "\n".join(log.read_text().splitlines()[-25:])
        raise SetupFailed(f"{tail}\n{' '.join(command[:4])} ... failed; the whole output is in {log}")


def ensure(venv: Path, *, purpose: str, python: str | None = None) -> Path:
    """Make ``venv`` fit for ``purpose`` ("demo" or "dev") and return its interpreter.

    Raises SetupFailed when no supported Python is found or the installation fails.
    """
    if python is None:
        candidates = [getattr(sys, "_base_executable", sys.executable)]
        if version_of(candidates[0]) not in SUPPORTED:
            candidates = [path for path in map(find, reversed(SUPPORTED)) if path is not None]
        if not candidates:
            raise SetupFailed(
                f"Python {SUPPORTED[0]} or newer with its venv module is needed and was not found on this machine "
                f"(this is {sys.version.split()[0]}; on Debian and Ubuntu the package is python3-venv)."
            )
        python = candidates[0]
    version = version_of(python) or "unknown"
    interpreter = venv / "bin" / "python"
    if _is_current(venv, purpose, version):
        return interpreter
    print(
        f"Preparing {venv.name} with Python {version} (only the first time; a minute or two) ...", flush=True
    )
    shutil.rmtree(venv, ignore_errors=True)
    venv.parent.mkdir(parents=True, exist_ok=True)
    log = venv.with_name(venv.name + "-install.log")
    log.unlink(missing_ok=True)
    _run([python, "-m", "venv", str(venv)], log)
    _run(
        [
            str(interpreter),
            "-m",
            "pip",
            "install",
            "--disable-pip-version-check",
            "--no-input",
            "--constraint",
            str(CONSTRAINTS),
            "--editable",
            f"{ROOT}[{EXTRAS[purpose]}]",
        ],
        log,
    )
    log.replace(venv / "install.log")
    (venv / STAMP).write_text(_fingerprint(purpose, version))
    return interpreter


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.env", description="Make or refresh an environment."
    )
    parser.add_argument("--for", dest="purpose", choices=sorted(EXTRAS), default="dev")
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv")
    parser.add_argument("--python", help="interpreter to make it with (default: the one that runs this)")
    options = parser.parse_args()
    try:
        ensure(options.venv.absolute(), purpose=options.purpose, python=options.python)
    except SetupFailed as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

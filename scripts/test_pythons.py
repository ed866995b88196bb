"""`make test`: every check and every test, on each supported Python of this machine.

Lanes run side by side. The first begins with the conformance suite, which compares times with a real Envoy's: everything else
leaves the processor to it. Then all take what is left to do: the static checks; the tests with the Python that runs this
script; those with each other supported Python in an environment of its own, on one of them with the compiled build where
there is a C compiler. A failed step shows its output; the last line has the totals.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import time
import xml.etree.ElementTree as ET
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from scripts.compiled import compiler
from scripts.env import ROOT, SetupFailed, ensure
from scripts.pythons import SUPPORTED, find

LANES = 4
"""Tests wait for half of their time: four lanes keep two processors busy, also while the last ones end."""

NICER = 10
"""How far everything else stands behind the conformance suite."""

ONCE = "packaging or envoy or once"
"""What runs on one Python: packages are built, a real Envoy is asked, and long runs are made."""

TRANSPORTS = ("tests/transport",)
IDENTITY = ("tests/identity", "tests/server", "tests/controlplane", "tests/xds")

PARTS = {
    "identity": IDENTITY,
    "transports": TRANSPORTS,
    "the rest": ("tests", *(f"--ignore={folder}" for folder in TRANSPORTS + IDENTITY)),
}
"""Of what runs on each Python. The longest comes last: lanes take what was prepared last first."""

STEP_LIMIT = 1200.0
"""Seconds after which a step counts as failed."""

CHECKS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("ruff check", ("-m", "ruff", "check", "--quiet", ".")),
    ("ruff format", ("-m", "ruff", "format", "--check", "--quiet", ".")),
    ("mypy --strict", ("-m", "mypy")),
    (
        "import contracts",
        ("-c", "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports())"),
    ),
    ("descriptor set is up to date", ("scripts/build_descriptors.py", "--check")),
)


@dataclass(slots=True)
class Totals:
    """What the closing line says. Static checks count as one each, like tests."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0
    broken: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, passed: int, failed: int, skipped: int) -> None:
        with self.lock:
            self.passed += passed
            self.failed += failed
            self.skipped += skipped

    def say(self, name: str, verdict: str, seconds: float, output: str = "") -> None:
        with self.lock:
            print(f"{verdict:<6} {name} ({seconds:.0f} s)", flush=True)
            if verdict == "FAILED":
                self.broken.append(name)
                print(output.rstrip(), flush=True)


def _run(command: Sequence[str], path: str | None = None) -> tuple[int, str, float]:
    """Exit code, combined output, seconds. A step that outlives STEP_LIMIT is ended and gets exit code 124.

    path: the PYTHONPATH, None to leave it as it is.
    """
    environment = os.environ.copy()
    environment.pop(
        "PYTHONDONTWRITEBYTECODE", None
    )  # a thousand short processes would compile the sources anew
    if path is not None:
        environment["PYTHONPATH"] = path
    begun = time.monotonic()
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=STEP_LIMIT)
        except subprocess.TimeoutExpired:
            process.kill()
            output, _ = process.communicate()
            return 124, f"{output}\nended after {STEP_LIMIT:.0f} s", time.monotonic() - begun
    return process.returncode, output, time.monotonic() - begun


def check(name: str, python: str, arguments: Sequence[str], totals: Totals) -> None:
    """Run one check that passes with exit code 0."""
    code, output, seconds = _run([python, *arguments])
    totals.add(passed=int(code == 0), failed=int(code != 0), skipped=0)
    totals.say(name, "ok" if code == 0 else "FAILED", seconds, output)


def _read_totals(report: Path) -> tuple[int, int, int] | None:
    """(passed, failed, skipped) of a JUnit report, None when there is none or it is cut off."""
    try:
        suites = list(ET.parse(report).getroot().iter("testsuite"))
    except (OSError, ET.ParseError):
        return None
    tests, failures, errors, skipped = (
        sum(int(suite.get(name, "0")) for suite in suites)
        for name in ("tests", "failures", "errors", "skipped")
    )
    return max(tests - failures - errors - skipped, 0), failures + errors, skipped


def run_tests(
    name: str, python: str, arguments: Sequence[str], totals: Totals, path: str | None = None
) -> None:
    """Run pytest with ``python`` and add what its report says. path: as in `_run`."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        code, output, seconds = _run(
            [python, "-m", "pytest", "-q", "--no-header", f"--junitxml={report}", *arguments], path
        )
        counts = _read_totals(report)
    passed, failed, skipped = counts if counts is not None else (0, 1, 0)
    if code != 0:
        failed = max(failed, 1)
    totals.add(passed, failed, skipped)
    totals.say(
        f"{name}: {passed} passed, {failed} failed, {skipped} skipped",
        "FAILED" if failed else "ok",
        seconds,
        output,
    )


Work = deque[Callable[[], None]]


class OtherPython:
    """The tests of another supported Python. compiled: on the compiled build, if this machine can make it."""

    def __init__(self, version: str, totals: Totals, work: Work, *, compiled: bool = False) -> None:
        self.name = f"tests on Python {version}"
        self._version = version
        self._totals = totals
        self._work = work
        self._compiled = compiled and compiler() is not None

    def prepare(self) -> None:
        """Make the environment, and compile; then the tests are to do. What can't be done is said and counted."""
        python = find(self._version)
        if python is None:
            self._totals.add(passed=0, failed=0, skipped=1)
            self._totals.say(f"{self.name}: not on this machine", "skip", 0.0)
            return
        try:
            interpreter = str(ensure(ROOT / f".venv-{self._version}", purpose="dev", python=python))
        except SetupFailed as error:
            self._totals.add(passed=0, failed=1, skipped=0)
            self._totals.say(self.name, "FAILED", 0.0, str(error))
            return
        path = None
        if self._compiled:
            code, output, seconds = _run([interpreter, "-m", "scripts.compiled", "--quick"])
            self._totals.add(passed=int(code == 0), failed=int(code != 0), skipped=0)
            self._totals.say("compiled build", "ok" if code == 0 else "FAILED", seconds, output)
            if code != 0:
                return
            path = output.split()[-1]
        for part in PARTS:
            self._work.appendleft(partial(self._run, part, interpreter, path))

    def _run(self, part: str, interpreter: str, path: str | None) -> None:
        wanted, options = f"not ({ONCE})", list(PARTS[part])
        name = f"{self.name}, {part}"
        if path is not None:
            wanted += " and not interpreted"
            options += ["-o", "pythonpath=."]
            name += ", compiled"
        run_tests(name, interpreter, ("-m", wanted, *options), self._totals, path)


def _checks(totals: Totals) -> None:
    for name, arguments in CHECKS:
        check(name, sys.executable, arguments, totals)


def _this_python(part: str, wanted: str, paths: Sequence[str], totals: Totals) -> None:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    run_tests(f"tests on Python {version}, {part}", sys.executable, ("-m", wanted, *paths), totals)


def _everything(totals: Totals) -> Work:
    """What takes longest comes first, and what more is to be done after."""
    running = f"{sys.version_info.major}.{sys.version_info.minor}"
    work: Work = deque()
    others = [
        OtherPython(version, totals, work, compiled=number == 0).prepare
        for number, version in enumerate(version for version in SUPPORTED if version != running)
    ]
    here = [
        partial(_this_python, part, f"not ({ONCE})", paths, totals) for part, paths in reversed(PARTS.items())
    ]
    work.extend(others[:1])
    work.append(partial(_this_python, "once", ONCE, ("tests",), totals))
    work.extend(here)
    work.extend(others[1:])
    work.append(partial(_checks, totals))
    return work


def _first_lane(work: Work, totals: Totals) -> None:
    check("conformance with a real Envoy", sys.executable, ("-m", "conformance"), totals)
    _lane(work)


def _lane(work: Work) -> None:
    """Stand behind, and take what is left to do until nothing is. (A thread of Linux has a niceness of its own, which what it
    starts inherits.)"""
    own = threading.get_native_id()
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, own, os.getpriority(os.PRIO_PROCESS, own) + NICER)
    _take(work)


def _take(work: Work) -> None:
    while True:
        try:
            task = work.popleft()
        except IndexError:
            return
        task()


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.test_pythons", description="Run every check and test."
    )
    parser.add_argument("--only-checks", action="store_true", help="the static checks, no tests")
    options = parser.parse_args()
    begun = time.monotonic()
    totals = Totals()
    if options.only_checks:
        for name, arguments in CHECKS:
            check(name, sys.executable, arguments, totals)
    else:
        work = _everything(totals)
        with ThreadPoolExecutor(max_workers=LANES) as pool:
            lanes = [pool.submit(_first_lane, work, totals)]
            lanes += [pool.submit(_lane, work) for _ in range(LANES - 1)]
            for lane in lanes:
                lane.result()
    if totals.broken:
        print("failed: " + "; ".join(totals.broken))
    print(f"all of it took {time.monotonic() - begun:.0f} s")
    print(f"{totals.passed} passed, {totals.failed} failed, {totals.skipped} skipped", flush=True)
    return 1 if totals.failed else 0


if __name__ == "__main__":
    sys.exit(main())

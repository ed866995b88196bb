"""Compile what every call runs through with mypyc, into extension modules that stand beside the sources.

The same Python, ahead of time: `pyproject.toml` lists the modules under `tool.meshlib.compiled`. A wheel that was built with
MESHLIB_COMPILE=1 carries them (hatch_build.py); the benchmark and one lane of `make test` run on a copy of the package in
`.compiled/`, which this script makes:

    python -m scripts.compiled            print the folder for PYTHONPATH; nothing where there is no C compiler
    python -m scripts.compiled --quick    neither optimization nor training: a part of the time, for tests
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src"
STAMP = "meshlib-stamp"

ARGUMENTS = ["-fvisibility=hidden"]
"""Calls between our modules then go straight to each other, and not through the dynamic linker's tables, which have left the
caches by the time of the next request."""

COUNTING = ["-fprofile-generate"]
TRAINED = ["-fprofile-use", "-fprofile-partial-training", "-Wno-missing-profile"]
"""gcc moves what is not run out of the way of what is. What the training leaves out is compiled as without one."""


class CompilationFailed(Exception):
    """The text is the compiler's."""


def compiler() -> str | None:
    """The C compiler that extension modules of this Python are made with; None when this machine lacks it."""
    command = os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc"
    return shutil.which(command.split()[0])


def modules(source: Path = SOURCE) -> list[str]:
    """The modules that are compiled, relative to `source`."""
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["meshlib"]["compiled"]
    files = sorted(path.relative_to(source).as_posix() for path in source.rglob("*.py"))
    return [
        file
        for file in files
        if any(fnmatch.fnmatch(file, pattern) for pattern in wanted["modules"])
        and not any(fnmatch.fnmatch(file, pattern) for pattern in wanted["interpreted"])
    ]


def build(target: Path, level: int = 2) -> list[Path]:
    """Compile into `target`, which mirrors `src`. The extension modules, relative to it.

    level: the C compiler's -O. Above 0, where the compiler is gcc, it is told which code runs often (`scripts/training.py`);
    that takes the packages which meshlib needs, and loopback.

    Raises CompilationFailed.
    """
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        shutil.copytree(SOURCE / "meshlib", work / "meshlib", ignore=shutil.ignore_patterns("__pycache__"))
        if level and _is_gcc():
            _compile(work, level, [*ARGUMENTS, *COUNTING])
            _run(["-m", "scripts.training"], ROOT, work)
            _compile(work, level, [*ARGUMENTS, *TRAINED])
        else:
            _compile(work, level, ARGUMENTS)
        suffix = sysconfig.get_config_var("EXT_SUFFIX")
        built = [path.relative_to(work) for path in work.rglob(f"*{suffix}") if "build" not in path.parts]
        for path in built:
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(work / path, target / path)
    return built


def _is_gcc() -> bool:
    command = compiler()
    assert command is not None
    done = subprocess.run([command, "--version"], capture_output=True, text=True, check=False)
    return "Free Software Foundation" in done.stdout


def _compile(work: Path, level: int, arguments: list[str]) -> None:
    command = ["-m", "scripts.extensions", str(level), " ".join(arguments), *modules()]
    # The seed: what has been counted is of use to the same C only.
    _run(command, work, ROOT, MYPYPATH=str(work), PYTHONHASHSEED="0")


def _run(command: list[str], folder: Path, first: Path, **environment: str) -> None:
    """first: where modules are looked for before anywhere else."""
    # What stands there already is pip's, which has what a build needs in a folder of its own.
    path = os.pathsep.join(filter(None, (str(first), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise CompilationFailed(f"{' '.join(command)}:\n{done.stdout}\n{done.stderr}")


def _fingerprint() -> str:
    digest = hashlib.sha256(f"{sys.version} {sys.executable}".encode())
    for path in _inputs():
        digest.update(path.as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _inputs() -> Iterator[Path]:
    yield ROOT / "pyproject.toml"
    yield from (Path(__file__).with_name(f"{name}.py") for name in ("compiled", "extensions", "training"))
    yield from sorted(
        path for path in (SOURCE / "meshlib").rglob("*") if path.suffix in (".py", ".bin", ".json")
    )


def ensure(*, quick: bool = False) -> Path:
    """A folder with the whole package, compiled for this Python; made anew when a source has changed.

    quick: without optimization by the C compiler, and without training. Raises CompilationFailed.
    """
    folder = ROOT / ".compiled" / f"{sysconfig.get_config_var('SOABI')}{'-quick' if quick else ''}"
    stamp, wanted = folder / STAMP, _fingerprint()
    if not stamp.exists() or stamp.read_text() != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(SOURCE / "meshlib", folder / "meshlib", ignore=shutil.ignore_patterns("__pycache__"))
        build(folder, 0 if quick else 2)
        stamp.write_text(wanted)
    return folder


def main() -> int:
    if compiler() is None:
        print("There is no C compiler on this machine: the modules stay interpreted.", file=sys.stderr)
        return 0
    try:
        print(ensure(quick="--quick" in sys.argv[1:]))
    except CompilationFailed as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

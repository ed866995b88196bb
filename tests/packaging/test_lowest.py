"""The lower bounds in pyproject.toml are true: the wheel's modules import and decode with exactly those versions."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent

pytestmark = [pytest.mark.packaging, pytest.mark.timeout(240)]

IMPORT_EVERYTHING = """
import importlib, pkgutil, sys
sys.path.insert(0, sys.argv[1])
import meshlib
for module in pkgutil.walk_packages(meshlib.__path__, "meshlib."):
    # The servers themselves are the application's choice, and no requirement of ours.
    if module.name.rpartition(".")[2] not in ("__main__", "gunicorn", "hypercorn", "uvicorn"):
        importlib.import_module(module.name)
from meshlib import proto
message = proto.from_dict("envoy.config.cluster.v3.Cluster", {"name": "reviews", "connect_timeout": "0.25s"})
assert proto.unpack(proto.pack(message)) == message
assert meshlib.Mesh is not None
"""


def lowest() -> list[str]:
    """The run-time requirements, and those of the extras that the modules use, at their lower bounds."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    declared = [*project["dependencies"], *extras["re2"], *extras["httpx2"], *extras["cli"]]
    bounds = [re.fullmatch(r"([\w.-]+)>=([\w.]+)(,<\w+)?", requirement) for requirement in declared]
    assert all(bounds), f"every requirement has a lower bound: {declared}"
    return [f"{bound[1]}=={bound[2]}" for bound in bounds if bound is not None]


def test_lower_bounds_are_true(tmp_path: Path) -> None:
    if sys.version_info[:2] != (3, 11):
        pytest.skip("the lowest versions are older than the wheels for newer Pythons")
    venv = tmp_path / "venv"
    python = venv / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python)]
    for command in (
        [sys.executable, "-m", "venv", "--without-pip", str(venv)],
        [*pip, "install", "--quiet", "--no-compile", *lowest()],
        [*pip, "check"],
        [str(python), "-W", "error", "-c", IMPORT_EVERYTHING, str(ROOT / "src")],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"

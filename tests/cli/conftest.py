from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.files import CLUSTER, LISTENER, ROUTES

Meshlib = Callable[..., "subprocess.CompletedProcess[str]"]

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """Of a process that runs this tree's meshlib, whether or not it is installed."""
    return {**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONUNBUFFERED": "1"}


@pytest.fixture(scope="session")
def meshlib(environment: dict[str, str]) -> Meshlib:
    """Runs `meshlib ARGUMENTS` as a process of its own, to its end."""

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "meshlib.cli", *map(str, arguments)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=50)

    return run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A configuration in three files."""
    (tmp_path / "listener.yaml").write_text(LISTENER)
    (tmp_path / "routes.yaml").write_text(ROUTES)
    (tmp_path / "cluster.yml").write_text(CLUSTER)
    return tmp_path

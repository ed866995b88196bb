"""Channels with tls="relay", each case in a process of its own: C-core has one bootstrap for a process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import meshlib
import meshlib.grpc
from meshlib.controlplane import ControlPlane
from tests.transport.grpc.processes.test_processes import control_plane, succeed
from tests.transport.grpc.secure.relay_process import MODES

__all__ = ["control_plane"]

ROOT = Path(__file__).resolve().parents[4]
LIMIT = 60.0
PROCESS = "tests.transport.grpc.secure.relay_process"
FORKS = "tests.transport.grpc.secure.relay_forks"

pytestmark = pytest.mark.once


@pytest.mark.parametrize("mode", MODES)
def test_in_a_process_of_its_own(mode: str) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GRPC_XDS_")}
    done = subprocess.run(
        [sys.executable, "-m", PROCESS, mode],
        cwd=ROOT,
        env={**environment, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout).is_absolute()
    assert not Path(done.stdout).exists(), "its files are still there"


@pytest.mark.parametrize("control_plane", ["tls"], indirect=True)
@pytest.mark.parametrize("mode", ["after_use", "grandchild", "pool", "asyncio_child", "loops_at_once"])
def test_forks_and_loops(mode: str, control_plane: ControlPlane) -> None:
    """A child of a process that has called uses the tunnel."""
    succeed(FORKS, mode, control_plane.address)


def test_another_word() -> None:
    with pytest.raises(meshlib.ConfigError, match="tls must be 'tunnel' or 'relay', not 'fast'"):
        meshlib.grpc.channel("echo:80", tls="fast")  # type: ignore[arg-type]

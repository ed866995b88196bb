"""fork() with a live mesh: gunicorn, celery, multiprocessing. In processes of their own, bounded by time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from meshlib.testing import Upstream, messages, serve, service
from tests.mesh.forking import MODES

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 40.0


def start(mode: str, address: str, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *options, "-m", "tests.mesh.forking", mode, address],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> None:
    try:
        _, errors = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        process.kill()
        _, errors = process.communicate()
        pytest.fail(f"still running after {LIMIT} s: {errors}")
    assert process.returncode == 0, errors


@pytest.mark.parametrize("mode", sorted(MODES.keys() - {"impatient", "update"}))
def test_parent_and_children_call(mode: str) -> None:
    with Upstream() as upstream, serve(service("reviews", upstream.address)) as control_plane:
        with start(mode, control_plane.address) as process:
            finish(process)
        control_plane.wait_for(lambda served: served.streams == 0)


def test_a_fork_waits_for_the_threads_of_grpc() -> None:
    """As on a machine that is too busy to end them in the usual time: a child that opened a stream hung then."""
    with Upstream() as upstream, serve(service("reviews", upstream.address)) as control_plane:
        for _ in range(3):
            with start("impatient", control_plane.address) as process:
                finish(process)


def test_parent_and_child_both_follow_the_control_plane() -> None:
    with Upstream() as upstream, serve(config := service("reviews", upstream.address)) as control_plane:
        with start("update", control_plane.address) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            header = {"header": {"key": "x-generation", "value": "2"}}
            config["resources"][1]["response_headers_to_add"] = [header]
            control_plane.store.replace(messages(config))
            finish(process)
        assert {answer.node_id for answer in control_plane.answers} == {"update"}

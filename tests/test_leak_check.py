"""The rules of tests/conftest.py can fail."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

THREAD = """
import threading
STOP = threading.Event()

def test_it():
    threading.Thread(target=STOP.wait, args=(20,), daemon=True, name="lost").start()
"""

SOCKET = """
import socket
KEEP = []

def test_it():
    KEEP.append(socket.socket())
"""

FILE = """
KEEP = []

def test_it():
    KEEP.append(open(__file__))
"""

CHILD = """
import subprocess
KEEP = []

def test_it():
    KEEP.append(subprocess.Popen(["sleep", "5"]))

def teardown_module():
    KEEP[0].kill()
    KEEP[0].wait()
"""

TIDY = """
import socket, threading

def test_it():
    thread = threading.Thread(target=int)
    thread.start()
    with socket.socket():
        thread.join()
"""

POLLER = """
import asyncio, socket
import grpc.aio
KEEP = []

async def begin():
    grpc.aio.init_grpc_aio()

def test_it():
    asyncio.run(begin())
"""

POLLER_AND_SOCKET = POLLER + "    KEEP.append(socket.socket())\n"


def run(tmp_path: Path, code: str) -> str:
    (tmp_path / "test_sample.py").write_text(code)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "tests.conftest",
            "-p",
            "no:cacheprovider",
            "--rootdir",
            str(tmp_path),
            str(tmp_path),
        ],
        cwd=ROOT,
        env={**os.environ, "MESHLIB_TEST_GRACE": "0.2"},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout


@pytest.mark.parametrize(
    ("code", "named"),
    [
        (THREAD, "thread lost"),
        (SOCKET, "socket:"),
        (POLLER_AND_SOCKET, "socket:"),
        (FILE, "test_sample.py"),
        (CHILD, "child process"),
    ],
    ids=["thread", "socket", "socket-beside-a-poller", "file", "child"],
)
def test_a_leak_fails_the_test(tmp_path: Path, code: str, named: str) -> None:
    output = run(tmp_path, code)
    assert "the test left behind" in output
    assert named in output


@pytest.mark.parametrize("code", [TIDY, POLLER], ids=["tidy", "a-poller-of-grpc"])
def test_a_tidy_test_passes(tmp_path: Path, code: str) -> None:
    assert "1 passed in" in run(tmp_path, code)

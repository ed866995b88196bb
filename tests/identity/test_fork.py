"""Identities across a fork: parent and child both go on, each with threads and streams of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from meshlib.controlplane.ca import Authority, CaServer, Entry, Identities
from meshlib.controlplane.ca.files import replace_files, svid_files

ID = "spiffe://td.example/web"

PROGRAM = r"""
import os, sys, threading
from meshlib.identity.sources import identity_source
from meshlib.identity.store import IdentityStore
from meshlib.resources.tls import AdsSource, CommonTls, SecretRef, UpstreamTls

store = IdentityStore(identity_source(sys.argv[1]), interval=0.05)
if hasattr(store._source, "_poller"):
    store._source._poller._interval = 0.05
own, trust = (SecretRef(name=name, source=AdsSource()) for name in ("default", "ROOTCA"))
tls = UpstreamTls(common=CommonTls(certificate_secrets=(own,), validation_secret=trust))
held = store.client(tls)
grown = threading.Event()

def say(line):
    os.write(1, line.encode() + b"\n")  # at once: the other process writes too

def another(before):
    assert any(held.material != before or grown.wait(0.02) for _ in range(1000)), (os.getpid(), held.epoch)
    return held.material

store.start()
first = another(None)
say("ready")
before = held.epoch
child = os.fork()
handshake = held.handshake()
assert handshake.epoch >= before
say("parent forked" if child else "child forked")
second = another(first)
say("parent rotated" if child else "child rotated")
another(second)
store.close()
if not child:
    say("child done")
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
say("parent done")
"""


class Program:
    """The program above, whose output is waited for."""

    def __init__(self, identity: str) -> None:
        self.seen: list[str] = []
        self._more = threading.Condition()
        self._process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, identity],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(["src", "."])},
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._more:
                self.seen.append(line.strip())
                self._more.notify_all()
        with self._more:
            self.seen.append("end")
            self._more.notify_all()

    def wait_for(self, *lines: str) -> None:
        with self._more:
            there = self._more.wait_for(
                lambda: set(lines) <= set(self.seen) or "end" in self.seen, timeout=30
            )
            if not there or not set(lines) <= set(self.seen):
                self._process.kill()
                pytest.fail(f"{self.seen} {self._process.communicate()[1]}")

    def end(self) -> None:
        self._process.wait(30)
        self._reader.join()
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._process.stdout.close()
        self._process.stderr.close()
        assert self._process.returncode == 0


def follow(program: Program, rotate: Callable[[], object]) -> None:
    program.wait_for("ready")
    program.wait_for("parent forked", "child forked")
    rotate()
    program.wait_for("parent rotated", "child rotated")
    rotate()
    program.wait_for("parent done", "child done")
    program.end()


def test_files(tmp_path: Path) -> None:
    authority = Authority("td.example")

    def rotate() -> None:
        replace_files(tmp_path / "id", svid_files(authority.issue(ID), authority.bundles, 1))

    rotate()
    follow(Program(str(tmp_path / "id")), rotate)


def test_workload_api(tmp_path: Path) -> None:
    authority = Authority("td.example")
    authority.rotate()  # a second root is trusted: now it signs, and then the first is trusted no more
    with CaServer(Identities(authority, [Entry(spiffe_id=ID)]), [f"unix:{tmp_path}/agent.sock"]):
        follow(Program(f"unix://{tmp_path}/agent.sock"), authority.rotate)

"""A SPIRE server and agent, started from the programs that `make peers` builds; without them the tests are skipped."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from scripts.peers import folder, missing
from tests.ports import reserved

LIMIT = 30.0
TTL = 12
"""Seconds that an SVID lives; SPIRE renews it at about half, when it looks (each 5 s)."""

SERVER = """\
server {
  bind_address = "127.0.0.1"
  bind_port = "PORT"
  trust_domain = "example.org"
  data_dir = "HOME/server"
  socket_path = "HOME/server/api.sock"
  log_level = "WARN"
}
plugins {
  DataStore "sql" { plugin_data { database_type = "sqlite3" connection_string = "HOME/server/db" } }
  NodeAttestor "join_token" { plugin_data {} }
  KeyManager "memory" { plugin_data {} }
}
"""

AGENT = """\
agent {
  data_dir = "HOME/agent"
  log_level = "WARN"
  server_address = "127.0.0.1"
  server_port = "PORT"
  socket_path = "HOME/agent/agent.sock"
  trust_domain = "example.org"
  insecure_bootstrap = true
  join_token = "TOKEN"
}
plugins {
  NodeAttestor "join_token" { plugin_data {} }
  KeyManager "memory" { plugin_data {} }
  WorkloadAttestor "unix" { plugin_data {} }
}
"""


@dataclass(frozen=True, slots=True)
class Spire:
    """A running SPIRE. socket: the agent's, where both the Workload API and SDS are."""

    home: Path

    @property
    def socket(self) -> str:
        return str(self.home / "agent" / "agent.sock")

    def entry(self, name: str, *, uid: int | None = None) -> None:
        """Register spiffe://example.org/<name> for this user, or another."""
        self.run(
            "entry", "create", "-parentID", "spiffe://example.org/node", "-spiffeID", f"spiffe://example.org/{name}",
            "-selector", f"unix:uid:{os.getuid() if uid is None else uid}", "-x509SVIDTTL", str(TTL),
            "-dns", f"{name}.local",
        )  # fmt: skip

    def run(self, *arguments: str) -> str:
        """A command of the server."""
        api = str(self.home / "server" / "api.sock")
        command = [str(folder() / "spire-server"), *arguments[:2], "-socketPath", api, *arguments[2:]]
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=True)
        return done.stdout


@pytest.fixture(scope="session")
def spire() -> Iterator[Spire]:
    if missing():
        pytest.skip(f"{', '.join(missing())} not there: `make peers` builds them where Go is")
    with contextlib.ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="spire-")))
        made = Spire(home)
        port = str(stack.enter_context(reserved()))
        _start(stack, home, "server", SERVER.replace("PORT", port))
        _wait_for(home / "server" / "api.sock")
        token = json.loads(
            made.run("token", "generate", "-spiffeID", "spiffe://example.org/node", "-output", "json")
        )["value"]
        made.entry("web")
        _start(stack, home, "agent", AGENT.replace("PORT", port).replace("TOKEN", token))
        _wait_for(home / "agent" / "agent.sock")
        yield made


def _start(stack: contextlib.ExitStack, home: Path, name: str, config: str) -> None:
    (home / name).mkdir()
    path = home / f"{name}.conf"
    path.write_text(config.replace("HOME", str(home)))
    log = stack.enter_context((home / f"{name}.log").open("wb"))
    process = subprocess.Popen(
        [folder() / f"spire-{name}", "run", "-config", path], stdout=log, stderr=subprocess.STDOUT
    )
    stack.callback(process.wait)
    stack.callback(process.kill)


def _wait_for(path: Path) -> None:
    limit = time.monotonic() + LIMIT
    while True:
        with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
            probe.connect(str(path))
            return
        if time.monotonic() > limit:
            logs = "\n".join(log.read_text() for log in path.parents[1].glob("*.log"))
            raise TimeoutError(f"SPIRE does not listen on {path}\n{logs}")
        time.sleep(0.05)

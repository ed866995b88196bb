"""One Envoy that serves many listeners, to compare with; its ports and its counters."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from conformance.envoy_process import envoy_binary

__all__ = ["Envoy", "running"]

LIMIT = 30.0


class Envoy:
    """ports: by listener name."""

    def __init__(self, admin: str, ports: Mapping[str, int]) -> None:
        self._admin = admin
        self.ports = ports

    def counters(self, part: str) -> dict[str, int]:
        """Every counter that is not zero and has this in its name."""
        with urllib.request.urlopen(f"http://{self._admin}/stats?format=json&filter={part}") as response:
            stats = json.load(response)["stats"]
        return {stat["name"]: stat["value"] for stat in stats if stat.get("value")}


@contextlib.contextmanager
def running(
    folder: Path, listeners: Sequence[Mapping[str, Any]], clusters: Sequence[Mapping[str, Any]] = ()
) -> Iterator[Envoy]:
    admin, bootstrap = folder / "admin.txt", folder / "bootstrap.json"
    bootstrap.write_text(
        json.dumps(
            {
                "static_resources": {"listeners": listeners, "clusters": clusters},
                "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}},
            }
        )
    )
    command: list[str | Path] = [
        envoy_binary(), "-c", bootstrap, "--concurrency", "1", "--disable-hot-restart", "-l", "warning",
        "--admin-address-path", admin,
    ]  # fmt: skip
    with (folder / "envoy.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield _ready(process, admin, folder / "envoy.log", len(listeners))
    finally:
        process.kill()
        process.wait()


def _ready(process: subprocess.Popen[bytes], admin: Path, log: Path, count: int) -> Envoy:
    due = time.monotonic() + LIMIT
    while process.poll() is None and time.monotonic() < due:
        time.sleep(0.05)
        with contextlib.suppress(OSError, ValueError):
            address = admin.read_text()
            with urllib.request.urlopen(f"http://{address}/listeners?format=json") as response:
                statuses = json.load(response)["listener_statuses"]
            ports = {each["name"]: each["local_address"]["socket_address"]["port_value"] for each in statuses}
            with urllib.request.urlopen(f"http://{address}/ready") as response:
                live = response.status == 200
            if live and len(ports) == count:
                return Envoy(address, ports)
    raise AssertionError(f"Envoy does not start: {log.read_text()[-4000:]}")

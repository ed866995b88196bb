"""Lines into a file, or into standard output or error.

A file is opened for appending. Each write ends with a whole line, so that the lines of several processes in one file stay whole.
Before a write the path is looked at: where it leads to another file than the one that is open, or to none (logrotate), it is
opened anew; no signal is needed. A pipe takes only so much at once that other writers can't get in between.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from meshlib.stats.registry import Registry

__all__ = ["FileStats", "LineFile", "LineStream"]

logger = logging.getLogger("meshlib.observe")

PIPE_BLOCK = select.PIPE_BUF
"""Bytes that a pipe takes in one piece."""

PATIENCE = 1.0
"""Seconds that a pipe which does not block may be full."""


class FileStats:
    """Envoy's counters under `filesystem.`, and `write_dropped`, which Envoy has no need of: it never drops."""

    def __init__(self, registry: Registry) -> None:
        scope = registry.scope("filesystem")
        self.buffered = scope.counter("write_buffered")
        self.completed = scope.counter("write_completed")
        self.failed = scope.counter("write_failed")
        self.by_timer = scope.counter("flushed_by_timer")
        self.reopen_failed = scope.counter("reopen_failed")
        self.dropped = scope.counter("write_dropped")


class LineStream:
    """Lines into a descriptor that others own: 1 or 2."""

    def __init__(self, descriptor: int, stats: FileStats) -> None:
        self._stats = stats
        self._descriptor = descriptor
        self._failing = False

    def write(self, entries: list[str]) -> None:
        self._write_to(self._descriptor, entries)

    def close(self) -> None:
        """The descriptor is not ours."""

    def _write_to(self, descriptor: int, entries: list[str]) -> None:
        try:
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                blocks: Iterable[bytes] = ("".join(entries).encode("utf-8", "surrogateescape"),)
            else:
                blocks = _blocks(entries, PIPE_BLOCK)
            for data in blocks:
                _write_all(descriptor, data)
                self._stats.completed.value += 1
        except OSError as error:
            self._failed(error)
        else:
            self._failing = False

    def _failed(self, error: OSError) -> None:
        self._stats.failed.value += 1
        if not self._failing:
            self._failing = True
            logger.warning("access log: %s: %s", self._name(), error.strerror)

    def _name(self) -> str:
        return {1: "standard output", 2: "standard error"}.get(self._descriptor, "output")


class LineFile(LineStream):
    """Lines into the file of this path."""

    def __init__(self, path: str, stats: FileStats) -> None:
        super().__init__(-1, stats)
        self._path = Path(path)
        self._identity: tuple[int, int] | None = None

    def write(self, entries: list[str]) -> None:
        try:
            self._open()
        except OSError as error:
            self._stats.reopen_failed.value += 1
            self._failed(error)
            return
        self._write_to(self._descriptor, entries)

    def close(self) -> None:
        descriptor, self._descriptor, self._identity = self._descriptor, -1, None
        if descriptor >= 0:
            os.close(descriptor)

    def _open(self) -> None:
        """Have the file open that the path leads to."""
        if self._identity is not None:
            with contextlib.suppress(OSError):
                found = self._path.stat()
                if (found.st_dev, found.st_ino) == self._identity:
                    return
        self.close()
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY
        self._descriptor = os.open(self._path, flags, 0o644)
        opened = os.fstat(self._descriptor)
        self._identity = (opened.st_dev, opened.st_ino)

    def _name(self) -> str:
        return str(self._path)


def _blocks(entries: list[str], most: int) -> Iterator[bytes]:
    """The lines joined into blocks of at most so many bytes; a longer line is a block by itself."""
    block: list[bytes] = []
    size = 0
    for entry in entries:
        data = entry.encode("utf-8", "surrogateescape")
        if block and size + len(data) > most:
            yield b"".join(block)
            block, size = [], 0
        block.append(data)
        size += len(data)
    if block:
        yield b"".join(block)


def _write_all(descriptor: int, data: bytes) -> None:
    """Write it; a descriptor that does not block is waited for."""
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(descriptor, rest) :]
        except BlockingIOError:
            if not select.select((), (descriptor,), (), PATIENCE)[1]:
                raise OSError(errno.EAGAIN, "nobody reads") from None

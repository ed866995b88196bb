"""Files that are looked at again and again: what they were at the last look, and the thread that looks.

A file may be replaced by a rename, by a symbolic link on its way that points elsewhere (Kubernetes' `..data`), or in place.
All of it shows in what `stat` says of the file that the path leads to now; the content decides.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from meshlib.errors import IdentityError
from meshlib.runtime import fork
from meshlib.runtime.clock import Clock
from meshlib.runtime.threads import Executor, Timer, Worker

__all__ = ["INTERVAL", "Files", "Poller"]

INTERVAL = 1.0
"""Seconds between two looks."""

LARGEST = 8 * 1024 * 1024
"""Bytes of a file at most."""

Stamp: TypeAlias = tuple[int, int, int, int] | None
"""Of the file that a path leads to: device, inode, size, time of the last change (ns). None: there is none."""


class Files:
    """What was read of which file, and whether a path leads to something else by now. Not thread-safe."""

    def __init__(self) -> None:
        self._stamps: dict[str, Stamp] = {}
        self._before: dict[str, Stamp] = {}

    def read(self, path: str) -> bytes:
        """The content now. Raises: IdentityError: it can't be read, or is larger than 8 MiB."""
        # The stamp comes first: a change between the two shows at the next look.
        self._stamps[path] = _stamp(path)
        try:
            with Path(path).open("rb") as file:
                content = file.read(LARGEST + 1)
        except OSError as error:
            raise IdentityError(f"{path} can't be read: {error.strerror or error}") from None
        if len(content) > LARGEST:
            raise IdentityError(f"{path} is larger than {LARGEST} bytes")
        return content

    def changed(self) -> bool:
        """Whether one of the files is another one, or not the same as it was, since it was read."""
        return any(_stamp(path) != stamp for path, stamp in (self._before | self._stamps).items())

    def next_pass(self) -> None:
        """Forget the files that nobody reads from now on. (Those of the last pass count until then.)"""
        self._before, self._stamps = self._stamps, {}

    def __bool__(self) -> bool:
        return bool(self._stamps or self._before)


class Poller:
    """Calls `look` every `interval` seconds on a thread of its own, from `start` to `close`. After a fork: `start` again."""

    def __init__(
        self,
        look: Callable[[], None],
        *,
        clock: Clock,
        interval: float = INTERVAL,
        executor: Callable[[], Executor] | None = None,
    ) -> None:
        self._look = look
        self._clock = clock
        self._interval = interval
        self._make_executor = executor or (lambda: Worker("meshlib-identity", clock))
        self._executor: Executor | None = None
        self._timer: Timer | None = None
        self._lock = threading.Lock()
        self._closed = False
        fork.register(self)

    def start(self, *, at_once: bool = False) -> None:
        """at_once: the first look is on that thread, but now."""
        with self._lock:
            if self._executor is not None or self._closed:
                return
            executor = self._executor = self._make_executor()
        if at_once:
            executor.post(self._tick)
        else:
            self._next(executor)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            executor, self._executor = self._executor, None
        if executor is not None:
            executor.close()

    def _tick(self) -> None:
        executor = self._executor
        if executor is None:
            return
        try:
            self._look()
        finally:
            self._next(executor)

    def _next(self, executor: Executor) -> None:
        self._timer = executor.call_at(self._clock.monotonic() + self._interval, self._tick)

    def before_fork(self) -> None:
        executor = self._executor
        if executor is not None:
            executor.pause(fork.PATIENCE)
        self._lock.acquire()

    def after_fork_in_parent(self) -> None:
        self._lock.release()
        executor = self._executor
        if executor is not None:
            executor.resume()

    def after_fork_in_child(self) -> None:
        self._lock = threading.Lock()
        executor, self._executor = self._executor, None
        if executor is not None:
            executor.abandon()


def _stamp(path: str) -> Stamp:
    try:
        found = os.stat(path)  # noqa: PTH116 - a path may be any bytes that the configuration names
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns

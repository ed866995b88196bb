"""A wake-up that can be polled together with sockets."""

from __future__ import annotations

import os
import threading
from types import TracebackType
from typing import Protocol

__all__ = ["Alarm", "Bell"]


class Alarm(Protocol):
    """What wakes a waiter: a `threading.Event` or a `Bell`."""

    def set(self) -> None: ...


class Bell:
    """Like a `threading.Event` for one waiter that polls `fileno()`. A context manager; ringing after its end does nothing.

    The lock keeps a late ring from writing to a file descriptor that is somebody else's by then.
    """

    __slots__ = ("_closed", "_lock", "_read", "_write")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._closed = False
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def set(self) -> None:
        """From any thread."""
        with self._lock:
            if not self._closed:
                self._closed = (
                    True  # once is enough: the waiter looks, and makes another one if it waits again
                )
                os.close(self._write)

    def fileno(self) -> int:
        return self._read

    def __enter__(self) -> Bell:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.set()
        os.close(self._read)

"""Waiting for signals in the main thread, so that none is lost and none stops it for ever.

A handler runs in the main thread between any two instructions of whatever that thread is doing. `Event.set` in a handler takes
the lock that `Event.wait` holds for a moment before it sleeps: a signal that arrives in that moment waits for itself. The
queue here may be interrupted anywhere. And a signal may arrive after the interpreter has last looked for one and before the
thread sleeps in the kernel: so it sleeps a second at a time.
"""

from __future__ import annotations

import queue
import signal
from collections.abc import Iterable
from types import FrameType

__all__ = ["Signals"]

LOOK = 1.0
"""Seconds after which a waiting thread looks once more."""


class Signals:
    """Takes the signals from their handlers of before, until `close`.

    Raises:
        ValueError: not made in the main thread, where alone signals can be handled.
    """

    def __init__(self, numbers: Iterable[signal.Signals]) -> None:
        self._came: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._before = {number: signal.signal(number, self._put) for number in numbers}

    def next(self, timeout: float | None = None) -> int | None:
        """The next signal, in the order of arrival; None when none came within `timeout` seconds."""
        while True:
            wait = LOOK if timeout is None else max(min(timeout, LOOK), 0.0)
            try:
                return self._came.get(timeout=wait)
            except queue.Empty:
                if timeout is not None:
                    timeout -= wait
                    if timeout <= 0:
                        return None

    def close(self) -> None:
        """Give the signals back to their handlers of before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _put(self, number: int, _frame: FrameType | None) -> None:
        self._came.put(number)

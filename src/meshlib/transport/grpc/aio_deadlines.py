"""The timers of calls, and how the engine wakes a call that waits."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from math import inf
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from meshlib.transport.grpc.aio_driver import Driver

__all__ = ["Deadlines", "Wake"]


class Wake:
    """What the engine calls from any thread when the call may go on. Knows the driver until that is over.

    at: the deadline that `Deadlines` keeps for it.
    """

    __slots__ = ("at", "driver")

    at: float

    def __init__(self, driver: Driver) -> None:
        self.driver: Driver | None = driver

    def __call__(self) -> None:
        driver = self.driver
        if driver is not None:
            try:
                driver.home.loop.call_soon_threadsafe(driver.woken)
            except RuntimeError:  # the loop was closed with the call under way
                self.driver = None


class Deadlines:
    """Timers of calls in one queue with one timer of the loop, since most calls have the same timeout and never need it.

    Whoever comes with an earlier deadline than the last one is refused and takes a timer of its own.
    """

    __slots__ = ("_alarm", "_alarm_at", "_loop", "_monotonic", "_queue")

    def __init__(self, loop: asyncio.AbstractEventLoop, monotonic: Callable[[], float]) -> None:
        self._loop = loop
        self._monotonic = monotonic
        self._queue: deque[Wake] = deque()
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_at = inf

    def add(self, wake: Wake, at: float) -> bool:
        """Have the driver's `due` called then, unless it is over."""
        queue = self._queue
        while queue and queue[0].driver is None:
            queue.popleft()
        if queue and at < queue[-1].at:
            return False
        wake.at = at
        queue.append(wake)
        if at < self._alarm_at:
            self._set(at, self._monotonic())
        return True

    def _set(self, at: float, now: float) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm_at = at
        self._alarm = self._loop.call_later(at - now, self._ring)

    def _ring(self) -> None:
        self._alarm, self._alarm_at = None, inf
        queue, now = self._queue, self._monotonic()
        due = []
        while queue and (queue[0].driver is None or queue[0].at <= now):
            due.append(queue.popleft().driver)
        if queue:
            self._set(queue[0].at, now)
        for driver in due:
            if driver is not None:
                driver.due()

    def close(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm, self._alarm_at = None, inf

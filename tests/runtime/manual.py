"""A Worker that runs when it is told to, on a clock that moves when it is told to."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from meshlib.runtime.clock import FakeClock
from meshlib.runtime.threads import Schedule, Timer

__all__ = ["ManualWorker"]


class ManualWorker:
    """Errors of tasks are raised in `run`."""

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        self._tasks: deque[Callable[[], None]] = deque()
        self._schedule = Schedule()
        self.closed = False
        self.paused = False

    def post(self, task: Callable[[], None]) -> None:
        self._tasks.append(task)

    def call_at(self, when: float, task: Callable[[], None]) -> Timer:
        timer = Timer(when, task)
        self._schedule.add(timer)
        return timer

    def close(self, timeout: float = 0.0) -> None:
        self.closed = True

    def pause(self, timeout: float) -> None:
        assert not self.paused
        self.paused = True

    def resume(self) -> None:
        assert self.paused
        self.paused = False

    def abandon(self) -> None:
        self.closed = True

    def run(self) -> None:
        """Run everything that is posted or due, and what that leads to."""
        while not self.closed and not self.paused:
            task = self._tasks.popleft() if self._tasks else self._schedule.due(self._clock.monotonic())
            if task is None:
                return
            task()

    def advance(self, seconds: float) -> None:
        """Let the time pass, with each timer at its own moment."""
        self.run()
        until = self._clock.monotonic() + seconds
        while (following := self._schedule.next) <= until:
            self._clock.advance_to(following)
            self.run()
        self._clock.advance_to(until)
        self.run()

"""An Executor without a thread: the test says when time passes."""

from __future__ import annotations

from meshlib.runtime.clock import FakeClock
from meshlib.runtime.threads import Schedule, Task, Timer

__all__ = ["ManualExecutor"]


class ManualExecutor:
    """Runs what was posted, and what is due, in `run` and `advance`."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.closed = False
        self.paused = False
        self._tasks: list[Task] = []
        self._schedule = Schedule()

    def post(self, task: Task) -> None:
        self._tasks.append(task)

    def call_at(self, when: float, task: Task) -> Timer:
        timer = Timer(when, task)
        self._schedule.add(timer)
        return timer

    def close(self, timeout: float = 0.0) -> None:
        self.closed = True

    def pause(self, timeout: float) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False

    def abandon(self) -> None:
        self.closed = True

    def run(self) -> None:
        while not self.closed:
            if self._tasks:
                self._tasks.pop(0)()
                continue
            due = self._schedule.due(self.clock.monotonic())
            if due is None:
                return
            due()

    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.run()

    @property
    def next(self) -> float:
        """Seconds until the next timer."""
        return self._schedule.next - self.clock.monotonic()

"""How late event loops run what they have to run.

A loop that is late is the saturation of asyncio code: its calls wait for each other and not for a server. It is measured while
there are calls, and only then: a call asks its loop to run something a moment later, at most four times a second for all loops
together, and what runs there looks at the clock. A loop without calls has no timer.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from math import inf
from typing import Any

__all__ = ["LoopLag"]

EVERY = 0.25
AHEAD = 0.02
ELSEWHERE = 0.01
"""Seconds after a call of a thread without a loop. Those of other threads are to have their turn."""

WINDOW = 10.0


class LoopLag:
    """now: monotonic seconds, for the window. due: when it should be sampled next, of that clock; inf while nobody has imported
    asyncio. value: the largest lag of the last 10 to 20 s, in seconds."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._running: Callable[[], Any] | None = None
        self.due = inf
        self._since = 0.0
        self._largest = 0.0
        self._before = 0.0

    def find_asyncio(self) -> None:
        """Sample from now on, if somebody has imported asyncio."""
        asyncio = sys.modules.get("asyncio")
        if asyncio is not None and self._running is None:
            self._running = asyncio._get_running_loop
            self.due = 0.0

    def sample(self, now: float) -> None:
        """Have the loop of this thread, if it has one, run something soon. The caller has seen that `due` has passed."""
        assert self._running is not None
        loop = self._running()
        if loop is None or loop.is_closed():
            self.due = now + ELSEWHERE
            return
        self.due = now + EVERY
        expected = loop.time() + AHEAD
        loop.call_at(expected, self._ran, loop, expected)

    def _ran(self, loop: Any, expected: float) -> None:
        self._turn()
        self._largest = max(self._largest, loop.time() - expected)

    @property
    def value(self) -> float:
        self._turn()
        return max(self._largest, self._before)

    def _turn(self) -> None:
        now = self._now()
        age = now - self._since
        if age >= WINDOW:
            self._before = self._largest if age < 2 * WINDOW else 0.0
            self._largest = 0.0
            self._since = now

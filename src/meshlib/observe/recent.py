"""The last calls, for whoever asks what has just happened. A ring: the newest takes the place of the oldest."""

from __future__ import annotations

from collections import deque
from itertools import count
from typing import TYPE_CHECKING, Any

from meshlib.engine.observer import CallObserver
from meshlib.observe.decision import Facts

if TYPE_CHECKING:
    from meshlib.engine.call import Call

__all__ = ["RecentCalls"]


class RecentCalls(CallObserver):
    """The facts of the last `size` calls, each with its number: 1, 2, ... in the order in which they ended.

    Thread safe: one append of a deque. Size 0 keeps nothing.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._ring: deque[tuple[int, tuple[Any, ...]]] = deque(maxlen=size)
        self._next = count(1).__next__

    def over(self, call: Call, now: float) -> None:
        self._ring.append((self._next(), call.facts(now)))

    def newest(self, limit: int | None = None) -> list[tuple[int, Facts]]:
        """The newest first."""
        found = self._listed()[::-1]
        chosen = found if limit is None else found[:limit]
        return [(number, Facts._make(facts)) for number, facts in chosen]

    def find(self, number: int) -> Facts | None:
        """None: it is not kept any longer, or has not happened."""
        return next((Facts._make(facts) for known, facts in self._listed() if known == number), None)

    def _listed(self) -> list[tuple[int, tuple[Any, ...]]]:
        while True:
            try:
                return list(self._ring)
            except RuntimeError:  # a call ended while the list was being made
                continue

"""The part of counting that every call runs through.

What a call measured is put down here, and added up for many calls in one go, or when somebody reads: after a system call each
counter is far away in memory, and a call moves ten of them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from meshlib.stats.metrics import ENVOY_BOUNDS, Counter, Histogram

if TYPE_CHECKING:
    from meshlib.engine.call import Call
    from meshlib.engine.engine import Engine
    from meshlib.observe.lag import LoopLag

__all__ = ["Line", "Tally"]

TOGETHER = 64
"""Calls that are added up in one go, unless somebody reads before."""

LINES = 8000
"""So many lines are remembered at most: twice as many as there are sets of labels to which they lead."""


class Line:
    """Everything that calls of one kind count into. sent, received: bytes; the same as messages, which HTTP has none of."""

    def __init__(
        self,
        requests: tuple[Counter, ...],
        durations: tuple[Histogram, ...],
        sent: Histogram,
        received: Histogram,
        messages_sent: Counter | None,
        messages_received: Counter | None,
    ) -> None:
        self.requests = requests
        self.durations = durations
        self.sent = sent
        self.received = received
        self.messages_sent = messages_sent
        self.messages_received = messages_received

    def add(
        self,
        milliseconds: float,
        sent: int,
        received: int,
        messages_sent: int,
        messages_received: int,
    ) -> None:
        """One call."""
        for counter in self.requests:
            counter.value += 1
        at = bisect_left(ENVOY_BOUNDS, milliseconds)
        for histogram in self.durations:
            histogram.buckets[at] += 1
            histogram.total += milliseconds
        self.sent.record(sent)
        self.received.record(received)
        if self.messages_sent is not None and self.messages_received is not None:
            self.messages_sent.value += messages_sent
            self.messages_received.value += messages_received


class Tally:
    """An observer of calls. bind: makes the line of calls that have this key, at the first of them.

    idle, changed: `changed` is called at the first call after `idle` was set. A new Program empties the memory, so that it keeps
    nothing of an old configuration alive.
    """

    def __init__(self, engine: Engine, lag: LoopLag, bind: Callable[[Call], Line]) -> None:
        self._engine = engine
        self._lag = lag
        self._bind = bind
        self._program: object = None
        self._lines: dict[Any, Line] = {}
        self._pending: deque[tuple[Line, float, int, int, int, int]] = deque()
        self.idle = False
        self.changed: Callable[[], None] | None = None

    def over(self, call: Call, now: float) -> None:
        if call.passthrough:
            return
        program = self._engine.program
        if program is not self._program:
            self._lines = {}
            self._program = program
        key, milliseconds, sent, received, messages_sent, messages_received = call.tally(now)
        line = self._lines.get(key)
        if line is None:
            if len(self._lines) >= LINES:
                self._lines = {}
            line = self._lines[key] = self._bind(call)
        pending = self._pending
        pending.append((line, milliseconds, sent, received, messages_sent, messages_received))
        if len(pending) >= TOGETHER:
            self.settle()
        if now >= self._lag.due:
            self._lag.sample(now)
        if self.idle:
            self.wake()

    def settle(self) -> None:
        """Count the calls that have not been counted yet. On any thread, also on several at once."""
        pending = self._pending
        while pending:
            try:
                line, milliseconds, sent, received, messages_sent, messages_received = pending.popleft()
            except IndexError:  # another thread was quicker
                return
            line.add(milliseconds, sent, received, messages_sent, messages_received)

    def wake(self) -> None:
        """There is something that has not been told."""
        self.idle = False
        if self.changed is not None:
            self.changed()

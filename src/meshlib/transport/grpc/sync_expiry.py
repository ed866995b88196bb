"""Ends blocking calls whose time is over, where no deadline goes over the wire.

A caller without a deadline sends none, also where a route's timeout limits the call: so does Envoy, and a deadline on the
wire costs C-core and the server more than it costs to look after the call here. One timer of the process is enough: it is
set to the earliest end of the calls under way, at most `PAUSE` ahead, and then looks again. A call that ends in time only
leaves a dictionary; it arms nothing unless its end is nearer than the timer. Without calls there is no timer, and no thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from math import inf
from typing import Any

from meshlib.runtime import fork
from meshlib.runtime.clock import SystemClock
from meshlib.runtime.timers import timers

__all__ = ["Expiry"]

PAUSE = 0.5
"""Seconds after which it is seen that there are no calls any more."""

_DEADLINE_EXCEEDED = 4


class Expiry:
    """Calls of C-core by the moment (monotonic seconds) that they must be over at."""

    __slots__ = ("__weakref__", "_calls", "_later", "_lock", "_monotonic", "_next")

    def __init__(
        self,
        monotonic: Callable[[], float] = SystemClock.monotonic,
        later: Callable[[float, Callable[[], None]], object] | None = None,
    ) -> None:
        """later: has a task run after so many seconds; None: by the timers of the process."""
        self._monotonic = monotonic
        self._later = later or (lambda delay, task: timers().later(delay, task))
        self._calls: dict[Any, float] = {}
        self._next = inf
        self._lock = threading.Lock()
        fork.register(self)

    def begin(self, call: Any, until: float) -> None:
        """The call runs. `end` comes after it, whatever becomes of it."""
        self._calls[call] = until
        if until < self._next:
            self._arm(until)

    def end(self, call: Any) -> None:
        self._calls.pop(call, None)

    def _arm(self, moment: float) -> None:
        now = self._monotonic()
        moment = min(moment, now + PAUSE)
        with self._lock:
            if moment >= self._next:
                return
            self._next = moment
        self._later(moment - now, self._look)

    def _look(self) -> None:
        with self._lock:
            self._next = inf  # a call that begins from here on arms for itself
        now = self._monotonic()
        nearest = inf
        for call, until in self._calls.copy().items():
            if until <= now:
                call.cancel(_DEADLINE_EXCEEDED, "Deadline Exceeded")
            elif until < nearest:
                nearest = until
        if nearest < inf:
            self._arm(nearest)

    # --- around a fork -----------------------------------------------------------------------------------------------

    def before_fork(self) -> None:
        """Nothing has to be closed."""

    def after_fork_in_parent(self) -> None:
        """Nothing has changed."""

    def after_fork_in_child(self) -> None:
        self._lock = threading.Lock()
        self._calls = {}
        self._next = inf

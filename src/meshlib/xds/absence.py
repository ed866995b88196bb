"""The resource-does-not-exist timer (gRFC A27, A57).

It starts when a resource that nothing is known of is asked for on a stream, and runs only while that stream is up: a control
plane that can't be reached says nothing about what exists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from meshlib.runtime.threads import Executor, Timer
from meshlib.snapshot import Kind, Ref

__all__ = ["AbsenceTimers"]

TIMEOUT = 15.0


class AbsenceTimers:
    """One timer for each awaited resource. on_absent is called on the executor's thread."""

    def __init__(self, executor: Executor, on_absent: Callable[[Ref], None]) -> None:
        self._executor = executor
        self._on_absent = on_absent
        self._timers: dict[Ref, Timer] = {}

    def watch(self, kind: Kind, names: Iterable[str], now: float) -> None:
        """These names of the type, and no others, are asked for and not known. A timer that runs goes on."""
        awaited = {(kind, name) for name in names}
        for ref in [ref for ref in self._timers if ref[0] is kind and ref not in awaited]:
            self.stop(ref)
        for ref in awaited - self._timers.keys():
            self._timers[ref] = self._executor.call_at(now + TIMEOUT, partial(self._fire, ref))

    def stop(self, ref: Ref) -> None:
        """Something is known of it."""
        timer = self._timers.pop(ref, None)
        if timer is not None:
            timer.cancel()

    def stop_all(self) -> None:
        """The stream is down."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    def _fire(self, ref: Ref) -> None:
        del self._timers[ref]
        self._on_absent(ref)

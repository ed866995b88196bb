"""The resource-does-not-exist timer (gRFC A27, A57).

It starts when a resource that nothing is known of is asked for on a stream, and runs only while that stream is up: a control
plane that can't be reached says nothing about what exists.

A response that should hold everything (Listeners, Clusters) and does not hold an awaited name all but says that it does not
exist; it may only have crossed the request for that name on the wire. So the time is cut to what a control plane needs to
answer that request: somebody may be waiting for a host with a typing error, or for one that is not of the mesh at all.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from functools import partial

from meshlib.runtime.threads import Executor, Timer
from meshlib.snapshot import Kind, Ref

__all__ = ["AbsenceTimers"]

TIMEOUT = 15.0

CROSSED = 1.0
"""Seconds that are left after a complete response without the name."""


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

    def left_out(self, kind: Kind, present: Collection[str], now: float) -> None:
        """A complete response of this type held only these names."""
        for ref, timer in self._timers.items():
            if ref[0] is kind and ref[1] not in present and timer.when > now + CROSSED:
                timer.cancel()
                self._timers[ref] = self._executor.call_at(now + CROSSED, partial(self._fire, ref))

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

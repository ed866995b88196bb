"""The time, as an argument. Nothing above this module calls `time` by itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

__all__ = ["Clock", "FakeClock", "SystemClock", "epoch_offset"]

_TOGETHER = 50e-6
"""Seconds that two readings may lie apart and still count as one moment."""


class Clock(Protocol):
    """Where the time comes from."""

    @property
    def monotonic(self) -> Callable[[], float]:
        """Seconds that never go back; the base of every deadline."""

    @property
    def time(self) -> Callable[[], float]:
        """Seconds since the epoch, for what users read and for time stamps of other machines."""


class SystemClock:
    """The machine's clock. The functions are attributes, so that a hot path binds them once."""

    monotonic: Callable[[], float] = staticmethod(time.monotonic)
    time: Callable[[], float] = staticmethod(time.time)


class FakeClock:
    """A clock that moves when it is told to; both readings move together."""

    def __init__(self, start: float = 1_000.0, epoch: float = 1_700_000_000.0) -> None:
        self._now = start
        self._offset = epoch - start

    def monotonic(self) -> float:
        return self._now

    def time(self) -> float:
        return self._now + self._offset

    def advance(self, seconds: float) -> float:
        """Move on by `seconds` (never negative) and return the new monotonic time."""
        if seconds < 0:
            raise ValueError(f"a clock does not go back: {seconds}")
        self._now += seconds
        return self._now

    def advance_to(self, moment: float) -> float:
        """Move on to `moment` (monotonic seconds); a moment in the past changes nothing."""
        self._now = max(self._now, moment)
        return self._now


def epoch_offset(clock: Clock) -> float:
    """Seconds to add to a moment of `clock.monotonic` for the same moment in seconds since 1970.

    A thread may lose its CPU between the two readings, which would move the moment by as long: they are read again then, and the
    closest pair counts. What is left of it makes the moment later, never earlier.
    """
    offset, closest = 0.0, float("inf")
    for _ in range(3):
        before = clock.monotonic()
        wall = clock.time()
        apart = clock.monotonic() - before
        if apart < closest:
            offset, closest = wall - before, apart
        if closest < _TOGETHER:
            break
    return offset

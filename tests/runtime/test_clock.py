"""The time since 1970 of a moment, when the thread that reads the clocks is stopped in between."""

from __future__ import annotations

import pytest

from meshlib.runtime.clock import FakeClock, epoch_offset

STALL = 0.030
OFFSET = 1_699_999_000.0
"""What a FakeClock's readings lie apart."""


class StallingClock(FakeClock):
    """Whoever reads it loses its CPU after the readings of these numbers, the first is 0."""

    def __init__(self, *stalls: int) -> None:
        super().__init__()
        self.stalls = stalls
        self.readings = 0

    def monotonic(self) -> float:
        return self._stalled(super().monotonic())

    def time(self) -> float:
        return self._stalled(super().time())

    def _stalled(self, reading: float) -> float:
        if self.readings in self.stalls:
            self.advance(STALL)
        self.readings += 1
        return reading


def test_three_readings_are_enough_where_nothing_stalls() -> None:
    clock = StallingClock()
    assert epoch_offset(clock) == OFFSET
    assert clock.readings == 3


@pytest.mark.parametrize("stalls", [(0,), (1,), (2,), (0, 1), (0, 3), (1, 4), (0, 1, 3, 4)])
def test_a_stall_between_the_readings_moves_no_moment(stalls: tuple[int, ...]) -> None:
    assert epoch_offset(StallingClock(*stalls)) == OFFSET


def test_a_thread_that_stalls_at_each_reading_is_not_waited_for() -> None:
    clock = StallingClock(*range(100))
    assert epoch_offset(clock) == pytest.approx(OFFSET + STALL)
    assert clock.readings == 9

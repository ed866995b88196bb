"""tenacity's vocabulary for the retries of one call: `meshlib.call(stop=stop_after_attempt(3), wait=wait_fixed(0.1))`.

tenacity's `stop_*` and `wait_*` objects are functions of a RetryCallState. Here they get an object with the same attributes,
made after a failed attempt; tenacity's own loop is never run and tenacity is not imported.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["RetryCallState", "Schedule"]


class RetryCallState:
    """The part of tenacity's class of this name that stop and wait objects read.

    attempt_number: of the attempt that failed, from 1. seconds_since_start: since the call began. upcoming_sleep: the wait
    that would follow. outcome is None: the engine has events, not results, so `wait_exception` can't be used.
    """

    __slots__ = ("attempt_number", "idle_for", "outcome", "outcome_timestamp", "start_time", "upcoming_sleep")

    def __init__(self, attempt_number: int, elapsed: float, idle_for: float) -> None:
        self.attempt_number = attempt_number
        self.start_time = 0.0
        self.outcome_timestamp = elapsed
        self.idle_for = idle_for
        self.upcoming_sleep = 0.0
        self.outcome: None = None

    @property
    def seconds_since_start(self) -> float:
        return self.outcome_timestamp - self.start_time


class Schedule:
    """When to give up and how long to wait, for one call.

    stop: None leaves the number of retries to the policy. wait: None leaves the back-off to the policy.
    """

    __slots__ = ("_slept", "stop", "wait")

    def __init__(
        self, *, stop: Callable[[Any], bool] | None = None, wait: Callable[[Any], float] | None = None
    ) -> None:
        self.stop = stop
        self.wait = wait
        self._slept = 0.0

    def next(self, attempt: int, elapsed: float, back_off: float) -> float | None:
        """Seconds to wait after attempt number `attempt` (from 1), `elapsed` seconds into the call; None to give up.

        back_off: what the policy would wait.
        """
        state = RetryCallState(attempt, elapsed, self._slept)
        pause = back_off if self.wait is None else max(0.0, float(self.wait(state)))
        state.upcoming_sleep = pause
        if self.stop is not None and self.stop(state):
            return None
        self._slept += pause
        return pause

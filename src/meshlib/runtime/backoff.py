"""How long to wait before the next attempt to reach a server: tenacity's wait objects, asked one failure at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tenacity import RetryCallState, Retrying
from tenacity.wait import wait_base

__all__ = ["Backoff", "wait_spread"]


class wait_spread(wait_base):  # noqa: N801 - named like tenacity's own
    """Another wait, times a random factor between 1 - ratio and 1 + ratio."""

    def __init__(self, wait: wait_base, ratio: float, random: Callable[[], float]) -> None:
        self._wait = wait
        self._ratio = ratio
        self._random = random

    def __call__(self, retry_state: RetryCallState) -> float:
        return self._wait(retry_state) * (1 + self._ratio * (2 * self._random() - 1))


class Backoff:
    """Counts failures in a row and asks a tenacity wait object. random: uniform in [0, 1)."""

    def __init__(self, wait: wait_base) -> None:
        self._wait = wait
        self._state = RetryCallState(Retrying(), None, (), _NO_ARGUMENTS)
        self.reset()

    def next(self) -> float:
        """Seconds to wait after one more failure."""
        delay = float(self._wait(self._state))
        self._state.attempt_number += 1
        return delay

    def reset(self) -> None:
        """The server has answered: the next failure is a first one."""
        self._state.attempt_number = 1


_NO_ARGUMENTS: dict[str, Any] = {}

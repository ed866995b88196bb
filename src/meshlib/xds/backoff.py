"""How long to wait before the next attempt to reach the control plane: gRPC's connection back-off."""

from __future__ import annotations

from collections.abc import Callable

from tenacity.wait import wait_base, wait_exponential

from meshlib.runtime.backoff import Backoff, wait_spread

__all__ = ["Backoff", "reconnect_wait", "wait_spread"]

INITIAL = 1.0
MULTIPLIER = 1.6
LONGEST = 120.0
JITTER = 0.2


def reconnect_wait(random: Callable[[], float]) -> wait_base:
    """1 s, 1.6 times as long each time, at most 120 s, 20 % jitter (grpc's doc/connection-backoff.md)."""
    return wait_spread(wait_exponential(INITIAL, LONGEST, MULTIPLIER), JITTER, random)

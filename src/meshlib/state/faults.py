"""How many calls have a fault at this moment, for max_active_faults.

Nothing here takes a lock: `gauge.value += 1` is exact, since no other thread runs within it, and whoever drops a call may
give its fault back from anywhere.
"""

from __future__ import annotations

from meshlib.stats import Gauge

__all__ = ["ActiveFault", "ActiveFaults"]


class ActiveFaults:
    """The calls that a fault is active for, of all listeners with the same stat_prefix, as in Envoy."""

    __slots__ = ("gauge", "generation")

    def __init__(self, gauge: Gauge) -> None:
        self.gauge = gauge
        self.generation = 0

    def enter(self, limit: int | None) -> ActiveFault | None:
        """Count one more; None when there are `limit` already."""
        gauge = self.gauge
        if limit is not None and gauge.value >= limit:
            return None
        gauge.value += 1
        return ActiveFault(self)

    def renew(self) -> None:
        """In a forked child: none of the parent's calls is here."""
        self.generation += 1
        self.gauge.value = 0.0


class ActiveFault:
    """One call's place among them."""

    __slots__ = ("_faults", "_generation")

    def __init__(self, faults: ActiveFaults) -> None:
        self._faults: ActiveFaults | None = faults
        self._generation = faults.generation

    def release(self) -> None:
        """The fault is over. Idempotent, and nothing for a call that the parent of a fork had."""
        faults, self._faults = self._faults, None
        if faults is not None and faults.generation == self._generation:
            faults.gauge.value -= 1

"""A cluster with given limits, and waiters that remember being woken."""

from __future__ import annotations

from meshlib.resources.cluster import CircuitBreakers, Thresholds
from meshlib.state import ClusterState, EndpointState, Permits, Waiter
from meshlib.stats import Registry

__all__ = ["Sleeper", "cluster", "counts", "endpoint"]


def cluster(default: Thresholds | None = None, high: Thresholds | None = None) -> ClusterState:
    state = ClusterState("c", Registry())
    state.limit(CircuitBreakers(default=default or Thresholds(), high=high or Thresholds()))
    return state


def endpoint(state: ClusterState, number: int = 1) -> EndpointState:
    return state.endpoint(f"10.0.0.{number}:80", f"10.0.0.{number}", 80)


class Sleeper(Waiter):
    """A waiter of `owner` that counts its wake-ups."""

    __slots__ = ("woken",)

    def __init__(self, owner: object = None) -> None:
        super().__init__(self._count, owner)
        self.woken = 0

    def _count(self) -> None:
        self.woken += 1


def counts(permits: Permits) -> tuple[int, int, int, int]:
    """Connections, pending, requests, retries."""
    return permits.connections, permits.pending, permits.requests, permits.retries

"""A cluster with given limits, and waiters that remember being woken."""

from __future__ import annotations

from meshlib.resources.cluster import CircuitBreakers, Thresholds
from meshlib.state import ClusterState, EndpointState, Permits, Waiter
from meshlib.stats import Registry

__all__ = ["cluster", "counts", "endpoint", "sleeper", "woken"]


def cluster(default: Thresholds | None = None, high: Thresholds | None = None) -> ClusterState:
    state = ClusterState("c", Registry())
    state.limit(CircuitBreakers(default=default or Thresholds(), high=high or Thresholds()))
    return state


def endpoint(state: ClusterState, number: int = 1) -> EndpointState:
    return state.endpoint(f"10.0.0.{number}:80", f"10.0.0.{number}", 80)


class Wakes:
    """Counts how often it is called."""

    count = 0

    def __call__(self) -> None:
        self.count += 1


def sleeper(owner: object = None) -> Waiter:
    """A waiter of `owner` whose wake-ups are counted."""
    return Waiter(Wakes(), owner)


def woken(waiter: Waiter) -> int:
    """How often it was woken."""
    assert isinstance(waiter.wake, Wakes)
    return waiter.wake.count


def counts(permits: Permits) -> tuple[int, int, int, int]:
    """Connections, pending, requests, retries."""
    return permits.connections, permits.pending, permits.requests, permits.retries

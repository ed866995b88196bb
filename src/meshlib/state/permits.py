"""How much of each kind a cluster has under way for one priority, the limits, and both as Envoy's gauges."""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter

from meshlib.resources.cluster import RetryBudget, Thresholds
from meshlib.stats import Scope

__all__ = ["Permits", "publish_limits"]


class Permits:
    """The counts of one priority and their limits. Counts change only under the lock of the ClusterState.

    has_connected, has_retried: there has been one. inherited: they are the parent's, in a forked child; what its calls return
    here counts for nothing.
    """

    __slots__ = (
        "connections",
        "has_connected",
        "has_retried",
        "inherited",
        "max_connections",
        "max_pending",
        "max_requests",
        "pending",
        "requests",
        "retries",
        "thresholds",
    )

    def __init__(self) -> None:
        self.connections = 0
        self.pending = 0
        self.requests = 0
        self.retries = 0
        self.has_connected = False
        self.has_retried = False
        self.inherited = False
        self.limit(Thresholds())

    def limit(self, thresholds: Thresholds) -> None:
        """Set the limits; what is held beyond a lowered limit stays until it is returned."""
        self.thresholds = thresholds
        self.max_connections = thresholds.max_connections
        self.max_pending = thresholds.max_pending_requests
        self.max_requests = thresholds.max_requests

    @property
    def retry_limit(self) -> int:
        """How many retries may be under way now: max_retries, or what the budget allows at this moment."""
        budget = self.thresholds.retry_budget
        if budget is None:
            return self.thresholds.max_retries
        return allowed_retries(budget, self.requests + self.pending)


def allowed_retries(budget: RetryBudget, active: int) -> int:
    """A share of the active and pending requests, retries included, rounded down; never less than min_retry_concurrency."""
    return max(int(budget.budget_percent / 100.0 * active), budget.min_retry_concurrency)


_RESOURCES = (
    ("cx", "cx", "connections", "max_connections", "has_connected"),
    ("rq_pending", "pending", "pending", "max_pending_requests", ""),
    ("rq", "rq", "requests", "max_requests", ""),
    ("rq_retry", "retries", "retries", "max_retries", "has_retried"),
)
"""What Envoy calls each in `<name>_open` and `remaining_<name>`, the count, the limit, and whether there has been one at all,
where there may be one in spite of the limit."""


def publish_limits(scope: Scope, thresholds: Thresholds, permits: Callable[[], Permits]) -> None:
    """The gauges of one priority in its scope: `cx_open` and so on; with track_remaining `remaining_cx` and so on.

    permits: gives those of now. As in Envoy, a limit of 0 does not count as reached before there was one in spite of it, and a
    retry budget leaves `remaining_retries` at 0 and `rq_retry_open` to max_retries.
    """
    for opened, remaining, count, limit, ever in _RESOURCES:
        held, most = attrgetter(count), getattr(thresholds, limit)
        budgeted = limit == "max_retries" and thresholds.retry_budget is not None
        scope.reading(f"{opened}_open", _is_open(permits, held, most, attrgetter(ever) if ever else held))
        name = f"remaining_{remaining}"
        if thresholds.track_remaining:
            scope.reading(name, _remaining(permits, held, 0 if budgeted else most))
        else:
            scope.forget(name)


def _is_open(
    permits: Callable[[], Permits], held: Callable[[Permits], int], most: int, ever: Callable[[Permits], int]
) -> Callable[[], int]:
    def read() -> int:
        now = permits()
        return int(held(now) >= most and bool(most or ever(now)))

    return read


def _remaining(
    permits: Callable[[], Permits], held: Callable[[Permits], int], most: int
) -> Callable[[], int]:
    return lambda: max(0, most - held(permits()))

"""What is counted of the calls that a Listener takes, by Envoy's names: `http.<stat_prefix>.<attribute>`.

Envoy counts the requests that arrive at it; here those are the calls that the application makes.
"""

from __future__ import annotations

from meshlib.stats import Scope

__all__ = ["HttpStats"]


class HttpStats:
    """ended: how many of `downstream_rq_total` are over, which is no counter of Envoy's."""

    __slots__ = (
        "_classes",
        "_scope",
        "downstream_rq_2xx",
        "downstream_rq_completed",
        "downstream_rq_total",
        "ended",
        "rq_total",
    )

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self.downstream_rq_total = scope.counter("downstream_rq_total")
        self.downstream_rq_completed = scope.counter("downstream_rq_completed")
        self.downstream_rq_2xx = scope.counter("downstream_rq_2xx")
        self.rq_total = scope.counter("rq_total")
        self._classes = {
            2: self.downstream_rq_2xx,
            **{number: scope.counter(f"downstream_rq_{number}xx") for number in (1, 3, 4, 5)},
        }
        self.ended = 0
        scope.reading("downstream_rq_active", lambda: max(0, self.downstream_rq_total.value - self.ended))

    def responded(self, status: int) -> None:
        """The application gets a response with this HTTP status, from an endpoint or from the mesh."""
        self.downstream_rq_completed.value += 1
        counter = self._classes.get(status // 100)
        if counter is not None:
            counter.value += 1

    def more(self, leaf: str) -> None:
        """One more of a counter that is too rare to be bound."""
        self._scope.counter(leaf).value += 1

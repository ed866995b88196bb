"""What is counted of the requests that a configuration counts together: those of a virtual cluster, or of a route."""

from __future__ import annotations

from meshlib.state.responses import ResponseCodes
from meshlib.stats import Scope

__all__ = ["RequestStats"]


class RequestStats:
    """`vhost.<virtual host>.vcluster.<name>.*` or `vhost.<virtual host>.route.<stat_prefix>.*`."""

    __slots__ = ("_scope", "codes", "upstream_rq_time", "upstream_rq_total")

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self.codes = ResponseCodes(scope)
        self.upstream_rq_total = scope.counter("upstream_rq_total")
        self.upstream_rq_time = scope.histogram("upstream_rq_time")

    def more(self, leaf: str) -> None:
        """One more of a counter that not every request moves."""
        self._scope.counter(leaf).value += 1

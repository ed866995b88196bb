"""Counting responses by their status, as Envoy does wherever it counts them: by code, by class, and all."""

from __future__ import annotations

from meshlib.stats import Counter, Scope

__all__ = ["ResponseCodes"]


class ResponseCodes:
    """`upstream_rq_<code>`, `upstream_rq_<class>` and `upstream_rq_completed`, the same in each of the scopes.

    The counters of a status are made when it comes for the first time, so that a scope has those it needs and no others.
    """

    __slots__ = ("_by_status", "_scopes")

    def __init__(self, *scopes: Scope) -> None:
        self._scopes = scopes
        self._by_status: dict[int, tuple[Counter, ...]] = {}

    def count(self, status: int) -> None:
        counters = self._by_status.get(status)
        if counters is None:
            counters = self._by_status[status] = self._bind(status)
        for counter in counters:
            counter.value += 1

    def _bind(self, status: int) -> tuple[Counter, ...]:
        names = ["completed", str(status) if 100 <= status < 600 else "unknown"]
        if 100 <= status < 600:
            names.append(f"{status // 100}xx")
        return tuple(scope.counter(f"upstream_rq_{name}") for scope in self._scopes for name in names)

"""Operators of metadata: of the route, its virtual host, the listener, the cluster and the endpoint.

A value keeps its type where a JSON text is the operator alone; in other texts, what is no text is written as JSON. No filter
here sets metadata of its own (DYNAMIC), so there is none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from meshlib.balance.membership import find as positions
from meshlib.observe.access_log.json_text import json_text
from meshlib.resources.endpoint_wire import LazyEndpoints
from meshlib.resources.format import Operator
from meshlib.resources.metadata import unpacked
from meshlib.routing.format import Factory

if TYPE_CHECKING:
    from meshlib.engine.attempt import Attempt
    from meshlib.engine.call import Call
    from meshlib.resources.endpoint import ClusterLoadAssignment

__all__ = ["TEXTS", "VALUES", "of_call"]

Found = Mapping[str, Any] | None


def of_call(call: Call, kind: str) -> Found:
    """The filter_metadata of this kind; None where there is none."""
    reader = _READERS.get(kind)
    return None if reader is None else reader(call)


def _of_cluster(call: Call) -> Found:
    attempt, plan, program = call.counted, call.plan, call.program
    if attempt is not None:
        return unpacked(attempt.cluster.cluster.metadata)
    cluster = None if plan is None or program is None else program.clusters.get(plan.cluster)
    return None if cluster is None else unpacked(cluster.cluster.metadata)


def _of_listener(call: Call) -> Found:
    return None if call.listener is None else unpacked(call.listener.listener.metadata)


def _of_route(call: Call) -> Found:
    return None if call.route is None else call.route.resource.metadata


def _of_virtual_host(call: Call) -> Found:
    if call.route is not None:
        return unpacked(call.route.virtual_host.metadata)
    table = None if call.listener is None else call.listener.table
    host = None if table is None else table.virtual_host(call.request.authority)
    return None if host is None else unpacked(host.resource.metadata)


def _of_endpoint(call: Call) -> Found:
    attempt = call.counted
    assignment = None if attempt is None else attempt.cluster.assignment
    if attempt is None or assignment is None:
        return None
    name = attempt.cluster.cluster.name
    known = _endpoints.get(name)
    if known is None or known.assignment is not assignment:
        if len(_endpoints) >= _CLUSTERS_KEPT:
            _endpoints.clear()
        known = _endpoints[name] = _Endpoints(assignment)
    return known.of(attempt)


_READERS: dict[str, Callable[[Call], Found]] = {
    "CLUSTER": _of_cluster,
    "LISTENER": _of_listener,
    "ROUTE": _of_route,
    "UPSTREAM_HOST": _of_endpoint,
    "VIRTUAL_HOST": _of_virtual_host,
}


class _Endpoints:
    """Metadata of the endpoints of an assignment. Most are never asked for, so each is looked up when it is, once."""

    def __init__(self, assignment: ClusterLoadAssignment) -> None:
        self.assignment = assignment
        self._known: dict[str, Found] = {}

    def of(self, attempt: Attempt) -> Found:
        key = attempt.endpoint.key
        if key not in self._known:
            self._known[key] = self._find(attempt)
        return self._known[key]

    def _find(self, attempt: Attempt) -> Found:
        for locality in self.assignment.localities:
            endpoints = locality.endpoints
            if isinstance(endpoints, LazyEndpoints):
                for index, _ in positions(endpoints, (attempt.endpoint,)):
                    return endpoints.labels(index)
        return None


_CLUSTERS_KEPT = 1024

_endpoints: dict[str, _Endpoints] = {}
"""Of the last assignment of each cluster."""

Find = Callable[[Any], Any]
"""From facts to a bool, a number, a text, a list or a dictionary; None where there is no value, and for null."""


def _find(kind: str, path: list[str]) -> Find:
    def find(facts: Any) -> Any:
        value = facts.metadata(kind)
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value

    return find


def _of(kind: str) -> Callable[[Operator], Find]:
    return lambda operator: _find(kind, operator.argument.split(":"))


def _of_any(operator: Operator) -> Find:
    kind, *path = operator.argument.split(":")
    return _find(kind, path)


VALUES: dict[str, Factory] = {
    "CLUSTER_METADATA": _of("CLUSTER"),
    "METADATA": _of_any,
    "UPSTREAM_METADATA": _of("UPSTREAM_HOST"),
}
"""Of JSON texts that are one of these operators alone."""


def _as_text(factory: Callable[[Operator], Find]) -> Factory:
    def text_factory(operator: Operator) -> Find:
        find = factory(operator)

        def text(facts: Any) -> str | None:
            value = find(facts)
            return value if value is None or isinstance(value, str) else json_text(value)

        return text

    return text_factory


TEXTS: dict[str, Factory] = {name: _as_text(factory) for name, factory in VALUES.items()}
"""Of all other texts."""

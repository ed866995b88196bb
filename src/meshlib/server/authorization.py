"""What is asked of each request: the RBAC filters of a filter chain, or a configuration of one's own, ready to be evaluated."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from random import Random
from typing import Any

from meshlib.policy.rbac import BODY, RbacFilter, RbacStats, Verdict
from meshlib.policy.rbac_request import AUTHORITY, NOTHING, InboundRequest, header_property
from meshlib.resources.inbound import FilterChain
from meshlib.resources.rbac import Rbac
from meshlib.resources.route import FilterConfig, RouteAction, RouteConfiguration
from meshlib.routing.compiled import CompiledRoute
from meshlib.routing.table import RouteTable
from meshlib.stats import Registry

__all__ = ["BODY", "ChainAuthorization", "OwnAuthorization"]


class OwnAuthorization:
    """One RBAC configuration for every request, counted as `http.inbound.rbac.*`."""

    def __init__(self, config: Rbac, registry: Registry) -> None:
        self._filter = RbacFilter(config, RbacStats(registry, "http.inbound", config))

    def check(self, request: InboundRequest) -> Verdict | None:
        """The refusal, None when the request may pass."""
        return self._filter.check(request)


class ChainAuthorization:
    """The RBAC filters of one filter chain in order, each with what is most specific for the request's route.

    The network filters come first, once for each connection where that can be: `connect` for one that is not used yet, which is
    closed when they refuse it, `check_connection` for one that brings a request. routes: the route configuration, None when
    no route says anything else than the filters. Where it is unknown which route a request has, it may pass when it may whatever
    route it has.
    """

    def __init__(
        self, chain: FilterChain, routes: RouteConfiguration | None, registry: Registry, random: Random
    ) -> None:
        prefix = f"http.{chain.http.stat_prefix}"
        self._network = tuple(
            RbacFilter(config, RbacStats(registry, config.stat_prefix, config))
            for config in chain.network_rbac
        )
        self._steps = tuple(
            _Step(entry.name, entry.config, entry.disabled, RbacStats(registry, prefix, entry.config))
            for entry in chain.http.http_filters
            if isinstance(entry.config, Rbac)
        )
        self._table = None if routes is None or not self._steps else RouteTable(routes)
        self._routes = routes
        names = {step.name for step in self._steps}
        differ = routes is not None and any(any(_configs(routes, name)) for name in names)
        self._route_depends_on = _chosen_by(routes) if differ and routes is not None else NOTHING
        self._random = random

    @property
    def asks_for_nothing(self) -> bool:
        return not (self._network or self._steps)

    def connect(self, view: InboundRequest) -> bool | None:
        """Whether a connection may be used; None when too little is known of it yet, and then nothing is counted."""
        asked: list[RbacFilter] = []
        for each in self._network:
            if not each.certain(view):
                return None
            asked.append(each)
            verdict = each.judge(view)
            if verdict is not None and not verdict.allowed:
                break
        return all(each.check(view) is None for each in asked)

    def check_connection(self, view: InboundRequest) -> Verdict | None:
        """The refusal of a connection, None when it may be used."""
        for each in self._network:
            refused = each.check(view)
            if refused is not None:
                return refused
        return None

    def check(self, request: InboundRequest) -> Verdict | None:
        """The refusal, None when the request may pass."""
        missing = self._route_depends_on & request.unknown
        if missing:
            return self._check_all(request, tuple(sorted(missing)))
        route = None if self._table is None else self._table.find(request, self._random)
        for step in self._steps:
            chosen = step.for_route(route, request, self._random)
            refused = None if chosen is None else chosen.check(request)
            if refused is not None:
                return refused
        return None

    def _check_all(self, request: InboundRequest, missing: tuple[str, ...]) -> Verdict | None:
        assert self._routes is not None
        for step in self._steps:
            refused = step.strictest(self._routes, request)
            if refused is not None:
                return replace(refused, unknown=tuple(sorted({*refused.unknown, *missing})))
        return None


def _configs(routes: RouteConfiguration, name: str) -> Iterator[Any]:
    """What is said about this filter anywhere below the route configuration itself."""
    for host in routes.virtual_hosts:
        yield host.typed_per_filter_config.get(name)
        for route in host.routes:
            yield route.typed_per_filter_config.get(name)
            action = route.action
            if isinstance(action, RouteAction) and action.weighted_clusters is not None:
                for weighted in action.weighted_clusters.clusters:
                    yield weighted.typed_per_filter_config.get(name)


def _chosen_by(routes: RouteConfiguration) -> frozenset[str]:
    """What the choice of a route depends on, of all that may be unknown."""
    found = {
        header_property(match.name)
        for host in routes.virtual_hosts
        for route in host.routes
        for match in route.match.headers
    }
    if any(host.domains != ("*",) for host in routes.virtual_hosts):
        found.add(AUTHORITY)
    return frozenset(found)


class _Step:
    """One filter of the chain. Configurations of routes are compiled when a request first meets them."""

    __slots__ = ("_disabled", "_own", "_per_route", "_stats", "name")

    def __init__(self, name: str, config: Rbac, disabled: bool, stats: RbacStats) -> None:
        self.name = name
        self._disabled = disabled
        self._stats = stats
        self._own = RbacFilter(config, stats)
        self._per_route: dict[int, tuple[Rbac, RbacFilter]] = {}

    def for_route(
        self, route: CompiledRoute | None, request: InboundRequest, random: Random
    ) -> RbacFilter | None:
        override = None
        if route is not None:
            override = route.filter_config(self.name, route.forward(request, random))
        return self._chosen(override)

    def strictest(self, routes: RouteConfiguration, request: InboundRequest) -> Verdict | None:
        """The refusal of the first configuration that refuses, of all that a route may choose."""
        overrides = [None, routes.typed_per_filter_config.get(self.name), *_configs(routes, self.name)]
        filters = [each for each in map(self._chosen, overrides) if each is not None]
        for each in filters:
            verdict = each.judge(request)
            if verdict is not None and not verdict.allowed:
                return each.check(request)
        return filters[0].check(request) if filters else None

    def _chosen(self, override: Any) -> RbacFilter | None:
        if override is None:
            return None if self._disabled else self._own
        if isinstance(override, FilterConfig):
            if override.disabled:
                return None
            override = override.config
        return self._own if override is None else self._compiled(override)

    def _compiled(self, config: Rbac) -> RbacFilter:
        found = self._per_route.get(id(config))
        if found is None:  # the configuration is kept beside, so that its id stays its own
            found = self._per_route[id(config)] = config, RbacFilter(config, self._stats)
        return found[1]

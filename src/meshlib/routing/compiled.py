"""Routes and virtual hosts, compiled: what a request meets after the domain search."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from meshlib.errors import LocalReply
from meshlib.resources.route import (
    DirectResponse,
    NonForwardingAction,
    PathKind,
    PathMatch,
    Redirect,
    Route,
    RouteAction,
    RouteConfiguration,
    RouteMatch,
    TlsRequirement,
    VirtualHost,
    WeightedCluster,
    WeightedClusters,
)
from meshlib.routing.format import FormatContext
from meshlib.routing.hash_policy import HashOf, compile_hash_policy
from meshlib.routing.matchers.fraction import compile_fraction
from meshlib.routing.matchers.grpc import is_grpc
from meshlib.routing.matchers.header import compile_headers
from meshlib.routing.matchers.path import PathTest, compile_path
from meshlib.routing.matchers.query import compile_queries
from meshlib.routing.plan import ForwardPlan, Prepared
from meshlib.routing.redirect import Answer, compile_direct_response, compile_redirect, https_redirect
from meshlib.routing.request import RequestView
from meshlib.routing.weighted import compile_choice

__all__ = ["CompiledRoute", "CompiledVirtualHost", "ForwardPlan", "Prepared"]

Condition = Callable[[RequestView, Random], bool]
Chooser = Callable[[RequestView, Random], ForwardPlan]

_MAX_NAMES = 1024
"""How many plans for clusters named by a request header are kept for one route."""


class CompiledRoute:
    """One route of a virtual host. index: its place there, from 0.

    steady: a request that it has matched is matched by it again; elsewhere it is a matter of chance (runtime_fraction).
    """

    __slots__ = (
        "_answer",
        "_choose",
        "_hash_of",
        "_plan",
        "config",
        "index",
        "resource",
        "steady",
        "virtual_host",
    )

    def __init__(
        self, resource: Route, virtual_host: VirtualHost, config: RouteConfiguration, index: int
    ) -> None:
        self.resource = resource
        self.virtual_host = virtual_host
        self.config = config
        self.index = index
        self.steady = False
        self._plan: ForwardPlan | None = None
        self._choose: Chooser | None = None
        self._answer: Answer | None = None
        action = resource.action
        self._hash_of: HashOf | None = None
        if isinstance(action, RouteAction):
            self._hash_of = compile_hash_policy(action.hash_policy)
        if isinstance(action, Redirect):
            self._answer = compile_redirect(action, resource, virtual_host, config)
        elif isinstance(action, DirectResponse):
            self._answer = compile_direct_response(action, resource, virtual_host, config)
        elif isinstance(action, NonForwardingAction):
            self._plan = self._make("", RouteAction(cluster=""))
        elif action.weighted_clusters is not None:
            self._choose = self._by_weight(action, action.weighted_clusters)
        elif action.cluster_header is not None:
            self._choose = self._by_header(action, action.cluster_header, None)
        else:
            self._plan = self._make(action.cluster or "", action)

    def forward(self, request: RequestView, random: Random) -> ForwardPlan | None:
        """The plan for this request; None when the route answers by itself. Its cluster need not exist."""
        plan = self._plan
        if plan is not None:
            return plan
        choose = self._choose
        return None if choose is None else choose(request, random)

    def reply(self, request: RequestView, context: FormatContext | None = None) -> LocalReply | None:
        """The redirect or direct response, with the response edits applied; None when the route forwards."""
        return None if self._answer is None else self._answer(request, context)

    def filter_config(self, filter_name: str, plan: ForwardPlan | None) -> Any | None:
        """typed_per_filter_config for this filter, the most specific there is: weighted cluster, route, vhost, config."""
        if plan is not None and plan.weighted is not None:
            found = plan.weighted.typed_per_filter_config.get(filter_name)
            if found is not None:
                return found
        for level in (self.resource, self.virtual_host, self.config):
            found = level.typed_per_filter_config.get(filter_name)
            if found is not None:
                return found
        return None

    def _make(
        self, cluster: str, action: RouteAction, weighted: WeightedCluster | None = None
    ) -> ForwardPlan:
        return ForwardPlan(
            cluster,
            action=action,
            route=self.resource,
            virtual_host=self.virtual_host,
            config=self.config,
            weighted=weighted,
            hash_of=self._hash_of,
        )

    def _by_weight(self, action: RouteAction, weighted: WeightedClusters) -> Chooser:
        choice = compile_choice(weighted, self._hash_of)
        choosers: list[ForwardPlan | Chooser] = [
            self._make(entry.name or "", action, entry)
            if entry.cluster_header is None
            else self._by_header(action, entry.cluster_header, entry)
            for entry in weighted.clusters
        ]

        def choose(request: RequestView, random: Random) -> ForwardPlan:
            chosen = choosers[choice(request, random)]
            return chosen if isinstance(chosen, ForwardPlan) else chosen(request, random)

        return choose

    def _by_header(self, action: RouteAction, header: str, weighted: WeightedCluster | None) -> Chooser:
        plans: dict[str, ForwardPlan] = {}

        def choose(request: RequestView, random: Random) -> ForwardPlan:
            name = request.first(header) or ""
            plan = plans.get(name)
            if plan is None:
                if len(plans) >= _MAX_NAMES:
                    plans.clear()
                plan = plans[name] = self._make(name, action, weighted)
            return plan

        return choose


_HTTPS = Route(
    match=RouteMatch(path=PathMatch(kind=PathKind.PREFIX, value="/")), action=Redirect(scheme="https")
)


class _HttpsRedirect(CompiledRoute):
    """What a virtual host with require_tls answers instead of its routes."""

    __slots__ = ()

    def reply(self, request: RequestView, context: FormatContext | None = None) -> LocalReply | None:
        return https_redirect(request)


class CompiledVirtualHost:
    """A virtual host with its routes in order. rows: (path test, its value, the other conditions or None, route)."""

    __slots__ = ("_https", "_rows", "resource", "routes")

    def __init__(self, resource: VirtualHost, config: RouteConfiguration) -> None:
        self.resource = resource
        self.routes = tuple(
            CompiledRoute(route, resource, config, index) for index, route in enumerate(resource.routes)
        )
        self._rows: tuple[tuple[PathTest, Any, Condition | None, CompiledRoute], ...] = tuple(
            (*compile_path(route.resource.match.path), _condition(route.resource.match), route)
            for route in self.routes
        )
        for route in self.routes:
            if route.resource.match.runtime_fraction is not None:
                break
            route.steady = True
        self._https: CompiledRoute | None = None
        if resource.require_tls is not TlsRequirement.NONE:
            self._https = _HttpsRedirect(_HTTPS, resource, config, -1)

    def find(self, request: RequestView, random: Random) -> CompiledRoute | None:
        """The first route that matches, None when none does."""
        if self._https is not None and https_redirect(request) is not None:
            return self._https
        path = request.path
        if "?" in path:
            path = path[: path.index("?")]
        for test, value, condition, route in self._rows:
            if test(path, value) and (condition is None or condition(request, random)):
                return route
        return None


def _condition(match: RouteMatch) -> Condition | None:
    """Everything but the path, in Envoy's order; None when there is nothing else."""
    conditions: list[Condition] = []
    if match.runtime_fraction is not None:
        fraction = compile_fraction(match.runtime_fraction)
        conditions.append(lambda request, random: fraction(request.draw(random)))
    if match.grpc:
        conditions.append(lambda request, random: is_grpc(request))
    headers = compile_headers(match.headers)
    if headers is not None:
        conditions.append(lambda request, random: headers(request))
    query = compile_queries(match.query_parameters)
    if query is not None:
        conditions.append(lambda request, random: query(request.path))
    if len(conditions) < 2:
        return conditions[0] if conditions else None
    return lambda request, random: all(condition(request, random) for condition in conditions)

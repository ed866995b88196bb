"""The decision for a request, without sending it: the same code that decides for a real one, written down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from random import Random
from typing import Any
from urllib.parse import urlsplit

from meshlib.engine.fault import describe
from meshlib.engine.program import ClusterProgram, ListenerProgram, Program
from meshlib.errors import ConfigError, LocalReply
from meshlib.policy.override import retry_policy
from meshlib.policy.timeouts import effective
from meshlib.resources.fault import HttpFault
from meshlib.resources.route import Route, RouteAction, RouteConfiguration
from meshlib.routing.compiled import CompiledRoute, ForwardPlan
from meshlib.routing.format import FormatContext
from meshlib.routing.path import PathAction
from meshlib.routing.request import Headers, RequestView
from meshlib.routing.table import RouteTable
from meshlib.snapshot import Kind, Ref, Snapshot

__all__ = ["Explanation", "Question", "explain", "listed_weights"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """The request to explain. headers: (name, value) pairs; `host` replaces the URL's authority."""

    url: str
    method: str = "GET"
    headers: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """What meshlib would do. None where a part does not apply.

    route: its name, or its index in the virtual host when it has none; None for the redirect of require_tls. action: cluster,
    direct_response, redirect, reject (path normalization refuses the path) or none. timeout: seconds, 0 is none. retry: on
    (conditions), attempts (all of them, the first included), per_try_timeout. hash: 64 bits, of the hash policy; a cookie that is
    missing is not made, as its value would be random. endpoint: `address:port`.
    unsupported: paths of fields of the resources involved that were reported, not applied. faults: what fault injection may
    do to the request, with its probability; the rest is what happens without it.
    """

    listener: str | None = None
    route_config: str | None = None
    virtual_host: str | None = None
    route: str | int | None = None
    action: str = "none"
    cluster: str | None = None
    weighted_clusters: list[dict[str, Any]] = field(default_factory=list)
    status: int | None = None
    body: str | None = None
    location: str | None = None
    path: str | None = None
    authority: str | None = None
    request_headers: list[list[str]] = field(default_factory=list)
    timeout: float | None = None
    retry: dict[str, Any] | None = None
    hash: int | None = None
    mirrors: list[str] = field(default_factory=list)
    endpoint: str | None = None
    unsupported: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """As `meshlib explain --json` prints it; `faults` is there only when there are some."""
        found = asdict(self)
        if not self.faults:
            del found["faults"]
        return found


def explain(
    program: Program,
    question: Question,
    *,
    random: Random,
    now: float = 0.0,
    epoch: float = 0.0,
    route_config: str | None = None,
) -> Explanation:
    """Decide for this request.

    random: draws weighted clusters, fractions and the endpoint. now: monotonic seconds, epoch: seconds since 1970, for what
    depends on the time. route_config: use this RouteConfiguration instead of a Listener's.

    Raises:
        ConfigError: the URL has no host, or there is no RouteConfiguration to use.
    """
    request = _request(question)
    listener = None if route_config is not None else program.find(request.target)
    config, table = _route_table(program, listener, route_config)
    found: dict[str, Any] = {"listener": listener.listener.name if listener is not None else None}
    if listener is not None and listener.normalise_path is not None:
        request.path, action = listener.normalise_path(request.path)
        if action is not PathAction.CONTINUE:
            found.update(_instead_of_routing(request.path, action))
            return Explanation(**found, unsupported=_unsupported(program.snapshot, listener, None, None))
    if config is None or table is None:
        return Explanation(
            **found, status=404, body="", unsupported=_unsupported(program.snapshot, listener, None, None)
        )
    found["route_config"] = config.name
    if listener is not None and listener.normalise is not None:
        request.authority = listener.normalise(request.authority)
    route = table.find(request, random)
    plan = route.forward(request, random) if route is not None else None
    found["faults"] = _faults(listener, request, route, plan)
    if route is None:
        host = table.virtual_host(request.authority)
        found["virtual_host"] = host.resource.name if host is not None else None
        return Explanation(
            **found, status=404, body="", unsupported=_unsupported(program.snapshot, listener, config, None)
        )
    found["virtual_host"] = route.virtual_host.name
    if route.index >= 0:  # no route of the configuration answers for require_tls
        found["route"] = route.resource.name or route.index
    if plan is None:
        reply = route.reply(request, FormatContext(request, started=epoch, route_name=route.resource.name))
        assert reply is not None
        found.update(_answer(reply))
    else:
        found.update(_forward(program, request, route, plan, random, now=now, epoch=epoch))
    found["unsupported"] = _unsupported(program.snapshot, listener, config, plan)
    return Explanation(**found)


def _request(question: Question) -> RequestView:
    url = urlsplit(question.url if "//" in question.url else f"//{question.url}")
    scheme = url.scheme or "http"
    if not url.hostname:
        raise ConfigError(f"the URL {question.url!r} has no host; write it like http://reviews:9080/path")
    netloc = url.netloc.rpartition("@")[2]
    host = f"[{url.hostname}]" if ":" in url.hostname else url.hostname
    headers: Headers = [(name.lower(), value) for name, value in question.headers]
    authority = next((value for name, value in headers if name == "host"), netloc)
    return RequestView(
        method=question.method,
        scheme=scheme,
        authority=authority,
        path=(url.path or "/") + (f"?{url.query}" if url.query else ""),
        headers=[pair for pair in headers if pair[0] != "host"],
        target=f"{host}:{url.port or (443 if scheme == 'https' else 80)}",
    )


def _route_table(
    program: Program, listener: ListenerProgram | None, name: str | None
) -> tuple[RouteConfiguration | None, RouteTable | None]:
    if listener is not None:
        return listener.config, listener.table
    routes = program.snapshot.routes
    if name is not None:
        if name not in routes:
            known = ", ".join(sorted(routes)) or "none"
            raise ConfigError(f"there is no RouteConfiguration {name!r}; there is: {known}")
        return routes[name], RouteTable(routes[name])
    if program.listeners:
        return None, None
    if len(routes) != 1:
        raise ConfigError(
            "the configuration has no Listener and "
            + (
                f"{len(routes)} RouteConfigurations; name one with --route-config"
                if routes
                else "no RouteConfiguration"
            )
        )
    config = next(iter(routes.values()))
    return config, RouteTable(config)


def _instead_of_routing(path: str, action: PathAction) -> dict[str, Any]:
    if action is PathAction.REDIRECT:
        return {"action": "redirect", "status": 307, "body": "", "location": path}
    return {"action": "reject", "status": 400, "body": ""}


def _answer(reply: LocalReply) -> dict[str, Any]:
    location = next((value for name, value in reply.headers if name == "location"), None)
    return {
        "action": "redirect" if location is not None and 300 <= reply.status < 400 else "direct_response",
        "status": reply.status,
        "body": reply.body.decode("utf-8", "replace"),
        "location": location,
    }


def _forward(
    program: Program,
    request: RequestView,
    route: CompiledRoute,
    plan: ForwardPlan,
    random: Random,
    *,
    now: float,
    epoch: float,
) -> dict[str, Any]:
    context = FormatContext(
        request, started=epoch, cluster=plan.cluster, route_name=route.resource.name, attempts=1
    )
    cluster = program.clusters.get(plan.cluster)
    context.suppress_envoy_headers = True
    prepared = plan.prepare(request, context)
    hash_value = _hash(plan, cluster, context.request)
    endpoint = cluster.balancer.pick(now, hash_value) if cluster is not None else None
    context.endpoint = endpoint.key if endpoint is not None else None
    if plan.auto_host_rewrite and endpoint is not None:
        prepared = plan.for_endpoint(prepared, endpoint.hostname, context)
    timeouts = effective(plan, request, None, trust=False)
    policy = retry_policy(plan.retry, request, None, trust=False)
    retry = None
    if policy is not None:
        retry = {
            "on": sorted(policy.retry_on),
            "attempts": policy.num_retries + 1,
            "per_try_timeout": timeouts.per_try,
        }
    return {
        "action": "cluster",
        "cluster": plan.cluster,
        "weighted_clusters": listed_weights(route.resource),
        "path": prepared.path,
        "authority": prepared.authority,
        "request_headers": [list(pair) for pair in prepared.headers],
        "timeout": timeouts.route or 0.0,
        "retry": retry,
        "hash": hash_value,
        "endpoint": endpoint.key if endpoint is not None else None,
    }


def _hash(plan: ForwardPlan, cluster: ClusterProgram | None, request: RequestView) -> int | None:
    """What the request is hashed to, by the cluster's own policy or by the route's."""
    own = None if cluster is None else cluster.balancer.hash_of
    hash_of = own or plan.hash_of
    return None if hash_of is None else hash_of(request, None)


def _faults(
    listener: ListenerProgram | None,
    request: RequestView,
    route: CompiledRoute | None,
    plan: ForwardPlan | None,
) -> list[str]:
    """What each fault filter may do."""
    found: list[str] = []
    for link in listener.filters if listener is not None else ():
        config = link.config_for(route, plan)
        if isinstance(config, HttpFault):
            found += describe(config, request, None if plan is None else plan.cluster)
    return found


def listed_weights(route: Route) -> list[dict[str, Any]]:
    action = route.action
    if not isinstance(action, RouteAction) or action.weighted_clusters is None:
        return []
    return [
        {"cluster": entry.name or f"(header {entry.cluster_header})", "weight": entry.weight}
        for entry in action.weighted_clusters.clusters
    ]


def _unsupported(
    snapshot: Snapshot,
    listener: ListenerProgram | None,
    config: RouteConfiguration | None,
    plan: ForwardPlan | None,
) -> list[str]:
    """The reported fields of every resource that had a part in the decision."""
    involved: list[Ref] = []
    if listener is not None:
        involved.append((Kind.LISTENER, listener.listener.name))
    if config is not None:
        involved.append((Kind.ROUTE, config.name))
    if plan is not None and plan.cluster in snapshot.clusters:
        cluster = snapshot.clusters[plan.cluster]
        involved += [(Kind.CLUSTER, cluster.name), (Kind.ENDPOINT, cluster.eds_service_name)]
    reported: Mapping[Ref, tuple[str, ...]] = snapshot.unsupported
    return [path for ref in involved for path in reported.get(ref, ())]

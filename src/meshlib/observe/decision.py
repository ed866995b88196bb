"""Why a call that was made went where it went: the decision of a real call, in the words of `meshlib explain`.

Everything that decided is still there when a call is over. So a call leaves `Facts`, a tuple of names, numbers and a few
references that costs next to nothing, and the decision is put together when somebody asks. Facts hold no header and no body of
the application, and no endpoints: a process that remembers calls does not keep the configurations that they were made under.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from meshlib.observe.explain import listed_weights
from meshlib.resources.route import DirectResponse, Redirect, RetryPolicy, Route, RouteAction
from meshlib.snapshot import Kind

if TYPE_CHECKING:
    from meshlib.engine.observed import ObservedCall
    from meshlib.routing.plan import Timeouts
    from meshlib.snapshot import Ref

__all__ = [
    "AttemptDecision",
    "AttemptFacts",
    "Decision",
    "Facts",
    "counted_attempt",
    "decide",
    "decision_of",
    "facts_of",
    "route_of",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptDecision:
    """One attempt. endpoint: `address:port`. status: of its response, None without one. failure: Envoy's words for why there was
    none. after: seconds from the call's begin to its own. duration: seconds, None while it lasts. retried: why another attempt
    followed it, None when none did. accepted: its response is the call's.
    """

    number: int
    endpoint: str
    cluster: str
    status: int | None = None
    failure: str | None = None
    after: float = 0.0
    duration: float | None = None
    retried: str | None = None
    accepted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What became of a call, and why. Pickles; holds no header and no body.

    method, scheme, path (with the query), authority: as the application asked, after path normalization; path_sent,
    authority_sent: after rewriting, of the last attempt, None without one. listener .. weighted_clusters, timeout (seconds, 0 is
    none), retry: as `meshlib explain --json` has them. action: cluster, direct_response, redirect or none. endpoint, protocol,
    secure (TLS): of the attempt that counted. status: HTTP's, 0 for none. flags, details: Envoy's. error: the message of what the
    application got instead of a response. started: seconds since 1970. duration: seconds, None while the call lasts. versions:
    `version_info` in force when the call was routed, by type (`lds`, `rds`, ...), for those that have one. unsupported: fields of
    the resources involved that were reported, not applied. The last two, and duration, are known of calls that are observed.
    """

    method: str
    scheme: str
    authority: str
    path: str
    listener: str | None = None
    route_config: str | None = None
    virtual_host: str | None = None
    route: str | int | None = None
    action: str = "none"
    cluster: str | None = None
    weighted_clusters: list[dict[str, Any]] = field(default_factory=list)
    path_sent: str | None = None
    authority_sent: str | None = None
    timeout: float | None = None
    retry: dict[str, Any] | None = None
    endpoint: str | None = None
    protocol: str = ""
    secure: bool = False
    attempts: tuple[AttemptDecision, ...] = ()
    status: int = 0
    grpc_status: str | None = None
    flags: str = "-"
    details: str = ""
    error: str | None = None
    started: float = 0.0
    duration: float | None = None
    versions: dict[str, str] = field(default_factory=dict)
    unsupported: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class AttemptFacts(NamedTuple):
    """One attempt of `Facts`. started, over_at: monotonic seconds. The rest is as on the attempt, which was HTTP/2, or TLS."""

    number: int
    endpoint: str
    cluster: str
    status: int | None
    failure: str | None
    started: float
    over_at: float | None
    timed_out: bool
    http2: bool
    secure: bool


class Facts(NamedTuple):
    """What is kept of a call (`ObservedCall.facts`). started, over_at: monotonic seconds. listener, route_config, virtual_host:
    names. route: None before it was routed; route_index: its place in the virtual host, below 0 for none. cluster: None when
    nothing was to be forwarded; assignment: the name of its ClusterLoadAssignment. timeouts: those in force. policy: by which it
    is retried. attempts: as `AttemptFacts`. sent: path and authority of the last attempt, after rewriting. error: the message of
    what ended it. versions, unsupported: the Snapshot's. The rest is as on the call."""

    started: float
    over_at: float | None
    method: str
    scheme: str
    authority: str
    path: str
    listener: str | None
    route_config: str | None
    virtual_host: str | None
    route: Route | None
    route_index: int
    cluster: str | None
    assignment: str | None
    timeouts: Timeouts | None
    policy: RetryPolicy | None
    attempts: tuple[tuple[Any, ...], ...]
    accepted: int | None
    sent: tuple[str, str] | None
    flags: tuple[str, ...]
    details: str
    status: int
    grpc_status: str | None
    rpc: bool
    error: str | None
    versions: Mapping[Kind, str] | None
    unsupported: Mapping[Ref, tuple[str, ...]] | None


def facts_of(call: ObservedCall, now: float | None) -> Facts:
    """now: its end, None when it is not over."""
    return Facts._make(call.facts(now))


def decision_of(call: ObservedCall) -> Decision:
    """The decision of a call, as far as it has come."""
    duration = call.duration
    return decide(facts_of(call, None if duration is None else call.started + duration), call.epoch)


def decide(facts: Facts, epoch: float) -> Decision:
    """epoch: when the call began, seconds since 1970."""
    route = facts.route
    found: dict[str, Any] = {}
    if route is not None:
        found["route"] = (route.name or facts.route_index) if facts.route_index >= 0 else None
        found["action"] = _action(facts, route)
        found["weighted_clusters"] = listed_weights(route)
    if facts.timeouts is not None:
        found["timeout"] = facts.timeouts.route or 0.0
        found["retry"] = _retry(facts)
    if facts.sent is not None:
        found["path_sent"], found["authority_sent"] = facts.sent
    counted = counted_attempt(facts)
    if counted is not None:
        found["protocol"] = "HTTP/2" if facts.rpc or counted.http2 else "HTTP/1.1"
        found["secure"] = counted.secure
        found["endpoint"] = counted.endpoint
    return Decision(
        method=facts.method,
        scheme=facts.scheme,
        authority=facts.authority,
        path=facts.path,
        listener=facts.listener,
        route_config=facts.route_config,
        virtual_host=facts.virtual_host,
        cluster=facts.cluster,
        attempts=_attempts(facts),
        status=facts.status,
        grpc_status=facts.grpc_status,
        flags=",".join(facts.flags) or "-",
        details=facts.details,
        error=facts.error,
        started=epoch,
        duration=None if facts.over_at is None else facts.over_at - facts.started,
        **found,
        **_of_configuration(facts),
    )


def counted_attempt(facts: Facts) -> AttemptFacts | None:
    """The accepted attempt, or else the last one."""
    if not facts.attempts:
        return None
    return AttemptFacts._make(facts.attempts[-1 if facts.accepted is None else facts.accepted - 1])


def route_of(facts: Facts) -> str | None:
    """The route's name, or its index in the virtual host when it has none."""
    route = facts.route
    return None if route is None or facts.route_index < 0 else route.name or str(facts.route_index)


def _action(facts: Facts, route: Route) -> str:
    action = route.action
    if facts.cluster is not None and isinstance(action, RouteAction):
        return "cluster"
    if isinstance(action, Redirect) or facts.route_index < 0:
        return "redirect"
    return "direct_response" if isinstance(action, DirectResponse) else "none"


def _retry(facts: Facts) -> dict[str, Any] | None:
    policy, timeouts = facts.policy, facts.timeouts
    if policy is None or not policy.retry_on or timeouts is None:
        return None
    return {
        "on": sorted(policy.retry_on),
        "attempts": policy.num_retries + 1,
        "per_try_timeout": timeouts.per_try,
    }


def _attempts(facts: Facts) -> tuple[AttemptDecision, ...]:
    last = len(facts.attempts)
    return tuple(
        AttemptDecision(
            number=attempt.number,
            endpoint=attempt.endpoint,
            cluster=attempt.cluster,
            status=attempt.status,
            failure=attempt.failure,
            after=attempt.started - facts.started,
            duration=None if attempt.over_at is None else attempt.over_at - attempt.started,
            retried=_why_retried(attempt, facts.policy) if attempt.number < last else None,
            accepted=attempt.number == facts.accepted,
        )
        for attempt in map(AttemptFacts._make, facts.attempts)
    )


def _why_retried(attempt: AttemptFacts, policy: RetryPolicy | None) -> str:
    if attempt.timed_out:
        return "its per-try timeout passed, and the policy hedges"
    answered = attempt.status is not None
    cause = f"response {attempt.status}" if answered else attempt.failure or "no response"
    return cause if policy is None else f"{cause}; retry_on {','.join(sorted(policy.retry_on))}"


def _of_configuration(facts: Facts) -> dict[str, Any]:
    """versions and unsupported; a call that nobody observes does not keep its configuration."""
    if facts.versions is None or facts.unsupported is None:
        return {}
    named = (
        (Kind.LISTENER, facts.listener),
        (Kind.ROUTE, facts.route_config),
        (Kind.CLUSTER, None if facts.assignment is None else facts.cluster),
        (Kind.ENDPOINT, facts.assignment),
    )
    return {
        "versions": {kind.short: version for kind, version in facts.versions.items() if version},
        "unsupported": [
            path
            for kind, name in named
            if name is not None
            for path in facts.unsupported.get((kind, name), ())
        ],
    }

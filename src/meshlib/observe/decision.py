"""Why a call that was made went where it went: the decision of a real call, in the words of `meshlib explain`.

Everything that decided is still there when a call is over: its route and plan are pinned, its attempts are kept. So a call
leaves `Facts`, a tuple of references that costs next to nothing, and the decision is put together when somebody asks. Facts
hold no header and no body of the application.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from meshlib.errors import LocalReply
from meshlib.observe.explain import listed_weights
from meshlib.resources.cluster import HttpProtocol
from meshlib.resources.route import DirectResponse, Redirect, RetryPolicy, RouteAction
from meshlib.snapshot import Kind

if TYPE_CHECKING:
    from meshlib.engine.attempt import Attempt
    from meshlib.engine.observed import ObservedCall
    from meshlib.engine.program import ListenerProgram, Program
    from meshlib.routing.compiled import CompiledRoute, ForwardPlan
    from meshlib.routing.plan import Timeouts

__all__ = ["AttemptDecision", "Decision", "Facts", "decide", "decision_of", "facts_of"]


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


class Facts(NamedTuple):
    """What is kept of a call (`ObservedCall.facts`). started, over_at: monotonic seconds. timeouts: those in force, None before
    the call was routed. policy: by which it is retried, None while nothing has gone wrong. sent: path and authority of the last
    attempt, after rewriting. error: the message of what ended it. The rest is as on the call."""

    started: float
    over_at: float | None
    method: str
    scheme: str
    authority: str
    path: str
    listener: ListenerProgram | None
    route: CompiledRoute | None
    plan: ForwardPlan | None
    timeouts: Timeouts | None
    policy: RetryPolicy | None
    attempts: Sequence[Attempt]
    accepted: int | None
    sent: tuple[str, str] | None
    flags: tuple[str, ...]
    details: str
    reply: LocalReply | None
    grpc_status: str | None
    rpc: bool
    error: str | None
    program: Program | None


def facts_of(call: ObservedCall, now: float | None) -> Facts:
    """now: its end, None when it is not over."""
    return Facts._make(call.facts(now))


def decision_of(call: ObservedCall) -> Decision:
    """The decision of a call, as far as it has come."""
    duration = call.duration
    return decide(facts_of(call, None if duration is None else call.started + duration), call.epoch)


def decide(facts: Facts, epoch: float) -> Decision:
    """epoch: when the call began, seconds since 1970."""
    route, plan = facts.route, facts.plan
    found: dict[str, Any] = {}
    if facts.listener is not None:
        found["listener"] = facts.listener.listener.name
        found["route_config"] = None if facts.listener.config is None else facts.listener.config.name
    if route is not None:
        found["virtual_host"] = route.virtual_host.name
        found["route"] = (route.resource.name or route.index) if route.index >= 0 else None
        found["action"] = _action(route, plan)
        found["weighted_clusters"] = listed_weights(route)
    if plan is not None:
        found["cluster"] = plan.cluster
        found["timeout"] = (facts.timeouts or plan.timeouts).route or 0.0
        found["retry"] = _retry(facts, plan)
    if facts.sent is not None:
        found["path_sent"], found["authority_sent"] = facts.sent
    counted = counted_attempt(facts)
    if counted is not None:
        http2 = facts.rpc or counted.cluster.cluster.protocol is HttpProtocol.HTTP2
        found["protocol"] = "HTTP/2" if http2 else "HTTP/1.1"
        found["secure"] = counted.endpoint.way.security is not None
        found["endpoint"] = counted.endpoint.key
    return Decision(
        method=facts.method,
        scheme=facts.scheme,
        authority=facts.authority,
        path=facts.path,
        attempts=_attempts(facts),
        status=status_of(facts),
        grpc_status=facts.grpc_status,
        flags=",".join(facts.flags) or "-",
        details=facts.details,
        error=facts.error,
        started=epoch,
        duration=None if facts.over_at is None else facts.over_at - facts.started,
        **found,
        **_of_configuration(facts),
    )


def counted_attempt(facts: Facts) -> Attempt | None:
    """The accepted attempt, or else the last one."""
    if facts.accepted is not None:
        return facts.attempts[facts.accepted - 1]
    return facts.attempts[-1] if facts.attempts else None


def status_of(facts: Facts) -> int:
    """HTTP's: of the accepted response, else of the answer that Envoy would give by itself; 0 for none."""
    if facts.accepted is not None:
        return facts.attempts[facts.accepted - 1].status or 0
    return 0 if facts.reply is None else facts.reply.status


def _action(route: CompiledRoute, plan: ForwardPlan | None) -> str:
    action = route.resource.action
    if plan is not None and isinstance(action, RouteAction):
        return "cluster"
    if isinstance(action, Redirect) or route.index < 0:
        return "redirect"
    return "direct_response" if isinstance(action, DirectResponse) else "none"


def _retry(facts: Facts, plan: ForwardPlan) -> dict[str, Any] | None:
    policy = facts.policy or plan.retry
    if policy is None or not policy.retry_on:
        return None
    return {
        "on": sorted(policy.retry_on),
        "attempts": policy.num_retries + 1,
        "per_try_timeout": (facts.timeouts or plan.timeouts).per_try,
    }


def _attempts(facts: Facts) -> tuple[AttemptDecision, ...]:
    last = len(facts.attempts)
    return tuple(
        AttemptDecision(
            number=attempt.number,
            endpoint=attempt.endpoint.key,
            cluster=attempt.cluster.cluster.name,
            status=attempt.status,
            failure=attempt.failure,
            after=attempt.started - facts.started,
            duration=None if attempt.over_at is None else attempt.over_at - attempt.started,
            retried=_why_retried(attempt, facts.policy) if attempt.number < last else None,
            accepted=attempt.number == facts.accepted,
        )
        for attempt in facts.attempts
    )


def _why_retried(attempt: Attempt, policy: RetryPolicy | None) -> str:
    if attempt.timed_out:
        return "its per-try timeout passed, and the policy hedges"
    answered = attempt.status is not None
    cause = f"response {attempt.status}" if answered else attempt.failure or "no response"
    return cause if policy is None else f"{cause}; retry_on {','.join(sorted(policy.retry_on))}"


def _of_configuration(facts: Facts) -> dict[str, Any]:
    """versions and unsupported; a call that nobody observes does not keep its configuration."""
    if facts.program is None:
        return {}
    snapshot = facts.program.snapshot
    refs = []
    if facts.listener is not None:
        refs.append((Kind.LISTENER, facts.listener.listener.name))
        if facts.listener.config is not None:
            refs.append((Kind.ROUTE, facts.listener.config.name))
    cluster = None if facts.plan is None else snapshot.clusters.get(facts.plan.cluster)
    if cluster is not None:
        refs += [(Kind.CLUSTER, cluster.name), (Kind.ENDPOINT, cluster.eds_service_name)]
    return {
        "versions": {kind.short: version for kind, version in snapshot.versions.items() if version},
        "unsupported": [path for ref in refs for path in snapshot.unsupported.get(ref, ())],
    }

"""Where Envoy and the gRFCs disagree about a gRPC call, and which one it follows.

Envoy is the default, as everywhere in meshlib. The other dialect is what a `grpc` client does with the same resources (gRFC A27
and those after it); a channel asks for it with `follow="grpc"`. What only one of them knows (header edits, rewrites, mirrors;
limits other than max_requests) is no disagreement and is done in both. docs/differences.md has this table for users.

| | envoy | grpc |
|---|---|---|
| RouteAction.timeout, per_try_timeout, hedging, idle timeouts, max_stream_duration of a cluster | applied | ignored (A31, A44) |
| grpc_timeout_header_max | caps the caller's deadline, if any | limits every call; 0 lifts max_stream_duration (A31) |
| grpc_timeout_header_offset, max_grpc_timeout, grpc_timeout_offset | applied | ignored (A31) |
| retry_on | all of Envoy's conditions | the five gRPC ones; a broken stream is `unavailable` (A44) |
| num_retries | as configured | at most 4 (A6: five attempts) |
| back-off | uniform in [0, base * 2**n) | base * 2**n, give or take 20 % (A6) |
| grpc-previous-rpc-attempts | not sent | sent with a retry (A6) |
| no connection, nothing sent | the attempt failed: retry_on decides | another endpoint is tried, until each had its turn |
| status in trailers, after headers | no verdict: outlier detection saw a 200 | the verdict of outlier detection (A50) |
| no route, no cluster | UNIMPLEMENTED, UNAVAILABLE | UNAVAILABLE (A28) |
| direct_response, redirect | its status as a gRPC one | UNAVAILABLE (A28) |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from types import MappingProxyType

from meshlib.engine.replies import Ending
from meshlib.errors import NoRoute
from meshlib.policy.failure import FailureKind
from meshlib.policy.retry import RetryState
from meshlib.resources.route import MaxStreamDuration, RetryPolicy
from meshlib.routing.plan import ForwardPlan, Timeouts

__all__ = ["DIALECTS", "ENVOY", "GRPC", "GRPC_CONDITIONS", "Dialect", "GrpcRetryState", "as_grpc_reads"]

GRPC_CONDITIONS = frozenset(
    {"cancelled", "deadline-exceeded", "internal", "resource-exhausted", "unavailable"}
)
_MOST_RETRIES = 4
_JITTER = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """One column of the table.

    grpc: timeouts and retries are the gRFCs'. endings: status (None: it stays) and message that replace Envoy's, by response
    code details.
    inappropriate: what a route that answers by itself gives instead, None where it answers.
    """

    name: str
    grpc: bool
    endings: Mapping[str, tuple[int | None, str]] = field(default_factory=lambda: MappingProxyType({}))
    inappropriate: Ending | None = None

    def ending(self, ending: Ending) -> Ending:
        """The same end in this dialect's words."""
        own = self.endings.get(ending.details)
        if own is None:
            return ending
        status, message = own
        return replace(ending, grpc_status=ending.grpc_status if status is None else status, body=message)


ENVOY = Dialect(name="envoy", grpc=False)
GRPC = Dialect(
    name="grpc",
    grpc=True,
    endings=MappingProxyType(
        {
            "route_not_found": (14, "No matching route found in xDS route config"),
            "cluster_not_found": (14, "the route's cluster does not exist"),
            "upstream_reset_before_response_started{overflow}": (14, "circuit breaker drop"),
            "max_duration_timeout": (4, "Deadline Exceeded"),
            "fault_filter_abort": (None, "Fault injected"),
        }
    ),
    inappropriate=Ending(
        NoRoute,
        503,
        "Matching route has inappropriate action",
        "NR",
        "direct_response",
        "the route answers by itself, which gRPC does not do",
        grpc_status=14,
    ),
)
DIALECTS: Mapping[str, Dialect] = MappingProxyType({each.name: each for each in (ENVOY, GRPC)})


def as_grpc_reads(plan: ForwardPlan) -> ForwardPlan:
    """The plan with the timeouts and retries that gRPC takes from the same route. Made once for each plan."""
    own = plan.grpc_plan
    if own is None:
        own = plan.grpc_plan = _converted(plan)
    return own


def _converted(plan: ForwardPlan) -> ForwardPlan:
    own = plan.twin()
    own.timeout = 0.0
    own.hedges = False
    own.max_grpc_timeout = None
    own.reads_grpc_timeout = False
    longest = plan.max_stream_duration
    if longest is not None and longest.grpc_timeout_header_max is not None:
        own.max_stream_duration = MaxStreamDuration(max_stream_duration=longest.grpc_timeout_header_max)
    elif longest is not None:
        own.max_stream_duration = MaxStreamDuration(max_stream_duration=longest.max_stream_duration)
    own.retry = None if plan.retry is None else _conditions(plan.retry)
    own.looks_at_ok = False
    own.looks_at_success = own.retry is not None and own.retry.looks_at_success
    own.timeouts = Timeouts(None, None, own.longest_stream())
    return own


def _conditions(policy: RetryPolicy) -> RetryPolicy:
    return RetryPolicy(
        retry_on=policy.retry_on & GRPC_CONDITIONS,
        num_retries=min(policy.num_retries, _MOST_RETRIES),
        back_off=policy.back_off,
    )


class GrpcRetryState(RetryState):
    """Retries by gRFC A6 and A44: a stream that breaks without a response counts as UNAVAILABLE, which C-core makes of it."""

    __slots__ = ()

    def wants_reset(self, kind: FailureKind, bytes_sent: bool) -> bool:
        return "unavailable" in self.rules.policy.retry_on and kind is not FailureKind.OVERFLOW

    def back_off(self, random: Random, headers: Sequence[tuple[str, str]] = (), epoch: float = 0.0) -> float:
        """min(base * 2**(retry - 1), max), give or take a fifth."""
        back_off = self.rules.policy.back_off
        nominal = min(back_off.base_interval * 2.0 ** min(self._exponential, 63), back_off.max_interval)
        self._exponential += 1
        return nominal * random.uniform(1 - _JITTER, 1 + _JITTER)

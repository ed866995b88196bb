"""Fault injection (envoy.filters.http.fault): delays, then aborts, of the requests that its configuration means.

Delay and abort are drawn independently of each other, the abort after the delay. The header control of a fault is obeyed
whoever set the header, as in Envoy: the configuration asks for it (`header_delay`, `header_abort`), and its percentage can
only be lowered. A call counts as an active fault from its first fault to the end of its delay, or to its own end when it is
aborted.
"""

from __future__ import annotations

from random import Random

from meshlib.engine.replies import Endings, told
from meshlib.engine.steps import GO_ON, Answer, FilterContext, FilterScope, Step, WaitUntil
from meshlib.resources.fault import HttpFault
from meshlib.resources.listener import HttpFilter
from meshlib.resources.matching import FractionalPercent
from meshlib.routing.matchers.header import compile_headers
from meshlib.routing.numbers import parse_unsigned
from meshlib.routing.request import RequestView
from meshlib.runtime.memo import Memo
from meshlib.state import ActiveFault

__all__ = ["FaultFilter", "FaultRules", "describe", "rules_of"]

ABORT = "x-envoy-fault-abort-request"
ABORT_GRPC = "x-envoy-fault-abort-grpc-request"
DELAY = "x-envoy-fault-delay-request"
PERCENTAGE = "-percentage"
NODE = "x-envoy-downstream-service-node"
CLUSTER = "x-envoy-downstream-service-cluster"

CALLERS = 1000
"""How many callers are counted by their names at most: the names come with the requests."""

Status = tuple[int, int | None]
"""HTTP status and, where the abort has one, gRPC status."""


class FaultFilter:
    """One fault filter of one listener."""

    def __init__(self, entry: HttpFilter, scope: FilterScope) -> None:
        self.name = entry.name
        self.config: HttpFault = entry.config
        listener = scope.store.registry.scope("http", ("envoy_http_conn_manager_prefix", scope.stat_prefix))
        stats = listener.scope("fault")
        self._stats = stats
        self._callers: set[str] = set()
        self._active = scope.store.active_faults(stats)
        self._delays = stats.counter("delays_injected")
        self._aborts = stats.counter("aborts_injected")
        self._overflow = stats.counter("faults_overflow")

    def on_request(self, context: FilterContext, now: float) -> Step:
        """Delay the request, abort it, or neither."""
        rules = rules_of(context.config)
        if not rules.concerns(context.request, context.cluster):
            return GO_ON
        delay = rules.delay(context.request)
        if delay is not None:
            share, milliseconds = delay
            active = self._enter(context) if drawn(share, context.random) and milliseconds else None
            if active is not None:
                self._delays.value += 1
                self._count_caller(context, "delays_injected")
                context.flag("DI")
                return WaitUntil(now + milliseconds / 1000, active)
        status = _abort(rules, context)
        if status is None or self._enter(context) is None:
            return GO_ON
        return self._abort(context, status)

    def resume(
        self, context: FilterContext, result: object, _error: BaseException | None, _now: float
    ) -> Step:
        """The delay is over."""
        status = _abort(rules_of(context.config), context)
        if status is not None:
            return self._abort(context, status)
        assert isinstance(result, ActiveFault)
        result.release()
        return GO_ON

    def _enter(self, context: FilterContext) -> ActiveFault | None:
        """Count the call among the active faults; None when there are too many."""
        active = self._active.enter(context.config.max_active_faults)
        if active is None:
            self._overflow.value += 1
        else:
            context.at_end(active.release)
        return active

    def _abort(self, context: FilterContext, status: Status) -> Answer:
        self._aborts.value += 1
        self._count_caller(context, "aborts_injected")
        return Answer(Endings.fault(*status))

    def _count_caller(self, context: FilterContext, name: str) -> None:
        """The same for the caller that the request names."""
        caller = context.request.first(CLUSTER)
        if not caller or not context.config.downstream_cluster_stats:
            return
        if caller not in self._callers:
            if len(self._callers) >= CALLERS:
                return
            self._callers.add(caller)
        self._stats.scope("", ("envoy_fault_downstream_cluster", caller)).counter(name).value += 1


def _abort(rules: FaultRules, context: FilterContext) -> Status | None:
    """Draw: the status that this request is aborted with, None when it is not."""
    abort = rules.abort(context.request)
    if abort is None:
        return None
    share, status = abort
    return status if drawn(share, context.random) else None


class FaultRules:
    """A fault configuration made ready to decide about requests."""

    __slots__ = ("_headers", "config")

    def __init__(self, config: HttpFault) -> None:
        self.config = config
        self._headers = compile_headers(config.headers)

    def concerns(self, request: RequestView, cluster: str | None) -> bool:
        """Whether the request is one of those that are meant. cluster: where the route sends it."""
        config = self.config
        if config.upstream_cluster and cluster != config.upstream_cluster:
            return False
        if config.downstream_nodes and request.first(NODE) not in config.downstream_nodes:
            return False
        return self._headers is None or self._headers(request)

    def delay(self, request: RequestView) -> tuple[FractionalPercent, int] | None:
        """How likely a delay is, and its milliseconds; 0 when the request does not say."""
        delay = self.config.delay
        if delay is None:
            return None
        if delay.milliseconds is not None:
            return delay.percentage, delay.milliseconds
        asked = _number(request, DELAY) or 0
        return _lowered(delay.percentage, request, DELAY), asked if asked < 2**63 else 0

    def abort(self, request: RequestView) -> tuple[FractionalPercent, Status | None] | None:
        """How likely an abort is, and its status; None when the request does not say."""
        abort = self.config.abort
        if abort is None:
            return None
        if abort.http_status is not None:
            return abort.percentage, (abort.http_status, None)
        if abort.grpc_status is not None:
            return abort.percentage, (200, abort.grpc_status)
        share = _lowered(abort.percentage, request, ABORT)
        status = _number(request, ABORT)
        if status is not None and 200 <= status < 600:
            return share, (status, None)
        grpc_status = _number(request, ABORT_GRPC)
        return share, None if grpc_status is None else (200, grpc_status & 0xFFFFFFFF)


rules_of: Memo[HttpFault, FaultRules] = Memo(FaultRules)
"""The rules of a configuration object, compiled once."""


def describe(config: HttpFault, request: RequestView, cluster: str | None) -> list[str]:
    """What may happen to this request, for people: `delay 0.2 s (50 %)`, `abort with HTTP status 503 (1 %)`."""
    rules = rules_of(config)
    if not rules.concerns(request, cluster):
        return []
    found = []
    delay, abort = rules.delay(request), rules.abort(request)
    if delay is not None and delay[1]:
        found.append(f"delay {delay[1] / 1000:g} s ({_percent(delay[0])})")
    if abort is not None and abort[1] is not None:
        found.append(f"abort with {told(*abort[1])} ({_percent(abort[0])})")
    return found


def drawn(share: FractionalPercent, random: Random) -> bool:
    """Draw for this share of the requests."""
    return random.getrandbits(64) % share.denominator < share.numerator


def _lowered(share: FractionalPercent, request: RequestView, header: str) -> FractionalPercent:
    """What the request asks for in the configured denominator, at most what is configured."""
    asked = _number(request, header + PERCENTAGE)
    if asked is None or asked >= min(share.numerator, 2**32):
        return share
    return FractionalPercent(numerator=asked, denominator=share.denominator)


def _percent(share: FractionalPercent) -> str:
    return f"{min(100 * share.numerator / share.denominator, 100):g} %"


def _number(request: RequestView, header: str) -> int | None:
    """The header's first value as a number; None when it is missing or no number."""
    text = request.first(header)
    return None if text is None else parse_unsigned(text)

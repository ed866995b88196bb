"""A gRPC call whose caller set a deadline, asked to wait for readiness, or follows the gRFCs where Envoy differs.

The deadline is the caller's: it is absolute, covers waiting, attempts and back-offs, and ends the call in DEADLINE_EXCEEDED,
while the timeouts of the configuration end it with Envoy's own codes. An endpoint is not blamed for it.

wait_for_ready (gRPC, "Wait for Ready Semantics") means: what is only *missing* is waited for, up to the deadline or for ever.

- A listener, a route configuration or a cluster that is not there, also one that the control plane says does not exist: until
  a Program has it.
- No endpoint can be picked: until a Program is published, or outlier detection takes endpoints back.
- No connection can be opened, so that nothing was sent: until a back-off is over, then another endpoint is picked. This is
  no retry: it needs no policy, no permit, and is not counted.

All else ends the call as without it: no route, a limit, a response, a stream that breaks. The route's timeouts start with the
connection that carries the request, since before it there is nothing that they could measure.

What the dialect changes stands in the table of `meshlib.engine.dialect`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from math import ceil, inf
from typing import TYPE_CHECKING, Any

from meshlib.engine import actions as act
from meshlib.engine import events as ev
from meshlib.engine.attempt import Attempt
from meshlib.engine.base import NOTHING, Actions, Stage
from meshlib.engine.call import HANDLERS, Call
from meshlib.engine.dialect import GrpcRetryState, as_grpc_reads
from meshlib.engine.loop import GRPC_SOUND
from meshlib.engine.replies import Ending
from meshlib.errors import AttemptRecord, MeshClosed
from meshlib.policy.failure import FailureKind
from meshlib.policy.retry import exponential_wait
from meshlib.resources.route import BackOff

if TYPE_CHECKING:
    from meshlib.engine.dialect import Dialect
    from meshlib.engine.engine import Engine
    from meshlib.engine.options import CallOptions
    from meshlib.engine.program import ClusterProgram, Program
    from meshlib.routing.request import RequestView

__all__ = ["RECONNECT", "RpcCall"]

RECONNECT = BackOff(base_interval=0.025, max_interval=0.25)
"""Between the picks of a call that waits for a connection: Envoy's default back-off of retries."""

_KEPT = 16
"""How many refused connections of one call its records show, the last ones."""

_NO_CONNECTION = frozenset({FailureKind.CONNECT_FAILED, FailureKind.CONNECT_TIMEOUT})


PREVIOUS_ATTEMPTS = "grpc-previous-rpc-attempts"


class RpcCall(Call):
    """deadline: monotonic seconds, None for none. wait_for_ready: see the module."""

    _ready = True
    _undecided = False
    _refusals = 0
    _refused: deque[AttemptRecord] | None = None

    def __init__(
        self,
        engine: Engine,
        request: RequestView,
        *,
        wake: Callable[[], None],
        options: CallOptions | None,
        replayable: Callable[[], bool] | None,
        deadline: float | None,
        wait_for_ready: bool,
        dialect: Dialect,
    ) -> None:
        super().__init__(engine, request, wake=wake, options=options, replayable=replayable)
        self._dialect = dialect
        if dialect.grpc:
            self._retry_rules = GrpcRetryState
        self._user_deadline = self._deadline = deadline
        if wait_for_ready:
            self.wait_for_ready = True
            self._ready = False
            self._config_until = inf

    def handle(self, event: ev.Event, now: float) -> Actions:
        return _HANDLERS[type(event)](self, event, now)

    def records(self) -> tuple[AttemptRecord, ...]:
        """Refused connections that were not the end come first."""
        own = super().records()
        return own if self._refused is None else (*self._refused, *own)

    def _act_on_route(self, now: float) -> Actions:
        inappropriate = self._dialect.inappropriate
        if self.plan is None and self.route is not None and inappropriate is not None:
            return self._end(inappropriate, now)
        return super()._act_on_route(now)

    def _pin(self, now: float) -> None:
        plan = self.plan
        if plan is not None:
            if self._dialect.grpc:
                self.plan = plan = as_grpc_reads(plan)
            if plan.reads_grpc_timeout and self._user_deadline is not None:
                self.request.add("grpc-timeout", grpc_timeout(self._user_deadline - self._started))
        super()._pin(now)
        if self._dialect.grpc:
            self._idle_timeout = 0.0

    def _start_attempt(self, now: float) -> Actions:
        if not self._dialect.grpc:
            return super()._start_attempt(now)
        actions = super()._start_attempt(now)
        if len(self._attempts) > 1 and actions and isinstance(actions[0], act.Start):
            start = actions[0]
            headers = self.request.headers if start.headers is None else start.headers
            start.headers = [*headers, (PREVIOUS_ATTEMPTS, str(start.attempt - 1))]
        return actions

    def _start_deadline(self, now: float) -> None:
        if self._ready:
            super()._start_deadline(now)
        else:
            self._deadline = self._user_deadline

    def _start_stream(self, attempt: Attempt, now: float) -> None:
        if not self._ready:
            self._ready = True
            if self._complete:
                self._start_deadline(now)
        super()._start_stream(attempt, now)
        if self._dialect.grpc:
            attempt.stream_until = None

    def _go_on(self, now: float) -> Actions:
        if self.plan is not None:
            self._active_at = now
            if any(limit is not None and limit <= now for limit in (self._deadline, self._stream_deadline)):
                self.wake_at = now
                return self._upstream_timer(now)
        return super()._go_on(now)

    def _no_endpoint(self, cluster: ClusterProgram, program: Program, now: float) -> Actions:
        if not self.wait_for_ready:
            return super()._no_endpoint(cluster, program, now)
        self.attempt_count -= 1
        if self._retrier is not None:
            self._retrier.at = None
        if any(attempt.over_at is None for attempt in self._attempts):
            self._arm()
            return NOTHING
        outlier = cluster.outlier
        return self._wait_until(inf if outlier is None else outlier.next_sweep, program, now)

    def _attempt_failed(self, event: ev.Failed, now: float) -> Actions:
        attempt = self._live(event.attempt)
        if (
            attempt is None
            or self.accepted is not None
            or event.kind not in _NO_CONNECTION
            or not (self.wait_for_ready or self._has_others(attempt))
            or attempt is not self._attempts[-1]
            or self._others_alive(attempt)
        ):
            return super()._attempt_failed(event, now)
        self._count_failure(attempt, event.kind, now)
        attempt.record(now, failure=event.kind.value)
        attempt.give_back()
        self._tell_attempt(attempt, now)
        if self._refused is None:
            self._refused = deque(maxlen=_KEPT)
        self._refused.append(attempt.outcome)
        self._attempts.pop()
        self.attempt_count -= 1
        self._refusals += 1
        engine = self._engine
        if not self._attempts:
            self._ready = False
            self._deadline = self._user_deadline
        if not self.wait_for_ready:
            return self._start_attempt(now)
        pause = exponential_wait(RECONNECT, self._refusals, engine.random)
        return self._wait_until(now + pause, engine.program, now)

    def _has_others(self, attempt: Attempt) -> bool:
        """Whether the dialect has another endpoint tried where this one could not be connected to."""
        return self._dialect.grpc and self._refusals + 1 < attempt.cluster.balancer.size

    def _response(self, event: ev.Headers, now: float) -> Actions:
        self._undecided = self._dialect.grpc and not event.end
        return super()._response(event, now)

    def _end_of_response(self, event: ev.End, now: float) -> Actions:
        attempt = self._live(event.attempt)
        if self._undecided and attempt is not None and self.accepted == event.attempt:
            self._undecided = False
            status = next((value for name, value in event.trailers if name == "grpc-status"), "0")
            self._judge(attempt, status in GRPC_SOUND, now)
        return super()._end_of_response(event, now)

    def _judge(self, attempt: Attempt, ok: bool, now: float) -> None:
        if not (ok and self._undecided):
            super()._judge(attempt, ok, now)

    def _end(self, ending: Ending, now: float) -> Actions:
        return super()._end(self._dialect.ending(ending), now)

    def _broken_off(self, ending: Ending) -> Ending:
        return ending if self._dialect.grpc else super()._broken_off(ending)

    def _wait_until(self, moment: float, seen: Program, now: float) -> Actions:
        """Park until `moment`, a Program other than `seen`, or the end of the time that the call has."""
        engine = self._engine
        self._stage = Stage.WAITING
        if engine.closed:
            return self._over(MeshClosed("the Mesh has been closed"), now)
        for limit in (self._deadline, self._stream_deadline):
            if limit is not None and limit < moment:
                moment = limit
        engine.await_program(self._wake, seen)
        self.wake_at = moment
        return (act.Park(),)


_HANDLERS: dict[type[Any], Callable[[RpcCall, Any, float], Actions]] = {
    **HANDLERS,
    ev.Failed: RpcCall._attempt_failed,
    ev.Headers: RpcCall._response,
    ev.End: RpcCall._end_of_response,
}


def grpc_timeout(seconds: float) -> str:
    """The grpc-timeout header of that many seconds: at most eight digits, never less than asked by more than the unit."""
    for unit, size in (("u", 1e-6), ("m", 1e-3), ("S", 1.0)):
        number = max(0, ceil(seconds / size))
        if number < 10**8:
            return f"{number}{unit}"
    return "99999999S"

"""The attempt loop: the part of a call that picks endpoints, makes attempts and decides what each outcome means.

Any number of attempts may be alive at once (hedging, mirroring). Until one is accepted, each verdict can lead to another
attempt; the accepted one cancels the others. Cluster and endpoint are looked up again for each attempt, so that a retry
sees what is there then; an attempt keeps the cluster it was started with, to give its permits back where it took them.
Permits are given back when an attempt ends, fails or is cancelled, exactly once; a call that is dropped without an end
gives them back through `ClusterState.abandoned`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from enum import Enum
from math import inf
from typing import TYPE_CHECKING

from meshlib.engine import actions as act
from meshlib.engine import events as ev
from meshlib.engine.attempt import Attempt, Holding
from meshlib.engine.headers import ALT_RESPONSE
from meshlib.engine.heads import Heads
from meshlib.engine.mirrors import Mirrors
from meshlib.engine.replies import (
    Ending,
    Endings,
    describe,
    for_failure,
    grpc_form,
    plain_reply,
    without_envoy_headers,
)
from meshlib.engine.retrier import Retrier, retry_state
from meshlib.errors import AttemptRecord, ConfigTimeout, LocalReply, MeshError
from meshlib.policy.failure import FailureKind
from meshlib.policy.retry import RetryRules
from meshlib.resources.route import RouteAction
from meshlib.routing.matchers.grpc import is_grpc
from meshlib.routing.request import RequestView
from meshlib.state import Admission, Waiter

if TYPE_CHECKING:
    from meshlib.engine.engine import Engine
    from meshlib.engine.options import CallOptions
    from meshlib.engine.program import ListenerProgram, Program
    from meshlib.policy.breaker import Breaker
    from meshlib.policy.timeouts import Timeouts
    from meshlib.routing.compiled import CompiledRoute, ForwardPlan

__all__ = ["NOTHING", "Actions", "AttemptLoop", "Stage"]

Actions = Sequence[act.Action]
NOTHING: Actions = ()


class Stage(Enum):
    """Where a call is; what an event means depends on it."""

    WAITING = "waiting for configuration"
    FILTERS = "in the filter chain"
    FORWARDING = "attempts are made"
    STREAMING = "an attempt is accepted, its response is not complete"
    DONE = "over"


class AttemptLoop:
    """The state of a call, and its life from the first attempt on. `Call` adds the way there."""

    __slots__ = (
        "__weakref__",
        "_active_at",
        "_attempts",
        "_breaker",
        "_complete",
        "_config_until",
        "_deadline",
        "_engine",
        "_filter",
        "_filter_wait",
        "_heads",
        "_idle_timeout",
        "_listener",
        "_mirrors",
        "_options",
        "_replayable",
        "_retrier",
        "_stage",
        "_started",
        "_stream_deadline",
        "_timeouts",
        "_user_deadline",
        "_wake",
        "accepted",
        "attempt_count",
        "details",
        "flags",
        "plan",
        "request",
        "route",
        "wake_at",
    )

    def __init__(
        self,
        engine: Engine,
        request: RequestView,
        *,
        wake: Callable[[], None],
        options: CallOptions | None = None,
        replayable: Callable[[], bool] | None = None,
    ) -> None:
        self._engine = engine
        self.request = request
        self._wake = wake
        self._options = options
        self._replayable = replayable
        self._stage = Stage.WAITING
        self._started = 0.0
        self._complete = True
        self._attempts: list[Attempt] = []
        self._mirrors: Mirrors | None = None
        self._retrier: Retrier | None = None
        self._config_until: float | None = None
        self._filter_wait: float | None = None
        self._filter = 0
        self._deadline: float | None = None
        self._stream_deadline: float | None = None
        self._user_deadline: float | None = None
        self._heads: Heads | None = None
        self._listener: ListenerProgram | None = None
        self._timeouts: Timeouts | None = None
        self._breaker: Breaker | None = None
        self._idle_timeout = 0.0
        self._active_at = 0.0
        self.attempt_count = 0
        self.route: CompiledRoute | None = None
        self.plan: ForwardPlan | None = None
        self.accepted: int | None = None
        self.flags: list[str] = []
        self.details = ""
        self.wake_at = inf

    def records(self) -> tuple[AttemptRecord, ...]:
        return tuple(attempt.outcome for attempt in self._attempts if attempt.outcome is not None)

    def _await_configuration(self, what: str, program: Program, now: float) -> Actions:
        self._stage = Stage.WAITING
        if self._config_until is None:
            limit = now + self._engine.config_timeout
            self._config_until = limit if self._user_deadline is None else min(limit, self._user_deadline)
        if now >= self._config_until:
            waited = now - self._started
            text = f"{what} has not arrived after {waited:.3g} s: is the control plane up?"
            return self._over(ConfigTimeout(text), now)
        self._engine.await_program(self._wake, program)
        self.wake_at = self._config_until
        return (act.Park(),)

    # --- starting an attempt -----------------------------------------------------------------------------------------

    def _start_attempt(self, now: float) -> Actions:
        """Pick an endpoint and start an attempt there, or end the call when there is none."""
        engine = self._engine
        plan = self.plan
        assert plan is not None
        program = engine.program
        cluster = program.clusters.get(plan.cluster)
        if cluster is None:
            if plan.cluster and engine.awaits_cluster(plan.cluster):
                return self._await_configuration(f"Cluster {plan.cluster!r}", program, now)
            return self._end(Endings.no_cluster(plan.not_found_code), now)
        if cluster.awaited:
            return self._await_configuration(f"the endpoints of cluster {plan.cluster!r}", program, now)
        self._stage = Stage.FORWARDING
        if cluster.breaker is not None and not self._attempts:
            if not cluster.breaker.admit(now):
                return self._end(Endings.breaker_open(cluster.cluster.name), now)
            self._breaker = cluster.breaker
        state = cluster.state
        if state.abandoned:
            state.drain_abandoned()
        outlier = cluster.outlier
        if outlier is not None and now >= outlier.next_sweep and outlier.sweep(now):
            cluster.balancer.refresh()
        self.attempt_count += 1
        endpoint = cluster.balancer.pick(now)
        if endpoint is None:
            return self._end(Endings.NO_HEALTHY_UPSTREAM, now)
        permits = state.permits(plan.priority)
        attempt = Attempt(len(self._attempts) + 1, endpoint, cluster, permits, now)
        self._attempts.append(attempt)
        if self._retrier is not None:
            self._retrier.hand_over(attempt)
        state.stats.upstream_rq_total.value += 1
        permitted = attempt.take_request_permit()
        if permitted:
            self._start_stream(attempt, now)
        self._arm()
        request = self.request
        authority, path, headers = request.authority, request.path, None
        if self._heads is not None:
            after_timeout = self._retrier is not None and self._retrier.after_timeout
            timeout_ms = self._expected_timeout(now)
            authority, path, headers = self._heads.upstream(attempt, timeout_ms, after_timeout=after_timeout)
        start = act.Start(
            attempt.number,
            endpoint,
            cluster.cluster,
            state,
            permits,
            authority=authority,
            path=path,
            headers=headers,
            permitted=permitted,
        )
        action = plan.route.action
        if attempt.number == 1 and isinstance(action, RouteAction) and action.mirrors:
            self._mirrors = Mirrors()
            return (start, *self._mirrors.start(engine, action.mirrors, start, now))
        return (start,)

    def _expected_timeout(self, now: float) -> int | None:
        """x-envoy-expected-rq-timeout-ms: the per-try timeout or what is left of the route's, at least 1; None for none."""
        timeouts = self._timeouts
        assert timeouts is not None
        expected = timeouts.per_try or timeouts.route
        if timeouts.route and self._deadline is not None:
            expected = min(expected or inf, max(self._deadline - now, 0.001))
        return max(1, round(expected * 1000)) if expected else None

    def _start_per_try(self, attempt: Attempt, now: float) -> None:
        """The attempt has its connection and the whole request: its own timeout runs."""
        timeouts = self._timeouts
        if timeouts is not None and timeouts.per_try:
            attempt.per_try_at = now + timeouts.per_try

    def _start_stream(self, attempt: Attempt, now: float) -> None:
        """The attempt is on its connection: the cluster's max_stream_duration runs."""
        longest = attempt.cluster.cluster.max_stream_duration
        if longest:
            attempt.stream_until = now + longest
        if self._complete:
            self._start_per_try(attempt, now)

    # --- connections -------------------------------------------------------------------------------------------------

    def _need_connection(self, event: ev.NeedConnection, now: float) -> Actions:
        attempt = self._live(event.attempt)
        if attempt is None:
            return NOTHING
        if attempt.holding is Holding.REQUEST:
            attempt.holding = Holding.NOTHING
            attempt.cluster.state.return_request(attempt.endpoint, attempt.permits)
        attempt.per_try_at = attempt.stream_until = None
        waiter = Waiter(self._wake, event.owner)
        admission = attempt.cluster.state.admit(attempt.endpoint, attempt.permits, waiter)
        if admission is Admission.OVERFLOW:
            attempt.cluster.state.stats.upstream_rq_pending_overflow.value += 1
            return self._overflow(attempt, now)
        attempt.holding = Holding.PENDING
        attempt.waiter = waiter
        self._arm()
        if admission is Admission.WAIT:
            return (act.Park(attempt.number, waiter),)
        attempt.connecting = True
        return (act.Connect(attempt.number),)

    def _connected(self, event: ev.Connected, now: float) -> Actions:
        attempt = self._live(event.attempt)
        if attempt is None:
            return NOTHING
        if attempt.holding is Holding.PENDING:
            attempt.holding = Holding.NOTHING
            attempt.cluster.state.end_pending(attempt.permits)
            attempt.waiter = None
        if not attempt.take_request_permit():
            attempt.cluster.state.stats.upstream_rq_active_overflow.value += 1
            return self._overflow(attempt, now)
        self._start_stream(attempt, now)
        self._arm()
        return NOTHING

    def _served(self) -> Actions:
        """Woken in an endpoint's queue: connect the attempts that were served, park the others again."""
        actions: list[act.Action] = []
        for attempt in self._attempts:
            waiter = attempt.waiter
            if attempt.outcome is not None or waiter is None or attempt.connecting:
                continue
            if waiter.served:
                attempt.connecting = True
                actions.append(act.Connect(attempt.number, waiter.connection))
            else:
                actions.append(act.Park(attempt.number, waiter))
        return actions

    def _overflow(self, attempt: Attempt, now: float) -> Actions:
        """A limit refused the attempt. Never retried, and not the endpoint's fault."""
        attempt.record(now, failure="overflow")
        attempt.give_back()
        if self._others_alive(attempt):
            return (act.CancelAttempt(attempt.number),)
        return (act.CancelAttempt(attempt.number), *self._end(Endings.OVERFLOW, now))

    # --- outcomes ----------------------------------------------------------------------------------------------------

    def _response(self, event: ev.Headers, now: float) -> Actions:
        attempt = self._live(event.attempt)
        if attempt is None:
            if event.end:
                self._mirror_over(event.attempt)
            return NOTHING
        status = event.status
        self._active_at = now
        self._judge(attempt, status < 500, now)
        attempt.per_try_at = None
        plan = self.plan
        assert plan is not None
        if status >= 500 or self._may_retry_success(plan):
            retrier = self._retries()
            wanted = retrier is not None and retrier.state.wants_response(status, event.headers)
            if retrier is not None and wanted:
                retrier.after_timeout = False
                again = self._try_again(retrier, attempt, now, event.headers)
                if again or self._others_alive(attempt):
                    attempt.record(now, status=status)
                    attempt.give_back()
                    return (act.CancelAttempt(attempt.number),)
        return self._accept(attempt, event, now)

    def _accept(self, attempt: Attempt, event: ev.Headers, now: float) -> Actions:
        attempt.record(now, status=event.status)
        actions: list[act.Action] = []
        if len(self._attempts) > 1:
            for other in self._attempts:
                if other.outcome is None:
                    other.record(now, failure="cancelled")
                    other.give_back()
                    actions.append(act.CancelAttempt(other.number))
            attempt.cluster.state.stats.upstream_rq_retry_success.value += event.status < 500
            if self._retrier is not None:
                self._retrier.cancel()
        self.accepted = attempt.number
        self.details = "via_upstream"
        attempt.cluster.state.stats.count_status(event.status)
        if self._breaker is not None:
            self._breaker.record(event.status < 500, now)
            self._breaker = None
        heads = self._heads
        headers = None
        if heads is not None:
            flags = ",".join(self.flags) or "-"
            headers = heads.response(event.status, event.headers, attempt, flags, now)
        actions.append(act.Accept(attempt.number, headers))
        if event.end:
            self._finish(attempt, now)
        else:
            self._stage = Stage.STREAMING
            self._arm()
        return actions

    def _end_of_response(self, event: ev.End, now: float) -> Actions:
        attempt = self._live(event.attempt)
        if attempt is None:
            self._mirror_over(event.attempt)
        elif self.accepted == event.attempt:
            self._finish(attempt, now)
        return NOTHING

    def _finish(self, attempt: Attempt, now: float) -> None:
        """The accepted response is complete."""
        attempt.give_back()
        stats = attempt.cluster.state.stats
        stats.upstream_rq_completed.value += 1
        stats.upstream_rq_time.record(now - attempt.started)
        self._stage = Stage.DONE
        self.wake_at = inf

    def _attempt_failed(self, event: ev.Failed, now: float) -> Actions:
        attempt = self._live(event.attempt)
        if attempt is None:
            self._mirror_over(event.attempt)
            return NOTHING
        stats = attempt.cluster.state.stats
        kind = event.kind
        if kind is FailureKind.CONNECT_FAILED:
            stats.upstream_cx_connect_fail.value += 1
        elif kind is FailureKind.CONNECT_TIMEOUT:
            stats.upstream_cx_connect_timeout.value += 1
        else:
            stats.upstream_rq_rx_reset.value += 1
        self._judge(attempt, False, now)
        if self.accepted is not None:
            if self.accepted != attempt.number:
                return NOTHING
            attempt.give_back()
            return self._end(for_failure(kind, "", retried=False, started=True), now)
        attempt.per_try_at = attempt.stream_until = None
        attempt.record(now, failure=kind.value)
        attempt.give_back()
        retrier = self._retries()
        wanted = retrier is not None and retrier.state.wants_reset(kind, event.bytes_sent)
        if retrier is not None:
            retrier.after_timeout = False
            if wanted and self._try_again(retrier, attempt, now):
                return NOTHING
        if self._others_alive(attempt):
            return NOTHING
        return self._end(for_failure(kind, event.reason, retried=attempt.number > 1, started=False), now)

    def _judge(self, attempt: Attempt, ok: bool, now: float) -> None:
        """Report the attempt's outcome to outlier detection."""
        outlier = attempt.cluster.outlier
        if outlier is None or (ok and not attempt.endpoint.consecutive_5xx):
            return
        if outlier.record(attempt.endpoint, ok, now):
            attempt.cluster.balancer.refresh()

    # --- retries -----------------------------------------------------------------------------------------------------

    def _retries(self) -> Retrier | None:
        """The call's retrier; None when neither the route nor the application wants retries."""
        if self._retrier is None:
            plan = self.plan
            assert plan is not None
            engine = self._engine
            state = retry_state(plan, self.request, self._options, trust=engine.trust_request_headers)
            if state is not None:
                self._retrier = Retrier(engine, state, self._replayable, self._started)
        return self._retrier

    def _may_retry_success(self, plan: ForwardPlan) -> bool:
        """Whether even a response below 500 may be one to retry."""
        if plan.retry is not None and RetryRules.of(plan.retry).looks_at_success:
            return True
        return self._engine.trust_request_headers or (
            self._options is not None and self._options.retry_on is not None
        )

    def _try_again(
        self, retrier: Retrier, attempt: Attempt, now: float, headers: Sequence[tuple[str, str]] = ()
    ) -> bool:
        """Arrange the next attempt; when there is none, set the flag that says why."""
        if retrier.schedule(attempt, now, headers):
            self._arm()
            return True
        if retrier.flag is not None:
            self._flag(retrier.flag)
        return False

    # --- time --------------------------------------------------------------------------------------------------------

    def _arm(self) -> None:
        """Set `wake_at` to the earliest of the call's timers."""
        earliest = self._deadline if self._deadline is not None else inf
        if self._idle_timeout and self._complete and self._active_at + self._idle_timeout < earliest:
            earliest = self._active_at + self._idle_timeout
        retry_at = self._retrier.at if self._retrier is not None else None
        for moment in (self._stream_deadline, retry_at, self._filter_wait):
            if moment is not None and moment < earliest:
                earliest = moment
        for attempt in self._attempts:
            for moment in (attempt.per_try_at, attempt.stream_until):
                if moment is not None and moment < earliest:
                    earliest = moment
        self.wake_at = earliest

    def _message(self, _event: ev.Message, now: float) -> Actions:
        """The stream is not idle. `wake_at` stays: a timer that comes too early only sets the next one."""
        self._active_at = now
        return NOTHING

    def _upstream_timer(self, now: float) -> Actions:
        """Whichever timer of the attempt loop is due, the earliest first."""
        due = self.wake_at
        for attempt in self._attempts:
            if attempt.per_try_at is not None and attempt.per_try_at <= due:
                return self._per_try_timeout(attempt, now)
            if attempt.stream_until is not None and attempt.stream_until <= due:
                return self._stream_too_long(attempt, now)
        if self._retrier is not None and self._retrier.at is not None and self._retrier.at <= due:
            return self._start_attempt(now)
        if self._stream_deadline is not None and self._stream_deadline <= due:
            return self._give_up(Endings.MAX_STREAM_DURATION, now)
        if self._deadline is not None and self._deadline <= due:
            for attempt in self._attempts:
                if attempt.outcome is None:
                    attempt.cluster.state.stats.upstream_rq_timeout.value += 1
                    self._judge(attempt, False, now)
            return self._give_up(self._timeout_ending(Endings.ROUTE_TIMEOUT), now)
        if self._idle_timeout and self._active_at + self._idle_timeout <= now:
            return self._give_up(Endings.STREAM_IDLE, now)
        self._arm()
        return NOTHING

    def _per_try_timeout(self, attempt: Attempt, now: float) -> Actions:
        plan = self.plan
        assert plan is not None
        attempt.per_try_at = None
        attempt.cluster.state.stats.upstream_rq_per_try_timeout.value += 1
        self._judge(attempt, False, now)
        retrier = self._retries()
        if retrier is not None:
            retrier.after_timeout = True
            action = plan.route.action
            hedging = isinstance(action, RouteAction) and action.hedge_on_per_try_timeout
            if hedging and retrier.state.wants_reset(FailureKind.LOCAL_RESET, bytes_sent=True):
                return self._hedge(retrier, attempt, now)
        return self._reset_attempt(attempt, self._timeout_ending(Endings.PER_TRY_TIMEOUT), now)

    def _stream_too_long(self, attempt: Attempt, now: float) -> Actions:
        """The cluster's max_stream_duration passed for this attempt."""
        attempt.cluster.state.stats.upstream_rq_max_duration_reached.value += 1
        if self._retrier is not None:
            self._retrier.after_timeout = False
        if self.accepted is not None:
            return self._give_up(Endings.UPSTREAM_MAX_STREAM_DURATION, now)
        return self._reset_attempt(attempt, Endings.UPSTREAM_MAX_STREAM_DURATION, now)

    def _reset_attempt(self, attempt: Attempt, ending: Ending, now: float) -> Actions:
        """Give one attempt up on our side: it may be retried, others may go on, or the call ends."""
        attempt.per_try_at = attempt.stream_until = None
        attempt.record(now, failure=ending.details.replace("_", " "))
        attempt.give_back()
        cancel = act.CancelAttempt(attempt.number)
        retrier = self._retries()
        wanted = retrier is not None and retrier.state.wants_reset(FailureKind.LOCAL_RESET, bytes_sent=True)
        if (retrier is not None and wanted and self._try_again(retrier, attempt, now)) or self._others_alive(
            attempt
        ):
            return (cancel,)
        return (cancel, *self._end(ending, now))

    def _timeout_ending(self, ending: Ending) -> Ending:
        """The reply to a timeout; a trusted caller may ask for an empty 204 instead."""
        if self._engine.trust_request_headers and self.request.first(ALT_RESPONSE) is not None:
            return replace(ending, status=204, body="")
        return ending

    def _hedge(self, retrier: Retrier, attempt: Attempt, now: float) -> Actions:
        """Start the next attempt at once and leave this one alive; it is not tried again when it fails later."""
        scheduled = self._try_again(retrier, attempt, now)
        attempt.timed_out = True
        if scheduled:
            return self._start_attempt(now)
        self._arm()
        return NOTHING

    def _give_up(self, ending: Ending, now: float) -> Actions:
        """A deadline of the whole call passed: cancel what is alive and end the call."""
        return (*self._cancel_attempts(now, ending.details), *self._end(ending, now))

    def _cancel_attempts(self, now: float, why: str) -> list[act.Action]:
        cancelled: list[act.Action] = []
        for attempt in self._attempts:
            if attempt.outcome is None or attempt.number == self.accepted:
                attempt.record(now, failure=why)
                attempt.give_back()
                cancelled.append(act.CancelAttempt(attempt.number))
        return cancelled

    # --- the end -----------------------------------------------------------------------------------------------------

    def _end(self, ending: Ending, now: float) -> Actions:
        """End the call with one of Envoy's local replies."""
        if ending.flag:
            self._flag(ending.flag)
        self.details = ending.details
        listener = self._listener
        if listener is not None and listener.suppress_envoy_headers:
            ending = without_envoy_headers(ending)
        reply = self._grpc_reply(plain_reply(ending))
        if self._heads is not None and self.accepted is None:
            reply = self._heads.local_reply(reply, ",".join(self.flags) or "-", ending.details)
        if self.request.method == "HEAD":
            reply = replace(reply, body=b"")
        error = ending.error(
            describe(
                ending,
                self.request,
                self.plan.cluster if self.plan is not None else None,
                self.flags,
                self.records(),
            ),
            flags=",".join(self.flags) or "-",
            details=ending.details,
            attempts=self.records(),
            local_reply=reply,
        )
        return self._over(error, now)

    def _over(self, error: MeshError, now: float) -> Actions:
        self.details = self.details or error.details
        self._conclude(False if self._attempts else None, now)
        return (act.Fail(error),)

    def _cancelled(self, _event: ev.Cancelled, now: float) -> Actions:
        """The application gave up: cancel what is alive, give everything back, say nothing more."""
        if self._stage is Stage.DONE:
            return NOTHING
        if not self.details:
            self.details = "downstream_remote_disconnect"
        self._flag("DC")
        actions = self._cancel_attempts(now, "cancelled")
        self._conclude(None, now)
        return actions

    def _conclude(self, ok: bool | None, now: float) -> None:
        """The call is over; ok None: nobody knows how it would have ended."""
        if self._retrier is not None:
            self._retrier.cancel()
        self._stage = Stage.DONE
        self.wake_at = inf
        breaker, self._breaker = self._breaker, None
        if breaker is not None:
            breaker.record(ok, now)

    def __del__(self) -> None:
        if self._stage is Stage.DONE:
            return
        # A finalizer must not take a lock: its own thread may hold it. The next call of the cluster gives these back.
        for attempt in self._attempts:
            if attempt.holding is not Holding.NOTHING or attempt.retry_permit:
                attempt.cluster.state.abandoned.append(attempt.give_back)
        if self._retrier is not None:
            self._retrier.abandon()
        if self._mirrors is not None:
            self._mirrors.abandon()

    # --- small things ------------------------------------------------------------------------------------------------

    def _live(self, number: int) -> Attempt | None:
        """The attempt if it still counts: without a verdict, or the accepted one."""
        if not 0 < number <= len(self._attempts):
            return None
        attempt = self._attempts[number - 1]
        if attempt.outcome is not None and (self.accepted != number or self._stage is Stage.DONE):
            return None
        return attempt

    def _mirror_over(self, number: int) -> None:
        if self._mirrors is not None:
            self._mirrors.over(number)

    def _others_alive(self, attempt: Attempt) -> bool:
        if self._retrier is not None and self._retrier.at is not None:
            return True
        return any(other is not attempt and other.outcome is None for other in self._attempts)

    def _flag(self, flag: str) -> None:
        if flag not in self.flags:
            self.flags.append(flag)

    def _grpc_reply(self, reply: LocalReply) -> LocalReply:
        return grpc_form(reply) if is_grpc(self.request) else reply

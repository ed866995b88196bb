"""What a call is made of, and how it ends.

Whatever ends a call comes through here, so that everything it holds is given back exactly once: the attempts that are alive
are cancelled, the permit of a retry that is due is returned, the application's breaker hears of it. Afterwards no event
changes anything, but those that tell of mirrored copies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from enum import Enum
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any

from meshlib.engine import actions as act
from meshlib.engine import events as ev
from meshlib.engine.affinity import Affinity
from meshlib.engine.attempt import Attempt, Holding
from meshlib.engine.headers import REQUEST_ID, echoed
from meshlib.engine.heads import Heads
from meshlib.engine.mirrors import Mirrors
from meshlib.engine.observer import Observers, report
from meshlib.engine.replies import (
    Ending,
    Endings,
    broken_off,
    describe,
    grpc_form,
    plain_reply,
    without_envoy_headers,
)
from meshlib.engine.retrier import Retrier
from meshlib.errors import AttemptRecord, LocalReply, MeshError
from meshlib.routing.matchers.grpc import is_grpc
from meshlib.routing.reply import BODILESS
from meshlib.routing.request import Headers, RequestView

if TYPE_CHECKING:
    from meshlib.engine.context import InboundContext
    from meshlib.engine.engine import Engine
    from meshlib.engine.options import CallOptions
    from meshlib.engine.program import ListenerProgram, Program
    from meshlib.observe.decision import Decision
    from meshlib.policy.breaker import Breaker
    from meshlib.policy.failure import FailureKind
    from meshlib.policy.timeouts import Timeouts
    from meshlib.routing.compiled import CompiledRoute, ForwardPlan
    from meshlib.state import ClusterStats, RequestStats, ResponseCodes

__all__ = ["NOTHING", "Actions", "CallBase", "Stage"]

Actions = Sequence[act.Action]
NOTHING: Actions = ()


class Stage(Enum):
    """Where a call is; what an event means depends on it."""

    WAITING = "waiting for configuration"
    FILTERS = "in the filter chain"
    FORWARDING = "attempts are made"
    STREAMING = "an attempt is accepted, its response is not complete"
    DONE = "over"


class CallBase:
    """The state of a call. `AttemptLoop`, `TimedLoop` and `Call` add what moves it."""

    # Defaults of the class: a call sets what differs, and a call that goes well sets few of them.
    _stage: Stage
    _started = 0.0
    _complete = True
    _mirrors: Mirrors | None = None
    _affinity: Affinity | None = None
    _carried: Sequence[tuple[str, str]] = ()
    _retrier: Retrier | None = None
    _config_until: float | None = None
    _filter_wait: float | None = None
    _filter_carried: object = None
    _at_end: list[Callable[[], None]] | None = None
    _filter = -1
    _deadline: float | None = None
    _stream_deadline: float | None = None
    _user_deadline: float | None = None
    _heads: Heads | None = None
    _listener: ListenerProgram | None = None
    _timeouts: Timeouts | None = None
    _breaker: Breaker | None = None
    _idle_timeout = 0.0
    _active_at = 0.0
    _requested_at = 0.0
    _counted_by: tuple[RequestStats, ...] = ()
    wait_for_ready = False
    attempt_count = 0
    route: CompiledRoute | None = None
    plan: ForwardPlan | None = None
    accepted: int | None = None
    flags: tuple[str, ...] = ()
    details = ""
    wake_at = inf
    reply: LocalReply | None = None
    # What only observers ask for; a call that nobody observes sets none of it.
    _observers: Observers | None = None
    _head: ev.Headers | None = None
    _edited: Headers | None = None
    _trailers: Any = ()
    _sent: act.Start | None = None
    _over_at: float | None = None
    program: Program | None = None
    error: BaseException | None = None
    failure: str | None = None
    notes: dict[object, Any] | None = None
    _told_routed = False
    headers_to_add: tuple[tuple[str, str], ...] = ()
    passthrough = False
    _traffic: tuple[int, int, int, int] = (0, 0, 0, 0)

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
        self._attempts: list[Attempt] = []
        self._stage = Stage.WAITING

    def within(self, inbound: InboundContext) -> None:
        """The call is made for this inbound request: the deadline of that ends it too, and it has the same x-request-id."""
        moment = inbound.deadline
        if moment is not None and (self._user_deadline is None or moment < self._user_deadline):
            self._user_deadline = self._deadline = moment
        identity = inbound.request_id
        if identity is not None and self.request.first(REQUEST_ID) is None:
            self.request.add(REQUEST_ID, identity)
            self._carried = ((REQUEST_ID, identity),)

    def records(self) -> tuple[AttemptRecord, ...]:
        return tuple(attempt.outcome for attempt in self._attempts if attempt.over_at is not None)

    def decision(self) -> Decision | None:
        """Why the call went where it went, as far as it has come."""
        explainer = self._engine.explainer
        return None if explainer is None else explainer(self)

    # --- time --------------------------------------------------------------------------------------------------------

    def _arm(self) -> None:
        """Set `wake_at` to the earliest of the call's timers.

        stream_idle_timeout does not run while the application may still be making its request, but in the filters.
        """
        earliest = self._deadline if self._deadline is not None else inf
        idle = self._idle_timeout
        if idle and (self._complete or self._stage is Stage.FILTERS) and self._active_at + idle < earliest:
            earliest = self._active_at + idle
        if self._stream_deadline is not None and self._stream_deadline < earliest:
            earliest = self._stream_deadline
        if self._filter_wait is not None and self._filter_wait < earliest:
            earliest = self._filter_wait
        retrier = self._retrier
        if retrier is not None and retrier.at is not None and retrier.at < earliest:
            earliest = retrier.at
        for attempt in self._attempts:
            moment = attempt.per_try_at
            if moment is not None and moment < earliest:
                earliest = moment
            moment = attempt.stream_until
            if moment is not None and moment < earliest:
                earliest = moment
        self.wake_at = earliest

    # --- the end -----------------------------------------------------------------------------------------------------

    def at_end(self, give_back: Callable[[], None]) -> None:
        """Have this called when the call is over, whichever way it ends."""
        if self._at_end is None:
            self._at_end = []
        self._at_end.append(give_back)

    def _give_back(self) -> None:
        """The call is over: tell the filters that wanted to hear of it."""
        callbacks, self._at_end = self._at_end, None
        for give_back in callbacks or ():
            give_back()

    def _end(self, ending: Ending, now: float) -> Actions:
        """End the call with one of Envoy's local replies."""
        if ending.flag:
            self._flag(ending.flag)
        self.details = ending.details
        listener = self._listener
        if listener is not None and listener.suppress_envoy_headers:
            ending = without_envoy_headers(ending)
        if self.accepted is not None:
            ending = self._broken_off(ending)
        reply = self._grpc_reply(plain_reply(ending), ending.grpc_status)
        if self._heads is not None and self.accepted is None:
            reply = self._heads.local_reply(reply, ",".join(self.flags) or "-", ending.details)
        else:
            reply = replace(reply, headers=(*reply.headers, *self._echoed()))
        if self._affinity is not None and self.accepted is None:
            reply = self._affinity.local_reply(reply)
        if self.request.method == "HEAD" or reply.status in BODILESS:
            reply = replace(reply, body=b"")
        self.reply = reply
        if ending.details == Endings.CALLER_DEADLINE.details:
            self._count_http("downstream_rq_rx_reset")
        elif self.accepted is None:
            self._responded(reply.status)
        else:
            self._count_http("downstream_rq_tx_reset")
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

    def _broken_off(self, ending: Ending) -> Ending:
        """The ending of a call whose response had begun."""
        return broken_off(ending) if is_grpc(self.request) else ending

    def _over(self, error: MeshError, now: float) -> Actions:
        self.details = self.details or error.details
        self.failure = error.message
        error.decided_by(self.decision)
        if self._observers is not None:
            self.error = error
        actions = self._cancel_attempts(now, self.details.replace("_", " "))
        self._conclude(False if self._attempts else None, now)
        return (*actions, act.Fail(error))

    def _cancelled(self, _event: ev.Cancelled, now: float) -> Actions:
        """The application gave up: cancel what is alive, give everything back, say nothing more."""
        if self._stage is Stage.DONE:
            return NOTHING
        if not self.details:
            self.details = "downstream_remote_disconnect"
        self._flag("DC")
        self._count_http("downstream_rq_rx_reset")
        actions = self._cancel_attempts(now, "cancelled")
        self._conclude(None, now)
        return actions

    def _conclude(self, ok: bool | None, now: float) -> None:
        """The call is over; ok None: nobody knows how it would have ended."""
        if self._retrier is not None:
            self._retrier.cancel()
        if self._stage is Stage.WAITING:
            self._engine.forget(self._wake)
        self._stage = Stage.DONE
        self.wake_at = inf
        if self._listener is not None:
            self._listener.stats.ended += 1
        breaker, self._breaker = self._breaker, None
        if breaker is not None:
            breaker.record(ok, now)
        if self._at_end is not None:
            self._give_back()
        if self._observers is not None:
            self._tell_over(now)

    def __del__(self) -> None:
        # A finalizer must not take a lock: its own thread may hold it. The next call of the cluster gives these back.
        if self._mirrors is not None:
            self._mirrors.abandon()
        if self._stage is Stage.DONE:
            return
        if self._listener is not None:
            self._listener.stats.ended += 1
        for attempt in self._attempts:
            if attempt.holding is not Holding.NOTHING or attempt.retry_permit:
                attempt.cluster.state.abandoned.append(attempt.reset)
        if self._retrier is not None:
            self._retrier.abandon()
        if self._at_end is not None:
            self._engine.abandoned.extend(self._at_end)
        if self._breaker is not None and self._attempts:
            state = self._attempts[0].cluster.state
            state.abandoned.append(partial(self._breaker.record, None, self._started))
        if self._observers is not None:
            self._engine.abandoned.append(partial(self._dropped, self._engine.clock.monotonic()))

    def _cancel_attempts(self, now: float, why: str) -> list[act.Action]:
        """Cancel what is alive: attempts without a verdict, and the accepted one unless its response is complete."""
        cancelled: list[act.Action] = []
        for attempt in self._attempts:
            if attempt.over_at is None or attempt.holding is not Holding.NOTHING:
                attempt.record(now, failure=why)
                attempt.reset()
                cancelled.append(act.CancelAttempt(attempt.number))
        return cancelled

    # --- observers ---------------------------------------------------------------------------------------------------

    def _observe(self, observers: Observers, now: float) -> None:
        """The call has begun, and somebody wants to know."""
        engine = self._engine
        if engine.abandoned:
            engine.drain_abandoned()
        self._observers = observers
        self.program = engine.program
        for hook in observers.begun:
            try:
                hook(self, now)
            except Exception as error:  # noqa: BLE001 - nothing that watches a call may break it
                report(hook, error)

    def _tell_routed(self, now: float) -> None:
        """It is known where the call goes, or that it is over before that. Tells once."""
        observers = self._observers
        if observers is not None and not self._told_routed:
            self._told_routed = True
            for hook in observers.routed:
                try:
                    hook(self, now)
                except Exception as error:  # noqa: BLE001 - as in `_observe`
                    report(hook, error)

    def also_tell(self, observers: Observers) -> None:
        """From an observer, in `begun` or `routed`: these are told of what comes, instead of those of before."""
        if self._observers is not None:
            self._observers = observers

    @property
    def told(self) -> Observers | None:
        """Who is told of what comes."""
        return self._observers

    def _tell_begun(self, attempt: Attempt, now: float) -> tuple[tuple[str, str], ...]:
        """An endpoint has been picked. The headers to send there besides the request's own."""
        observers = self._observers
        if observers is not None:
            for hook in observers.attempt_begun:
                try:
                    hook(self, attempt, now)
                except Exception as error:  # noqa: BLE001 - as in `_observe`
                    report(hook, error)
        own = attempt.headers_to_add
        return (*self.headers_to_add, *own) if own else self.headers_to_add

    def _tell_attempt(self, attempt: Attempt, now: float) -> None:
        """The attempt is over. Tells once."""
        observers = self._observers
        if observers is not None and not attempt.told:
            attempt.told = True
            for hook in observers.attempt_over:
                try:
                    hook(self, attempt, now)
                except Exception as error:  # noqa: BLE001 - as in `_observe`
                    report(hook, error)

    def _tell_over(self, now: float) -> None:
        """The call is over. Tells once."""
        self._tell_routed(now)
        observers = self._observers
        if observers is None:
            return
        self._over_at = now
        if observers.attempt_over:
            for attempt in self._attempts:
                if not attempt.told:
                    self._tell_attempt(attempt, now)
        self._observers = None
        for hook in observers.over:
            try:
                hook(self, now)
            except Exception as error:  # noqa: BLE001 - as in `_observe`
                report(hook, error)
        self.notes = None
        if self.error is not None:
            self.error = None  # it refers to frames, and those to the call

    def _dropped(self, now: float) -> None:
        """Nobody had it any more at `now`; what it held is given back elsewhere."""
        self._stage = Stage.DONE
        self.details = self.details or "downstream_remote_disconnect"
        self._flag("DC")
        for attempt in self._attempts:
            attempt.record(now, failure="cancelled")
        self._tell_over(now)

    # --- small things ------------------------------------------------------------------------------------------------

    def _live(self, number: int) -> Attempt | None:
        """The attempt if it still counts: without a verdict, or the accepted one."""
        if self._stage is Stage.DONE or not 0 < number <= len(self._attempts):
            return None
        attempt = self._attempts[number - 1]
        return attempt if attempt.over_at is None or self.accepted == number else None

    def _mirror_over(self, number: int, now: float, failure: FailureKind | None = None) -> None:
        if self._mirrors is not None:
            self._mirrors.over(number, now, failure)

    # --- counting ----------------------------------------------------------------------------------------------------

    def _count_status(self, stats: ClusterStats, status: int) -> None:
        """A response, or the answer that stands for one, of an attempt at this cluster."""
        codes: ResponseCodes = stats.internal if self._engine.trust_request_headers else stats.external
        codes.count(status)
        for counted in self._counted_by:
            counted.codes.count(status)

    def _charge(self, attempt: Attempt, status: int) -> None:
        """The attempt came to nothing: its cluster is charged with the answer that stands for that."""
        if self.accepted is None:
            self._count_status(attempt.cluster.state.stats, status)

    def _count_abandoned(self, attempt: Attempt) -> None:
        """The request's body is too long to be kept for what would have needed it again."""
        plan = self.plan
        if plan is not None and (plan.retry is not None or plan.mirrors or self._options is not None):
            attempt.cluster.state.stats.more("retry_or_shadow_abandoned")

    def _retry_succeeded(self, attempt: Attempt) -> None:
        attempt.cluster.state.stats.upstream_rq_retry_success.value += 1
        self._count_requests("upstream_rq_retry_success")

    def _count_requests(self, leaf: str) -> None:
        """One more of a counter of the route and the virtual cluster."""
        for stats in self._counted_by:
            stats.more(leaf)

    def _responded(self, status: int) -> None:
        """The application gets a response with this HTTP status."""
        if self._listener is not None:
            self._listener.stats.responded(status)

    def _count_http(self, leaf: str) -> None:
        """One more of `http.<stat_prefix>.<leaf>`."""
        if self._listener is not None:
            self._listener.stats.more(leaf)

    def _others_alive(self, attempt: Attempt) -> bool:
        if self._retrier is not None and self._retrier.at is not None:
            return True
        return any(other is not attempt and other.over_at is None for other in self._attempts)

    def _flag(self, flag: str) -> None:
        if flag not in self.flags:
            self.flags = (*self.flags, flag)

    def _echoed(self) -> Headers:
        """The headers that every response of the listener gets."""
        if self._listener is None or not self._engine.envoy_headers:
            return []
        return echoed(self.request, self._listener.listener.http)

    def _grpc_reply(self, reply: LocalReply, grpc_status: int | None = None) -> LocalReply:
        return grpc_form(reply, grpc_status) if is_grpc(self.request) else reply

"""What happens when one of a call's timers is due: back-off, per-try timeout, deadline, stream duration, idle stream.

`wake_at` is the earliest of them. It may be too early, since a timer that became pointless is not taken out: then nothing is
due and the next one is set. When several are due, they come one by one, the transport calling again at once.
"""

from __future__ import annotations

from dataclasses import replace

from meshlib.engine import actions as act
from meshlib.engine import events as ev
from meshlib.engine.attempt import Attempt
from meshlib.engine.base import NOTHING, Actions, Stage
from meshlib.engine.headers import ALT_RESPONSE
from meshlib.engine.loop import AttemptLoop
from meshlib.engine.replies import Ending, Endings
from meshlib.policy.failure import FailureKind
from meshlib.routing.matchers.grpc import is_grpc

__all__ = ["TimedLoop"]


class TimedLoop(AttemptLoop):
    """The attempt loop with its timers."""

    def _message(self, _event: ev.Message, now: float) -> Actions:
        """The stream is not idle. `wake_at` stays: a timer that comes too early only sets the next one."""
        self._active_at = now
        return NOTHING

    def _upstream_timer(self, now: float) -> Actions:
        """Whichever timer of the attempt loop is due, the earliest first."""
        due = self.wake_at
        if self._user_deadline is not None and self._user_deadline <= due and is_grpc(self.request):
            return self._end(Endings.CALLER_DEADLINE, now)
        for attempt in self._attempts:
            if attempt.per_try_at is not None and attempt.per_try_at <= due:
                return self._per_try_timeout(attempt, now)
            if attempt.stream_until is not None and attempt.stream_until <= due:
                return self._stream_too_long(attempt, now)
        if self._retrier is not None and self._retrier.at is not None and self._retrier.at <= due:
            self._retrier.begin()
            return self._start_attempt(now)
        if self._stream_deadline is not None and self._stream_deadline <= due:
            self._count_http("downstream_rq_max_duration_reached")
            return self._end(Endings.MAX_STREAM_DURATION, now)
        if self._deadline is not None and self._deadline <= due:
            ending = self._timeout_ending(Endings.ROUTE_TIMEOUT)
            for attempt in self._attempts:
                if attempt.over_at is None or attempt.number == self.accepted:
                    attempt.cluster.state.stats.upstream_rq_timeout.value += 1
                    self._count_requests("upstream_rq_timeout")
                if attempt.over_at is None:
                    self._charge(attempt, ending.status)
                    if not attempt.timed_out:
                        self._judge(attempt, False, now)
            return self._end(ending, now)
        idle = self._idle_timeout
        if idle and (self._complete or self._stage is Stage.FILTERS) and self._active_at + idle <= now:
            self._count_http("downstream_rq_idle_timeout")
            return self._end(Endings.STREAM_IDLE, now)
        self._arm()
        return NOTHING

    def _per_try_timeout(self, attempt: Attempt, now: float) -> Actions:
        attempt.per_try_at = None
        self._judge(attempt, False, now)
        if self._hedges():
            return self._hedge(attempt, now)
        attempt.cluster.state.stats.upstream_rq_per_try_timeout.value += 1
        ending = self._timeout_ending(Endings.PER_TRY_TIMEOUT)
        return self._reset_attempt(attempt, ending, now, charged=ending.status, after_timeout=True)

    def _stream_too_long(self, attempt: Attempt, now: float) -> Actions:
        """The cluster's max_stream_duration passed for this attempt."""
        attempt.cluster.state.stats.upstream_rq_max_duration_reached.value += 1
        if self.accepted is not None:
            return self._end(Endings.UPSTREAM_MAX_STREAM_DURATION, now)
        return self._reset_attempt(attempt, Endings.UPSTREAM_MAX_STREAM_DURATION, now)

    def _reset_attempt(
        self, attempt: Attempt, ending: Ending, now: float, *, charged: int = 0, after_timeout: bool = False
    ) -> Actions:
        """Give one attempt up on our side: it may be retried, others may go on, or the call ends."""
        attempt.record(now, failure=ending.details.replace("_", " "))
        self._tell_attempt(attempt, now)
        cancel = act.CancelAttempt(attempt.number)
        retrier = self._retries()
        wanted = retrier is not None and retrier.state.wants_reset(FailureKind.LOCAL_RESET, bytes_sent=True)
        attempt.count_reset()
        if self._lost(
            attempt, retrier if wanted else None, now, charged=charged, after_timeout=after_timeout
        ):
            return (cancel,)
        return (cancel, *self._end(ending, now))

    def _timeout_ending(self, ending: Ending) -> Ending:
        """The reply to a timeout; a trusted caller may ask for an empty 204 instead."""
        if self._engine.trust_request_headers and self.request.first(ALT_RESPONSE) is not None:
            return replace(ending, status=204, body="")
        return ending

    def _hedge(self, attempt: Attempt, now: float) -> Actions:
        """Arrange another attempt, after the usual back-off, and leave this one alive.

        As in Envoy, whatever retry_on says: nothing was reset. An attempt that was followed is not retried when it fails later.
        """
        retrier = self._retries()
        attempt.timed_out = True
        attempt.followed = retrier is not None and self._try_again(retrier, attempt, now, after_timeout=True)
        self._arm()
        return NOTHING

"""Whether and when a call is tried again. Made when the first attempt of a call goes wrong, never on the success path."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from meshlib.engine.attempt import Attempt
from meshlib.policy.override import retry_policy
from meshlib.policy.retry import RetryState, push_back
from meshlib.policy.schedule import Schedule
from meshlib.routing.plan import ForwardPlan
from meshlib.routing.request import RequestView
from meshlib.state import ClusterState, Permits, RequestStats

if TYPE_CHECKING:
    from meshlib.engine.engine import Engine
    from meshlib.engine.options import CallOptions

__all__ = ["Retrier", "retry_state"]


def retry_state(
    plan: ForwardPlan,
    request: RequestView,
    options: CallOptions | None,
    *,
    trust: bool,
    kind: type[RetryState] = RetryState,
) -> RetryState | None:
    """The retries of this call: the plan's policy with what the request's headers and the application say; None for none.

    kind: whose rules they follow.
    """
    policy = retry_policy(plan.retry, request, options, trust=trust)
    if policy is None:
        return None
    if options is None:
        return kind(policy)
    schedule = Schedule(stop=options.stop, wait=options.wait) if options.stop or options.wait else None
    return kind(policy, retries=options.retries, schedule=schedule)


class Retrier:
    """The retry policy of one call at work.

    state: Envoy's conditions and the number of retries left. at: when the next attempt is due (monotonic seconds), None
    when none is. armed: one was granted. after_timeout: the last one was because of a per-try timeout. flag: why the
    last refusal was one, `URX` or `UO`, None when the outcome was not worth a retry.
    """

    __slots__ = (
        "_counted_by",
        "_engine",
        "_held",
        "_replayable",
        "_started",
        "after_timeout",
        "armed",
        "at",
        "flag",
        "state",
    )

    def __init__(
        self,
        engine: Engine,
        state: RetryState,
        replayable: Callable[[], bool] | None,
        started: float,
        counted_by: tuple[RequestStats, ...] = (),
    ) -> None:
        """counted_by: what counts the call beside its cluster."""
        self._engine = engine
        self._counted_by = counted_by
        self._started = started
        self._replayable = replayable
        self._held: tuple[ClusterState, Permits] | None = None
        self.state = state
        self.at: float | None = None
        self.flag: str | None = None
        self.armed = False
        self.after_timeout = False

    def schedule(
        self,
        attempt: Attempt,
        now: float,
        headers: Sequence[tuple[str, str]] = (),
        *,
        after_timeout: bool = False,
    ) -> bool:
        """Arrange the attempt after this one. headers: of its response, which may say how long to wait.

        False: there will be none. The order of the checks is Envoy's: the number, the body, the retry permit. A call holds
        one retry permit at most, also while several of its attempts are alive: that of the attempt goes back first.
        """
        self.flag = None
        if attempt.followed:
            return False
        self.cancel()
        attempt.return_retry_permit()
        state = attempt.cluster.state
        if self.state.remaining == 0:
            self.flag = "URX"
            state.stats.upstream_rq_retry_limit_exceeded.value += 1
            self._count("upstream_rq_retry_limit_exceeded")
            return False
        if self._replayable is not None and not self._replayable():
            return False
        asked = push_back(headers)
        if asked is not None and asked < 0:
            return False
        elapsed = now - self._started
        engine = self._engine
        wait = self.state.take(
            attempt.number, engine.random, headers, epoch=engine.clock.time(), elapsed=elapsed, asked=asked
        )
        if wait is None:
            self.flag = "URX"
            state.stats.upstream_rq_retry_limit_exceeded.value += 1
            self._count("upstream_rq_retry_limit_exceeded")
            return False
        if not state.take_retry(attempt.permits):
            self.flag = "UO"
            state.stats.upstream_rq_retry_overflow.value += 1
            self._count("upstream_rq_retry_overflow")
            return False
        self._held = (state, attempt.permits)
        self.at = now + wait
        self.armed = True
        self.after_timeout = after_timeout
        return True

    def begin(self) -> None:
        """The wait is over, and the next attempt begins. It is counted now: one whose call ends meanwhile never was a retry."""
        assert self._held is not None
        stats = self._held[0].stats
        stats.upstream_rq_retry.value += 1
        stats.more(f"upstream_rq_retry_backoff_{'ratelimited' if self.state.rate_limited else 'exponential'}")
        self._count("upstream_rq_retry")

    def _count(self, leaf: str) -> None:
        for stats in self._counted_by:
            stats.more(leaf)

    def hand_over(self, attempt: Attempt) -> None:
        """The next attempt starts: it holds the permit from now on."""
        self.at = None
        if self._held is not None:
            self._held = None
            attempt.retry_permit = True

    def cancel(self) -> None:
        """No attempt will follow: give the permit back."""
        self.at = None
        if self._held is not None:
            state, permits = self._held
            self._held = None
            state.return_retry(permits)

    def abandon(self) -> None:
        """The same from a finalizer, which must not take a lock."""
        if self._held is not None:
            state, permits = self._held
            self._held = None
            state.abandoned.append(partial(state.return_retry, permits))

"""What becomes of a call when one of its attempts goes wrong: another one, those that are still alive, or nothing."""

from __future__ import annotations

from collections.abc import Sequence

from meshlib.engine.attempt import Attempt, Holding
from meshlib.engine.base import CallBase
from meshlib.engine.headers import HEDGE
from meshlib.engine.retrier import Retrier, retry_state
from meshlib.policy.retry import RetryState
from meshlib.resources.cluster import HttpProtocol

__all__ = ["RetryingCall"]


class RetryingCall(CallBase):
    """The retries of a call, whose state is made when its first attempt goes wrong."""

    _retry_rules: type[RetryState] | None = None

    def _retries(self) -> Retrier | None:
        """The call's retrier; None when neither the route nor the application wants retries."""
        if self._retrier is None:
            plan = self.plan
            assert plan is not None
            engine = self._engine
            state = retry_state(
                plan,
                self.request,
                self._options,
                trust=engine.trust_request_headers,
                kind=self._retry_rules or RetryState,
            )
            if state is not None:
                self._retrier = Retrier(engine, state, self._replayable, self._started, self._counted_by)
        return self._retrier

    def _try_again(
        self,
        retrier: Retrier,
        attempt: Attempt,
        now: float,
        headers: Sequence[tuple[str, str]] = (),
        *,
        after_timeout: bool = False,
    ) -> bool:
        """Arrange the next attempt; when there is none, set the flag that says why."""
        if retrier.schedule(attempt, now, headers, after_timeout=after_timeout):
            self._arm()
            return True
        if retrier.flag is not None:
            self._flag(retrier.flag)
        return False

    def _hedges(self) -> bool:
        """Whether a per-try timeout starts another attempt beside the one that is late (HedgePolicy).

        A trusted caller may say so, or the opposite, with x-envoy-hedge-on-per-try-timeout.
        """
        plan = self.plan
        assert plan is not None
        said = self.request.first(HEDGE) if self._engine.trust_request_headers else None
        return said == "true" or (plan.hedges and said != "false")

    def _lost(
        self,
        attempt: Attempt,
        retrier: Retrier | None,
        now: float,
        *,
        charged: int = 0,
        after_timeout: bool = False,
    ) -> bool:
        """The attempt broke or was given up: whether another one is arranged or alive. retrier None: it is not retried.
        charged: the status that the cluster is charged with if it is not; 0: with none.

        To a retry budget a request on HTTP/1.1 is active until its connection is closed, which comes after the decision; a
        stream of HTTP/2 is gone when it is reset.
        """
        attempt.per_try_at = attempt.stream_until = None
        self._end_stream(attempt)
        again = retrier is not None and self._try_again(retrier, attempt, now, after_timeout=after_timeout)
        attempt.give_back()
        if not again:
            if retrier is None:
                self._count_end_of_retries(attempt)
            if charged:
                self._charge(attempt, charged)
        return again or self._others_alive(attempt)

    def _count_end_of_retries(self, attempt: Attempt) -> None:
        """The attempt ended in a way that is not tried again: for Envoy the retry before it, if there was one, has succeeded."""
        if self._retrier is not None and self._retrier.armed and not attempt.followed:
            self._retry_succeeded(attempt)

    def _end_stream(self, attempt: Attempt) -> None:
        """Its stream is over before it is decided what follows: to a retry budget it is not active any more (see `_lost`)."""
        if attempt.holding is Holding.REQUEST and attempt.cluster.cluster.protocol is HttpProtocol.HTTP2:
            attempt.give_back()

    def _judge(self, attempt: Attempt, ok: bool, now: float) -> None:
        """Report the attempt's outcome to outlier detection."""
        outlier = attempt.cluster.outlier
        if outlier is not None and outlier.record(attempt.endpoint, ok, now):
            # A push may have replaced the balancer since the attempt began.
            current = self._engine.program.clusters.get(attempt.cluster.cluster.name, attempt.cluster)
            current.balancer.refresh()

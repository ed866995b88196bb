"""One attempt of a call: what it holds, and what it gives back."""

from __future__ import annotations

from enum import Enum
from typing import Any

from meshlib.engine.program import ClusterProgram
from meshlib.errors import AttemptRecord
from meshlib.state import EndpointState, Permits, RequestStats, Waiter

__all__ = ["Attempt", "Holding"]


class Holding(Enum):
    """Which permit the attempt holds. A waiting attempt also stands in its endpoint's queue."""

    NOTHING = "nothing"
    PENDING = "pending"
    REQUEST = "request"


class Attempt:
    """number: 1, 2, ... started: monotonic seconds. per_try_at: when its per-try timeout ends it, stream_until:
    when the cluster's max_stream_duration does, None for never.

    retry_permit: it is a retry and holds the cluster's permit for it. timed_out: its per-try timeout passed and it was left
    alive (hedging). followed: another attempt was arranged for it then. over_at: when its verdict was known, None until then;
    status, failure: the verdict. streamed: `upstream_rq_total` has it. counted_by: what counts it beside its cluster.

    headers_to_add: what an observer wants this attempt to carry. notes: what observers keep, by observer, None until one does.
    told: they have heard of its end. connection: what its connection is like, for access logs that show it
    (`Engine.shows_connections`); None until it has one. sent_at: then, too, when its request began to leave; whole: in one piece.
    """

    holding: Holding
    waiter: Waiter | None = None
    connecting = False
    per_try_at: float | None = None
    stream_until: float | None = None
    retry_permit = False
    timed_out = False
    followed = False
    streamed = False
    counted_by: tuple[RequestStats, ...] = ()
    over_at: float | None = None
    status: int | None = None
    failure: str | None = None
    headers_to_add: tuple[tuple[str, str], ...] = ()
    notes: dict[object, Any] | None = None
    told = False
    connection: object | None = None
    sent_at: float | None = None
    whole = False

    def __init__(
        self, number: int, endpoint: EndpointState, cluster: ClusterProgram, permits: Permits, started: float
    ) -> None:
        self.number = number
        self.endpoint = endpoint
        self.cluster = cluster
        self.permits = permits
        self.started = started
        self.holding = Holding.NOTHING

    def take_request_permit(self) -> bool:
        if not self.cluster.state.take_request(self.endpoint, self.permits):
            return False
        self.holding = Holding.REQUEST
        return True

    def count_stream(self) -> None:
        """It is certain that its request is on a connection: counted once.

        Not before: an attempt that begins with a permit may still find that there is no connection.
        """
        if not self.streamed:
            self.streamed = True
            self.cluster.state.stats.upstream_rq_total.value += 1
            for stats in self.counted_by:
                stats.upstream_rq_total.value += 1

    def count_reset(self) -> None:
        """It is given up on this side, and `give_back` follows."""
        if self.holding is Holding.PENDING:
            self.cluster.state.stats.more("upstream_rq_cancelled")
        elif self.holding is Holding.REQUEST and self.endpoint.way.multiplexed:
            self.cluster.state.stats.more("upstream_rq_tx_reset")

    def reset(self) -> None:
        """Give it up on this side."""
        self.count_reset()
        self.give_back()

    def give_back(self) -> None:
        """It is over: return every permit and let its timers go. Idempotent. One that stands in a queue leaves it."""
        self.per_try_at = self.stream_until = None
        state = self.cluster.state
        holding, self.holding = self.holding, Holding.NOTHING
        if holding is Holding.REQUEST:
            if not self.streamed:
                self.count_stream()
            state.return_request(self.endpoint, self.permits)
        elif holding is Holding.PENDING:
            state.end_pending(self.permits)
            self._leave_queue()
        if self.retry_permit:
            self.return_retry_permit()

    def return_retry_permit(self) -> None:
        if self.retry_permit:
            self.retry_permit = False
            self.cluster.state.return_retry(self.permits)

    def _leave_queue(self) -> None:
        waiter, self.waiter = self.waiter, None
        if waiter is None or self.connecting:
            return
        state = self.cluster.state
        if not state.withdraw(self.endpoint, waiter) and waiter.connection is None:
            state.connection_closed(self.endpoint, self.permits)

    def record(self, now: float, *, status: int | None = None, failure: str | None = None) -> None:
        """Write down how the attempt ended; the first verdict stays."""
        if self.over_at is None:
            self.over_at = now
            self.status = status
            self.failure = failure

    @property
    def outcome(self) -> AttemptRecord:
        """The verdict as the application sees it. Only once there is one."""
        assert self.over_at is not None
        return AttemptRecord(self.endpoint.key, self.status, self.failure, self.over_at - self.started)

"""The attempt loop: the part of a call that picks endpoints, makes attempts and decides what each outcome means.

Any number of attempts may be alive at once (hedging, mirroring). Until one is accepted, each verdict can lead to another
attempt; the accepted one cancels the others. Cluster and endpoint are looked up again for each attempt, so that a retry
sees what is there then; an attempt keeps the cluster it was started with, to give its permits back where it took them.
Permits are given back when an attempt ends, fails or is cancelled, exactly once; a call that is dropped without an end
gives them back through `ClusterState.abandoned`.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import TYPE_CHECKING

from meshlib.engine import actions as act
from meshlib.engine import events as ev
from meshlib.engine.affinity import Affinity
from meshlib.engine.attempt import Attempt, Holding
from meshlib.engine.base import NOTHING, Actions, Stage
from meshlib.engine.counting import count_failure
from meshlib.engine.mirrors import Mirrors
from meshlib.engine.replies import Endings, for_failure
from meshlib.engine.retries import RetryingCall
from meshlib.errors import MeshClosed
from meshlib.policy.failure import FailureKind
from meshlib.resources.route import Priority
from meshlib.routing.matchers.grpc import is_grpc
from meshlib.state import Admission, Waiter

if TYPE_CHECKING:
    from meshlib.balance.balancer import LoadBalancer
    from meshlib.engine.program import ClusterProgram, Program

__all__ = ["AttemptLoop"]

GRPC_SOUND = frozenset({"", "0", "1", "3", "5", "6", "7", "8", "9", "10", "11", "16"})
"""The gRPC statuses that Envoy's outlier detection does not take for a 5xx; an unknown one is as bad as UNKNOWN."""


ACCEPTED: Actions = (act.Accept(1),)
"""The first attempt's response, as it came."""


class AttemptLoop(RetryingCall):
    """From the first attempt to the accepted one. `TimedLoop` adds what time does to it."""

    def _await_configuration(
        self, what: str, program: Program, now: float, patience: float | None = None
    ) -> Actions:
        """Park until there is a new Program: at most until `config_timeout`, or the call's deadline, is over.

        patience: until that moment at most, and then the call goes on without it.
        """
        self._stage = Stage.WAITING
        engine = self._engine
        if engine.closed:
            return self._over(MeshClosed("the Mesh has been closed"), now)
        if self._config_until is None:
            self._config_until = now + engine.config_timeout
        until = self._config_until
        for moment in (self._deadline, self._stream_deadline):
            if moment is not None and moment < until:
                until = moment
        if now >= until:
            if self._user_deadline is not None and self._user_deadline <= now and is_grpc(self.request):
                return self._end(Endings.CALLER_DEADLINE, now)
            return self._over(engine.late(what, now - self._started), now)
        engine.await_program(self._wake, program)
        self.wake_at = until if patience is None else min(until, patience)
        return (act.Park(),)

    def _await_cluster(self, cluster: ClusterProgram, program: Program, now: float) -> Actions:
        """Park for the cluster's endpoints, or for its certificates; nothing to do when those have been awaited long enough."""
        name = cluster.cluster.name
        if cluster.secure_by is None:
            return self._await_configuration(f"the endpoints of cluster {name!r}", program, now)
        if now >= cluster.secure_by:
            self._engine.forget(self._wake)
            return NOTHING
        return self._await_configuration(
            f"what TLS to cluster {name!r} needs", program, now, cluster.secure_by
        )

    # --- starting an attempt -----------------------------------------------------------------------------------------

    def _start_attempt(self, now: float) -> Actions:
        """Pick an endpoint and start an attempt there, or end the call when there is none."""
        engine = self._engine
        plan = self.plan
        assert plan is not None
        program = engine.program
        cluster = program.clusters.get(plan.cluster)
        if cluster is None:
            patient = self.wait_for_ready
            if plan.cluster and not self._attempts and engine.awaits_cluster(plan.cluster, patient=patient):
                return self._await_configuration(f"Cluster {plan.cluster!r}", program, now)
            self._count_http("no_cluster")
            return self._end(Endings.no_cluster(plan.not_found_code), now)
        if cluster.awaited and not self._attempts and (parked := self._await_cluster(cluster, program, now)):
            return parked
        self._stage = Stage.FORWARDING
        state = cluster.state
        if state.abandoned:
            state.drain_abandoned()
        if cluster.breaker is not None and not self._attempts and self._breaker is None:
            if not cluster.breaker.admit(now):
                return self._end(Endings.breaker_open(cluster.cluster.name), now)
            self._breaker = cluster.breaker
        outlier = cluster.outlier
        if outlier is not None and now >= outlier.next_sweep and outlier.sweep(now):
            cluster.balancer.refresh()
        self.attempt_count += 1
        balancer = cluster.balancer
        endpoint = balancer.pick(now, self._hash(balancer, now) if balancer.hashed else None)
        if endpoint is None:
            return self._no_endpoint(cluster, program, now)
        permits = state.default if plan.priority is Priority.DEFAULT else state.high
        attempt = Attempt(len(self._attempts) + 1, endpoint, cluster, permits, now)
        self._attempts.append(attempt)
        if plan.counted:
            attempt.counted_by = self._counted_by
        if self._retrier is not None:
            self._retrier.hand_over(attempt)
        extra: Sequence[tuple[str, str]] = ()
        if self._observers is not None:
            extra = self._tell_begun(attempt, now)
        permitted = state.take_request(endpoint, permits)
        if permitted:
            attempt.holding = Holding.REQUEST
            self._start_stream(attempt, now)
        self._arm()
        request = self.request
        authority, path, headers = request.authority, request.path, None
        if self._heads is not None:
            after_timeout = self._retrier is not None and self._retrier.after_timeout
            timeout_ms = self._expected_timeout(now)
            authority, path, headers = self._heads.upstream(attempt, timeout_ms, after_timeout=after_timeout)
        elif self._carried:
            extra = (*self._carried, *extra)
        start = act.Start(
            attempt.number,
            endpoint,
            cluster.cluster,
            state,
            permits,
            authority,
            path,
            headers,
            permitted,
            extra,
        )
        if self._observers is not None:
            self._sent = start
        if plan.mirrors and attempt.number == 1 and self._mirrors is None:
            self._mirrors = Mirrors()
            return (start, *self._mirrors.start(engine, plan.mirrors, start, now))
        return (start,)

    def _hash(self, balancer: LoadBalancer, now: float) -> int | None:
        """What the next attempt is hashed to; None when the request has nothing to hash."""
        plan = self.plan
        assert plan is not None
        if plan.hash_of is None and balancer.hash_of is None:
            return None
        request = self.request
        if self._heads is not None:
            after_timeout = self._retrier is not None and self._retrier.after_timeout
            number, timeout_ms = len(self._attempts) + 1, self._expected_timeout(now)
            request = self._heads.prepare(number, timeout_ms, after_timeout=after_timeout)
        if self._affinity is None:
            self._affinity = Affinity(self._engine.random)
        return self._affinity.hash_of(request, plan, balancer)

    def _no_endpoint(self, cluster: ClusterProgram, _program: Program, now: float) -> Actions:
        """Nothing can be picked."""
        stats = cluster.state.stats
        stats.more("upstream_cx_none_healthy")
        self._count_status(stats, 503)
        return self._end(Endings.NO_HEALTHY_UPSTREAM, now)

    def _expected_timeout(self, now: float) -> int | None:
        """x-envoy-expected-rq-timeout-ms: the per-try timeout or what is left of the route's, at least 1; None for none.

        With hedging the per-try timeout ends nothing: the endpoint may use what is left of the route's. Where the route has none,
        what is left for the caller counts (a gRPC call tells its own by grpc-timeout).
        """
        timeouts = self._timeouts
        assert timeouts is not None
        expected = timeouts.route if self._hedges() else timeouts.per_try or timeouts.route
        if self._deadline is not None and (timeouts.route or not is_grpc(self.request)):
            expected = min(expected or inf, max(self._deadline - now, 0.001))
        return max(1, round(expected * 1000)) if expected else None

    def _start_per_try(self, attempt: Attempt, now: float) -> None:
        """The attempt has its connection and the whole request: its own timeout runs."""
        timeouts = self._timeouts
        if timeouts is not None and timeouts.per_try:
            attempt.per_try_at = now + timeouts.per_try

    def _start_stream(self, attempt: Attempt, now: float) -> None:
        """The attempt is on its connection: the cluster's max_stream_duration runs."""
        longest = attempt.cluster.longest
        if longest:
            attempt.stream_until = now + longest
        timeouts = self._timeouts
        if timeouts is not None and timeouts.per_try and self._complete:
            attempt.per_try_at = now + timeouts.per_try

    # --- connections -------------------------------------------------------------------------------------------------

    def _need_connection(self, event: ev.NeedConnection, now: float) -> Actions:
        attempt = self._live(event.attempt)
        if attempt is None:
            return NOTHING
        if attempt.holding is Holding.REQUEST:
            attempt.holding = Holding.NOTHING
            attempt.cluster.state.return_request(attempt.endpoint, attempt.permits)
        elif attempt.holding is Holding.PENDING:  # the connection that it got was used up by others
            attempt.holding = Holding.NOTHING
            attempt.cluster.state.end_pending(attempt.permits)
            attempt.connecting = False
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
        attempt.count_stream()
        self._start_stream(attempt, now)
        self._arm()
        return NOTHING

    def _served(self) -> Actions:
        """Woken in an endpoint's queue: connect the attempts that were served, park the others again."""
        actions: list[act.Action] = []
        for attempt in self._attempts:
            waiter = attempt.waiter
            if attempt.over_at is not None or waiter is None or attempt.connecting:
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
        self._count_end_of_retries(attempt)
        self._charge(attempt, 503)
        self._tell_attempt(attempt, now)
        if self._others_alive(attempt):
            return (act.CancelAttempt(attempt.number),)
        ending = Endings.overflow(retried=len(self._attempts) > 1)
        return (act.CancelAttempt(attempt.number), *self._end(ending, now))

    # --- outcomes ----------------------------------------------------------------------------------------------------

    def _response(self, event: ev.Headers, now: float) -> Actions:
        plan = self.plan
        if (
            event.end
            and 200 <= event.status < 300
            and self.request.method != "POST"  # which may be gRPC over HTTP, with its status in the headers
            and plan is not None
            and not plan.looks_at_success
            and self._plain(event)
        ):
            return self._take(event, now)
        return self._decide(event, now)

    def _decide(self, event: ev.Headers, now: float) -> Actions:
        """What the response headers mean: another attempt, or the answer."""
        attempt = self._live(event.attempt)
        if attempt is None or self.accepted is not None:
            if self._mirrors is not None:
                self._mirrors.responded(event, now)
            return NOTHING
        status = event.status
        attempt.count_stream()
        self._active_at = now
        if attempt.cluster.outlier is not None:
            ok = status < 500 and not (self.request.method == "POST" and self._grpc_fault(event))
            if not ok or attempt.endpoint.consecutive_5xx:
                self._judge(attempt, ok, now)
        attempt.per_try_at = None
        plan = self.plan
        assert plan is not None
        retrier = self._retrier
        if (
            status >= 500
            or plan.looks_at_success
            or self._options is not None
            or self._engine.trust_request_headers
        ):
            retrier = self._retries()
            if retrier is not None and retrier.state.wants_response(status, event.headers):
                if not (event.end and self._complete):
                    attempt.count_reset()
                if event.end and is_grpc(self.request):  # a status alone; of HTTP, `end` may include a body
                    self._end_stream(attempt)
                again = self._try_again(retrier, attempt, now, event.headers)
                if again or self._others_alive(attempt):
                    attempt.record(now, status=status)
                    if again:
                        attempt.cluster.state.stats.retried.count(status)
                    attempt.give_back()
                    self._tell_attempt(attempt, now)
                    return (act.CancelAttempt(attempt.number),)
                return self._accept(attempt, event, now)
        self._count_end_of_retries(attempt)
        return self._accept(attempt, event, now)

    def _succeeded(self, event: ev.Succeeded, now: float) -> Actions:
        """As `_response`, in one piece where there is nothing to decide."""
        plan = self.plan
        if plan is None or plan.looks_at_ok or not self._plain(event):
            return self._decide(event, now)
        return self._take(event, now)

    def _plain(self, event: ev.Headers) -> bool:
        """Whether this is the only attempt, and nothing looks at what comes back or edits it."""
        return (
            len(self._attempts) == 1
            and event.attempt == 1
            and self.accepted is None
            and self._stage is Stage.FORWARDING
            and self._retrier is None
            and self._heads is None
            and self._affinity is None
            and self._breaker is None
            and self._options is None
            and not self._engine.trust_request_headers
        )

    def _take(self, event: ev.Headers, now: float) -> Actions:
        """A plain attempt has succeeded, and its response is complete."""
        attempt = self._attempts[0]
        if attempt.endpoint.consecutive_5xx:
            self._judge(attempt, True, now)
        attempt.over_at = now
        attempt.status = event.status
        self.accepted = 1
        self.details = "via_upstream"
        stats = attempt.cluster.state.stats
        if not attempt.streamed:
            attempt.streamed = True
            stats.upstream_rq_total.value += 1
        stats.external.count(event.status)
        listener = self._listener
        assert listener is not None
        http = listener.stats
        http.downstream_rq_completed.value += 1
        http.downstream_rq_2xx.value += 1
        if self._observers is not None:
            self._head = event
        self._finish(attempt, now)
        return ACCEPTED

    def _grpc_fault(self, event: ev.Headers) -> bool:
        """Whether the response is a gRPC one that is over already, with a status that stands for a 5xx."""
        if type(event) is ev.Succeeded or not is_grpc(self.request):
            return False
        return next((value for name, value in event.headers if name == "grpc-status"), "") not in GRPC_SOUND

    def _accept(self, attempt: Attempt, event: ev.Headers, now: float) -> Actions:
        attempt.record(now, status=event.status)
        cancelled = self._cancel_others(now) if len(self._attempts) > 1 else NOTHING
        if self._retrier is not None:
            self._retrier.cancel()
            attempt.return_retry_permit()
        self.accepted = attempt.number
        self.details = "via_upstream"
        self._count_status(attempt.cluster.state.stats, event.status)
        self._responded(event.status)
        if self._breaker is not None:
            self._breaker.record(event.status < 500, now)
            self._breaker = None
        heads = self._heads
        affinity = self._affinity
        received = event.headers if affinity is None else affinity.before_edits(event.headers)
        headers = None
        if heads is not None:
            flags = ",".join(self.flags) or "-"
            headers = heads.response(event.status, received, attempt, flags, now)
        if affinity is not None:
            headers = affinity.after_edits(received, headers)
        if self._observers is not None:
            self._head, self._edited = event, headers
        if event.end:
            self._finish(attempt, now)
        else:
            self._stage = Stage.STREAMING
            self._arm()
        accept = act.Accept(attempt.number, headers)
        return (*cancelled, accept) if cancelled else (accept,)

    def _cancel_others(self, now: float) -> Actions:
        """One attempt is accepted: cancel those that have no verdict."""
        actions: list[act.Action] = []
        for other in self._attempts:
            if other.over_at is None:
                other.record(now, failure="cancelled")
                other.reset()
                self._tell_attempt(other, now)
                actions.append(act.CancelAttempt(other.number))
        return actions

    def _end_of_response(self, event: ev.End, now: float) -> Actions:
        attempt = self._live(event.attempt)
        if attempt is None:
            self._mirror_over(event.attempt, now)
        elif self.accepted == event.attempt:
            if self._observers is not None:
                self._trailers = event.trailers
            self._finish(attempt, now)
        return NOTHING

    def _finish(self, attempt: Attempt, now: float) -> None:
        """The accepted response is complete."""
        stats = attempt.cluster.state.stats
        if self._complete:
            since = self._requested_at or self._started
            stats.time((now - since) * 1000, self._engine.trust_request_headers)
            if self._counted_by:
                for counted in self._counted_by:
                    counted.upstream_rq_time.record((now - since) * 1000)
        else:
            attempt.count_reset()
        attempt.give_back()
        listener = self._listener
        if listener is not None:
            listener.stats.ended += 1
        self._stage = Stage.DONE
        self.wake_at = inf
        if self._at_end is not None:
            self._give_back()
        if self._observers is not None:
            self._tell_over(now)

    def _attempt_failed(self, event: ev.Failed, now: float) -> Actions:
        attempt = self._live(event.attempt)
        if attempt is None:
            self._mirror_over(event.attempt, now, event.kind)
            return NOTHING
        kind = event.kind
        self._count_failure(attempt, kind, now)
        if self.accepted is not None:
            if self.accepted != attempt.number:
                return NOTHING
            attempt.give_back()
            if is_grpc(self.request):
                self._count_http("rq_reset_after_downstream_response_started")
            return self._end(for_failure(kind, "", retried=False, started=True), now)
        attempt.record(now, failure=kind.value)
        self._tell_attempt(attempt, now)
        retrier = self._retries()
        wanted = retrier is not None and retrier.state.wants_reset(kind, event.bytes_sent)
        ending = for_failure(kind, event.reason, retried=len(self._attempts) > 1, started=False)
        if self._lost(attempt, retrier if wanted else None, now, charged=ending.status):
            return NOTHING
        return self._end(ending, now)

    def _count_failure(self, attempt: Attempt, kind: FailureKind, now: float) -> None:
        """For the cluster's counters and for outlier detection."""
        count_failure(attempt.cluster.state.stats, kind, multiplexed=attempt.endpoint.way.multiplexed)
        self._judge(attempt, False, now)

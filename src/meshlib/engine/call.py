"""The life of one call, without I/O.

A call goes through four stages. It *waits* until the configuration that it needs is there; it is *routed*; the HTTP
*filters* look at it in order; then it is *forwarded*: an endpoint is picked, an attempt is made, and its outcome decides
whether it is accepted, retried or ends the call (`meshlib.engine.loop`). The transport reports what happens with
`handle(event, now)` and carries out the actions that come back. It must call `handle(Timer(), now)` when `wake_at` is
reached; which of the call's timers that is (back-off, per-try timeout, deadline) is known only here.

Route and policies are pinned when the call is routed. What is not there yet (a listener, a route configuration, a cluster,
its endpoints) parks the call; it goes on from the same place when a new Program is published, and fails when the time that
it may wait is over: at most min(its own deadline, `Engine.config_timeout`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from typing import TYPE_CHECKING, Any

from meshlib.engine import actions as act
from meshlib.engine import events as ev
from meshlib.engine.attempt import Holding
from meshlib.engine.base import NOTHING, Actions, Stage
from meshlib.engine.headers import arriving
from meshlib.engine.heads import Heads
from meshlib.engine.observed import ObservedCall
from meshlib.engine.replies import Endings
from meshlib.engine.steps import GO_ON, Answer, Ask, FilterContext, GoOn, Step, WaitUntil
from meshlib.errors import AttemptRecord, LocalReply, MeshClosed
from meshlib.policy.timeouts import effective
from meshlib.routing.matchers.grpc import is_grpc
from meshlib.routing.path import NormalPath, PathAction, redirect_to
from meshlib.routing.virtual_clusters import virtual_cluster_of

if TYPE_CHECKING:
    from meshlib.engine.program import ListenerProgram, Program
    from meshlib.observe.decision import Decision
    from meshlib.routing.compiled import CompiledRoute, ForwardPlan
    from meshlib.state import RequestStats

__all__ = ["HANDLERS", "Call", "CallInfo"]


class CallInfo:
    """What became of a call. Read it whenever you like; it is complete once the response has been read or closed."""

    __slots__ = ("_call",)

    def __init__(self, call: Call) -> None:
        self._call = call

    @property
    def flags(self) -> str:
        """Envoy's response flags, comma-joined in the order they were set; `-` when there are none."""
        return ",".join(self._call.flags) or "-"

    @property
    def details(self) -> str:
        """Envoy's response code details: `via_upstream`, `route_not_found`, ..."""
        return self._call.details

    @property
    def attempts(self) -> tuple[AttemptRecord, ...]:
        """The attempts whose verdict is known, in the order they were made."""
        return self._call.records()

    @property
    def attempt_count(self) -> int:
        """How many attempts Envoy would count (`%UPSTREAM_REQUEST_ATTEMPT_COUNT%`): also one that found no endpoint."""
        return self._call.attempt_count

    @property
    def cluster(self) -> str | None:
        """The cluster that the route chose, None when no request was to be forwarded."""
        plan = self._call.plan
        return plan.cluster if plan is not None else None

    @property
    def route(self) -> str | None:
        """The route's name, or its index in the virtual host when it has none."""
        route = self._call.route
        if route is None or route.index < 0:
            return None
        return route.resource.name or str(route.index)

    @property
    def virtual_host(self) -> str | None:
        route = self._call.route
        return None if route is None else route.virtual_host.name

    @property
    def decision(self) -> Decision | None:
        """Why the call went where it went, with every attempt; put together when it is asked for."""
        return self._call.decision()

    def __repr__(self) -> str:
        return f"<CallInfo flags={self.flags} details={self.details} attempts={len(self.attempts)}>"


class Call(ObservedCall):
    """One call. Not thread safe: a transport handles one event at a time; only `wake` is called from elsewhere."""

    @property
    def info(self) -> CallInfo:
        return CallInfo(self)

    @property
    def caller_deadline(self) -> float | None:
        """When the call ends for its caller, monotonic seconds; None: never."""
        return self._user_deadline

    @property
    def delayed(self) -> bool:
        """Whether a filter keeps the request back until a moment. To the application it is a server that takes its time."""
        return self._filter_wait is not None

    @property
    def buffer_limit(self) -> int:
        """How many bytes of a streamed request body may be kept for another attempt. Valid once the call is routed."""
        assert self._listener is not None and self.route is not None
        limit = self._listener.listener.per_connection_buffer_limit_bytes
        own = self.route.virtual_host.per_request_buffer_limit_bytes
        return limit if own is None else min(limit, own)

    @property
    def hedges(self) -> bool:
        """Whether several attempts may be alive at once. Valid once the call is routed."""
        plan = self.plan
        return plan is not None and (plan.hedges or self._engine.trust_request_headers) and self._hedges()

    def handle(self, event: ev.Event, now: float) -> Actions:
        """Take one event and say what to do. now: monotonic seconds. Events of a call that is over change nothing."""
        return HANDLERS[type(event)](self, event, now)

    def begin(self, now: float) -> Actions:
        """`handle(BEGIN, now)`, which every call has."""
        return self._begin(ev.BEGIN, now)

    def succeed(self, number: int, headers: Sequence[tuple[str, str]], now: float) -> Actions:
        """`handle(Succeeded(number, 200, headers, True), now)`, which most calls of gRPC have."""
        return self._succeeded(ev.Succeeded(number, 200, headers, True), now)

    # --- waiting for configuration, routing, filters ---------------------------------------------------------------

    def _begin(self, event: ev.Begin, now: float) -> Actions:
        self._started = now
        self._complete = event.complete
        observers = self._engine.observers
        if observers.outbound:
            self._observe(observers, now)
        if self._engine.closed:
            return self._over(MeshClosed("the Mesh has been closed"), now)
        options = self._options
        if options is not None:
            timeout = None if options.timeout is None else now + options.timeout
            moments = (self._user_deadline, options.deadline, timeout)
            self._user_deadline = min((moment for moment in moments if moment is not None), default=None)
            self._deadline = self._user_deadline
        if self._user_deadline is not None and self._user_deadline <= now:
            return self._end(Endings.CALLER_DEADLINE if is_grpc(self.request) else Endings.ROUTE_TIMEOUT, now)
        return self._find_route(now)

    def _find_route(self, now: float) -> Actions:
        engine = self._engine
        program = engine.program
        likeness = self.request.likeness
        if likeness is not None:
            known = program.known(likeness)
            if known is not None:
                return self._take_route(program, known.listener, known.route, now)
        target = engine.listener_name(self.request.target)
        listener = program.find(target)
        if listener is None:
            if engine.awaits_listener(target, patient=self.wait_for_ready):
                return self._await_configuration(f"Listener {target!r}", program, now)
            if engine.passthrough:
                self._leave(now)
            return self._end(Endings.unknown_host(target), now)
        table = listener.table
        if table is None and (listener.awaited or (self.wait_for_ready and not program.snapshot.complete)):
            name = listener.listener.http.route_config_name
            return self._await_configuration(f"RouteConfiguration {name!r}", program, now)
        self._meet(listener)
        if "#" in self.request.path:
            self._count_http("downstream_rq_failed_path_normalization")
            return self._end(Endings.PATH_NORMALIZATION_FAILED, now)
        if listener.normalise_path is not None:
            ended = self._normalise_path(listener.normalise_path, now)
            if ended is not None:
                return ended
        if listener.normalise is not None:
            self.request.authority = listener.normalise(self.request.authority)
        if engine.envoy_headers:
            manager = listener.listener.http
            self.request = arriving(
                self.request, manager, engine.random, trusted=engine.trust_request_headers
            )
        route = None if table is None else table.find(self.request, engine.random)
        likeness = self.request.likeness
        if likeness is not None and route is not None and route.steady and listener.lets_be:
            program.remember(likeness, listener, route)
        return self._take_route(program, listener, route, now)

    def _meet(self, listener: ListenerProgram) -> None:
        """The call belongs to this listener. Counts once."""
        if self._listener is None:
            self._listener = listener
            listener.stats.downstream_rq_total.value += 1

    def _take_route(
        self, program: Program, listener: ListenerProgram, route: CompiledRoute | None, now: float
    ) -> Actions:
        self._meet(listener)
        if route is not None:
            self.route = route
            self.plan = route.forward(self.request, self._engine.random)
        if self._observers is not None:
            self.program = program
            self._tell_routed(now)
        if not listener.filters:
            listener.stats.rq_total.value += 1
            return self._act_on_route(now)
        self._stage = Stage.FILTERS
        if self._engine.abandoned:
            self._engine.drain_abandoned()
        self._pin(now)
        return self._run_filters(GO_ON, now)

    def _leave(self, now: float) -> None:
        """The transport sends it without the mesh."""
        self.passthrough = True
        self._tell_routed(now)

    def _normalise_path(self, normalise: Callable[[str], NormalPath], now: float) -> Actions | None:
        """Routing and upstream see the normal path; what ends the call instead, None when it goes on."""
        path, action = normalise(self.request.path)
        if action is PathAction.CONTINUE:
            self.request.path = path
            return None
        if action is PathAction.REJECT or is_grpc(self.request):  # no gRPC client follows a redirect
            self._count_http("downstream_rq_failed_path_normalization")
            return self._end(Endings.PATH_NORMALIZATION_FAILED, now)
        self.details = Endings.PATH_NORMALIZATION_FAILED.details
        self._count_http("downstream_rq_redirected_with_normalized_path")
        return self._answer(redirect_to(path), now)

    def _answer(self, reply: LocalReply, now: float) -> Actions:
        """The configuration answers by itself, and the call is over."""
        self.reply = reply = self._local(reply)
        self._responded(reply.status)
        self._conclude(None, now)
        return (act.Reply(reply),)

    def _filter_context(self, config: Any) -> FilterContext:
        """What a filter with this configuration sees."""
        plan = self.plan
        cluster = None if plan is None else plan.cluster
        return FilterContext(
            self.request, config, self._engine.random, cluster, flag=self._flag, at_end=self.at_end
        )

    def _run_filters(self, step: Step, now: float) -> Actions:
        """Go on behind filter number `_filter`, which took this step."""
        assert self._listener is not None
        filters = self._listener.filters
        while isinstance(step, GoOn):
            self._filter += 1
            if self._filter == len(filters):
                self._requested_at = now
                self._listener.stats.rq_total.value += 1
                return self._act_on_route(now)
            link = filters[self._filter]
            config = link.config_for(self.route, self.plan)
            if config is not None:
                step = link.filter.on_request(self._filter_context(config), now)
        if isinstance(step, Answer):
            return self._end(step.ending, now)
        if isinstance(step, WaitUntil):
            self._filter_wait, self._filter_carried = step.moment, step.carried
            self._arm()
            return NOTHING
        assert isinstance(step, Ask)
        self._arm()
        return (act.SideCall(self._filter, step.service, step.request),)

    def _side_result(self, event: ev.SideResult, now: float) -> Actions:
        asked = self._stage is Stage.FILTERS and self._filter_wait is None
        if not asked or event.side != self._filter:
            return NOTHING
        return self._resume_filter(event.result, event.error, now)

    def _resume_filter(self, result: object, error: BaseException | None, now: float) -> Actions:
        assert self._listener is not None
        self._filter_wait = None
        if not self._complete or self.request.first("content-length") not in (None, "0"):
            self._active_at = (
                now  # the body that was kept back goes on, which is a sign of life; headers alone are none
            )
        link = self._listener.filters[self._filter]
        config = link.config_for(self.route, self.plan)
        assert config is not None, "a filter that is switched off asks for nothing"
        step = link.filter.resume(self._filter_context(config), result, error, now)
        return self._run_filters(step, now)

    def _act_on_route(self, now: float) -> Actions:
        plan = self.plan
        if plan is None:
            if self.route is None:
                self._count_http("no_route")
                return self._end(Endings.NO_ROUTE, now)
            reply = self.route.reply(self.request)
            assert reply is not None, "a route that does not forward answers by itself"
            self.details = "direct_response"
            self._count_http("rq_direct_response")
            return self._answer(reply, now)
        self._stage = Stage.FORWARDING
        if plan.counted:
            self._counted_by = self._who_counts(plan)
        if self._timeouts is None:
            self._pin(now)
        if self._stream_deadline is not None and self._stream_deadline <= now:
            self._count_http("downstream_rq_max_duration_reached")
            return self._end(Endings.MAX_STREAM_DURATION, now)
        if self._complete:
            self._start_deadline(now)
        return self._start_attempt(now)

    def _who_counts(self, plan: ForwardPlan) -> tuple[RequestStats, ...]:
        """Beside the cluster: the virtual cluster of the request and its route, where the configuration names them."""
        host, route = plan.virtual_host, plan.route
        requests = self._engine.store.requests
        found = []
        if host.virtual_clusters:
            found.append(requests(host.name, "vcluster", virtual_cluster_of(host)(self.request)))
        if route.stat_prefix:
            found.append(requests(host.name, "route", route.stat_prefix))
        return tuple(found)

    def _pin(self, now: float) -> None:
        """Fix what the route says about headers and time. The stream's own timers run from here, also while a filter waits."""
        engine, plan, listener = self._engine, self.plan, self._listener
        assert listener is not None
        stream: float | None = None
        if plan is not None:
            assert self.route is not None
            if plan.edits or engine.envoy_headers:
                self._heads = Heads(
                    self.request,
                    self.route,
                    plan,
                    started=engine.clock.time(),
                    envoy=engine.envoy_headers,
                    suppressed=listener.suppress_envoy_headers,
                    echoed=self._echoed(),
                )
            self._timeouts = timeouts = effective(
                plan, self.request, self._options, trust=engine.trust_request_headers
            )
            stream = timeouts.max_stream
        if stream is None:
            stream = listener.longest or inf
        if stream < inf:
            self._stream_deadline = self._started + stream
        self._idle_timeout = listener.idle_timeout
        self._active_at = now

    def _local(self, reply: LocalReply) -> LocalReply:
        """A configured answer in the form that this request gets."""
        reply = self._grpc_reply(reply)
        headers = (*reply.headers, *self._echoed())
        return LocalReply(reply.status, headers, b"" if self.request.method == "HEAD" else reply.body)

    def _start_deadline(self, now: float) -> None:
        """The route timeout runs from the end of the request; the caller's own deadline from the start."""
        assert self._timeouts is not None
        self._deadline = now + self._timeouts.route if self._timeouts.route else None
        if self._user_deadline is not None and (
            self._deadline is None or self._user_deadline < self._deadline
        ):
            self._deadline = self._user_deadline

    def _request_complete(self, _event: ev.RequestComplete, now: float) -> Actions:
        if self._complete:
            return NOTHING
        self._complete = True
        self._active_at = self._requested_at = now
        if (
            self._attempts
            and self.accepted is None
            and self._replayable is not None
            and not self._replayable()
        ):
            self._count_abandoned(self._attempts[-1])
        if self._stage in (Stage.FORWARDING, Stage.STREAMING):
            self._start_deadline(now)
            for attempt in self._attempts:
                if attempt.holding is Holding.REQUEST and self.accepted is None:
                    self._start_per_try(attempt, now)
            self._arm()
        return NOTHING

    # --- dispatch ----------------------------------------------------------------------------------------------------

    def _timer(self, _event: ev.Timer, now: float) -> Actions:
        if now < self.wake_at:
            return NOTHING
        if self._stage is Stage.WAITING:
            return self._go_on(now)
        if self._filter_wait is not None and self._filter_wait <= self.wake_at:
            return self._resume_filter(self._filter_carried, None, now)
        return self._upstream_timer(now)

    def _woken(self, _event: ev.Woken, now: float) -> Actions:
        if self._stage is Stage.WAITING:
            return self._go_on(now)
        if self._stage is Stage.FORWARDING:
            return self._served()
        return NOTHING

    def _go_on(self, now: float) -> Actions:
        """What the call waited for may be there: try again from where it stopped."""
        return self._find_route(now) if self.plan is None else self._start_attempt(now)

    def _ignore(self, _event: Any, _now: float) -> Actions:
        return NOTHING


HANDLERS: dict[type[Any], Callable[[Call, Any, float], Actions]] = {
    ev.Begin: Call._begin,
    ev.NeedConnection: Call._need_connection,
    ev.Connected: Call._connected,
    ev.Sent: Call._ignore,
    ev.RequestComplete: Call._request_complete,
    ev.Headers: Call._response,
    ev.Succeeded: Call._succeeded,
    ev.Message: Call._message,
    ev.End: Call._end_of_response,
    ev.Failed: Call._attempt_failed,
    ev.Timer: Call._timer,
    ev.Woken: Call._woken,
    ev.SideResult: Call._side_result,
    ev.Cancelled: Call._cancelled,
}

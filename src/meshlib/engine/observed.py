"""What observers ask about a call. What it takes to answer is kept only for calls that somebody observes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from meshlib.engine.attempt import Attempt
from meshlib.engine.events import Succeeded
from meshlib.engine.timers import TimedLoop
from meshlib.resources.cluster import HttpProtocol
from meshlib.runtime.clock import epoch_offset
from meshlib.state import EndpointState

if TYPE_CHECKING:
    from meshlib.engine.program import ListenerProgram

__all__ = ["ObservedCall"]

Pairs = Sequence[tuple[str, str]]


class ObservedCall(TimedLoop):
    """A call with what observers read of it.

    Complete in `over`: status, headers, trailers, bytes. Bodies are counted as they go over the wire, without framing of HTTP;
    a request body for the last attempt; 0 where a transport cannot tell. messages: of gRPC; of a stream the
    last one may be missing, which is on its way to who reads it. program: the configuration at its
    beginning, or by which it was routed. error: what ended it, in `over` only; failure: its message, for ever. reply: the answer
    that the mesh gave itself, also beside an error. notes: what observers keep, by observer, None until one does.
    passthrough: the transport sends it without the mesh, which knows nothing of its end.
    """

    @property
    def observed(self) -> bool:
        """Whether somebody will hear of its end."""
        return self._observers is not None

    @property
    def started(self) -> float:
        """Monotonic seconds."""
        return self._started

    @property
    def epoch(self) -> float:
        """When it began, in seconds since 1970."""
        return self._started + epoch_offset(self._engine.clock)

    @property
    def duration(self) -> float | None:
        """Seconds; None as long as it lasts."""
        return None if self._over_at is None else self._over_at - self._started

    @property
    def listener(self) -> ListenerProgram | None:
        return self._listener

    @property
    def attempts(self) -> Sequence[Attempt]:
        """Those that were made, in order. A refused connection of a gRPC call that waits for readiness is not among them."""
        return self._attempts

    @property
    def counted(self) -> Attempt | None:
        """The accepted attempt, or else the last one."""
        if self.accepted is not None:
            return self._attempts[self.accepted - 1]
        return self._attempts[-1] if self._attempts else None

    @property
    def upstream(self) -> EndpointState | None:
        """The endpoint of the attempt that counted."""
        attempt = self.counted
        return None if attempt is None else attempt.endpoint

    @property
    def is_rpc(self) -> bool:
        """Whether it was made on a gRPC channel."""
        return self.request.channel_id is not None

    @property
    def status(self) -> int:
        """HTTP's: of the accepted response, else of the answer that Envoy would give by itself; 0 for none."""
        if self.accepted is not None:
            return self._attempts[self.accepted - 1].status or 0
        return 0 if self.reply is None else self.reply.status

    @property
    def grpc_status(self) -> str | None:
        """Of the trailers, else of the headers, else of the mesh's own answer. None: the response has none."""
        if self.accepted is not None:
            if isinstance(self._head, Succeeded):
                return "0"
            found = _last(self.response_trailers, "grpc-status") or _last(
                self.response_headers, "grpc-status"
            )
            if found is not None:
                return found
        return None if self.reply is None else _last(self.reply.headers, "grpc-status")

    @property
    def response_headers(self) -> Pairs:
        """As the application sees them; empty where there was no response."""
        if self._edited is not None:
            return self._edited
        if self._head is not None:
            return self._head.headers
        return () if self.reply is None else self.reply.headers

    @property
    def response_trailers(self) -> Pairs:
        if callable(self._trailers):
            self._trailers = self._trailers()
        found: Pairs = self._trailers
        return found

    @property
    def upstream_headers(self) -> Pairs:
        """The response headers before the route's edits."""
        return () if self._head is None else self._head.headers

    @property
    def request_headers_sent(self) -> Pairs:
        """Of the last attempt; empty when there was none."""
        start = self._sent
        if start is None:
            return ()
        headers = self.request.headers if start.headers is None else start.headers
        return [*headers, *(pair for pair in start.extra if pair not in headers)]

    @property
    def path_sent(self) -> str:
        """Of the last attempt, with the query; the request's own when there was none."""
        return self.request.path if self._sent is None else self._sent.path

    @property
    def authority_sent(self) -> str:
        return self.request.authority if self._sent is None else self._sent.authority

    def tally(self, now: float) -> tuple[Any, float, int, int, int, int]:
        """What metrics want, in one piece: what tells calls apart, milliseconds until now, bytes and messages sent and received.

        The first is hashable: the route (its plan to forward, where it has one), whose endpoint answered and how it is reached,
        status, response flags, and of RPCs the gRPC status. It refers to configuration, and to no endpoint.
        """
        accepted, reply, request, plan = self.accepted, self.reply, self.request, self.plan
        status = 0 if reply is None else reply.status
        attempt: Attempt | None = None
        if accepted is not None:
            attempt = self._attempts[accepted - 1]
            status = attempt.status or 0
        elif self._attempts:
            attempt = self._attempts[-1]
        rpc = request.channel_id is not None
        grpc_status = self.grpc_status if rpc else None
        key: Any
        if attempt is None:
            key = (plan or self.route, status, self.flags, grpc_status, rpc)
        else:
            endpoint = attempt.endpoint
            key = (plan, endpoint.workload, endpoint.way, status, self.flags, grpc_status, rpc)
        sent, received, messages_sent, messages_received = self._traffic
        return key, (now - self._started) * 1000.0, sent, received, messages_sent, messages_received

    def facts(self, now: float | None) -> tuple[Any, ...]:
        """What `meshlib.observe.decision.Facts` has, in its order: made for each call that is remembered. now: its end.

        Names, numbers, and of the configuration what is no larger than one route: whoever keeps it keeps no endpoints.
        """
        request, start, retrier, program = self.request, self._sent, self._retrier, self.program
        listener, route, plan = self._listener, self.route, self.plan
        config = None if listener is None else listener.config
        snapshot = None if program is None else program.snapshot
        cluster = None if snapshot is None or plan is None else snapshot.clusters.get(plan.cluster)
        policy = None if retrier is None else retrier.state.rules.policy
        rpc = request.channel_id is not None
        return (
            self._started,
            now,
            request.method,
            request.scheme,
            request.authority,
            request.path,
            None if listener is None else listener.listener.name,
            None if config is None else config.name,
            None if route is None else route.virtual_host.name,
            None if route is None else route.resource,
            -1 if route is None else route.index,
            None if plan is None else plan.cluster,
            None if cluster is None else cluster.eds_service_name,
            None if plan is None else self._timeouts or plan.timeouts,
            plan.retry if policy is None and plan is not None else policy,
            tuple([_attempt_facts(attempt) for attempt in self._attempts]),
            self.accepted,
            None if start is None else (start.path, start.authority),
            self.flags,
            self.details,
            self.status,
            self.grpc_status if rpc else None,
            rpc,
            self.failure,
            None if snapshot is None else snapshot.versions,
            None if snapshot is None else snapshot.unsupported,
        )

    @property
    def protocol(self) -> str:
        """Towards the endpoint: `HTTP/1.1` or `HTTP/2`; empty when there was none."""
        attempt = self.counted
        if attempt is None:
            return ""
        if self.is_rpc or attempt.cluster.cluster.protocol is HttpProtocol.HTTP2:
            return "HTTP/2"
        return "HTTP/1.1"

    @property
    def secure(self) -> bool:
        """Whether the way to the endpoint is TLS."""
        endpoint = self.upstream
        return endpoint is not None and endpoint.way.security is not None

    @property
    def peer(self) -> str | None:
        """Who answers there by the configuration of its TLS: a SPIFFE id; None where that names no single one."""
        endpoint = self.upstream
        security = None if endpoint is None else endpoint.way.security
        principals: tuple[str, str] = getattr(security, "principals", ("", ""))
        return principals[1] or None

    @property
    def bytes_sent(self) -> int:
        return self._traffic[0]

    @property
    def bytes_received(self) -> int:
        return self._traffic[1]

    @property
    def messages_sent(self) -> int:
        return self._traffic[2]

    @property
    def messages_received(self) -> int:
        return self._traffic[3]

    def account(
        self,
        sent: int,
        received: int,
        *,
        messages: tuple[int, int] | None = None,
        trailers: Pairs | Callable[[], Pairs] | None = None,
    ) -> None:
        """From a transport, before it tells the end: bytes of both bodies, messages sent and received, and trailers that no
        `End` carries, or what gives them when somebody asks."""
        if messages is None:
            self._traffic = (sent, received, 0, 0)
        else:
            self._traffic = (sent, received, messages[0], messages[1])
        if trailers is not None:
            self._trailers = trailers


def _attempt_facts(attempt: Attempt) -> tuple[Any, ...]:
    """What `meshlib.observe.decision.AttemptFacts` has, in its order."""
    cluster, endpoint = attempt.cluster.cluster, attempt.endpoint
    return (
        attempt.number,
        endpoint.key,
        cluster.name,
        attempt.status,
        attempt.failure,
        attempt.started,
        attempt.over_at,
        attempt.timed_out,
        cluster.protocol is HttpProtocol.HTTP2,
        endpoint.way.security is not None,
    )


def _last(pairs: Pairs, name: str) -> str | None:
    found = None
    for key, value in pairs:
        if key == name:
            found = value
    return found

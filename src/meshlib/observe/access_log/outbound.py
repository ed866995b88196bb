"""What an access log says of an outgoing call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from meshlib.observe.access_log.facts import Sent, Trailers, trace_of
from meshlib.observe.access_log.metadata import of_call
from meshlib.routing.matchers.header import HasHeaders
from meshlib.routing.request import ResponseView
from meshlib.routing.virtual_clusters import OTHER, virtual_cluster_of
from meshlib.transport.http.description import Description, TlsDescription

if TYPE_CHECKING:
    from meshlib.engine.call import Call

__all__ = ["CallFacts"]


class CallFacts:
    """Of an outgoing call that is over: its request as the last attempt sent it.

    now: monotonic, as the call's own times; to_epoch: what makes them seconds since 1970. pairs: the request's headers.
    """

    __slots__ = ("_call", "_to_epoch", "duration", "ended", "headers", "pairs", "started")

    def __init__(self, call: Call, now: float, to_epoch: float) -> None:
        self._call = call
        self._to_epoch = to_epoch
        self.ended = now + to_epoch
        self.duration = now - call.started
        self.started = call.started + to_epoch
        self.pairs = pairs = call.request_headers_sent or call.request.headers
        # The first value of each.
        self.headers = headers = dict(reversed(pairs))
        if call.path_sent != call.request.path:
            headers.setdefault("x-envoy-original-path", call.request.path)

    @property
    def request(self) -> HasHeaders:
        return Sent(self)

    @property
    def method(self) -> str:
        return self._call.request.method

    @property
    def scheme(self) -> str:
        return self._call.request.scheme

    @property
    def path(self) -> str:
        return self._call.path_sent

    @property
    def authority(self) -> str:
        return self._call.authority_sent

    @property
    def response_headers(self) -> Sequence[tuple[str, str]]:
        return self._call.response_headers

    remote = None
    direct = None
    local = None
    downstream_tls = None
    body = None
    stream_id = None

    @property
    def response(self) -> HasHeaders | None:
        call = self._call
        status = call.status
        return ResponseView(status, call.response_headers) if status else None

    @property
    def trailers(self) -> HasHeaders | None:
        return Trailers(self._call.response_trailers)

    @property
    def first_byte(self) -> float | None:
        call = self._call
        if call.accepted is None:
            return None
        at = call.attempts[call.accepted - 1].over_at
        return None if at is None else at + self._to_epoch

    @property
    def cluster_raw(self) -> str | None:
        attempt = self._call.counted
        if attempt is not None:
            return attempt.cluster.cluster.name
        plan, program = self._call.plan, self._call.program
        if plan is None or program is None or plan.cluster not in program.clusters:
            return None
        return plan.cluster

    @property
    def cluster(self) -> str | None:
        return self.cluster_raw

    @property
    def route_name(self) -> str | None:
        route = self._call.route
        return None if route is None else route.resource.name

    @property
    def endpoint(self) -> str | None:
        upstream = self._call.upstream
        return None if upstream is None else upstream.key

    @property
    def hostname(self) -> str | None:
        upstream = self._call.upstream
        return None if upstream is None else upstream.hostname or upstream.key

    @property
    def connected(self) -> bool:
        attempt = self._call.counted
        return attempt is not None and attempt.streamed

    @property
    def attempted(self) -> Sequence[tuple[str, str]]:
        endpoints = dict.fromkeys(attempt.endpoint for attempt in self._call.attempts if attempt.streamed)
        return [(endpoint.key, endpoint.hostname or endpoint.key) for endpoint in endpoints]

    @property
    def failure(self) -> str | None:
        # Envoy's details of a reset: `upstream_reset_before_response_started{remote_connection_failure|REASON}`.
        _, mark, reason = self._call.details.partition("|")
        return reason.removesuffix("}") if mark and self._call.accepted is None else None

    @property
    def protocol(self) -> str | None:
        # What the application would speak to a proxy, as in header edits.
        return "HTTP/2" if self._call.is_rpc else "HTTP/1.1"

    @property
    def upstream_protocol(self) -> str | None:
        return self._call.protocol or None if self.connected else None

    @property
    def attempts(self) -> int:
        return self._call.attempt_count

    @property
    def status(self) -> int:
        return self._call.status

    @property
    def grpc_status(self) -> str | None:
        return self._call.grpc_status

    @property
    def flags(self) -> str:
        return ",".join(self._call.flags) or "-"

    @property
    def details(self) -> str | None:
        return self._call.details or None

    @property
    def received(self) -> int:
        return self._call.bytes_sent

    @property
    def sent(self) -> int:
        call = self._call
        if call.accepted is None and call.reply is not None:
            return len(call.reply.body)
        return call.bytes_received

    @property
    def trace(self) -> tuple[str, str] | None:
        return trace_of(self.headers)

    @property
    def listener(self) -> str | None:
        listener = self._call.listener
        return None if listener is None else listener.listener.name

    @property
    def _connection(self) -> Description | None:
        attempt = self._call.counted
        found = None if attempt is None else attempt.connection
        return found if isinstance(found, Description) else None

    @property
    def upstream_local(self) -> str | None:
        connection = self._connection
        return None if connection is None else connection.local

    @property
    def upstream_tls(self) -> TlsDescription | None:
        connection = self._connection
        return None if connection is None else connection.tls

    @property
    def upstream_connection(self) -> int | None:
        if self.rpc:
            return None
        connection = self._connection
        return 0 if connection is None else connection.number

    @property
    def connections(self) -> Sequence[int]:
        found = (attempt.connection for attempt in self._call.attempts)
        return list(dict.fromkeys(each.number for each in found if isinstance(each, Description)))

    @property
    def virtual_cluster(self) -> str | None:
        call = self._call
        plan = call.plan
        if plan is None or not plan.virtual_host.virtual_clusters or self.cluster_raw is None:
            return None
        name = virtual_cluster_of(plan.virtual_host)(call.request)
        return None if name is OTHER else name

    @property
    def rpc(self) -> bool:
        return self._call.is_rpc

    @property
    def filter_chain(self) -> str | None:
        listener = self._call.listener
        inbound = None if listener is None else listener.listener.inbound
        return None if inbound is None else inbound.chains[0].name or None

    @property
    def route_searches(self) -> int:
        listener = self._call.listener
        return 0 if listener is None or listener.table is None else 1

    @property
    def pool_ready(self) -> float | None:
        attempt = self._call.counted
        if attempt is None or self.rpc:
            return None
        ready = attempt.over_at if attempt.sent_at is None else attempt.sent_at
        return None if ready is None else ready - attempt.started

    @property
    def connecting_at(self) -> tuple[float | None, float | None, float | None]:
        connection, shift = self._connection, self._to_epoch
        if connection is None:
            return None, None, None
        secured = None if connection.secured is None else connection.secured + shift
        return connection.begun + shift, connection.opened + shift, secured

    @property
    def sent_at(self) -> float | None:
        attempt = self._call.counted
        return None if attempt is None or attempt.sent_at is None else attempt.sent_at + self._to_epoch

    @property
    def all_sent_at(self) -> float | None:
        attempt = self._call.counted
        return self.sent_at if attempt is not None and attempt.whole else None

    @property
    def response_trailers(self) -> Sequence[tuple[str, str]]:
        return self._call.response_trailers

    def metadata(self, kind: str) -> Mapping[str, Any] | None:
        return of_call(self._call, kind)

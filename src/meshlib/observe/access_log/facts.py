"""What an access log may say of a call, or of an inbound request.

Both offer the same attributes (`LogFacts`): those of `routing.format.Facts`, and what only an access log knows. What does not
exist on one side is None. Facts are made when a call is over, for one line; what costs something is computed when it is asked
for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from meshlib.routing.format import Facts
from meshlib.routing.matchers.header import HasHeaders
from meshlib.routing.request import ResponseView, values_by_name

if TYPE_CHECKING:
    from meshlib.engine.call import Call
    from meshlib.engine.observer import InboundCall

__all__ = ["CallFacts", "InboundFacts", "LogFacts", "Trailers"]


class LogFacts(Facts, Protocol):
    """started, ended: seconds since the epoch. first_byte: when the response began, None when it did not.

    grpc_status: its number as a text, None when the response has none. received, sent: bytes of the request's and of the
    response's body. remote: `ip:port` of the caller; peer, own: the principals on its connection, None without TLS. trace: trace
    id and span id, hexadecimal, of the context that the request carries. attempted: address and hostname of the endpoints that
    a request was sent to, each once. connected: the last endpoint took the connection. hostname: the endpoint's, its address without one.
    failure: why the connection to it failed.
    """

    @property
    def trailers(self) -> HasHeaders | None: ...
    @property
    def ended(self) -> float: ...
    @property
    def first_byte(self) -> float | None: ...
    @property
    def grpc_status(self) -> str | None: ...
    @property
    def received(self) -> int: ...
    @property
    def sent(self) -> int: ...
    @property
    def remote(self) -> str | None: ...
    @property
    def peer(self) -> str | None: ...
    @property
    def own(self) -> str | None: ...
    @property
    def trace(self) -> tuple[str, str] | None: ...
    @property
    def attempted(self) -> Sequence[tuple[str, str]]: ...
    @property
    def connected(self) -> bool: ...
    @property
    def hostname(self) -> str | None: ...
    @property
    def upstream_protocol(self) -> str | None: ...
    @property
    def failure(self) -> str | None: ...
    @property
    def listener(self) -> str | None: ...


class Trailers:
    """Pairs as a message that knows its headers by name."""

    __slots__ = ("_pairs",)

    def __init__(self, pairs: Sequence[tuple[str, str]]) -> None:
        self._pairs = pairs

    def values(self, name: str) -> list[str]:
        return [value for key, value in self._pairs if key == name]


_NONE: list[str] = []


class SentRequest:
    """The request as the last attempt sent it. The path before a rewrite is x-envoy-original-path, sent or not."""

    __slots__ = ("_by_name", "_call")

    def __init__(self, call: Call) -> None:
        self._call = call
        self._by_name: dict[str, list[str]] | None = None

    def values(self, name: str) -> list[str]:
        call = self._call
        if name[0] == ":":
            if name == ":path":
                return [call.path_sent]
            return [call.authority_sent] if name == ":authority" else call.request.values(name)
        if name == "host":
            return [call.authority_sent]
        by_name = self._by_name
        if by_name is None:
            by_name = self._by_name = values_by_name([*call.request_headers_sent])
            if not by_name:  # nothing was sent
                by_name = self._by_name = values_by_name(call.request.headers)
            if call.path_sent != call.request.path:
                by_name.setdefault("x-envoy-original-path", [call.request.path])
        return by_name.get(name, _NONE)


class CallFacts:
    """Of an outgoing call that is over. now: monotonic, as the call's own times; epoch: now, in seconds since 1970."""

    def __init__(self, call: Call, now: float, epoch: float) -> None:
        self._call = call
        self._to_epoch = epoch - now
        self.ended = epoch
        self.duration = now - call.started
        self.started = epoch - self.duration
        self.request: HasHeaders = SentRequest(call)

    remote = None
    peer = None
    own = None
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
        return _trace(Trailers(self._call.request_headers_sent or self._call.request.headers))

    @property
    def listener(self) -> str | None:
        listener = self._call.listener
        return None if listener is None else listener.listener.name


class InboundFacts:
    """Of a request that a server of this process has answered."""

    def __init__(self, record: InboundCall) -> None:
        self._record = record
        self.started = record.epoch
        self.duration = record.ended - record.started
        self.ended = record.epoch + self.duration
        self.request: HasHeaders = Arrived(record)

    body = None
    cluster = None
    cluster_raw = None
    endpoint = None
    hostname = None
    stream_id = None
    failure = None
    upstream_protocol = None
    first_byte = None
    attempts = 0
    connected = False
    attempted: Sequence[tuple[str, str]] = ()

    @property
    def response(self) -> HasHeaders | None:
        record = self._record
        return ResponseView(record.status, record.response_headers) if record.status else None

    @property
    def trailers(self) -> HasHeaders | None:
        return Trailers(self._record.response_trailers)

    @property
    def route_name(self) -> str | None:
        return self._record.operation or None

    @property
    def protocol(self) -> str | None:
        return self._record.protocol or None

    @property
    def status(self) -> int:
        return self._record.status

    @property
    def grpc_status(self) -> str | None:
        return self._record.grpc_status

    @property
    def flags(self) -> str:
        return ",".join(self._record.flags) or "-"

    @property
    def details(self) -> str | None:
        return self._record.details or None

    @property
    def received(self) -> int:
        return self._record.bytes_received

    @property
    def sent(self) -> int:
        return self._record.bytes_sent

    @property
    def remote(self) -> str | None:
        return self._record.remote or None

    @property
    def peer(self) -> str | None:
        return self._record.peer

    @property
    def own(self) -> str | None:
        return self._record.own

    @property
    def trace(self) -> tuple[str, str] | None:
        return _trace(self.request)

    @property
    def listener(self) -> str | None:
        return self._record.listener or None


class Arrived:
    """An inbound request as a message that knows its headers by name, pseudo headers too."""

    __slots__ = ("_record",)

    def __init__(self, record: InboundCall) -> None:
        self._record = record

    def values(self, name: str) -> list[str]:
        record = self._record
        if name[0] != ":":
            return [value for key, value in record.headers if key == name]
        if name == ":path":
            return [record.path]
        if name == ":method":
            return [record.method]
        if name == ":authority":
            return [record.authority]
        return [record.scheme] if name == ":scheme" else []


def _trace(message: HasHeaders) -> tuple[str, str] | None:
    """Of traceparent (W3C) or of the B3 headers."""
    parent = message.values("traceparent")
    if parent:
        parts = parent[0].split("-")
        return (parts[1], parts[2]) if len(parts) >= 4 else None
    single = message.values("b3")
    if single:
        parts = single[0].split("-")
        return (parts[0], parts[1]) if len(parts) >= 2 else None
    trace, span = message.values("x-b3-traceid"), message.values("x-b3-spanid")
    return (trace[0], span[0]) if trace and span else None

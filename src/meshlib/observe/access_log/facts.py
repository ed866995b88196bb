"""What an access log may say of a call, or of an inbound request.

Both offer the same attributes (`LogFacts`): those of `routing.format.Facts`, and what only an access log knows. What does not
exist on one side is None. Facts are made when a call is over, for one line; what costs something is computed when it is asked
for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from meshlib.routing.format import Facts
from meshlib.routing.matchers.header import HasHeaders
from meshlib.routing.request import ResponseView

if TYPE_CHECKING:
    from meshlib.engine.call import Call
    from meshlib.engine.observer import InboundCall

__all__ = ["PSEUDO", "CallFacts", "InboundFacts", "LogFacts", "Trailers"]

PSEUDO = {
    ":authority": "authority",
    ":method": "method",
    ":path": "path",
    ":scheme": "scheme",
    "host": "authority",
}
"""Headers that are attributes of facts."""


class LogFacts(Facts, Protocol):
    """started, ended: seconds since the epoch. first_byte: when the response began, None when it did not.

    method, scheme, authority, path, headers: of the request; of each header the first value. response_headers: pairs.
    grpc_status: its number as a text, None when the response has none. received, sent: bytes of the request's and of the
    response's body. remote: `ip:port` of the caller; peer, own: the principals on its connection, None without TLS. trace: trace
    id and span id, hexadecimal, of the context that the request carries. attempted: address and hostname of the endpoints that
    a request was sent to, each once. connected: the last endpoint took the connection. hostname: the endpoint's, its address
    without one. failure: why the connection to it failed.
    """

    @property
    def headers(self) -> Mapping[str, str]: ...
    @property
    def response_headers(self) -> Sequence[tuple[str, str]]: ...
    @property
    def method(self) -> str: ...
    @property
    def scheme(self) -> str: ...
    @property
    def authority(self) -> str: ...
    @property
    def path(self) -> str: ...
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


class Sent:
    """The request of facts as a message, with pseudo headers."""

    __slots__ = ("_facts",)

    def __init__(self, facts: CallFacts | InboundFacts) -> None:
        self._facts = facts

    def values(self, name: str) -> list[str]:
        facts = self._facts
        if name in PSEUDO:
            return [getattr(facts, PSEUDO[name])]
        found = [value for key, value in facts.pairs if key == name]
        if not found and name in facts.headers:
            return [facts.headers[name]]
        return found


class CallFacts:
    """Of an outgoing call that is over: its request as the last attempt sent it.

    now: monotonic, as the call's own times; epoch: now, in seconds since 1970. pairs: the request's headers.
    """

    __slots__ = ("_call", "_to_epoch", "duration", "ended", "headers", "pairs", "started")

    def __init__(self, call: Call, now: float, epoch: float) -> None:
        self._call = call
        self._to_epoch = epoch - now
        self.ended = epoch
        self.duration = now - call.started
        self.started = epoch - self.duration
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
        return _trace(self.headers)

    @property
    def listener(self) -> str | None:
        listener = self._call.listener
        return None if listener is None else listener.listener.name


class InboundFacts:
    """Of a request that a server of this process has answered."""

    __slots__ = ("_record", "duration", "ended", "headers", "pairs", "started")

    def __init__(self, record: InboundCall) -> None:
        self._record = record
        self.started = record.epoch
        self.duration = record.ended - record.started
        self.ended = record.epoch + self.duration
        self.pairs = record.headers
        self.headers = dict(reversed(record.headers))

    @property
    def request(self) -> HasHeaders:
        return Sent(self)

    @property
    def method(self) -> str:
        return self._record.method

    @property
    def scheme(self) -> str:
        return self._record.scheme

    @property
    def path(self) -> str:
        return self._record.path

    @property
    def authority(self) -> str:
        return self._record.authority

    @property
    def response_headers(self) -> Sequence[tuple[str, str]]:
        return self._record.response_headers

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
        return _trace(self.headers)

    @property
    def listener(self) -> str | None:
        return self._record.listener or None


def _trace(headers: Mapping[str, str]) -> tuple[str, str] | None:
    """Of traceparent (W3C) or of the B3 headers."""
    parent = headers.get("traceparent")
    if parent is not None:
        parts = parent.split("-")
        return (parts[1], parts[2]) if len(parts) >= 4 else None
    single = headers.get("b3")
    if single is not None:
        parts = single.split("-")
        return (parts[0], parts[1]) if len(parts) >= 2 else None
    trace, span = headers.get("x-b3-traceid"), headers.get("x-b3-spanid")
    return None if trace is None or span is None else (trace, span)

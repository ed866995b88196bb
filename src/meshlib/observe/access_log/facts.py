"""What an access log may say of a call (`outbound.CallFacts`), or of an inbound request (`inbound.InboundFacts`).

Both offer the same attributes (`LogFacts`): those of `routing.format.Facts`, and what only an access log knows. What does not
exist on one side is None. Facts are made when a call is over, for one line; what costs something is computed when it is asked
for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from meshlib.routing.format import Facts
from meshlib.routing.matchers.header import HasHeaders

if TYPE_CHECKING:
    from meshlib.transport.http.description import TlsDescription

__all__ = ["PSEUDO", "LogFacts", "Sent", "Trailers", "size_of", "trace_of"]

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

    method, scheme, authority, path: of the request; pairs: its headers; headers: the first value of each. response_headers,
    response_trailers: pairs. grpc_status: its number as a text, None when the response has none. received, sent: bytes of the
    request's and of the response's body. trace: trace id and span id, hexadecimal, of the context that the request carries.
    virtual_cluster: None for none of those that have a name. route_searches: how often a route was looked for. rpc: made on a
    gRPC channel, whose connections and own headers are not known.

    Of the caller's connection: remote: `ip:port` of the caller, with port 0 where x-forwarded-for says who that is; direct: of
    the other end; local: of this one. downstream_tls: None without TLS. filter_chain: the name of the Listener's, None for none.

    Of endpoints: attempted: address and hostname of those that a request was sent to, each once; connections: the numbers of the
    connections. Of the last one: connected: it took the connection. hostname: its address without one. failure: why the
    connection failed. upstream_local, upstream_tls: of the connection; upstream_connection: its number, 0 for none, None where
    nobody tells. connecting_at: when it began to open, was open, and its TLS handshake was over. pool_ready: seconds until there
    was one, or no hope of it. sent_at, all_sent_at: when the request began to leave, and had left.
    """

    @property
    def pairs(self) -> Sequence[tuple[str, str]]: ...
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
    def direct(self) -> str | None: ...
    @property
    def local(self) -> str | None: ...
    @property
    def downstream_tls(self) -> TlsDescription | None: ...
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
    @property
    def upstream_local(self) -> str | None: ...
    @property
    def upstream_tls(self) -> TlsDescription | None: ...
    @property
    def upstream_connection(self) -> int | None: ...
    @property
    def connections(self) -> Sequence[int]: ...
    @property
    def virtual_cluster(self) -> str | None: ...
    @property
    def rpc(self) -> bool: ...
    @property
    def filter_chain(self) -> str | None: ...
    @property
    def route_searches(self) -> int: ...
    @property
    def pool_ready(self) -> float | None: ...
    @property
    def connecting_at(self) -> tuple[float | None, float | None, float | None]: ...
    @property
    def sent_at(self) -> float | None: ...
    @property
    def all_sent_at(self) -> float | None: ...
    @property
    def response_trailers(self) -> Sequence[tuple[str, str]]: ...

    def metadata(self, kind: str) -> Mapping[str, Any] | None:
        """The filter_metadata of CLUSTER, LISTENER, ROUTE, UPSTREAM_HOST or VIRTUAL_HOST; None where there is none."""


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

    def __init__(self, facts: LogFacts) -> None:
        self._facts = facts

    def values(self, name: str) -> list[str]:
        facts = self._facts
        if name in PSEUDO:
            return [getattr(facts, PSEUDO[name])]
        found = [value for key, value in facts.pairs if key == name]
        if not found and name in facts.headers:
            return [facts.headers[name]]
        return found


def size_of(pairs: Sequence[tuple[str, str]]) -> int:
    """Bytes of names and values."""
    return sum(len(part.encode("utf-8", "surrogateescape")) for pair in pairs for part in pair)


def trace_of(headers: Mapping[str, str]) -> tuple[str, str] | None:
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

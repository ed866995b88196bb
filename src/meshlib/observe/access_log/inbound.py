"""What an access log says of a request that a server of this process has answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from meshlib.engine.context import ARRIVAL, FILTER_CHAIN
from meshlib.observe.access_log.addresses import host_and_port
from meshlib.observe.access_log.facts import Sent, Trailers, trace_of
from meshlib.routing.matchers.header import HasHeaders
from meshlib.routing.request import ResponseView
from meshlib.transport.http.description import TlsDescription

if TYPE_CHECKING:
    from meshlib.engine.observer import InboundCall
    from meshlib.server.arrival import Arrival

__all__ = ["InboundFacts"]


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
    upstream_local = None
    upstream_tls = None
    upstream_connection = None
    virtual_cluster = None
    connections: Sequence[int] = ()
    route_searches = 0
    pool_ready = None
    connecting_at = (None, None, None)
    sent_at = None
    all_sent_at = None
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
        direct, client = self.direct, self._record.client
        if not client or client == host_and_port(direct)[0]:
            return direct
        return f"[{client}]:0" if ":" in client else f"{client}:0"

    @property
    def direct(self) -> str | None:
        return self._record.remote or None

    @property
    def local(self) -> str | None:
        arrival = self._arrival
        if arrival is None or not arrival.local or not arrival.local_port:
            return None
        host = arrival.local
        return f"[{host}]:{arrival.local_port}" if ":" in host else f"{host}:{arrival.local_port}"

    @property
    def downstream_tls(self) -> TlsDescription | None:
        arrival = self._arrival
        if arrival is None or not arrival.connection.tls:
            return None
        connection = arrival.connection
        peer = () if connection.peer is None else connection.chain or connection.peer.chain_der
        return TlsDescription(
            version=connection.version,
            cipher=connection.cipher,
            engine=connection.engine(),
            server_name=connection.server_name,
            peer=peer,
            own=connection.own,
        )

    @property
    def rpc(self) -> bool:
        return False

    @property
    def filter_chain(self) -> str | None:
        return self._record.context.get(FILTER_CHAIN) or None

    @property
    def response_trailers(self) -> Sequence[tuple[str, str]]:
        return self._record.response_trailers

    @property
    def _arrival(self) -> Arrival | None:
        found: Arrival | None = self._record.context.get(ARRIVAL)
        return found

    def metadata(self, kind: str) -> Mapping[str, Any] | None:
        """None: of a server's Listener only what serving needs is kept."""
        return None

    @property
    def trace(self) -> tuple[str, str] | None:
        return trace_of(self.headers)

    @property
    def listener(self) -> str | None:
        return self._record.listener or None

"""Facts that tests make up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from meshlib.observe.access_log.facts import Trailers
from meshlib.routing.request import RequestView, ResponseView
from meshlib.transport.http.description import TlsDescription

__all__ = ["MOMENT", "MadeFacts"]

MOMENT = 1795253904.389054
"""2026-11-21T09:38:24.389054Z"""


class MadeFacts:
    """A gRPC or HTTP call that went well, but for what is given. headers, response_headers, trailers: pairs."""

    def __init__(
        self,
        headers: Sequence[tuple[str, str]] = (),
        *,
        path: str = "/p?q=1",
        method: str = "GET",
        response_headers: Sequence[tuple[str, str]] = (),
        trailers: Sequence[tuple[str, str]] = (),
        **given: Any,
    ) -> None:
        self.request = RequestView(method, "http", "svc", path, list(headers))
        self.pairs = headers
        self.headers = dict(reversed(headers))
        self.method, self.scheme, self.authority, self.path = method, "http", "svc", path
        self.response_headers = response_headers
        self.status = 200
        self.duration = 0.0129
        self.started = MOMENT
        self.first_byte: float | None = MOMENT + 0.005
        self.flags = "-"
        self.details: str | None = "via_upstream"
        self.grpc_status: str | None = None
        self.received, self.sent = 3, 11
        self.cluster = self.cluster_raw = "c"
        self.route_name: str | None = "r"
        self.endpoint: str | None = "10.0.0.1:80"
        self.hostname: str | None = "host.example"
        self.protocol: str | None = "HTTP/1.1"
        self.upstream_protocol: str | None = "HTTP/1.1"
        self.attempts = 1
        self.attempted: Sequence[tuple[str, str]] = (("10.0.0.1:80", "host.example"),)
        self.connected = True
        self.remote: str | None = None
        self.direct: str | None = None
        self.local: str | None = None
        self.downstream_tls: TlsDescription | None = None
        self.upstream_local: str | None = None
        self.upstream_tls: TlsDescription | None = None
        self.upstream_connection: int | None = 0
        self.connections: Sequence[int] = ()
        self.virtual_cluster: str | None = None
        self.rpc = False
        self.filter_chain: str | None = None
        self.route_searches = 1
        self.pool_ready: float | None = 0.0015
        self.connecting_at: tuple[float | None, float | None, float | None] = (None, None, None)
        self.sent_at: float | None = MOMENT + 0.002
        self.all_sent_at: float | None = MOMENT + 0.003
        self.response_trailers = trailers
        self.labels: dict[str, Any] = {}
        self.trace: tuple[str, str] | None = None
        self.failure: str | None = None
        self.listener: str | None = "l"
        self.stream_id: str | None = None
        self.body: str | None = None
        for name, value in given.items():
            assert hasattr(self, name), name
            setattr(self, name, value)
        self.ended = self.started + self.duration
        self.response = ResponseView(self.status, response_headers) if self.status else None
        self.trailers = Trailers(trailers)

    def metadata(self, kind: str) -> Any:
        return self.labels.get(kind)

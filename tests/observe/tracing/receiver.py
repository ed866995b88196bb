"""An OTLP receiver: what OpenTelemetry's own exporters send, over HTTP or gRPC, read with OpenTelemetry's own messages."""

from __future__ import annotations

import contextlib
import gzip
import threading
from collections.abc import Iterator
from concurrent import futures
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)

__all__ = ["Received", "Receiver", "grpc_receiver", "http_receiver"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """One span as it came over the wire. service, resource: whose it is. kind: OTLP's name of it. status: 2 is an error."""

    service: str
    resource: dict[str, Any]
    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    start: int
    end: int
    attributes: dict[str, Any]
    status: int


@dataclass
class Receiver:
    """endpoint: for the exporter."""

    endpoint: str = ""
    spans: list[Received] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, request: Any) -> None:
        found = []
        for resource in request.resource_spans:
            about = {pair.key: _plain(pair.value) for pair in resource.resource.attributes}
            for scope in resource.scope_spans:
                found += [_received(about, span) for span in scope.spans]
        with self._lock:
            self.spans += found

    def ordered(self) -> list[Received]:
        """As they began; of those that began together, the one that lasted longer first."""
        return sorted(self.spans, key=lambda span: (span.start, -span.end))

    def tree(self) -> str:
        """One line for each span, `service: name KIND`, two blanks deeper than its parent: of one trace with one root."""
        spans = self.ordered()
        assert len({span.trace_id for span in spans}) == 1, [(span.name, span.trace_id) for span in spans]
        known = {span.span_id for span in spans}
        assert len(known) == len(spans)
        roots = [span for span in spans if span.parent_id not in known]
        assert len(roots) == 1, [(span.service, span.name) for span in roots]

        def lines(span: Received, depth: int) -> Iterator[str]:
            yield f"{'  ' * depth}{span.service}: {span.name} {span.kind}"
            for below in spans:
                if below.parent_id == span.span_id:
                    assert span.start <= below.start
                    yield from lines(below, depth + 1)

        return "\n".join(lines(roots[0], 0))


def _received(resource: dict[str, Any], span: Any) -> Received:
    return Received(
        service=str(resource.get("service.name", "")),
        resource=resource,
        name=span.name,
        kind=type(span).SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        start=span.start_time_unix_nano,
        end=span.end_time_unix_nano,
        attributes={pair.key: _plain(pair.value) for pair in span.attributes},
        status=span.status.code,
    )


def _plain(value: Any) -> Any:
    return getattr(value, value.WhichOneof("value") or "string_value")


@contextlib.contextmanager
def http_receiver() -> Iterator[Receiver]:
    """OTLP over HTTP, as protobuf."""
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            receiver.take(ExportTraceServiceRequest.FromString(body))
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_response(200)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_arguments: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    receiver.endpoint = f"http://127.0.0.1:{server.server_port}/v1/traces"
    try:
        yield receiver
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextlib.contextmanager
def grpc_receiver() -> Iterator[Receiver]:
    """OTLP over gRPC."""
    receiver = Receiver()

    class Servicer(TraceServiceServicer):
        def Export(self, request: Any, _context: Any) -> Any:  # noqa: N802 - the service's
            receiver.take(request)
            return ExportTraceServiceResponse()

    with futures.ThreadPoolExecutor(2) as workers:
        server = grpc.server(workers)
        add_TraceServiceServicer_to_server(Servicer(), server)  # type: ignore[no-untyped-call]
        receiver.endpoint = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        try:
            yield receiver
        finally:
            server.stop(None).wait()

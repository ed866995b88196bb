"""What these tests share: a Mesh without a control plane, made from resources, and servers that do exactly what they are told."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from meshlib.engine.engine import Engine
from meshlib.engine.program import Compiler
from meshlib.resources.cluster import CircuitBreakers, Cluster, DiscoveryType, HttpProtocol, Thresholds
from meshlib.resources.endpoint import ClusterLoadAssignment, Endpoint, LocalityEndpoints
from meshlib.resources.headers import HeaderEdits
from meshlib.resources.listener import HttpConnectionManager, HttpFilter, Listener, RouterConfig
from meshlib.resources.metadata import NO_METADATA, Scalar
from meshlib.resources.route import (
    DirectResponse,
    HedgePolicy,
    PathKind,
    PathMatch,
    Redirect,
    RetryPolicy,
    Route,
    RouteAction,
    RouteConfiguration,
    RouteMatch,
    VirtualHost,
)
from meshlib.resources.tls import TransportSocketMatch, UpstreamTls
from meshlib.runtime.clock import Clock, SystemClock
from meshlib.snapshot import Snapshot
from meshlib.state import Secure, StateStore
from meshlib.stats import Registry

__all__ = ["OK", "FakeMesh", "Script", "Server", "mesh_for", "response", "serve"]

ROUTER = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"


@dataclass
class FakeMesh:
    """The part of a Mesh that transports use."""

    engine: Engine
    passthrough: bool = False

    def permits(self) -> tuple[int, int, int, int]:
        """Connections, pending, requests and retries of the cluster `backend` that are held now."""
        permits = self.engine.store.cluster("backend").default
        return permits.connections, permits.pending, permits.requests, permits.retries

    def active(self) -> int:
        return sum(endpoint.active for endpoint in self.engine.store.cluster("backend").endpoints.values())


def _exactly(path: str) -> RouteMatch:
    return RouteMatch(path=PathMatch(kind=PathKind.PATH, value=path))


def mesh_for(
    ports: Sequence[int],
    *,
    host: str = "*",
    timeout: float = 15.0,
    stream_idle_timeout: float = 300.0,
    strip_any_host_port: bool = False,
    retry: RetryPolicy | None = None,
    hedge: HedgePolicy | None = None,
    buffer_limit: int = 1 << 20,
    protocol: HttpProtocol = HttpProtocol.HTTP1,
    connect_timeout: float = 5.0,
    max_connections: int = 1024,
    max_pending: int = 1024,
    max_requests: int = 1024,
    max_requests_per_connection: int = 0,
    idle_timeout: float | None = 3600.0,
    response_headers: HeaderEdits | None = None,
    prefix_rewrite: str | None = None,
    passthrough: bool = False,
    tls: UpstreamTls | None = None,
    transport_socket_matches: tuple[TransportSocketMatch, ...] = (),
    metadata: Mapping[str, Scalar] = NO_METADATA,
    secure: Secure | None = None,
    clock: Clock | None = None,
) -> FakeMesh:
    """A mesh whose `/` goes to a cluster `backend` with these ports of 127.0.0.1; `/direct` and `/moved` are answered at once."""
    random = Random(1)
    store = StateStore(Registry())
    engine = Engine(
        clock=clock or SystemClock(),
        random=random,
        store=store,
        compiler=Compiler(store, random, secure=secure, clock=clock),
    )
    action = RouteAction(
        cluster="backend",
        timeout=timeout,
        retry_policy=retry,
        hedge_policy=hedge,
        prefix_rewrite=prefix_rewrite,
    )
    routes = (
        Route(match=_exactly("/direct"), action=DirectResponse(status=418, body=b"short and stout")),
        Route(match=_exactly("/moved"), action=Redirect(path="/elsewhere")),
        Route(match=_exactly("/no-cluster"), action=RouteAction(cluster="missing")),
        Route(
            match=RouteMatch(path=PathMatch(kind=PathKind.PREFIX, value="/")),
            action=action,
            response_headers=response_headers or HeaderEdits(),
        ),
    )
    config = RouteConfiguration(
        name="routes", virtual_hosts=(VirtualHost(name="all", domains=(host,), routes=routes),)
    )
    manager = HttpConnectionManager(
        route_config=config,
        stream_idle_timeout=stream_idle_timeout,
        strip_any_host_port=strip_any_host_port,
        http_filters=(HttpFilter(name="router", type_url=ROUTER, config=RouterConfig()),),
    )
    endpoints = [Endpoint("127.0.0.1", port, transport_socket_metadata=metadata) for port in ports]
    cluster = Cluster(
        name="backend",
        discovery=DiscoveryType.STATIC,
        load_assignment=ClusterLoadAssignment(
            cluster_name="backend", localities=(LocalityEndpoints(endpoints=endpoints),)
        ),
        protocol=protocol,
        connect_timeout=connect_timeout,
        idle_timeout=idle_timeout,
        max_requests_per_connection=max_requests_per_connection,
        tls=tls,
        transport_socket_matches=transport_socket_matches,
        circuit_breakers=CircuitBreakers(
            default=Thresholds(
                max_connections=max_connections, max_pending_requests=max_pending, max_requests=max_requests
            )
        ),
    )
    listener = Listener(
        name="mesh" if not passthrough else "backend:80",
        http=manager,
        per_connection_buffer_limit_bytes=buffer_limit,
    )
    engine.publish(
        Snapshot(
            generation=1,
            listeners={listener.name: listener}
            if not passthrough
            else {"backend:80": listener, "other:80": listener},
            clusters={"backend": cluster},
            complete=True,
        )
    )
    return FakeMesh(engine, passthrough)


def response(body: bytes = b"hello", status: str = "200 OK", *headers: str) -> bytes:
    """A response with a Content-Length."""
    lines = [f"HTTP/1.1 {status}", f"content-length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


OK = response()

Script = Callable[[socket.socket, int], None]
"""What the server does with its n-th connection (from 0); the socket is closed afterwards."""


@dataclass
class Server:
    """port: where it listens. accepted: connections so far. received: the requests as `read_request` saw them."""

    port: int
    accepted: int = 0
    received: list[bytes] = field(default_factory=list)
    errors: list[BaseException] = field(default_factory=list)


def read_request(sock: socket.socket) -> bytes:
    """One request: headers, and as much body as Content-Length or chunks say. Empty when the client closed."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = sock.recv(65536)
        if not piece:
            return data
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    lower = head.lower()
    if b"transfer-encoding: chunked" in lower:
        while not body.endswith(b"0\r\n\r\n"):
            piece = sock.recv(65536)
            if not piece:
                break
            body += piece
    elif b"content-length:" in lower:
        length = int(lower.split(b"content-length:")[1].split(b"\r\n")[0])
        while len(body) < length:
            piece = sock.recv(65536)
            if not piece:
                break
            body += piece
    return head + b"\r\n\r\n" + body


@contextlib.contextmanager
def serve(
    script: Script | Sequence[bytes] | bytes = OK, *, receive_buffer: int | None = None
) -> Iterator[Server]:
    """A server on 127.0.0.1. script: bytes answer every request; a list gives one entry to each request, then closes."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if receive_buffer is not None:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    server = Server(listener.getsockname()[1])
    open_sockets: list[socket.socket] = []
    threads: list[threading.Thread] = []
    stopping = threading.Event()

    def answer(sock: socket.socket, number: int) -> None:
        with sock:
            try:
                if callable(script):
                    script(sock, number)
                    return
                answers = None if isinstance(script, bytes) else iter(script)
                while request := read_request(sock):
                    server.received.append(request)
                    reply = script if answers is None else next(answers, None)
                    if reply is None:
                        return
                    assert isinstance(reply, bytes)
                    sock.sendall(reply)
            except OSError:
                pass
            except BaseException as error:  # noqa: BLE001
                server.errors.append(error)

    def accept() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            if stopping.is_set():
                sock.close()
                return
            number = server.accepted
            server.accepted += 1
            open_sockets.append(sock)
            thread = threading.Thread(target=answer, args=(sock, number), daemon=True)
            threads.append(thread)
            thread.start()

    acceptor = threading.Thread(target=accept, daemon=True)
    acceptor.start()
    try:
        yield server
    finally:
        stopping.set()
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", server.port)).close()
        acceptor.join(10)
        listener.close()
        for sock in open_sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join(10)
    if server.errors:
        raise server.errors[0]


def info(answer: Any) -> Any:
    """The CallInfo of a response."""
    return answer.extensions["meshlib"]

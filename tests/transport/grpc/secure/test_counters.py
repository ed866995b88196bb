"""What is counted of TLS handshakes, as Envoy counts it for the same calls."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import pytest

import meshlib
import meshlib.grpc
from tests.identity.ca import TestCA
from tests.server.envoy_server import running
from tests.transport.grpc.secure.world import OTHER, World
from tests.transport.grpc.support import backend, config, mesh_for

ECHO = "/test.Echo/echo"
HTTP = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
ROUTER = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
RESET = struct.pack("ii", 1, 0)


def _sync(mesh: meshlib.Mesh) -> None:
    with meshlib.grpc.channel("echo:80", mesh=mesh) as channel:
        channel.unary_unary(ECHO)(b"", timeout=10)


def _aio(mesh: meshlib.Mesh) -> None:
    async def run() -> None:
        async with meshlib.grpc.aio_channel("echo:80", mesh=mesh) as channel:
            await channel.unary_unary(ECHO)(b"", timeout=10)

    asyncio.run(run())


@contextlib.contextmanager
def served(listener: socket.socket, serve: Callable[[], None]) -> Iterator[int]:
    """The listener's port, while a thread serves it until it is shut down."""
    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


@contextlib.contextmanager
def rude(*, reset: bool) -> Iterator[int]:
    """The port of a server that ends each connection when the first bytes have come."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    with listener.accept()[0] as taken:
                        taken.settimeout(5)
                        taken.recv(1 << 16)
                        if reset:
                            taken.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)

        with served(listener, serve) as port:
            yield port


@contextlib.contextmanager
def strict(context: ssl.SSLContext) -> Iterator[int]:
    """The port of a server that says by an alert why it refuses a caller."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            with contextlib.suppress(OSError), listener.accept()[0] as taken:
                taken.settimeout(5)
                tls = context.wrap_bio(incoming, outgoing, server_side=True)
                while data := taken.recv(1 << 16):  # to its end: who closes before resets
                    incoming.write(data)
                    with contextlib.suppress(ssl.SSLError):
                        tls.do_handshake()
                    taken.sendall(outgoing.read())

        with served(listener, serve) as port:
            yield port


@contextlib.contextmanager
def servers(world: World) -> Iterator[dict[str, int]]:
    with (
        world.backend() as secure,
        backend() as plain,
        rude(reset=True) as resetting,
        rude(reset=False) as closing,
        strict(world.context()) as refusing,
    ):
        ports = {"resetting": resetting, "closing": closing, "refusing": refusing}
        yield {"secure": secure.port, "plain": plain.port, **ports}


CASES: dict[str, tuple[str, Callable[[World], dict[str, Any]], dict[str, int]]] = {
    "good": ("secure", lambda world: world.cluster(), {"handshake": 1}),
    "wrong-san": ("secure", lambda world: world.cluster(OTHER), {"fail_verify_san": 1}),
    "wrong-ca": (
        "secure",
        lambda world: world.cluster(ca=TestCA("td.example")),
        {"fail_verify_error": 1},
    ),
    "plaintext": ("plain", lambda world: world.cluster(), {"connection_error": 1}),
    "refused-by-the-server": (
        "refusing",
        lambda world: world.cluster(shows=False),
        {"handshake": 1, "connection_error": 1},
    ),
    "reset": ("resetting", lambda world: world.cluster(), {}),
    "closed": ("closing", lambda world: world.cluster(), {}),
}
"""Server, fields of the cluster, what is counted of one call."""


def told(counters: Mapping[str, float], cluster: str) -> dict[str, float]:
    """Without those of versions, ciphers and the like."""
    prefix = f"cluster.{cluster}.ssl."
    found = {name.removeprefix(prefix): value for name, value in counters.items() if name.startswith(prefix)}
    return {name: value for name, value in found.items() if value and "." not in name}


@pytest.mark.parametrize("call", [_sync, _aio])
@pytest.mark.parametrize("case", CASES)
def test_counters(world: World, case: str, call: Callable[[meshlib.Mesh], None]) -> None:
    server, cluster, expected = CASES[case]
    with (
        servers(world) as ports,
        mesh_for(config(f"127.0.0.1:{ports[server]}", cluster=cluster(world))) as mesh,
    ):
        with contextlib.nullcontext() if case == "good" else pytest.raises(grpc.RpcError):
            call(mesh)
        counters = {metric.name: getattr(metric, "value", 0) for metric in mesh.stats}
    assert told(counters, "echo") == expected
    details = {name for name in counters if name.startswith("cluster.echo.ssl.") and name.count(".") > 3}
    assert bool(details) is ("handshake" in expected)


@pytest.mark.envoy
def test_envoy_counts_the_same(world: World, tmp_path: Path) -> None:
    with servers(world) as ports:
        clusters = [_cluster(case, ports[server], made(world)) for case, (server, made, _) in CASES.items()]
        with running(tmp_path, [_listener(case) for case in CASES], clusters) as envoy:
            for case, (_, _, expected) in CASES.items():
                with (
                    grpc.insecure_channel(f"127.0.0.1:{envoy.ports[case]}") as channel,
                    contextlib.nullcontext() if case == "good" else pytest.raises(grpc.RpcError),
                ):
                    channel.unary_unary(ECHO, _registered_method=False)(b"", timeout=10)
                found = told(envoy.counters(f"^cluster.{case}.ssl"), case)
                assert found == expected, case


def _listener(name: str) -> dict[str, Any]:
    route = {"match": {"prefix": "/"}, "route": {"cluster": name}}
    hosts = [{"name": "all", "domains": ["*"], "routes": [route]}]
    http = {
        "@type": HTTP,
        "stat_prefix": name,
        "route_config": {"virtual_hosts": hosts},
        "http_filters": [{"name": "router", "typed_config": {"@type": ROUTER}}],
    }
    return {
        "name": name,
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
        "filter_chains": [{"filters": [{"name": "http", "typed_config": http}]}],
    }


def _cluster(name: str, port: int, more: dict[str, Any]) -> dict[str, Any]:
    h2 = {
        "@type": f"type.googleapis.com/{OPTIONS}",
        "explicit_http_config": {"http2_protocol_options": {}},
    }
    address = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    assignment = {"cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}]}
    return {
        "name": name,
        "typed_extension_protocol_options": {OPTIONS: h2},
        "load_assignment": assignment,
        **more,
    }

"""The mTLS section: httpx with meshlib over mTLS, beside meshlib and httpx in plaintext and httpx behind two Envoys.

The last two cases open a connection for each call: what `ssl` alone needs for that, and what a call of the mesh needs.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import ssl
from collections.abc import Iterator
from typing import Any

from benchmarks import cases, runner
from benchmarks.cases import Case, SyncFetch, Unexpected
from benchmarks.certificates import Identity
from benchmarks.configuration import AUTHORITY, PATH, Resource, mesh_resources, upstream_tls
from benchmarks.plan import Plan
from benchmarks.samples import Samples
from benchmarks.world import World

_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_REQUEST = f"GET {PATH} HTTP/1.1\r\nhost: {AUTHORITY}\r\n\r\n".encode()
_HANDSHAKES = "handshakes"


@contextlib.contextmanager
def meshes(world: World) -> Iterator[dict[str, Any]]:
    """In plaintext, with mTLS, and with mTLS and a connection for each call."""
    tls = {"transport_socket": upstream_tls(world.caller, world.service)}
    with contextlib.ExitStack() as stack:
        yield {
            name: stack.enter_context(cases.mesh(resources))
            for name, resources in (
                ("meshlib", mesh_resources(world.upstreams)),
                ("meshlib_mtls", mesh_resources(world.secure_upstreams, **tls)),
                (_HANDSHAKES, mesh_resources(world.secure_upstreams, **tls, **_one_call())),
            )
        }


def _one_call() -> Resource:
    """Fields of a cluster whose connections serve one call each."""
    options = {
        "@type": f"type.googleapis.com/{_OPTIONS}",
        "common_http_protocol_options": {"max_requests_per_connection": 1},
        "explicit_http_config": {"http_protocol_options": {}},
    }
    return {"typed_extension_protocol_options": {_OPTIONS: options}}


def measure(world: World, started: dict[str, Any], how: Plan, order: random.Random) -> Samples:
    """All blocking cases take turns, then all of asyncio, then the handshakes."""
    running = {name: mesh for name, mesh in started.items() if name != _HANDSHAKES}
    measured = Samples()
    upstream = world.upstream_pid

    def take(found: Samples) -> None:
        measured.by_case |= {f"mtls-{name}": values for name, values in found.by_case.items()}

    with cases.sync_cases(world, running, ["httpx"]) as clients:
        take(runner.run_sync(clients, upstream, rounds=how.rounds, calls=how.calls, order=order))

    async def run() -> Samples:
        async with cases.async_cases(world, running, ["httpx"]) as turns:
            return await runner.run_async(turns, upstream, rounds=how.rounds, calls=how.calls, order=order)

    take(asyncio.run(run()))
    with _handshakes(world, started[_HANDSHAKES]) as turns:
        calls = max(2, how.calls // 10)
        samples = runner.run_sync(turns, upstream, rounds=how.rounds, calls=calls, order=order)
        measured.by_case |= {name.removeprefix("sync/"): values for name, values in samples.by_case.items()}
    return measured


@contextlib.contextmanager
def _handshakes(world: World, mesh: Any) -> Iterator[list[Case[SyncFetch]]]:
    import httpx

    import meshlib.httpx

    with httpx.Client(transport=meshlib.httpx.MeshTransport(mesh), trust_env=False) as client:
        url = f"http://{AUTHORITY}{PATH}"

        def through_the_mesh() -> None:
            if client.get(url).status_code != 200:
                raise Unexpected("through the mesh")

        bare = _bare(world.secure_upstreams[0], _context(world.caller))
        yield [
            Case(name="handshake/ssl", fetch=bare, envoys=()),
            Case(name="handshake/meshlib", fetch=through_the_mesh, envoys=()),
        ]


def _context(own: Identity) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(own.chain, own.key)
    context.load_verify_locations(own.bundle)
    return context


def _bare(address: tuple[str, int], context: ssl.SSLContext) -> SyncFetch:
    """Connect, shake hands, one request, close: with nothing but `socket` and `ssl`. Nobody looks at the peer's name."""

    def fetch() -> None:
        with socket.create_connection(address) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with context.wrap_socket(sock) as tls:
                tls.sendall(_REQUEST)
                if not tls.recv(65536).startswith(b"HTTP/1.1 200"):
                    raise Unexpected("without the mesh")

    return fetch

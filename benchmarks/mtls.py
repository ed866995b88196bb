"""The mTLS section: httpx with meshlib over mTLS, beside meshlib and httpx in plaintext and httpx behind two Envoys.

`httpx/ssl` is the least that a blocking httpx call over mTLS can take: its transport does nothing but move the bytes of one and
the same request, and those of its answer, through `ssl` and a socket that is open already. Its responses have the headers of the
first one, in which httpx looks for cookies each time, and a body that httpx finds read already.

The last two cases are about one connection: opened, one request, closed; once with nothing but `socket` and `ssl`, once as
meshlib's blocking transport does it: with the check of the peer's identity, without httpx and routing, which come before.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import ssl
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks import cases, runner
from benchmarks.cases import Case, SyncFetch, Unexpected
from benchmarks.certificates import Identity
from benchmarks.configuration import AUTHORITY, PATH, mesh_resources, upstream_tls
from benchmarks.plan import Plan
from benchmarks.samples import Samples
from benchmarks.world import World

_REQUEST = f"GET {PATH} HTTP/1.1\r\nhost: {AUTHORITY}\r\n\r\n".encode()


@contextlib.contextmanager
def meshes(world: World) -> Iterator[dict[str, Any]]:
    """In plaintext, and with mTLS."""
    tls = {"transport_socket": upstream_tls(world.caller, world.service)}
    with contextlib.ExitStack() as stack:
        yield {
            name: stack.enter_context(cases.mesh(resources))
            for name, resources in (
                ("meshlib", mesh_resources(world.upstreams)),
                ("meshlib_mtls", mesh_resources(world.secure_upstreams, **tls)),
            )
        }


def measure(world: World, started: dict[str, Any], how: Plan, order: random.Random) -> Samples:
    """All blocking cases take turns, then all of asyncio, then the handshakes."""
    measured = Samples()
    upstream = world.upstream_pid

    def take(found: Samples) -> None:
        measured.by_case |= {f"mtls-{name}": values for name, values in found.by_case.items()}

    with cases.sync_cases(world, started, ["httpx"]) as clients, _least(world) as least:
        clients.append(least)
        take(runner.run_sync(clients, upstream, rounds=how.rounds, calls=how.calls, order=order))

    async def run() -> Samples:
        async with cases.async_cases(world, started, ["httpx"]) as turns:
            return await runner.run_async(turns, upstream, rounds=how.rounds, calls=how.calls, order=order)

    take(asyncio.run(run()))
    with _handshakes(world, started["meshlib_mtls"]) as turns:
        calls = max(2, how.calls // 10)
        samples = runner.run_sync(turns, upstream, rounds=how.rounds, calls=calls, order=order)
        measured.by_case |= {name.removeprefix("sync/"): values for name, values in samples.by_case.items()}
    return measured


@contextlib.contextmanager
def _least(world: World) -> Iterator[Case[SyncFetch]]:
    import httpx

    nothing = httpx.ByteStream(b"")

    class Records(httpx.BaseTransport):
        def __init__(self, address: tuple[str, int], context: ssl.SSLContext) -> None:
            self._socket = socket.create_connection(address)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
            self._tls = context.wrap_bio(self._in, self._out)
            self._until_read(self._tls.do_handshake)
            fields = [line.partition(b": ") for line in self._round_trip()[0].split(b"\r\n")[1:]]
            self._headers = httpx.Headers([(name, value) for name, _, value in fields])

        def _until_read(self, what: Callable[[], Any]) -> Any:
            while True:
                try:
                    return what()
                except ssl.SSLWantReadError:
                    if self._out.pending:
                        self._socket.sendall(self._out.read())
                    self._in.write(self._socket.recv(65536))

        def _round_trip(self) -> tuple[bytes, bytes]:
            self._tls.write(_REQUEST)
            self._socket.sendall(self._out.read())
            self._in.write(self._socket.recv(65536))
            head, _, body = self._until_read(lambda: self._tls.read(65536)).partition(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200"):
                raise Unexpected("through ssl alone")
            return head, body

        def handle_request(self, _request: httpx.Request) -> httpx.Response:
            body = self._round_trip()[1]
            response = httpx.Response(
                200,
                headers=self._headers,
                stream=nothing,
                extensions={"http_version": b"HTTP/1.1", "reason_phrase": b"OK"},
            )
            response._content = body
            return response

        def close(self) -> None:
            self._socket.close()

    transport = Records(world.secure_upstreams[0], _context(world.caller))
    with httpx.Client(transport=transport, trust_env=False) as client:
        yield Case(name="httpx/ssl", fetch=cases.sync_fetch(client, f"http://{AUTHORITY}{PATH}"), envoys=())


@contextlib.contextmanager
def _handshakes(world: World, mesh: Any) -> Iterator[list[Case[SyncFetch]]]:
    from meshlib.engine.actions import Start
    from meshlib.state import Waiter
    from meshlib.transport.http.message import OutgoingRequest
    from meshlib.transport.http.sync_pool import SyncPool

    program = mesh.engine.program.clusters["v1"]
    state, permits = program.state, program.state.default
    endpoint = program.balancer.pick(mesh.clock.monotonic(), None)
    request = OutgoingRequest(b"GET", PATH.encode(), AUTHORITY.encode(), [])
    pool = SyncPool(mesh.clock)

    def as_the_mesh_does() -> None:
        state.admit(endpoint, permits, Waiter(_nobody))
        state.end_pending(permits)
        start = Start(0, endpoint, program.cluster, state, permits, AUTHORITY, "", None, permitted=True)
        connection = pool.make(start, AUTHORITY)
        connection.connect()
        while connection.connecting:
            connection.advance(5.0)
        connection.round_trip(request, 5.0)
        while not connection.codec.response.complete:
            connection.advance(5.0)
        if connection.codec.response.status != 200:
            raise Unexpected("as the mesh does")
        connection.close()

    bare = _bare(world.secure_upstreams[0], _context(world.caller))
    yield [
        Case(name="handshake/ssl", fetch=bare, envoys=()),
        Case(name="handshake/meshlib", fetch=as_the_mesh_does, envoys=()),
    ]


def _nobody() -> None:
    """Nobody waits."""


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

"""All upstreams of a run: one thread, one event loop, one socket each."""

from __future__ import annotations

import asyncio
import functools
import socket
import threading
import time
from typing import TYPE_CHECKING

from conformance.upstream.grpc import GrpcConnection
from conformance.upstream.http1 import serve_connection
from conformance.upstream.http2 import Http2Connection
from conformance.upstream.record import Record

if TYPE_CHECKING:
    from collections.abc import Mapping

    from conformance.upstream.script import Upstream

HOST = "127.0.0.1"
SETTLE = 0.5


class Upstreams:
    """The running upstreams of one case.

    ``ports`` and ``record`` may be used from any thread. Sockets are opened at once; :meth:`serve` accepts on a loop.
    """

    def __init__(self, upstreams: Mapping[str, Upstream]) -> None:
        self.record = Record()
        self.ports: dict[str, int] = {}
        self._upstreams = dict(upstreams)
        self._sockets: dict[str, socket.socket] = {}
        self._fillers: list[socket.socket] = []
        self._servers: list[asyncio.Server] = []
        self._connections: set[asyncio.Task[None]] = set()
        for name, upstream in self._upstreams.items():
            self._open(name, upstream)

    def _open(self, name: str, upstream: Upstream) -> None:
        # With the protocol named, asyncio sets TCP_NODELAY on accepted sockets.
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        sock.bind((HOST, 0))
        self.ports[name] = sock.getsockname()[1]
        self._sockets[name] = sock
        if upstream.kind == "refused":
            return  # bound, not listening: the kernel refuses, and nobody else can take the port
        sock.listen(0 if upstream.kind == "blackhole" else 1024)
        if upstream.kind == "blackhole":
            # A full accept queue lets the kernel drop every further SYN.
            for _ in range(2):
                filler = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
                filler.setblocking(False)
                filler.connect_ex((HOST, self.ports[name]))
                self._fillers.append(filler)

    async def serve(self) -> None:
        """Begin to accept, on the running loop."""
        for name, upstream in self._upstreams.items():
            if upstream.kind in ("refused", "blackhole"):
                continue
            handler = functools.partial(self._connected, upstream)
            self._servers.append(await asyncio.start_server(handler, sock=self._sockets[name], limit=1 << 20))

    async def _connected(
        self, upstream: Upstream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            if upstream.kind in ("http2", "grpc"):
                kind = Http2Connection if upstream.kind == "http2" else GrpcConnection
                await kind(upstream, self.record, reader, writer).run()
            else:
                await serve_connection(upstream, self.record, reader, writer)
        except asyncio.CancelledError:
            writer.transport.abort()
        finally:
            self._connections.discard(task)

    async def stop(self) -> None:
        """Close listeners and connections."""
        for server in self._servers:
            server.close()
        connections = tuple(self._connections)
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    def close(self) -> None:
        """Close the sockets that no loop owns."""
        for sock in (*self._sockets.values(), *self._fillers):
            sock.close()


class UpstreamThread:
    """The thread and loop that serve the upstreams of all cases. A context manager."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="conformance-upstreams", daemon=True
        )
        self._all: list[Upstreams] = []

    def __enter__(self) -> UpstreamThread:
        self._thread.start()
        return self

    def start(self, upstreams: Mapping[str, Upstream]) -> Upstreams:
        """Open and serve the upstreams of one case."""
        started = Upstreams(upstreams)
        self._all.append(started)
        asyncio.run_coroutine_threadsafe(started.serve(), self._loop).result(10)
        return started

    def settle(self, record: Record) -> None:
        """Return once everything that had arrived has been noted, and no gRPC stream is left (half a second at most)."""
        for _ in range(3):
            asyncio.run_coroutine_threadsafe(asyncio.sleep(0), self._loop).result(10)
        limit = time.monotonic() + SETTLE
        while record.running and time.monotonic() < limit:
            time.sleep(0.002)

    def __exit__(self, *exc: object) -> None:
        for upstreams in self._all:
            asyncio.run_coroutine_threadsafe(upstreams.stop(), self._loop).result(10)
            upstreams.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

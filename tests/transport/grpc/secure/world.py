"""A trust domain with a client and servers in it, and what a configuration says about them."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc

from tests.identity.ca import Issued, TestCA
from tests.ports import reserved
from tests.transport.grpc.support import Backend

__all__ = ["CLIENT", "OTHER", "SERVER", "SecureBackend", "World", "terminator"]

SERVER = "spiffe://td.example/ns/a/sa/srv"
CLIENT = "spiffe://td.example/ns/a/sa/cli"
OTHER = "spiffe://td.example/ns/a/sa/other"
_TLS = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext"


class World:
    def __init__(self) -> None:
        self.ca = TestCA("td.example")
        self.server = self.ca.issue(SERVER)
        self.client = self.ca.issue(CLIENT)

    def socket(
        self,
        san: str = SERVER,
        *,
        own: Issued | None = None,
        shows: bool = True,
        ca: TestCA | None = None,
        maximum: str = "TLSv1_3",
        **context: Any,
    ) -> dict[str, Any]:
        """A transport socket that expects this name and shows the client's certificate."""
        common: dict[str, Any] = {
            "tls_params": {"tls_maximum_protocol_version": maximum},
            "validation_context": {
                "trusted_ca": {"inline_string": (ca or self.ca).pem.decode()},
                "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"exact": san}}],
            },
        }
        own = own or self.client
        if shows:
            common["tls_certificates"] = [
                {
                    "certificate_chain": {"inline_string": own.chain.decode()},
                    "private_key": {"inline_string": own.key.decode()},
                }
            ]
        typed = {"@type": _TLS, "common_tls_context": common, **context}
        return {"name": "envoy.transport_sockets.tls", "typed_config": typed}

    def cluster(self, san: str = SERVER, **options: Any) -> dict[str, Any]:
        """Fields of a Cluster."""
        return {"transport_socket": self.socket(san, **options)}

    def credentials(self, *, require: bool = True) -> grpc.ServerCredentials:
        pair = (self.server.key, self.server.chain)
        return grpc.ssl_server_credentials([pair], self.ca.pem if require else None, require)

    def context(
        self,
        *,
        alpn: Sequence[str] = ("h2",),
        require: bool = True,
        maximum: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
        issued: Issued | None = None,
    ) -> ssl.SSLContext:
        """For servers that are no gRPC servers."""
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        shown = issued or self.server
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "pem")
            path.write_bytes(shown.key + shown.chain)
            made.load_cert_chain(path)
        made.maximum_version = maximum
        made.load_verify_locations(cadata=self.ca.pem.decode())
        made.verify_mode = ssl.CERT_REQUIRED if require else ssl.CERT_NONE
        if alpn:
            made.set_alpn_protocols(list(alpn))
        return made

    @contextlib.contextmanager
    def backend(self, *, require: bool = True) -> Iterator[SecureBackend]:
        """A started server, which may be started again at its port; `echo` returns the request, `who` the SPIFFE id of the
        caller."""
        server = SecureBackend(self.credentials(require=require))
        server.unary("echo", lambda request, context: request)
        server.unary("who", _who)
        with reserved() as port:
            server.start(port)
            try:
                yield server
            finally:
                server.stop()


class SecureBackend(Backend):
    def __init__(self, credentials: grpc.ServerCredentials) -> None:
        super().__init__()
        self._credentials = credentials

    def start(self, port: int = 0) -> None:
        options = [("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", -1)]
        self.server = grpc.server(futures.ThreadPoolExecutor(16), options=options)
        self.server.add_generic_rpc_handlers((self,))
        self.port = self.server.add_secure_port(f"127.0.0.1:{port}", self._credentials)
        self.server.start()


def _who(_request: bytes, context: grpc.ServicerContext) -> bytes:
    names = context.auth_context().get("x509_subject_alternative_name", ())
    return b",".join(names)


@contextlib.contextmanager
def terminator(context: ssl.SSLContext, port: int) -> Iterator[int]:
    """The port of a server that speaks TLS, and passes what it decrypts on to `port`."""
    ready: futures.Future[int] = futures.Future()
    stop = asyncio.Event()

    async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                sink.write(data)
                await sink.drain()
        with contextlib.suppress(OSError, NotImplementedError, RuntimeError):
            sink.close()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))
        except asyncio.CancelledError:  # at the end; asyncio's own callback would trip over it
            pass
        finally:
            for each in (writer, far_writer):
                each.transport.abort()

    async def run() -> None:
        server = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=context)
        ready.set_result(server.sockets[0].getsockname()[1])
        await stop.wait()
        loop = asyncio.get_running_loop()
        quiet = 0
        while quiet < 3:  # a connection that was taken just now begins in the loop's next rounds
            others = asyncio.all_tasks() - {asyncio.current_task()}
            await asyncio.sleep(0)  # a task that is cancelled before it begins loses its socket
            for task in others:
                task.cancel()
            known = list(loop._transports.values())  # type: ignore[attr-defined]
            open_ones = [each for each in known if each.get_extra_info("socket").fileno() >= 0]
            for transport in open_ones:
                transport.abort()
            quiet = 0 if others or open_ones else quiet + 1
        server.close()  # not before: asyncio would lose the socket of a connection that it has just taken

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_until_complete, args=(run(),), name="terminator")
    thread.start()
    try:
        yield ready.result(timeout=10)
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()

"""A caller whose handshake fails on an event loop is told why: the alert goes out before the connection is closed."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshlib.server.inbound import Inbound
from meshlib.server.tls import Mode
from tests.server.identities import client_context, identities


class Server:
    """An asyncio server that answers nothing; `failures` has what the loop was told of."""

    def __init__(self, context: ssl.SSLContext, timeout: float) -> None:
        self._context, self._timeout = context, timeout
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: self._loop.run_until_complete(self._serve()))
        self.served = 0
        self.port = 0

    async def _serve(self) -> None:
        def handle(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.served += 1
            writer.close()

        server = await asyncio.start_server(
            handle, "127.0.0.1", 0, ssl=self._context, ssl_handshake_timeout=self._timeout
        )
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        async with server:
            await self._stop.wait()

    def __enter__(self) -> Server:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *exc: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._loop.close()


@pytest.fixture(params=["STRICT", "PERMISSIVE"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with identities() as known:
        context = Inbound(known.mesh, mode=request.param).context()
        assert context is not None
        with Server(context, timeout=1.0) as running:
            yield running


def client(tmp_path: Path, maximum: ssl.TLSVersion) -> ssl.SSLContext:
    with identities() as known:
        context = client_context(tmp_path, known.ca, None)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.maximum_version = maximum
    return context


@pytest.mark.parametrize("maximum", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_caller_without_a_certificate_is_told(
    server: Server, tmp_path: Path, maximum: ssl.TLSVersion
) -> None:
    context = client(tmp_path, maximum)
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw:
        with pytest.raises(ssl.SSLError, match=r"(?i)alert (handshake failure|certificate required)"):
            with context.wrap_socket(raw) as connection:
                connection.recv(1)
    assert server.served == 0


def test_who_stays_after_the_alert_is_closed_in_time(server: Server, tmp_path: Path) -> None:
    """The failure was put off until the alert was out; it is not forgotten."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = client(tmp_path, ssl.TLSVersion.TLSv1_2).wrap_bio(incoming, outgoing)
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw:

        def shake_hands() -> None:
            for _ in range(10):
                try:
                    tls.do_handshake()
                except ssl.SSLWantReadError:
                    raw.sendall(outgoing.read())
                    incoming.write(raw.recv(65536))

        with pytest.raises(ssl.SSLError, match=r"(?i)alert handshake failure"):
            shake_hands()
        assert raw.recv(65536) == b"", (
            "closed by the server, at the latest when the time for a handshake is over"
        )
    assert server.served == 0


@pytest.mark.parametrize("mode", ["STRICT", "PERMISSIVE"])
@pytest.mark.parametrize("maximum", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_caller_that_is_refused_after_its_chain_was_accepted_is_told(
    tmp_path: Path, mode: Mode, maximum: ssl.TLSVersion
) -> None:
    """An id of our trust domain that a federated CA has signed: OpenSSL accepts it, and we do not."""
    with identities() as known:
        inbound = Inbound(known.mesh, mode=mode).context()
        assert inbound is not None
        forged = known.federated.issue("spiffe://td.example/ns/a/sa/cli")
        context = client_context(tmp_path, known.ca, forged)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.maximum_version = maximum
        told = r"(?i)certificate unknown" if maximum is ssl.TLSVersion.TLSv1_2 else r"(?i)EOF"
        with Server(inbound, timeout=1.0) as running:
            with socket.create_connection(("127.0.0.1", running.port), timeout=10) as raw:
                with pytest.raises((ssl.SSLError, ConnectionResetError), match=told):
                    with context.wrap_socket(raw, suppress_ragged_eofs=False) as connection:
                        connection.recv(1)
            assert running.served == 0

"""meshlib as the server of the TLS cases: `meshlib.server` on asyncio, with the Listeners that the Envoys have."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import TYPE_CHECKING, Any

import meshlib
from conformance.resources import LISTENER
from conformance.tls.case import TlsCase
from conformance.tls.envoy import server_listener
from meshlib.server.asgi import MeshMiddleware
from meshlib.server.inbound import Inbound

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from conformance.tls.materials import Materials

START = 20.0


class MeshServers:
    """The servers of the cases, on one event loop in a thread. A context manager; `ports` by case.

    Each answers 200 with the caller's identity in headers, as `meshlib.current_peer` and the middleware of ASGI give it.
    """

    def __init__(self, cases: Iterable[TlsCase], materials: Materials) -> None:
        self._listeners = [
            {"@type": LISTENER, **server_listener(case, materials)}
            for case in cases
            if not isinstance(case.server, str)
        ]
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="conformance-tls", daemon=True)
        self.ports: dict[str, int] = {}

    def __enter__(self) -> MeshServers:
        self._thread.start()
        if not self._started.wait(START):
            raise TimeoutError("meshlib's servers do not start")
        return self

    def __exit__(self, *exc: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._loop.close()

    def seen(self, case: TlsCase) -> Mapping[str, Any]:
        """Nothing that a case expects: what an Envoy logs and counts about connections has no counterpart."""
        return {}

    def _run(self) -> None:
        self._loop.set_exception_handler(lambda loop, context: None)  # failed handshakes are what is measured
        self._loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        documents = [{"resources": [_without_logs(listener)]} for listener in self._listeners]
        async with contextlib.AsyncExitStack() as stack:
            mesh = stack.enter_context(meshlib.Mesh(config=documents))
            for listener in self._listeners:
                inbound = Inbound(mesh, listener=listener["name"])
                handler = _Handler(MeshMiddleware(_answer, inbound))
                server = await asyncio.start_server(handler, "127.0.0.1", 0, ssl=inbound.context())
                await stack.enter_async_context(server)
                self.ports[listener["name"]] = server.sockets[0].getsockname()[1]
            self._started.set()
            await self._stop.wait()


class _Handler:
    """As much HTTP/1.1 as the cases need, in front of an ASGI application: one request, one answer, close."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            first, *lines = head.rstrip("\r\n").split("\r\n")
            method, path, _ = first.split(" ")
            headers = [
                (name.lower().encode(), value.strip().encode("latin-1"))
                for name, _, value in (line.partition(":") for line in lines)
            ]
            scope = {
                "type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": b"",
                "headers": headers, "scheme": "https", "http_version": "1.1", "client": ("127.0.0.1", 1),
                "server": ("127.0.0.1", 1),
            }  # fmt: skip

            async def receive() -> dict[str, Any]:
                return {"type": "http.request", "body": b"", "more_body": False}

            async def send(message: Any) -> None:
                if message["type"] == "http.response.start":
                    writer.write(f"HTTP/1.1 {message['status']} x\r\n".encode())
                    for name, value in [*message["headers"], (b"connection", b"close")]:
                        writer.write(name + b": " + value + b"\r\n")
                    writer.write(b"\r\n")
                else:
                    writer.write(message["body"])

            await self._app(scope, receive, send)
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


async def _answer(scope: Any, receive: Any, send: Any) -> None:
    peer = meshlib.current_peer()
    xfcc = dict(scope["headers"]).get(b"x-forwarded-client-cert", b"")
    headers = [
        (b"content-length", b"6"),
        (b"x-peer-uri-san", ",".join(peer.uri_sans).encode()),
        (b"x-seen-xfcc", xfcc),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"served"})


def _without_logs(listener: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in listener.items() if name != "access_log"}

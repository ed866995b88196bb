"""meshlib over the host libraries: the same requests through a transport, no listener in between."""

from __future__ import annotations

import asyncio
import importlib
import time
from typing import TYPE_CHECKING, Any

from conformance.outcome import Outcome
from conformance.runners.drive import drive, drive_async
from conformance.runners.settled import settled, settled_async
from conformance.upstream.record import REQUEST_ID

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from conformance.case import Case
    from conformance.outcome import Run, Sent
    from conformance.resources import Compiled

TIMEOUT = 20.0


class MeshRunner:
    """One host library, synchronous or asyncio."""

    def __init__(self, library: str, *, on_asyncio: bool) -> None:
        self._asyncio = on_asyncio
        self._host: Any = importlib.import_module(library)
        self._meshlib: Any = importlib.import_module("meshlib")
        self._transports: Any = importlib.import_module(f"meshlib.{library}")

    def run(self, case: Case, compiled: Compiled) -> Run:
        """Send the requests of ``case``."""
        with self._mesh(case, compiled) as mesh:
            mesh.wait_ready(timeout=TIMEOUT)
            if self._asyncio:
                return asyncio.run(self._run_async(case, mesh))
            with self._client(self._host.Client, self._transports.MeshTransport, mesh) as client:
                return settled(case, mesh, drive(case, lambda sent: self._send(client, sent)))

    def rejection(self, case: Case, compiled: Compiled) -> str | None:
        """meshlib's complaint about a configuration, None if it takes it."""
        try:
            with self._mesh(case, compiled):
                return None
        except self._meshlib.MeshError as error:
            return str(error)

    def _mesh(self, case: Case, compiled: Compiled) -> Any:
        return self._meshlib.Mesh(
            config=[compiled.document()], headers="envoy", trust_request_headers=case.internal
        )

    def _client(self, client: Any, transport: Any, mesh: Any) -> Any:
        return client(transport=transport(mesh, local_reply="response"), timeout=TIMEOUT)

    async def _run_async(self, case: Case, mesh: Any) -> Run:
        async with self._client(self._host.AsyncClient, self._transports.AsyncMeshTransport, mesh) as client:
            outcomes = await drive_async(case, lambda sent: self._send_async(client, sent))
            return await settled_async(case, mesh, outcomes)

    def _send(self, client: Any, sent: Sent) -> Outcome:
        start = time.monotonic()
        parts: list[bytes] = []
        response, failure = None, None
        try:
            response = client.send(self._request(sent, _pieces), stream=True)
            try:
                for part in response.iter_raw():
                    parts.append(part)  # noqa: PERF402  what came before a cut has to be kept
            finally:
                response.close()
        except (self._host.HTTPError, self._meshlib.MeshError) as error:
            failure = error
        return _outcome(sent, response, b"".join(parts), failure, time.monotonic() - start)

    async def _send_async(self, client: Any, sent: Sent) -> Outcome:
        start = time.monotonic()
        parts: list[bytes] = []
        response, failure = None, None
        try:
            response = await client.send(self._request(sent, _async_pieces), stream=True)
            try:
                async for part in response.aiter_raw():
                    parts.append(part)  # noqa: PERF401
            finally:
                await response.aclose()
        except (self._host.HTTPError, self._meshlib.MeshError) as error:
            failure = error
        return _outcome(sent, response, b"".join(parts), failure, time.monotonic() - start)

    def _request(self, sent: Sent, pieces: Any) -> Any:
        request = sent.request
        headers = [("Host", request.host), (REQUEST_ID, sent.id), *request.headers]
        content = None
        if request.body is not None:
            content = pieces(request.body) if request.chunked else request.body
            if not request.chunked:
                headers.append(("Content-Length", str(len(request.body))))
        return self._host.Request(
            request.method, self._url(request.host, request.path), headers=headers, content=content
        )

    def _url(self, host: str, path: str) -> Any:
        """The URL with the path exactly as the case writes it: the library would normalise it."""
        try:
            url = self._host.URL(f"http://{host}")
        except self._host.InvalidURL:
            url = self._host.URL("http://mesh.example")
        bare, mark, query = path.partition("?")
        url._uri_reference = url._uri_reference._replace(path=bare, query=query if mark else None)
        return url


def _pieces(body: bytes) -> Iterator[bytes]:
    yield body


async def _async_pieces(body: bytes) -> AsyncIterator[bytes]:
    yield body


def _outcome(sent: Sent, response: Any, body: bytes, failure: Exception | None, elapsed: float) -> Outcome:
    if response is None:
        return Outcome(id=sent.id, complete=False, error=repr(failure), elapsed=elapsed)
    info = response.extensions["meshlib"]
    told: Any = failure if hasattr(failure, "flags") else info
    return Outcome(
        id=sent.id,
        status=response.status_code,
        headers=tuple(
            (name.decode().lower(), value.decode("latin-1")) for name, value in response.headers.raw
        ),
        body=body,
        complete=failure is None,
        flags=told.flags,
        details=told.details,
        attempts=len(info.attempts),
        # Envoy's log has no cluster where the one asked for does not exist, and no route where it has no name.
        cluster="" if told.details == "cluster_not_found" else info.cluster or "",
        route="" if (info.route or "0").isdigit() else info.route,
        elapsed=elapsed,
        error="" if failure is None else repr(failure),
    )

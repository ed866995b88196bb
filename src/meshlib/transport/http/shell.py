"""What every host library's transport shares: which mesh, which pools, how a request becomes a call.

A host library (httpx, httpx2) contributes its Request, Response, stream and error classes; see `meshlib.httpx`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Awaitable, Iterable
from typing import Any, Literal, Protocol

import meshlib
from meshlib.engine.call import CallInfo
from meshlib.engine.engine import Engine
from meshlib.errors import CircuitFull, DeadlineExceeded, MeshError, UnknownHost
from meshlib.transport.http.async_exchange import AsyncExchange
from meshlib.transport.http.body import SyncUpload
from meshlib.transport.http.exchange import (
    Answer,
    ImpatienceError,
    Leave,
    OriginalRequest,
    Phase,
    SecureSchemeError,
)
from meshlib.transport.http.message import content_length
from meshlib.transport.http.pools import PoolSet, pools_of
from meshlib.transport.http.sync_exchange import SyncExchange

__all__ = ["AsyncShell", "HostRequest", "LocalReplies", "MeshLike", "Shell", "SyncShell", "impatience"]

LocalReplies = Literal["raise", "response"]

_targets: dict[bytes, str] = {}
_TARGETS_KEPT = 4096


class MeshLike(Protocol):
    """What a transport needs of a Mesh. passthrough: hosts that no Listener knows go out as if there were no mesh."""

    @property
    def engine(self) -> Engine: ...
    @property
    def passthrough(self) -> bool: ...


class HostRequest(Protocol):
    """The part of a host library's Request that is read here."""

    method: str
    extensions: Any

    @property
    def url(self) -> Any: ...
    @property
    def headers(self) -> Any: ...


def _target(netloc: bytes, scheme: str) -> str:
    """`host:port`, with the scheme's default port added."""
    known = _targets.get(netloc) if scheme == "http" else None
    if known is None:
        known = netloc.decode("ascii")
        if ":" not in known.rpartition("]")[2]:
            known += ":443" if scheme == "https" else ":80"
        if scheme == "http" and len(_targets) < _TARGETS_KEPT:
            _targets[netloc] = known
    return known


def _original(request: HostRequest, body: bytes | None, *, passthrough: bool) -> OriginalRequest:
    """The request as a call takes it.

    An https URL is refused at once with SecureSchemeError, unless it may belong to a host that the mesh does not know.
    """
    url, headers, extensions = request.url, request.headers.raw, request.extensions
    netloc: bytes = url.netloc
    scheme: str = url.scheme
    if scheme == "https" and not passthrough:
        raise SecureSchemeError(_target(netloc, scheme))
    authority = netloc
    if headers and headers[0][0] == b"Host":
        authority = headers[0][1]
    else:
        for name, value in headers:
            if name.lower() == b"host":
                authority = value
                break
    return OriginalRequest(
        request.method,
        scheme,
        _target(netloc, scheme),
        authority,
        extensions.get("target") or url.raw_path,
        headers,
        body,
        extensions.get("timeout"),
    )


def impatience(error: ImpatienceError) -> MeshError:
    """The meshlib error of one of the host library's own timeouts. `error.phase` says which host class it becomes."""
    kind = CircuitFull if error.phase is Phase.POOL else DeadlineExceeded
    info = error.info
    return kind(str(error), flags=info.flags, details=info.details, attempts=info.attempts)


def _need_asyncio() -> None:
    """Raises RuntimeError where asyncio does not run: the transport has no connections for trio."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        raise RuntimeError(
            "AsyncMeshTransport needs a running asyncio event loop; trio is not supported"
        ) from None


class Shell:
    """mesh: None takes the process's default Mesh at the first call."""

    def __init__(self, mesh: MeshLike | None, local_reply: LocalReplies) -> None:
        if local_reply not in ("raise", "response"):
            raise ValueError(f"local_reply must be 'raise' or 'response', not {local_reply!r}")
        self._mesh = mesh
        self._engine: Engine | None = None
        self._pools: PoolSet | None = None
        self._passthrough = False
        self._replies = local_reply == "response"

    def _open(self) -> tuple[Engine, PoolSet]:
        """The engine and the pools. The engine starts its mesh at the first call."""
        engine, pools = self._engine, self._pools
        if engine is None or pools is None:
            mesh = self._mesh
            if mesh is None:
                mesh = self._mesh = meshlib.default_mesh()
            engine = self._engine = mesh.engine
            self._passthrough = mesh.passthrough
            pools = self._pools = pools_of(engine)
        return engine, pools

    def _instead(self, error: MeshError, info: CallInfo) -> Answer | None:
        """Envoy's own answer, when the transport gives those and this error has one; None: send it without the mesh."""
        if self._passthrough and isinstance(error, UnknownHost):
            return None
        if self._replies and error.local_reply is not None:
            return Answer.local(error.local_reply, info)
        raise error


class SyncShell(Shell):
    """For blocking clients."""

    def send(
        self, request: HostRequest, body: bytes | None, source: Iterable[bytes] | None
    ) -> Answer | Leave:
        engine, pools = self._open()
        original = _original(request, body, passthrough=self._passthrough)
        upload = None
        if body is None and source is not None:
            upload = SyncUpload(source, content_length(original.headers))
        return SyncExchange(engine, pools, original, upload, engine.clock.monotonic).run(self._instead)

    def close(self) -> None:
        """Close the idle connections of blocking code. Calls under way go on. Idempotent."""
        if self._pools is not None:
            self._pools.sync.close_idle()


class AsyncShell(Shell):
    """For asyncio clients; everything else as in SyncShell."""

    def send(
        self, request: HostRequest, body: bytes | None, source: AsyncIterable[bytes] | None
    ) -> Awaitable[Answer | Leave]:
        _need_asyncio()
        engine, pools = self._open()
        original = _original(request, body, passthrough=self._passthrough)
        length = None if body is not None else content_length(original.headers)
        exchange = AsyncExchange(
            engine,
            pools,
            original,
            None if body is not None else source,
            length,
            engine.clock.monotonic,
        )
        return exchange.run(self._instead)

    def aclose(self) -> Awaitable[None]:
        """Close the idle connections of this event loop. Calls under way go on. Idempotent."""
        if self._pools is not None:
            self._pools.for_loop(asyncio.get_running_loop()).close_idle()
        return asyncio.sleep(0)  # asyncio closes the sockets in the next turn of the loop

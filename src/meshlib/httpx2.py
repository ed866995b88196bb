# Written by scripts/generate_httpx2.py from httpx.py: change that one, then run the script.
"""Transports for httpx2 clients: `httpx2.Client(transport=meshlib.httpx2.MeshTransport(mesh))`, and the same for AsyncClient.

Every error that they raise is both a `meshlib.MeshError`, with Envoy's flags, details and the attempts, and the httpx2 class
that plain httpx2 would have raised in that situation, so `except httpx2.ConnectError` goes on working:

| here | httpx2 | when |
|---|---|---|
| UnknownHost, NoRoute, NoCluster, NoHealthyEndpoint, ConnectFailed | ConnectError | nothing was sent |
| CircuitFull, BreakerOpen, ConfigTimeout, MeshClosed | ConnectError | nothing was sent |
| FaultInjected | ConnectError | nothing was sent: fault injection aborted the call |
| IdentityError | ConnectError | the endpoint's certificate is refused, or there is none of our own: nothing was sent |
| ConnectTimedOut | ConnectTimeout | the cluster's connect_timeout, or httpx2's own, passed |
| StreamReset | ReadError and RemoteProtocolError | the connection ended early (plain httpx2: one or the other) |
| ProtocolViolation | RemoteProtocolError | the endpoint broke the protocol |
| DeadlineExceeded | ReadTimeout | the route's, the attempt's, the caller's or httpx2's own read timeout passed |
| WriteTimedOut | WriteTimeout | httpx2's write timeout |
| PoolTimedOut | PoolTimeout | httpx2's pool timeout while the call waited for a connection |
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import httpx2

from meshlib import errors
from meshlib.transport.http.async_exchange import AsyncExchange
from meshlib.transport.http.exchange import Answer, ImpatienceError, Leave, Phase, SecureSchemeError
from meshlib.transport.http.failure import BodyLengthError, InvalidRequest
from meshlib.transport.http.shell import AsyncShell, LocalReplies, MeshLike, SyncShell, impatience
from meshlib.transport.http.sync_exchange import SyncExchange

__all__ = [
    "AsyncMeshTransport",
    "BreakerOpen",
    "CircuitFull",
    "ConfigTimeout",
    "ConnectFailed",
    "ConnectTimedOut",
    "DeadlineExceeded",
    "FaultInjected",
    "IdentityError",
    "MeshClosed",
    "MeshTransport",
    "NoCluster",
    "NoHealthyEndpoint",
    "NoRoute",
    "OtherMeshError",
    "PoolTimedOut",
    "ProtocolViolation",
    "StreamReset",
    "UnknownHost",
    "WriteTimedOut",
]


class OtherMeshError(errors.MeshError, httpx2.TransportError):
    """Any other error of meshlib."""


class ConfigTimeout(errors.ConfigTimeout, httpx2.ConnectError): ...


class MeshClosed(errors.MeshClosed, httpx2.ConnectError): ...


class UnknownHost(errors.UnknownHost, httpx2.ConnectError): ...


class NoRoute(errors.NoRoute, httpx2.ConnectError): ...


class NoCluster(errors.NoCluster, httpx2.ConnectError): ...


class NoHealthyEndpoint(errors.NoHealthyEndpoint, httpx2.ConnectError): ...


class CircuitFull(errors.CircuitFull, httpx2.ConnectError): ...


class BreakerOpen(errors.BreakerOpen, httpx2.ConnectError): ...


class FaultInjected(errors.FaultInjected, httpx2.ConnectError): ...


class ConnectFailed(errors.ConnectFailed, httpx2.ConnectError): ...


class IdentityError(errors.IdentityError, httpx2.ConnectError): ...


class ConnectTimedOut(errors.ConnectTimedOut, httpx2.ConnectTimeout): ...


class StreamReset(errors.StreamReset, httpx2.ReadError, httpx2.RemoteProtocolError): ...


class ProtocolViolation(errors.ProtocolViolation, httpx2.RemoteProtocolError): ...


class DeadlineExceeded(errors.DeadlineExceeded, httpx2.ReadTimeout): ...


class WriteTimedOut(errors.DeadlineExceeded, httpx2.WriteTimeout): ...


class PoolTimedOut(errors.CircuitFull, httpx2.PoolTimeout): ...


_HOST_CLASSES: dict[type[errors.MeshError], type[errors.MeshError]] = {
    errors.ConfigTimeout: ConfigTimeout,
    errors.MeshClosed: MeshClosed,
    errors.UnknownHost: UnknownHost,
    errors.NoRoute: NoRoute,
    errors.NoCluster: NoCluster,
    errors.NoHealthyEndpoint: NoHealthyEndpoint,
    errors.CircuitFull: CircuitFull,
    errors.BreakerOpen: BreakerOpen,
    errors.FaultInjected: FaultInjected,
    errors.ConnectFailed: ConnectFailed,
    errors.ConnectTimedOut: ConnectTimedOut,
    errors.IdentityError: IdentityError,
    errors.StreamReset: StreamReset,
    errors.ProtocolViolation: ProtocolViolation,
    errors.DeadlineExceeded: DeadlineExceeded,
}

_PATIENCE_CLASSES: dict[Phase, type[errors.MeshError]] = {
    Phase.READ: DeadlineExceeded,
    Phase.WRITE: WriteTimedOut,
    Phase.POOL: PoolTimedOut,
}

_TRANSLATED = (errors.MeshError, ImpatienceError, InvalidRequest, BodyLengthError, SecureSchemeError)


def _translate(error: Exception, request: httpx2.Request) -> Exception:
    """The error as httpx2's users know it; `request` is set on it."""
    if isinstance(error, SecureSchemeError):
        return httpx2.UnsupportedProtocol(str(error), request=request)
    if isinstance(error, InvalidRequest | BodyLengthError):
        return httpx2.LocalProtocolError(str(error), request=request)
    if isinstance(error, ImpatienceError):
        cls, source = _PATIENCE_CLASSES[error.phase], impatience(error)
    else:
        assert isinstance(error, errors.MeshError)
        cls, source = _HOST_CLASSES.get(type(error), OtherMeshError), error
    translated = cls(source.message)
    vars(translated).update(vars(source))
    assert isinstance(translated, httpx2.RequestError)
    translated.request = request
    return translated


_CLIENT = "httpx2._client"


class _WholeBody(httpx2.ByteStream):
    """A body that is here already."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.content = content


class _WholeResponse(httpx2.Response):
    """A response whose body is here already and not encoded: reading it takes none of httpx2's streaming machinery.

    own: the stream that it was made with. The client binds another around it; a stream that somebody else put in its place is
    read. Once read, the response lets go of a stream that refers back to it (which has set `elapsed` then): a collector that
    has to find the cycles of 64 concurrent calls takes a tenth of the time.
    """

    own: _WholeBody

    def read(self) -> bytes:
        if self.is_stream_consumed or self.is_closed:
            return super().read()
        own, stream = self.own, self.stream
        mine = _is_around(stream, own)
        self._content = content = own.content if mine else b"".join(stream)  # type: ignore[arg-type]
        self.is_stream_consumed = True
        self._num_bytes_downloaded = len(content)
        self.close()
        if hasattr(self, "_elapsed"):
            self.stream = own
        return content

    async def aread(self) -> bytes:
        if self.is_stream_consumed or self.is_closed:
            return await super().aread()
        own, stream = self.own, self.stream
        mine = _is_around(stream, own)
        content = own.content if mine else b"".join([part async for part in stream])  # type: ignore[union-attr]
        self._content = content
        self.is_stream_consumed = True
        self._num_bytes_downloaded = len(content)
        await self.aclose()
        if hasattr(self, "_elapsed"):
            self.stream = own
        return content


def _is_around(stream: object, own: _WholeBody) -> bool:
    """Whether reading this stream gives `own`: it is that, or what a client binds around it."""
    if type(stream).__module__ == _CLIENT:
        stream = getattr(stream, "_stream", None)
    return stream is own


_PREPARED = vars(httpx2.Headers([(b"A", b"b")])) == {"_list": [(b"A", b"a", b"b")], "_encoding": None}
"""Whether httpx2 keeps headers as it has for years, so that they can be given to it in that form."""


def _whole(answer: Answer, content: bytes) -> httpx2.Response:
    """The response with a body that is here already."""
    fields = answer.fields
    names = fields[::2]
    lowered = list(map(bytes.lower, names))
    if b"content-encoding" in lowered:
        return _response(answer, httpx2.ByteStream(content))
    own = _WholeBody(content)
    response = _WholeResponse(
        answer.status,
        headers=None if _PREPARED else answer.headers,
        stream=own,
        extensions=_extensions(answer),
    )
    if (
        _PREPARED
    ):  # nothing in them needs httpx2's conversions, and of other encodings than ASCII it finds out itself
        headers = response.headers
        headers._list = list(zip(names, lowered, fields[1::2], strict=True))
        headers._encoding = "ascii" if b"".join(fields).isascii() else None
    response.own = own
    return response


def _response(answer: Answer, stream: httpx2.SyncByteStream | httpx2.AsyncByteStream) -> httpx2.Response:
    return httpx2.Response(
        answer.status, headers=answer.headers, stream=stream, extensions=_extensions(answer)
    )


def _leaving(request: httpx2.Request, leave: Leave) -> httpx2.Request:
    """The request as it goes out without the mesh; the application's own stays as it is."""
    if not leave.headers:
        return request
    headers = [*request.headers.raw, *leave.headers]
    return httpx2.Request(
        request.method, request.url, headers=headers, stream=request.stream, extensions=request.extensions
    )


def _extensions(answer: Answer) -> dict[str, object]:
    extensions: dict[str, object] = {"http_version": answer.version, "meshlib": answer.info}
    if answer.reason is not None:
        extensions["reason_phrase"] = answer.reason
    return extensions


class _SyncStream(httpx2.SyncByteStream):
    """A response body that is still arriving."""

    def __init__(self, exchange: SyncExchange, request: httpx2.Request) -> None:
        self._exchange = exchange
        self._request = request

    def __iter__(self) -> Iterator[bytes]:
        try:
            while (data := self._exchange.read()) is not None:
                yield data
        except _TRANSLATED as error:
            raise _translate(error, self._request) from None

    def close(self) -> None:
        self._exchange.close()

    def __del__(self) -> None:
        self._exchange.drop()


class _AsyncStream(httpx2.AsyncByteStream):
    """A response body that is still arriving."""

    def __init__(self, exchange: AsyncExchange, request: httpx2.Request) -> None:
        self._exchange = exchange
        self._request = request

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            while (data := await self._exchange.read()) is not None:
                yield data
        except _TRANSLATED as error:
            raise _translate(error, self._request) from None

    async def aclose(self) -> None:
        await self._exchange.close()

    def __del__(self) -> None:
        self._exchange.drop()


class MeshTransport(httpx2.BaseTransport):
    """Sends every request of a client through the mesh.

    mesh: a `meshlib.Mesh`; None takes the process's default Mesh. local_reply: what to do where Envoy would answer by itself
    (no route, no healthy endpoint, a timeout, ...): "raise" an error, or give Envoy's status, headers and body as a
    "response". A direct response or a redirect of the configuration is a response in both cases.
    Thread safe; may be shared by several clients. Closing it closes idle connections and nothing else.
    """

    def __init__(self, mesh: MeshLike | None = None, *, local_reply: LocalReplies = "raise") -> None:
        self._shell = SyncShell(mesh, local_reply)
        self._plain: httpx2.HTTPTransport | None = None

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        try:
            body: bytes | None = request.content
            source: httpx2.SyncByteStream | None = None
        except httpx2.RequestNotRead:
            body = None
            assert isinstance(request.stream, httpx2.SyncByteStream)
            source = request.stream
        try:
            answer = self._shell.send(request, body, source)
        except _TRANSLATED as error:
            raise _translate(error, request) from None
        if isinstance(answer, Leave):
            return self._without_mesh().handle_request(_leaving(request, answer))
        if answer.content is not None:
            return _whole(answer, answer.content)
        return _response(answer, _SyncStream(answer.stream, request))

    def _without_mesh(self) -> httpx2.HTTPTransport:
        if self._plain is None:
            self._plain = httpx2.HTTPTransport()
        return self._plain

    def close(self) -> None:
        self._shell.close()
        if self._plain is not None:
            self._plain.close()
            self._plain = None


class AsyncMeshTransport(httpx2.AsyncBaseTransport):
    """The same for `httpx2.AsyncClient`, on asyncio. May be used from several event loops; each has its own connections."""

    def __init__(self, mesh: MeshLike | None = None, *, local_reply: LocalReplies = "raise") -> None:
        self._shell = AsyncShell(mesh, local_reply)
        self._plain: httpx2.AsyncHTTPTransport | None = None

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        try:
            body: bytes | None = request.content
            source: httpx2.AsyncByteStream | None = None
        except httpx2.RequestNotRead:
            body = None
            assert isinstance(request.stream, httpx2.AsyncByteStream)
            source = request.stream
        try:
            answer = await self._shell.send(request, body, source)
        except _TRANSLATED as error:
            raise _translate(error, request) from None
        if isinstance(answer, Leave):
            return await self._without_mesh().handle_async_request(_leaving(request, answer))
        if answer.content is not None:
            return _whole(answer, answer.content)
        return _response(answer, _AsyncStream(answer.stream, request))

    def _without_mesh(self) -> httpx2.AsyncHTTPTransport:
        if self._plain is None:
            self._plain = httpx2.AsyncHTTPTransport()
        return self._plain

    async def aclose(self) -> None:
        await self._shell.aclose()
        if self._plain is not None:
            await self._plain.aclose()
            self._plain = None

"""A body that is here already takes a short cut; a stream that something in between put in its place does not."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx

from meshlib.httpx import AsyncMeshTransport, MeshTransport
from tests.transport.http.support import mesh_for, response, serve


def _mesh(port: int) -> Any:
    return mesh_for([port])


class _Louder(httpx.SyncByteStream):
    def __init__(self, inner: httpx.SyncByteStream) -> None:
        self._stream = inner

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._stream:
            yield chunk.upper()


class _AsyncLouder(httpx.AsyncByteStream):
    def __init__(self, inner: httpx.AsyncByteStream) -> None:
        self._inner = inner

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._inner:
            yield chunk.upper()


class _Wrapping(httpx.BaseTransport):
    def __init__(self, inner: httpx.BaseTransport) -> None:
        self._inner = inner

    def close(self) -> None:
        self._inner.close()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        answer = self._inner.handle_request(request)
        assert isinstance(answer.stream, httpx.SyncByteStream)
        answer.stream = _Louder(answer.stream)
        return answer


class _AsyncWrapping(httpx.AsyncBaseTransport):
    def __init__(self, inner: httpx.AsyncBaseTransport) -> None:
        self._inner = inner

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        answer = await self._inner.handle_async_request(request)
        assert isinstance(answer.stream, httpx.AsyncByteStream)
        answer.stream = _AsyncLouder(answer.stream)
        return answer


def test_a_stream_that_another_transport_put_in_place_is_read() -> None:
    with serve(response(b"hello")) as server:
        with httpx.Client(transport=_Wrapping(MeshTransport(_mesh(server.port)))) as client:
            assert client.get("http://test/").text == "HELLO"


def test_a_stream_that_another_async_transport_put_in_place_is_read() -> None:
    async def main(port: int) -> str:
        transport = AsyncMeshTransport(_mesh(port))
        async with httpx.AsyncClient(transport=_AsyncWrapping(transport)) as client:
            return (await client.get("http://test/")).text

    with serve(response(b"hello")) as server:
        assert asyncio.run(main(server.port)) == "HELLO"


def test_a_stream_that_was_put_in_place_is_read_without_a_client_too() -> None:
    with serve(response(b"hello")) as server, MeshTransport(_mesh(server.port)) as transport:
        answer = _Wrapping(transport).handle_request(httpx.Request("GET", "http://test/"))
        assert answer.read() == b"HELLO"


def test_a_response_that_was_read_goes_without_the_collector() -> None:
    with serve(response(b"hello")) as server:
        with httpx.Client(transport=MeshTransport(_mesh(server.port))) as client:
            gc.disable()
            try:
                answer = client.get("http://test/")
                assert answer.elapsed.total_seconds() > 0
                alive = weakref.ref(answer)
                del answer
                assert alive() is None
            finally:
                gc.enable()

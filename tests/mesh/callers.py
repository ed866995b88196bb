"""The same calls over the blocking and the asyncio transport."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, Protocol

import httpx

import meshlib
from meshlib.httpx import AsyncMeshTransport, MeshTransport

__all__ = ["CALLERS", "AsyncCaller", "Caller", "SyncCaller"]


class Caller(Protocol):
    """One client. close() also ends what belongs to it."""

    def request(self, method: str, url: str, **options: Any) -> httpx.Response: ...

    def get(self, url: str) -> httpx.Response: ...

    def get_with(self, url: str, **options: Any) -> httpx.Response:
        """Inside `meshlib.call(**options)`."""

    def close(self) -> None: ...


class SyncCaller:
    def __init__(self, mesh: meshlib.Mesh | None, **options: Any) -> None:
        self._client = httpx.Client(transport=MeshTransport(mesh, **options))

    def request(self, method: str, url: str, **options: Any) -> httpx.Response:
        return self._client.request(method, url, **options)

    def get(self, url: str) -> httpx.Response:
        return self._client.get(url)

    def get_with(self, url: str, **options: Any) -> httpx.Response:
        with meshlib.call(**options):
            return self._client.get(url)

    def close(self) -> None:
        self._client.close()


class AsyncCaller:
    def __init__(self, mesh: meshlib.Mesh | None, **options: Any) -> None:
        self._runner = asyncio.Runner()
        self._client = httpx.AsyncClient(transport=AsyncMeshTransport(mesh, **options))

    def request(self, method: str, url: str, **options: Any) -> httpx.Response:
        return self._runner.run(self._client.request(method, url, **options))

    def get(self, url: str) -> httpx.Response:
        return self._runner.run(self._client.get(url))

    def get_with(self, url: str, **options: Any) -> httpx.Response:
        async def call() -> httpx.Response:
            async with meshlib.call(**options):
                return await self._client.get(url)

        return self._runner.run(call())

    def close(self) -> None:
        with contextlib.closing(self._runner):
            self._runner.run(self._client.aclose())


CALLERS: dict[str, type[SyncCaller] | type[AsyncCaller]] = {"sync": SyncCaller, "async": AsyncCaller}

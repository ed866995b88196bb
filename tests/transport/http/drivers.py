"""The same client operations over httpx and httpx2, blocking and asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any

import httpx
import httpx2

import meshlib.httpx
import meshlib.httpx2
from tests.transport.http.support import FakeMesh

__all__ = ["DRIVERS", "AsyncDriver", "Driver", "SyncDriver"]


class Driver:
    """lib: httpx or httpx2. mod: meshlib.httpx or meshlib.httpx2."""

    lib: Any
    mod: Any
    client: Any

    def open(self, mesh: FakeMesh, **options: Any) -> None:
        """Make a client. options: `local_reply` goes to the transport, the rest to the client."""
        raise NotImplementedError

    def request(self, method: str, path: str, **options: Any) -> Any:
        raise NotImplementedError

    def get(self, path: str = "/", **options: Any) -> Any:
        return self.request("GET", path, **options)

    def stream(self, path: str, pieces: int | None = None) -> tuple[Any, bytes]:
        """GET with stream=True; read so many pieces of the raw body, None for all, and close."""
        raise NotImplementedError

    def pieces(self, path: str) -> Iterator[bytes]:
        """GET with stream=True, the raw body piece by piece."""
        raise NotImplementedError

    def body(self, pieces: Iterable[bytes]) -> Any:
        """An iterator for `content=` that can be read once."""
        raise NotImplementedError

    def idle(self) -> int:
        """Idle connections in the client's pool."""
        raise NotImplementedError

    def close_client(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


def url(path: str) -> str:
    return path if "://" in path else f"http://backend{path}"


class SyncDriver(Driver):
    def __init__(self, lib: Any, mod: Any) -> None:
        self.lib, self.mod = lib, mod
        self.client: Any = None

    def open(self, mesh: FakeMesh, *, local_reply: str = "raise", **options: Any) -> None:
        self.transport = self.mod.MeshTransport(mesh, local_reply=local_reply)
        self.client = self.lib.Client(transport=self.transport, **options)

    def request(self, method: str, path: str, **options: Any) -> Any:
        return self.client.request(method, url(path), **options)

    def stream(self, path: str, pieces: int | None = None) -> tuple[Any, bytes]:
        with self.client.stream("GET", url(path)) as response:
            data = b""
            for number, piece in enumerate(response.iter_raw(), 1):
                data += piece
                if number == pieces:
                    break
        return response, data

    def pieces(self, path: str) -> Iterator[bytes]:
        with self.client.stream("GET", url(path)) as response:
            yield from response.iter_raw()

    def body(self, pieces: Iterable[bytes]) -> Iterator[bytes]:
        yield from pieces

    def idle(self) -> int:
        pools = self.transport._shell._pools
        return 0 if pools is None else int(pools.sync.idle_connections())

    def close_client(self) -> None:
        self.client.close()

    def close(self) -> None:
        if self.client is not None:
            self.client.close()


class AsyncDriver(Driver):
    def __init__(self, lib: Any, mod: Any) -> None:
        self.lib, self.mod = lib, mod
        self.client: Any = None
        self.loop = asyncio.new_event_loop()

    def run(self, awaitable: Any) -> Any:
        return self.loop.run_until_complete(awaitable)

    def open(self, mesh: FakeMesh, *, local_reply: str = "raise", **options: Any) -> None:
        self.transport = self.mod.AsyncMeshTransport(mesh, local_reply=local_reply)
        self.client = self.lib.AsyncClient(transport=self.transport, **options)

    def request(self, method: str, path: str, **options: Any) -> Any:
        return self.run(self.client.request(method, url(path), **options))

    def stream(self, path: str, pieces: int | None = None) -> tuple[Any, bytes]:
        async def streamed() -> tuple[Any, bytes]:
            async with self.client.stream("GET", url(path)) as response:
                data = b""
                number = 0
                async for piece in response.aiter_raw():
                    data += piece
                    number += 1
                    if number == pieces:
                        break
            return response, data

        result: tuple[Any, bytes] = self.run(streamed())
        return result

    def pieces(self, path: str) -> Iterator[bytes]:
        response = self.run(self.client.send(self.client.build_request("GET", url(path)), stream=True))
        reader = response.aiter_raw()
        try:
            while (piece := self.run(anext(reader, None))) is not None:
                yield piece
        finally:
            self.run(response.aclose())

    async def body(self, pieces: Iterable[bytes]) -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    def idle(self) -> int:
        pools = self.transport._shell._pools
        return 0 if pools is None else int(pools.for_loop(self.loop).idle_connections())

    def close_client(self) -> None:
        self.run(self.client.aclose())

    def close(self) -> None:
        async def closed() -> None:
            if self.client is not None:
                await self.client.aclose()
            await self.loop.shutdown_asyncgens()
            await asyncio.sleep(0)

        self.run(closed())
        self.loop.close()


DRIVERS: dict[str, Callable[[], Driver]] = {
    "httpx": lambda: SyncDriver(httpx, meshlib.httpx),
    "httpx-async": lambda: AsyncDriver(httpx, meshlib.httpx),
    "httpx2": lambda: SyncDriver(httpx2, meshlib.httpx2),
    "httpx2-async": lambda: AsyncDriver(httpx2, meshlib.httpx2),
}

"""The clients that are compared. A case is one client that gets one small answer, by one way.

Each client is made as its library's documentation makes it, with default limits; `trust_env` is off so that no proxy
of the environment gets between. All of one run live in one process, so that they can take turns.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Generic, TypeVar

from benchmarks.configuration import AUTHORITY, PATH, Resource
from benchmarks.world import World

SyncFetch = Callable[[], None]
AsyncFetch = Callable[[], Awaitable[None]]
Fetch = TypeVar("Fetch")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case(Generic[Fetch]):
    """`fetch` makes one call and reads its answer; `envoys` are the processes in between."""

    name: str
    fetch: Fetch
    envoys: tuple[int, ...]


class Unexpected(Exception):
    """A call of the benchmark was not answered with 200."""


def _check(status: int) -> None:
    if status != 200:
        raise Unexpected(f"status {status}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How a call travels: the URL and headers that the client uses, and the Envoys that it meets."""

    name: str
    url: str
    headers: dict[str, str]
    envoys: tuple[int, ...] = ()


def ways(world: World, meshes: Iterable[str] = ()) -> dict[str, Way]:
    """The ways that this machine has, and those through meshes of these names."""
    found = [Way(name="direct", url=f"http://127.0.0.1:{world.upstreams[0][1]}{PATH}", headers={})]
    hops = (
        ("one_envoy", world.one_hop_port, world.one_hop_pids),
        ("two_envoys", world.two_hops_port, world.two_hops_pids),
    )
    for name, port, pids in hops:
        if port is not None:
            url = f"http://127.0.0.1:{port}{PATH}"
            found.append(Way(name=name, url=url, headers={"host": AUTHORITY}, envoys=pids))
    found += [Way(name=name, url=f"http://{AUTHORITY}{PATH}", headers={}) for name in meshes]
    return {way.name: way for way in found}


def installed(library: str) -> bool:
    return find_spec(library) is not None


@contextlib.contextmanager
def mesh(resources: Resource) -> Iterator[Any]:
    """A started Mesh with these resources."""
    import meshlib

    with meshlib.Mesh(config=[resources]) as started:
        started.wait_ready(timeout=15.0)
        yield started


def _transport(library: str, kind: str, started: Any) -> Any:
    return getattr(importlib.import_module(f"meshlib.{library}"), kind)(started)


def sync_fetch(client: Any, url: str) -> SyncFetch:
    def fetch() -> None:
        _check(client.get(url).status_code)

    return fetch


def _async_fetch(client: Any, url: str) -> AsyncFetch:
    async def fetch() -> None:
        _check((await client.get(url)).status_code)

    return fetch


def _aiohttp_fetch(session: Any, way: Way) -> AsyncFetch:
    async def fetch() -> None:
        async with session.get(way.url, headers=way.headers) as response:
            await response.read()
            _check(response.status)

    return fetch


@contextlib.contextmanager
def sync_cases(
    world: World, meshes: Mapping[str, Any], libraries: Sequence[str] = ("httpx", "httpx2")
) -> Iterator[list[Case[SyncFetch]]]:
    """These libraries, each by every way. meshes: started ones by the name of their case; none leaves meshlib out."""
    with contextlib.ExitStack() as stack:
        cases = []
        for library in filter(installed, libraries):
            for way in ways(world, meshes).values():
                options: dict[str, Any] = {"headers": way.headers, "trust_env": False}
                if way.name in meshes:
                    options["transport"] = _transport(library, "MeshTransport", meshes[way.name])
                client = stack.enter_context(importlib.import_module(library).Client(**options))
                fetch = sync_fetch(client, way.url)
                cases.append(Case(name=f"{library}/{way.name}", fetch=fetch, envoys=way.envoys))
        yield cases


@contextlib.asynccontextmanager
async def async_cases(
    world: World, meshes: Mapping[str, Any], libraries: Sequence[str] = ("httpx", "httpx2", "aiohttp")
) -> AsyncIterator[list[Case[AsyncFetch]]]:
    """As `sync_cases`, and aiohttp."""
    async with contextlib.AsyncExitStack() as stack:
        cases = []
        for library in filter(installed, [each for each in libraries if each != "aiohttp"]):
            for way in ways(world, meshes).values():
                options: dict[str, Any] = {"headers": way.headers, "trust_env": False}
                if way.name in meshes:
                    options["transport"] = _transport(library, "AsyncMeshTransport", meshes[way.name])
                client = await stack.enter_async_context(
                    importlib.import_module(library).AsyncClient(**options)
                )
                fetch = _async_fetch(client, way.url)
                cases.append(Case(name=f"{library}/{way.name}", fetch=fetch, envoys=way.envoys))
        if "aiohttp" in libraries and installed("aiohttp"):
            import aiohttp

            session = await stack.enter_async_context(aiohttp.ClientSession())
            for way in ways(world).values():
                fetch = _aiohttp_fetch(session, way)
                cases.append(Case(name=f"aiohttp/{way.name}", fetch=fetch, envoys=way.envoys))
        yield cases

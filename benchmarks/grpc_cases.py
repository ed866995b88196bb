"""The gRPC clients that are compared: a plain channel, one through an Envoy, C-core's own `xds:///`, and meshlib.

A case of the kind `grpc` makes a unary call of 100 bytes; one of the kind `grpc-stream` reads a stream of `MESSAGES` messages.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc

from benchmarks.cases import AsyncFetch, Case, SyncFetch, Unexpected
from benchmarks.grpc_configuration import STREAM, TARGET, UNARY, few_of_many, mesh_resources
from benchmarks.grpc_upstream import MESSAGE
from benchmarks.grpc_world import GrpcWorld

MESSAGES = 500
FEW = 2
"""Of a large cluster's endpoints."""

_COUNT = str(MESSAGES).encode()
_AUTHORITY = (("grpc.default_authority", TARGET),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How a call travels. open: makes the channel, given the factories of grpc or of grpc.aio and of meshlib's counterpart."""

    name: str
    open: Callable[[Any, Any], Any]
    envoys: tuple[int, ...] = ()


def ways(world: GrpcWorld, started: Any) -> list[Way]:
    """The ways that this machine has. `started` is a Mesh, or None to leave meshlib out."""
    direct = f"127.0.0.1:{world.upstreams[0][1]}"
    os.environ["GRPC_XDS_BOOTSTRAP_CONFIG"] = json.dumps(world.bootstrap)  # C-core has no other way in
    found = [
        Way(name="direct", open=lambda library, _mesh: library.insecure_channel(direct)),
        Way(name="ccore", open=lambda library, _mesh: library.insecure_channel(f"xds:///{TARGET}")),
    ]
    if world.envoy_port is not None:
        hop = f"127.0.0.1:{world.envoy_port}"
        found.append(
            Way(
                name="one_envoy",
                open=lambda library, _mesh: library.insecure_channel(hop, options=_AUTHORITY),
                envoys=world.envoy_pids,
            )
        )
    if started is not None:
        found.append(Way(name="meshlib", open=lambda _library, factory: factory(TARGET, mesh=started)))
    return found


@contextlib.contextmanager
def mesh(endpoints: list[tuple[str, int]], **more: Any) -> Iterator[Any]:
    """A started Mesh with the benchmark's resources. more: fields of each Cluster."""
    import meshlib

    with meshlib.Mesh(config=[mesh_resources(endpoints, **more)]) as started:
        started.wait_ready(timeout=15.0)
        yield started


def _check(answer: bytes) -> None:
    if answer != MESSAGE:
        raise Unexpected(f"{len(answer)} bytes")


def _count(messages: int) -> None:
    if messages != MESSAGES:
        raise Unexpected(f"{messages} messages")


def unary_fetch(channel: Any) -> SyncFetch:
    call = channel.unary_unary(UNARY)

    def fetch() -> None:
        _check(call(MESSAGE))

    return fetch


def _stream(channel: Any) -> SyncFetch:
    call = channel.unary_stream(STREAM)

    def fetch() -> None:
        _count(sum(1 for _ in call(_COUNT)))

    return fetch


def aio_unary_fetch(channel: Any) -> AsyncFetch:
    call = channel.unary_unary(UNARY)

    async def fetch() -> None:
        _check(await call(MESSAGE))

    return fetch


def _aio_stream(channel: Any) -> AsyncFetch:
    call = channel.unary_stream(STREAM)

    async def fetch() -> None:
        messages = 0
        async for _ in call(_COUNT):
            messages += 1
        _count(messages)

    return fetch


@contextlib.contextmanager
def sync_cases(
    world: GrpcWorld, started: Any
) -> Iterator[tuple[list[Case[SyncFetch]], list[Case[SyncFetch]]]]:
    """The unary cases and the streaming ones."""
    import meshlib.grpc

    with contextlib.ExitStack() as stack:
        unary, stream = [], []
        for way in ways(world, started):
            channel = stack.enter_context(way.open(grpc, meshlib.grpc.channel))
            unary.append(Case(name=f"grpc/{way.name}", fetch=unary_fetch(channel), envoys=way.envoys))
            stream.append(Case(name=f"grpc-stream/{way.name}", fetch=_stream(channel), envoys=way.envoys))
        yield unary, stream


@contextlib.asynccontextmanager
async def large_cases(world: GrpcWorld) -> AsyncIterator[list[Case[AsyncFetch]]]:
    """Unary calls to a cluster of many endpoints with grpc.aio: to each of them, and to `FEW`."""
    import meshlib.grpc

    async with contextlib.AsyncExitStack() as stack:
        found = []
        for name, more in (("many", {}), ("few_of_many", few_of_many(FEW))):
            started = stack.enter_context(mesh(world.many, **more))
            channel = await stack.enter_async_context(meshlib.grpc.aio_channel(TARGET, mesh=started))
            found.append(Case(name=f"grpc/meshlib_{name}", fetch=aio_unary_fetch(channel), envoys=()))
        yield found


@contextlib.asynccontextmanager
async def async_cases(
    world: GrpcWorld, started: Any
) -> AsyncIterator[tuple[list[Case[AsyncFetch]], list[Case[AsyncFetch]]]]:
    """As `sync_cases`, with grpc.aio."""
    import meshlib.grpc

    async with contextlib.AsyncExitStack() as stack:
        unary, stream = [], []
        for way in ways(world, started):
            channel = await stack.enter_async_context(way.open(grpc.aio, meshlib.grpc.aio_channel))
            unary.append(Case(name=f"grpc/{way.name}", fetch=aio_unary_fetch(channel), envoys=way.envoys))
            stream.append(Case(name=f"grpc-stream/{way.name}", fetch=_aio_stream(channel), envoys=way.envoys))
        yield unary, stream

"""The gRPC section: unary calls one by one and 64 at once, streams, and what an endpoint costs that nobody calls."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import grpc_cases, runner
from benchmarks.footprint import run_fresh
from benchmarks.grpc_configuration import TARGET, UNARY, ads_resources, mesh_resources
from benchmarks.grpc_upstream import MESSAGE
from benchmarks.grpc_world import GrpcWorld
from benchmarks.plan import Plan
from benchmarks.samples import Samples
from benchmarks.worker import Worker

AT_ONCE = 64
ENDPOINTS = 1000

_FOOTPRINT = """
import contextlib, gc, json, os, sys
import grpc, meshlib, meshlib.grpc
from benchmarks.processes import memory_mib
source, place, count = sys.argv[1:]
mesh = meshlib.Mesh(config=[place]) if source == "file" else meshlib.Mesh(server_uri=place, node_id="footprint")
mesh.start(); mesh.wait_ready()
channel = meshlib.grpc.channel({target!r}, mesh=mesh)
call = channel.unary_unary({unary!r})
for _ in range(5):
    with contextlib.suppress(grpc.RpcError):
        call({message!r})
assert {{each.balancer.size for each in mesh.engine.program.clusters.values()}} == {{int(count)}}
gc.collect()
print(json.dumps(memory_mib(os.getpid())))
"""


def measure(world: GrpcWorld, started: Any, how: Plan, order: random.Random) -> Samples:
    """All cases of grpc take turns, then all of grpc.aio."""
    measured = Samples()
    streams = max(2, how.calls // 20)
    upstream = world.upstream_pid
    with grpc_cases.sync_cases(world, started) as (unary, stream):
        for cases, calls in ((unary, how.calls), (stream, streams)):
            found = runner.run_sync(cases, upstream, rounds=how.rounds, calls=calls, order=order)
            measured.by_case |= found.by_case
    asyncio.run(_measure_aio(world, started, how, order, measured))
    return measured


async def _measure_aio(
    world: GrpcWorld, started: Any, how: Plan, order: random.Random, measured: Samples
) -> None:
    streams = max(2, how.calls // 20)
    upstream = world.upstream_pid
    async with grpc_cases.async_cases(world, started) as (unary, stream):
        for cases, calls in ((unary, how.calls), (stream, streams)):
            found = await runner.run_async(cases, upstream, rounds=how.rounds, calls=calls, order=order)
            measured.by_case |= found.by_case
        async with contextlib.AsyncExitStack() as stack:
            large = [] if started is None else await stack.enter_async_context(grpc_cases.large_cases(world))
            concurrent = await runner.run_concurrent(
                [(case, AT_ONCE) for case in (*unary, *large)],
                upstream,
                rounds=how.concurrent_rounds,
                seconds=how.seconds,
                order=order,
            )
        measured.by_case |= concurrent.by_case


def memory(world: GrpcWorld) -> list[dict[str, Any]]:
    """Resident MiB of a process that has called few endpoints of few and of many, and KiB for each of the others.

    Over xDS, and from a file, whose text leaves its own traces in the process. Nothing listens at most of the many: a call that
    meets one of them fails, which opens nothing that stays.
    """
    rows: list[dict[str, Any]] = []
    few = len(world.upstreams)
    for source, footprint in (("xds", _over_xds), ("file", _from_file)):
        rss = {count: footprint(_endpoints(world.upstreams[0], count)) for count in (few, ENDPOINTS)}
        each = (rss[ENDPOINTS] - rss[few]) * 1024 / (2 * (ENDPOINTS - few))
        for count, kib in ((few, ""), (ENDPOINTS, round(each, 3))):
            case = f"grpc/meshlib, {count} endpoints in 2 clusters, {source}"
            rows.append({"case": case, "rss": round(rss[count], 1), "kib_each": kib})
    return rows


def _endpoints(live: tuple[str, int], count: int) -> list[tuple[str, int]]:
    return [live, *((f"127.1.{index // 250}.{index % 250 + 1}", live[1]) for index in range(count - 1))]


def _over_xds(endpoints: list[tuple[str, int]]) -> float:
    with Worker("benchmarks.push_server") as plane:
        port = plane.ask(serve=ads_resources(endpoints)["resources"])["port"]
        return _footprint("xds", f"127.0.0.1:{port}", len(endpoints))


def _from_file(endpoints: list[tuple[str, int]]) -> float:
    with tempfile.TemporaryDirectory(prefix="meshlib-bench-") as name:
        config = Path(name) / "mesh.json"
        config.write_text(json.dumps(mesh_resources(endpoints)))
        return _footprint("file", str(config), len(endpoints))


def _footprint(source: str, place: str, count: int) -> float:
    """Resident MiB of a process of its own."""
    code = _FOOTPRINT.format(target=TARGET, unary=UNARY, message=MESSAGE)
    found: dict[str, float] = json.loads(run_fresh(code, source, place, str(count)))
    return found["rss"]

"""What a client costs before its first call and in memory, each measured in fresh interpreters."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.cases import Way, installed, ways
from benchmarks.configuration import mesh_resources
from benchmarks.processes import memory_mib
from benchmarks.worker import ROOT
from benchmarks.world import World

_IMPORT = "import time; t = time.perf_counter(); {statement}; print(time.perf_counter() - t)"
_MEMORY = """
import json, os, sys
{make}
for _ in range(200):
    assert client.get({url!r}).status_code == 200
from benchmarks.processes import memory_mib
print(json.dumps(memory_mib(os.getpid())))
"""


def run_fresh(code: str, *arguments: str) -> str:
    """What the code prints, run by an interpreter of its own. CalledProcessError when it fails."""
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


def _interpreter_ms(statement: str) -> tuple[float, float]:
    """Milliseconds of the import statement alone, and of a whole interpreter that runs it."""
    code = (
        "import subprocess, sys, time; t = time.perf_counter();"
        "subprocess.run([sys.executable, '-c', sys.argv[1]], check=True); print(time.perf_counter() - t)"
    )
    inside = float(run_fresh(_IMPORT.format(statement=statement)))
    return inside * 1e3, float(run_fresh(code, statement)) * 1e3


def import_times(repeats: int) -> list[dict[str, Any]]:
    """Medians over fresh interpreters that take turns: `import_ms` by the clock inside, `process_ms` around."""
    statements = ["pass", "import meshlib", "import httpx", "import grpc"]
    times: dict[str, list[tuple[float, float]]] = {statement: [] for statement in statements}
    for _ in range(repeats):
        for statement in statements:
            times[statement].append(_interpreter_ms(statement))
    bare = statistics.median(process for _, process in times["pass"])
    rows = []
    for statement in statements:
        inside, process = (statistics.median(column) for column in zip(*times[statement], strict=True))
        rows.append({
            "case": statement,
            "import_ms": round(inside, 2),
            "process_ms": round(process, 2),
            "minus_bare_ms": round(process - bare, 2),
        })  # fmt: skip
    return rows


def _client_memory(library: str, way: Way, config: Path) -> dict[str, float]:
    if way.name == "meshlib":
        make = (
            f"import {library}, meshlib.{library}\n"
            "mesh = meshlib.Mesh(config=[sys.argv[1]])\nmesh.start(); mesh.wait_ready()\n"
            f"client = {library}.Client(transport=meshlib.{library}.MeshTransport(mesh))"
        )
    else:
        make = f"import {library}\nclient = {library}.Client(headers={way.headers!r}, trust_env=False)"
    fields: dict[str, float] = json.loads(run_fresh(_MEMORY.format(make=make, url=way.url), str(config)))
    return fields


def memory(world: World, *, with_mesh: bool) -> list[dict[str, Any]]:
    """MiB of a process with each client after 200 calls, and of each server that still runs."""
    config = world.directory / "mesh.json"
    config.write_text(json.dumps(mesh_resources(world.upstreams)))
    rows: list[dict[str, Any]] = [
        {"case": f"{library}/{way.name}", **_client_memory(library, way, config)}
        for library in filter(installed, ("httpx", "httpx2"))
        for way in ways(world, ["meshlib"] if with_mesh else []).values()
        if way.name in ("direct", "meshlib")
    ]
    servers = {world.upstream_pid: world.server}
    servers |= dict.fromkeys(world.one_hop_pids, "one_envoy")
    servers |= dict.fromkeys(world.two_hops_pids, "two_envoys (each)")
    rows += [{"case": name, **memory_mib(pid)} for pid, name in servers.items()]
    for row in rows:
        row.update({key: round(value, 1) for key, value in row.items() if isinstance(value, float)})
    return rows

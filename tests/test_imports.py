"""What importing costs: no thread, no socket, and no library that the importer did not ask for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import cast

import pytest

PROBE = """
import json, os, sys, threading
before = set(sys.modules)
{statement}
def target(fd):
    try:
        return os.readlink(f"/proc/self/fd/{{fd}}")
    except OSError:  # the descriptor of the listing itself
        return ""
print(json.dumps({{
    "modules": sorted(set(sys.modules) - before),
    "threads": [thread.name for thread in threading.enumerate()],
    "native_threads": len(os.listdir("/proc/self/task")),
    "sockets": [fd for fd in os.listdir("/proc/self/fd") if target(fd).startswith("socket:")],
}}))
"""

WALK = """
import importlib, pkgutil
package = importlib.import_module("meshlib.{folder}")
for module in pkgutil.walk_packages(getattr(package, "__path__", []), package.__name__ + "."):
    importlib.import_module(module.name)
"""

RESOLVE = """
import meshlib
for name in meshlib.__all__:
    getattr(meshlib, name)
assert set(meshlib.__all__) <= set(dir(meshlib))
"""

IO_LIBRARIES = {"aiohttp", "asyncio", "grpc", "h2", "httpcore", "httptools", "httpx", "httpx2", "ssl"}
HEAVY = IO_LIBRARIES | {"cryptography", "opentelemetry", "rich", "yaml"}

DECIDES = (
    "errors",
    "stats",
    "proto",
    "resources",
    "snapshot",
    "state",
    "routing",
    "balance",
    "policy",
    "engine",
)
"""The folders that decide."""


def observe(statement: str) -> dict[str, object]:
    """What a fresh interpreter has loaded and started after ``statement``."""
    code = PROBE.format(statement=statement)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == 0, done.stderr
    return cast("dict[str, object]", json.loads(done.stdout))


def roots(observed: dict[str, object]) -> set[str]:
    return {name.split(".")[0] for name in cast("list[str]", observed["modules"])}


def test_import_meshlib_starts_nothing_and_loads_no_host_library() -> None:
    observed = observe("import meshlib")
    assert observed["threads"] == ["MainThread"]
    assert observed["native_threads"] == 1
    assert observed["sockets"] == []
    assert roots(observed) & HEAVY == set()


@pytest.mark.parametrize("folder", DECIDES)
def test_what_decides_loads_no_io_library(folder: str) -> None:
    observed = observe(WALK.format(folder=folder))
    assert roots(observed) & IO_LIBRARIES == set()
    assert observed["threads"] == ["MainThread"]
    assert observed["sockets"] == []


@pytest.mark.parametrize(
    ("module", "foreign"),
    [("meshlib.httpx", {"httpx2", "aiohttp"}), ("meshlib.httpx2", {"httpx", "aiohttp"})],
)
def test_a_transport_module_loads_only_its_own_host_library(module: str, foreign: set[str]) -> None:
    observed = observe(f"import {module}")
    assert roots(observed) & foreign == set()
    assert observed["threads"] == ["MainThread"]


def test_public_names_resolve_without_a_host_library() -> None:
    assert roots(observe(RESOLVE)) & {"httpx", "httpx2", "grpc"} == set()


def test_every_folder_is_a_package() -> None:
    """The wheel, mypy and the import contracts would each treat a bare folder in their own way."""
    source = Path(__file__).parent.parent / "src" / "meshlib"
    bare = [
        str(folder.relative_to(source))
        for folder in source.rglob("*")
        if folder.is_dir() and any(folder.glob("*.py")) and not (folder / "__init__.py").exists()
    ]
    assert bare == []

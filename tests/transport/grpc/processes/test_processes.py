"""Forks and event loops with gRPC channels of a mesh, in processes of their own, bounded by time."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from meshlib.controlplane import ControlPlane
from meshlib.testing import serve, service
from tests.transport.grpc.processes.client import HOST, MODES
from tests.transport.grpc.secure.world import World

ROOT = Path(__file__).resolve().parents[4]
LIMIT = 45.0
CLIENT = "tests.transport.grpc.processes.client"
WSGI = "tests.transport.grpc.processes.wsgi:app"


def say(request: bytes, context: Any) -> bytes:
    return request


def say_twice(request: bytes, context: Any) -> Iterator[bytes]:
    yield request
    yield request


@pytest.fixture(params=["plaintext", "tls"])
def control_plane(request: pytest.FixtureRequest) -> Iterator[ControlPlane]:
    """It serves a mesh with one service, which echoes."""
    world = World() if request.param == "tls" else None
    handlers = {
        "Say": grpc.unary_unary_rpc_method_handler(say),
        "SayTwice": grpc.unary_stream_rpc_method_handler(say_twice),
    }
    with ThreadPoolExecutor(8) as executor:
        server = grpc.server(executor)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("tests.Echo", handlers),))
        if world is None:
            port = server.add_insecure_port("127.0.0.1:0")
        else:
            port = server.add_secure_port("127.0.0.1:0", world.credentials())
        server.start()
        document = service("echo", f"127.0.0.1:{port}", listener=HOST)
        cluster = next(each for each in document["resources"] if each["@type"].endswith(".Cluster"))
        cluster["connect_timeout"] = "20s"  # a busy machine is no failure
        if world is not None:
            cluster.update(world.cluster())
        with serve(document) as made:
            yield made
        server.stop(None).wait()


def start(*arguments: str, give: socket.socket | None = None, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}", **environment},
        pass_fds=() if give is None else (give.fileno(),),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def succeed(*arguments: str) -> None:
    """Run a module with these arguments; it has to end well, and in time."""
    with start(*arguments) as process:
        try:
            _, errors = process.communicate(timeout=LIMIT)
        except subprocess.TimeoutExpired:
            process.kill()
            pytest.fail(f"still running after {LIMIT} s: {process.communicate()[1]}")
    assert process.returncode == 0, errors


@pytest.mark.parametrize("mode", MODES)
def test_all_calls_succeed(mode: str, control_plane: ControlPlane) -> None:
    succeed(CLIENT, mode, control_plane.address)


@contextlib.contextmanager
def gunicorn(control_plane: ControlPlane, **environment: str) -> Iterator[str]:
    """The URL of gunicorn with two workers, which forks after the application was loaded."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        options = ("--preload", "--workers", "2", "--log-level", "warning", "--graceful-timeout", "5")
        process = start(
            "gunicorn",
            *options,
            "--bind",
            f"fd://{listening.fileno()}",
            WSGI,
            give=listening,
            GRPC_XDS_BOOTSTRAP_CONFIG=json.dumps(control_plane.bootstrap("gunicorn")),
            **environment,
        )
        with process:
            try:
                yield f"http://127.0.0.1:{listening.getsockname()[1]}"
            finally:
                process.terminate()
                try:
                    errors = process.communicate(timeout=LIMIT)[1]
                except subprocess.TimeoutExpired:
                    process.kill()
                    raise
    assert errors == ""


@pytest.mark.parametrize("call_before_fork", ["", "yes"], ids=["unused", "used"])
def test_gunicorn_with_two_workers(call_before_fork: str, control_plane: ControlPlane) -> None:
    workers: set[str] = set()
    with gunicorn(control_plane, CALL_BEFORE_FORK=call_before_fork) as url:
        with (
            httpx.Client(base_url=url, trust_env=False, timeout=LIMIT) as client,
            ThreadPoolExecutor(4) as pool,
        ):
            while len(workers) < 2:
                for response in pool.map(lambda number: client.get(f"/{number}"), range(20)):
                    assert response.status_code == 200
                    workers.add(response.headers["x-worker"])

"""`meshlib serve` as a process: what it prints, how it reloads, how it ends."""

from __future__ import annotations

import json
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO

import httpx
import pytest

import meshlib
from meshlib.httpx import MeshTransport
from meshlib.testing import Reply, Upstream
from tests.cli.conftest import Meshlib
from tests.cli.files import CLUSTER, LISTENER

LIMIT = 20.0

ROUTES = """\
resources:
- "@type": type.googleapis.com/envoy.config.route.v3.RouteConfiguration
  name: reviews
  virtual_hosts:
  - name: reviews
    domains: ["*"]
    routes:
    - match: {prefix: /}
      ACTION
"""


class Serving:
    """A running `meshlib serve` and its lines."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        assert process.stderr is not None
        self.process = process
        self.stdout = process.stdout
        self._errors: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, args=(process.stderr,), daemon=True)
        self._reader.start()

    def _read(self, stream: IO[str]) -> None:
        for line in stream:
            self._errors.put(line)

    def error(self) -> str:
        """The next line of standard error."""
        return self._errors.get(timeout=LIMIT).rstrip("\n")

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        code = self.process.wait(LIMIT)
        self._reader.join()
        return code


Serve = Callable[..., AbstractContextManager[Serving]]


@pytest.fixture
def serve(environment: dict[str, str]) -> Serve:
    @contextmanager
    def serving(*arguments: object) -> Iterator[Serving]:
        command = [
            sys.executable,
            "-m",
            "meshlib.cli",
            "serve",
            *map(str, arguments),
            "--listen",
            "127.0.0.1:0",
        ]
        with subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            running = Serving(process)
            try:
                yield running
            finally:
                if process.poll() is None:
                    process.kill()

    return serving


def write(folder: Path, action: str) -> None:
    draft = folder / "draft"
    draft.write_text(ROUTES.replace("ACTION", action))
    draft.replace(folder / "routes.yaml")


def answers(status: int) -> str:
    return f"direct_response: {{status: {status}}}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "listener.yaml").write_text(LISTENER)
    write(tmp_path, answers(201))
    return tmp_path


def test_it_prints_the_address_and_the_bootstrap(serve: Serve, folder: Path) -> None:
    with serve(folder, "--node-id", "frontend-1") as running:
        address = running.stdout.readline().rstrip("\n").rpartition(" ")[2]
        host, _, port = address.rpartition(":")
        assert host == "127.0.0.1"
        assert int(port) > 0
        running.stdout.readline()
        export = running.stdout.readline().rstrip("\n")
        name, _, text = export.removeprefix("export ").partition("=")
        bootstrap = json.loads(text.strip("'"))
        assert name == "GRPC_XDS_BOOTSTRAP_CONFIG"
        assert bootstrap["xds_servers"][0]["server_uri"] == address
        assert bootstrap["node"]["id"] == "frontend-1"
        with meshlib.Mesh(bootstrap=bootstrap) as mesh, httpx.Client(transport=MeshTransport(mesh)) as client:
            assert client.get("http://reviews/").status_code == 201
        assert running.end() == 0


def test_it_reloads_and_keeps_the_last_good_version(serve: Serve, folder: Path) -> None:
    with serve(folder) as running:
        address = running.stdout.readline().split()[-1]
        mesh = meshlib.Mesh(server_uri=address, node_id="test")
        with mesh, httpx.Client(transport=MeshTransport(mesh)) as client:

            def until(status: int) -> None:
                with mesh_changes(mesh) as wait:
                    while client.get("http://reviews/").status_code != status:
                        wait()

            until(201)
            write(folder, answers(202))
            assert running.error() == "reloaded: 1 Listener, 1 RouteConfiguration"
            until(202)
            write(folder, answers(9))
            place = f"{folder / 'routes.yaml'}:9: virtual_hosts[0].routes[0].direct_response.status: "
            assert running.error().startswith(place)
            assert running.error() == "the last good configuration goes on being served"
            assert client.get("http://reviews/").status_code == 202
            write(folder, answers(203))
            assert running.error().startswith("reloaded: ")
            until(203)
        assert running.end(signal.SIGINT) == 0


@contextmanager
def mesh_changes(mesh: meshlib.Mesh) -> Iterator[Callable[[], None]]:
    """A function that waits for the next configuration."""
    seen = mesh.engine.program

    def wait() -> None:
        nonlocal seen
        woken = threading.Event()
        mesh.engine.await_program(woken.set, seen)
        assert woken.wait(LIMIT)
        seen = mesh.engine.program

    yield wait


def test_a_file_that_comes_and_a_file_that_goes(serve: Serve, folder: Path) -> None:
    with serve(folder) as running:
        running.stdout.readline()
        (folder / "cluster.yaml").write_text(CLUSTER)
        assert running.error() == "reloaded: 1 Cluster, 1 Listener, 1 RouteConfiguration"
        (folder / "cluster.yaml").unlink()
        assert running.error() == "reloaded: 1 Listener, 1 RouteConfiguration"
        assert running.end() == 0


def test_traffic_goes_on_when_it_ends(serve: Serve, folder: Path) -> None:
    with Upstream(default=Reply(body=b"hello")) as upstream, serve(folder) as running:
        address = running.stdout.readline().split()[-1]
        (folder / "cluster.yaml").write_text(CLUSTER.replace("8101", str(upstream.port)))
        write(folder, "route: {cluster: api}")
        assert running.error().startswith("reloaded: ")
        mesh = meshlib.Mesh(server_uri=address, node_id="test")
        with mesh, httpx.Client(transport=MeshTransport(mesh)) as client:
            while client.get("http://reviews/").text != "hello":
                continue  # the second file may be in the reload after this one
            assert running.end(signal.SIGKILL) == -signal.SIGKILL
            assert [client.get("http://reviews/").text for _ in range(20)] == ["hello"] * 20


def test_a_wrong_configuration_is_not_served(meshlib: Meshlib, folder: Path) -> None:
    write(folder, answers(9))
    done = meshlib("serve", folder, "--listen", "127.0.0.1:0")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"{folder / 'routes.yaml'}:9: ")


def test_a_port_that_is_taken(meshlib: Meshlib, folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = meshlib("serve", folder, "--listen", address)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"cannot listen on {address}" in done.stderr


def test_wrong_usage(meshlib: Meshlib) -> None:
    done = meshlib("serve")
    assert (done.returncode, done.stdout) == (2, "")

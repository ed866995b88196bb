"""Commands that ask running processes: status, dump, explain --process, tap, graph."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner, Result

import meshlib
from meshlib import proto
from meshlib.admin.calls import Tap
from meshlib.admin.processes import ProcessDirectory
from meshlib.cli.app import app
from meshlib.httpx import MeshTransport
from meshlib.testing import ControlPlane, Reply, Upstream, serve, service


@pytest.fixture(autouse=True)
def run_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MESHLIB_RUN_DIR", str(tmp_path / "run"))
    monkeypatch.delenv("MESHLIB_ADMIN", raising=False)
    return tmp_path / "run"


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream(default=Reply(body=b"ok")) as server:
        yield server


@pytest.fixture
def plane(upstream: Upstream) -> Iterator[ControlPlane]:
    with serve(service("reviews", upstream.address)) as running:
        yield running


@pytest.fixture
def mesh(plane: ControlPlane) -> Iterator[meshlib.Mesh]:
    with meshlib.Mesh(bootstrap=plane.bootstrap(), observe=meshlib.Observe(admin=True)) as made:
        made.wait_ready("reviews:80")
        yield made


@pytest.fixture
def client(mesh: meshlib.Mesh) -> Iterator[httpx.Client]:
    with httpx.Client(transport=MeshTransport(mesh)) as made:
        yield made


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


@pytest.mark.parametrize("command", [("status",), ("dump",), ("tap",), ("graph",)])
def test_without_a_process(command: tuple[str, ...]) -> None:
    done = run(*command)
    assert (done.exit_code, done.stdout) == (1, "")
    assert "MESHLIB_ADMIN=1" in done.stderr


@pytest.mark.parametrize("command", [("status",), ("dump",), ("tap",), ("graph",), ("explain", "http://a/")])
def test_a_process_that_is_not_there(command: tuple[str, ...]) -> None:
    assert run(*command, "--process", 1).exit_code == 1
    assert run(*command, "--process", "http://127.0.0.1:1").exit_code == 1
    assert run(*command, "--process", "../x").exit_code == 2
    assert run(*command, "--process", "ftp://x").exit_code == 2


@pytest.mark.usefixtures("run_directory")
def test_a_directory_of_others(run_directory: Path) -> None:
    run_directory.mkdir(mode=0o755)
    done = run("status")
    assert done.exit_code == 1
    assert "others may enter it" in done.stderr


def test_status(mesh: meshlib.Mesh, plane: ControlPlane) -> None:
    done = run("status")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"{os.getpid()}  ")
    assert "ready, up " in lines[0]
    assert f"{plane.address}, connected" in done.stdout
    assert any(line.split()[:3] == ["cds", "1", "1"] for line in lines)


def test_status_as_json(mesh: meshlib.Mesh) -> None:
    done = run("status", "--json")
    found = json.loads(done.stdout)
    assert found["unreachable"] == []
    (process,) = found["processes"]
    assert list(process) == [
        "name",
        "pid",
        "group",
        "service",
        "command",
        "url",
        "host",
        "now",
        "meshlib",
        "started",
        "ready",
        "why_not_ready",
        "control_plane",
        "types",
        "certificates",
        "problems",
        "unsupported",
    ]
    assert (process["pid"], process["ready"], process["control_plane"]["connected"]) == (
        os.getpid(),
        True,
        True,
    )


def test_status_by_url(mesh: meshlib.Mesh) -> None:
    assert mesh.doors is not None
    assert run("status", "--process", mesh.doors.url).exit_code == 0


def test_what_was_refused(mesh: meshlib.Mesh, plane: ControlPlane, upstream: Upstream) -> None:
    wrong = service("reviews", upstream.address)
    del wrong["resources"][2]["eds_cluster_config"]
    wrong["resources"][2]["type"] = "ORIGINAL_DST"
    plane.store.update(unchecked(wrong["resources"][2]))
    while not any(status.error for status in mesh.status()):
        time.sleep(0.01)
    done = run("status")
    assert done.exit_code == 1
    assert "refused: cds reviews: " in done.stdout
    assert "the version before stays in force" in done.stdout
    dump = json.loads(run("dump", "--resource", "dynamic_active_clusters").stdout)
    (cluster,) = dump["configs"]
    assert (cluster["client_status"], cluster["version_info"]) == ("NACKED", "1")
    assert cluster["cluster"]["type"] == "EDS"
    state = cluster["error_state"]
    assert (state["version_info"], state["failed_configuration"]["type"]) == ("2", "ORIGINAL_DST")
    assert state["details"]


def unchecked(resource: dict[str, Any]) -> proto.Message:
    """What the control plane sends though a client would refuse it."""
    plain = {name: value for name, value in resource.items() if name != "@type"}
    return proto.from_dict(proto.full_name(resource["@type"]), plain)


def test_dump(mesh: meshlib.Mesh) -> None:
    done = run("dump", "--include-eds")
    assert done.exit_code == 0
    kinds = [config["@type"].rpartition(".")[2] for config in json.loads(done.stdout)["configs"]]
    assert "EndpointsConfigDump" in kinds
    assert run("dump", "--resource", "nonsense").exit_code == 1


def test_explain(mesh: meshlib.Mesh, upstream: Upstream) -> None:
    done = run("explain", "--process", os.getpid(), "http://reviews/x")
    assert done.exit_code == 0
    assert f"  endpoint        {upstream.address}" in done.stdout
    found = json.loads(
        run("explain", "--json", "--process", os.getpid(), "-m", "POST", "http://reviews/x").stdout
    )
    assert (found["cluster"], found["route_config"]) == ("reviews", "reviews")
    assert run("explain", "--process", os.getpid(), "a.yaml", "http://reviews/x").exit_code == 2
    assert run("explain", "--process", os.getpid(), "--at", "0", "http://reviews/x").exit_code == 2
    assert run("explain", "--process", os.getpid(), "/x").exit_code == 1
    assert run("explain").exit_code == 2


def test_graph(mesh: meshlib.Mesh, client: httpx.Client) -> None:
    assert run("graph").stdout == "no calls yet\n"
    client.get("http://reviews/")
    own = json.loads(run("graph", "--format", "json").stdout)["nodes"][0]["id"]
    assert run("graph").stdout.startswith(f"{own} -> reviews  ")
    dot = run("graph", "--format", "dot").stdout
    assert dot.startswith("digraph mesh {")
    assert f'"{own}" -> "reviews" [label=' in dot
    mermaid = run("graph", "--format", "mermaid").stdout.splitlines()
    assert mermaid[0] == "flowchart LR"
    assert mermaid[3].startswith('  n0 -->|"')
    page = run("graph", "--format", "html").stdout
    assert page.startswith("<!doctype html>")
    assert "<td>reviews</td>" in page
    assert "<script" not in page
    assert run("graph", "--format", "png").exit_code == 2


def test_tap_ends_after_a_count(mesh: meshlib.Mesh, client: httpx.Client, upstream: Upstream) -> None:
    def call() -> None:
        while not any(isinstance(member, Tap) for member in mesh.engine.observers.members):
            time.sleep(0.01)
        client.get("http://reviews/a?token=x")
        client.get("http://reviews/b")

    for options, expected in (((), "/a?token=[redacted]"), (("--json",), '"path": "/a?token=[redacted]"')):
        thread = threading.Thread(target=call)
        thread.start()
        done = run("tap", "--count", 2, "--cluster", "reviews", *options)
        thread.join()
        assert done.exit_code == 0
        first, second = done.stdout.splitlines()
        assert expected in first
        assert upstream.address in second
        while any(isinstance(member, Tap) for member in mesh.engine.observers.members):
            time.sleep(0.01)


def test_a_wrong_filter(mesh: meshlib.Mesh) -> None:
    done = run("tap", "--status", "x")
    assert done.exit_code == 1
    assert "not like 503 or 5xx" in done.stderr


def test_tap_ends_with_ctrl_c(mesh: meshlib.Mesh, client: httpx.Client, environment: dict[str, str]) -> None:
    tap = subprocess.Popen(
        [sys.executable, "-m", "meshlib.cli", "tap"],
        env={**environment, "MESHLIB_RUN_DIR": os.environ["MESHLIB_RUN_DIR"]},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not any(isinstance(member, Tap) for member in mesh.engine.observers.members):
        time.sleep(0.01)
    client.get("http://reviews/a")
    assert tap.stdout is not None
    assert " reviews/a 200 - " in tap.stdout.readline()
    tap.send_signal(signal.SIGINT)
    stdout, stderr = tap.communicate(timeout=20)
    assert (tap.returncode, stdout, stderr) == (0, "", "")


def test_several_processes_have_to_be_told_apart(mesh: meshlib.Mesh, plane: ControlPlane) -> None:
    with meshlib.Mesh(bootstrap=plane.bootstrap(), observe=meshlib.Observe(admin=True)) as other:
        other.wait_ready("reviews:80")
        done = run("dump")
        assert done.exit_code == 2
        assert f"{os.getpid()}, {os.getpid()}-2" in done.stderr
        assert len(json.loads(run("status", "--json").stdout)["processes"]) == 2
        assert run("dump", "--process", f"{os.getpid()}-2").exit_code == 0


def test_what_a_process_says_can_do_nothing_to_a_terminal() -> None:
    from meshlib.cli.output import clean

    assert clean("a\x1b[2Jb\r\n") == "a\ufffd[2Jb\ufffd\ufffd"


def test_a_process_that_hangs(mesh: meshlib.Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshlib.cli.status.TIMEOUT", 0.1)
    with ProcessDirectory() as directory:
        seat = directory.sit_down(group="g", started=0.0)
        try:
            done = run("status", "--json")
            found = json.loads(done.stdout)
            assert done.exit_code == 1
            assert found["unreachable"][-1]["name"] == seat.process.name
            assert "timed out" in found["unreachable"][-1]["reason"]
        finally:
            seat.leave()

"""The admin that opens by itself: by Observe(admin=...) or the environment, in every process."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

import meshlib
from meshlib.admin.processes import ProcessDirectory
from meshlib.testing import Upstream
from tests.admin.conftest import configuration


def made(upstream: Upstream, admin: bool | str) -> meshlib.Mesh:
    return meshlib.Mesh(config=[configuration(upstream.address)], observe=meshlib.Observe(admin=admin))


def test_it_opens_with_the_mesh_and_closes_with_it(upstream: Upstream, run_directory: Path) -> None:
    with made(upstream, admin=True) as mesh:
        assert not run_directory.exists()
        mesh.start()
        with ProcessDirectory() as directory:
            (process,) = directory.list()
            assert process.pid == os.getpid()
            assert directory.ask(process, "/ready").body == b"LIVE\n"
            assert httpx.get(f"{process.url}/ready", trust_env=False).text == "LIVE\n"
            assert directory.ask(process, "/mesh/processes.json").json()["processes"][0]["self"] is True
            mesh.close()
            assert directory.list() == ()
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{process.url}/ready", trust_env=False)


def test_without_being_asked_nothing_opens(upstream: Upstream, run_directory: Path) -> None:
    with made(upstream, admin=False) as mesh:
        mesh.start()
        assert mesh.doors is None
    assert not run_directory.exists()


def test_the_socket_alone(upstream: Upstream) -> None:
    with made(upstream, admin="unix") as mesh:
        mesh.start()
        assert mesh.doors is not None
        assert mesh.doors.url is None
        with ProcessDirectory() as directory:
            (process,) = directory.list()
            assert process.url == ""
            assert directory.ask(process, "/ready").body == b"LIVE\n"


@pytest.mark.parametrize("value", ["0", "off", "No"])
def test_the_environment_may_say_no(
    upstream: Upstream, run_directory: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("MESHLIB_ADMIN", value)
    with made(upstream, admin=False) as mesh:
        mesh.start()
    assert not run_directory.exists()


def test_the_environment_opens_it_at_an_address(upstream: Upstream, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    monkeypatch.setenv("MESHLIB_ADMIN", f"127.0.0.1:{port}")
    with made(upstream, admin=False) as first, made(upstream, admin=False) as second:
        first.start()
        second.start()
        assert first.doors is not None
        assert second.doors is not None
        assert first.doors.url == f"http://127.0.0.1:{port}"
        assert second.doors.url not in (None, first.doors.url)  # the port was taken
        with ProcessDirectory() as directory:
            assert [process.name for process in directory.list()] == [str(os.getpid()), f"{os.getpid()}-2"]


@pytest.mark.parametrize("wrong", ["0.0.0.0:0", "nonsense"])
def test_an_address_that_is_none_troubles_no_call(
    upstream: Upstream, caplog: pytest.LogCaptureFixture, wrong: str
) -> None:
    with caplog.at_level(logging.WARNING, "meshlib.admin"), made(upstream, admin=wrong) as mesh:
        mesh.start()
        assert mesh.doors is not None
        assert mesh.doors.url is None
        assert f"can't listen on {wrong}" in caplog.text
        with ProcessDirectory() as directory:
            assert len(directory.list()) == 1


def test_a_directory_of_others_troubles_no_call(
    upstream: Upstream, run_directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_directory.mkdir(mode=0o755)
    with caplog.at_level(logging.WARNING, "meshlib.admin"), made(upstream, admin=True) as mesh:
        mesh.start()
        assert mesh.doors is not None
        assert mesh.doors.url is not None
    assert "can't be found by other processes" in caplog.text


CHILD = """
import json, os, sys
import meshlib
config = json.loads(sys.stdin.read())
mesh = meshlib.Mesh(config=[config], observe=meshlib.Observe(admin=True))
mesh.start()
told, tell = os.pipe()
go, may_go = os.pipe()
child = os.fork()
if not child:
    try:
        mesh.start()
        os.write(tell, mesh.doors.url.encode())
        os.close(may_go)
        os.read(go, 1)
    finally:
        os._exit(0)
url = os.read(told, 200).decode()
from meshlib.admin.processes import ProcessDirectory
with ProcessDirectory() as directory:
    listed = directory.list()
    answers = [directory.ask(process, "/server_info").json()["pid"] for process in listed]
    os.write(may_go, b"x")
    os.waitpid(child, 0)
    left = [process.pid for process in directory.list()]
print(json.dumps({
    "parent": os.getpid(), "child": child, "answers": sorted(answers), "left": left,
    "groups": sorted({process.group for process in listed}), "urls": [mesh.doors.url, url],
}))
"""


def test_a_forked_child_opens_its_own(upstream: Upstream, run_directory: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHILD],
        input=json.dumps(configuration(upstream.address)),
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")},
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["answers"] == sorted([found["parent"], found["child"]])
    assert found["left"] == [found["parent"]]
    assert found["groups"] == [str(found["parent"])]
    assert found["urls"][0] != found["urls"][1]
    with contextlib.suppress(FileNotFoundError):
        assert not list(run_directory.glob("*.sock")), "the exit removes the socket"


def test_another_process_is_asked_through_this_one(upstream: Upstream) -> None:
    with made(upstream, admin=True) as first, made(upstream, admin=True) as second:
        first.start()
        second.start()
        name = f"{os.getpid()}-2"
        assert first.doors is not None
        answer = httpx.get(f"{first.doors.url}/mesh.json?process={name}", trust_env=False)
        assert answer.json()["process"]["name"] == name
        page = httpx.get(
            f"{first.doors.url}/mesh/endpoints.json?process={name}&cluster=reviews", trust_env=False
        )
        assert page.json()["total"] == 2
        assert httpx.get(f"{first.doors.url}/mesh.json?process=1", trust_env=False).status_code == 502
        assert httpx.get(f"{first.doors.url}/mesh.json?process=../x", trust_env=False).status_code == 400
        own = httpx.get(f"{first.doors.url}/mesh.json?process={os.getpid()}", trust_env=False)
        assert own.json()["process"]["name"] == str(os.getpid())
        graph = httpx.get(f"{first.doors.url}/mesh/graph.json", trust_env=False).json()
        assert [node["kind"] for node in graph["nodes"]] == ["self"]

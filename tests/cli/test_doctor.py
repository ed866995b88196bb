"""`meshlib doctor`: what it finds, and that it says nothing where nothing is wrong."""

from __future__ import annotations

import json
import resource
import socket
import ssl
import subprocess
import sys
import sysconfig
import types
from importlib import metadata, util
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import meshlib
from meshlib.cli.app import app
from meshlib.cli.doctor import environment
from meshlib.cli.doctor import mesh as around
from meshlib.cli.doctor.findings import Check, Level, Question
from meshlib.testing import Upstream, serve, service


@pytest.fixture(autouse=True)
def clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESHLIB_RUN_DIR", str(tmp_path / "run"))
    for name in (
        "GRPC_XDS_BOOTSTRAP",
        "GRPC_XDS_BOOTSTRAP_CONFIG",
        "GRPC_ENABLE_FORK_SUPPORT",
        "MESHLIB_ADMIN",
    ):
        monkeypatch.delenv(name, raising=False)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["doctor", *map(str, arguments)])


def levels(check: Check, question: Question | None = None) -> list[Level]:
    return [finding.level for finding in check(question or Question())]


def installed(monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    """These packages and no others."""

    def version(name: str) -> str:
        try:
            return versions[name.replace("-", "_")]
        except KeyError:
            raise metadata.PackageNotFoundError(name) from None

    monkeypatch.setattr(metadata, "version", version)


def test_a_sound_machine() -> None:
    done = run("--offline")
    assert done.exit_code == 0, done.stdout
    assert done.stdout.splitlines()[-1].endswith("0 broken, 0 warnings") or "warning" in done.stdout
    assert "ok       python: CPython" in run("--offline", "--verbose").stdout


def test_as_json() -> None:
    found = json.loads(run("--offline", "--json").stdout)
    assert found["ok"] is True
    assert {"level", "subject", "text", "repair"} == set(found["findings"][0])
    assert {"python", "protobuf", "openssl", "descriptors", "shm"} <= {
        each["subject"] for each in found["findings"]
    }


def test_the_geometry_library_of_the_same_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert levels(environment.another_meshlib) == []
    installed(monkeypatch, meshlib="3.0")
    assert levels(environment.another_meshlib) == [Level.BROKEN]


@pytest.mark.parametrize(("code", "level"), [(0, Level.WARNING), (1, Level.BROKEN)])
def test_xds_protos_beside_the_exporter(monkeypatch: pytest.MonkeyPatch, code: int, level: Level) -> None:
    assert levels(environment.protobuf_exporters) == []
    installed(monkeypatch, xds_protos="1.85.0")
    assert levels(environment.protobuf_exporters) == [Level.WELL]
    installed(monkeypatch, xds_protos="1.85.0", opentelemetry_proto="1.40")
    done: subprocess.CompletedProcess[bytes] = subprocess.CompletedProcess([], code)
    monkeypatch.setattr(subprocess, "run", lambda *_arguments, **_options: done)
    (finding,) = environment.protobuf_exporters(Question())
    assert finding.level is level
    assert "pip install --force-reinstall --no-deps opentelemetry-proto" in finding.repair


def test_without_re2(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(util, "find_spec", lambda _name: None)
    assert levels(environment.regular_expressions) == [Level.WARNING]
    monkeypatch.setattr(environment, "_patterns", lambda _config: ["a.yaml:1: regex: needs re2"])
    (finding,) = environment.regular_expressions(Question(config=("a.yaml",)))
    assert finding.level is Level.BROKEN
    assert "meshlib-xds[re2]" in finding.repair


@pytest.mark.parametrize(
    ("version", "level"), [("1.84.9", Level.BROKEN), ("1.85.1", Level.WELL), ("2.0.0rc1", Level.WELL)]
)
def test_grpcio(monkeypatch: pytest.MonkeyPatch, version: str, level: Level) -> None:
    installed(monkeypatch, grpcio=version)
    assert levels(environment.grpc) == [level]


@pytest.mark.parametrize(("value", "expected"), [("0", [Level.BROKEN]), ("false", [Level.BROKEN]), ("1", [])])
def test_fork_support(monkeypatch: pytest.MonkeyPatch, value: str, expected: list[Level]) -> None:
    monkeypatch.setenv("GRPC_ENABLE_FORK_SUPPORT", value)
    assert levels(environment.fork_support) == expected


def test_gevent(monkeypatch: pytest.MonkeyPatch) -> None:
    assert levels(environment.gevent) == []
    installed(monkeypatch, gevent="24.1")
    assert levels(environment.gevent) == [Level.WARNING]
    monkey = types.ModuleType("gevent.monkey")
    monkey.is_module_patched = lambda name: name == "threading"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "gevent.monkey", monkey)
    assert levels(environment.gevent) == [Level.BROKEN]


@pytest.mark.parametrize(("version", "level"), [("0.14.0", Level.WARNING), ("9.0", Level.WELL)])
def test_uvloop(monkeypatch: pytest.MonkeyPatch, version: str, level: Level) -> None:
    installed(monkeypatch, uvloop=version)
    assert levels(environment.event_loops) == [level]


@pytest.mark.parametrize(
    ("info", "level"),
    [((1, 0, 2, 0, 0), Level.BROKEN), ((1, 1, 1, 0, 0), Level.WARNING), ((3, 0, 0, 0, 0), Level.WELL)],
)
def test_openssl(monkeypatch: pytest.MonkeyPatch, info: tuple[int, ...], level: Level) -> None:
    monkeypatch.setattr(ssl, "OPENSSL_VERSION_INFO", info)
    assert levels(environment.openssl) == [level]


@pytest.mark.parametrize(
    ("soft", "level"), [(256, Level.WARNING), (1024, Level.WARNING), (65536, Level.WELL), (-1, Level.WELL)]
)
def test_descriptors(monkeypatch: pytest.MonkeyPatch, soft: int, level: Level) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (soft, 4096))
    assert levels(environment.descriptors) == [level]


def test_without_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_SHM", "/nowhere")
    assert levels(environment.shared_memory) == [Level.WARNING]


def test_a_python_without_the_gil(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysconfig, "get_config_var", lambda _name: 1)
    monkeypatch.setattr(sys, "_is_gil_enabled", lambda: False, raising=False)
    assert levels(environment.free_threading) == [Level.BROKEN]


def test_the_run_directory(tmp_path: Path) -> None:
    assert levels(environment.run_directory) == [Level.WELL]
    (tmp_path / "run").chmod(0o755)
    assert levels(environment.run_directory) == [Level.BROKEN]


def test_configuration(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        "resources: [{'@type': type.googleapis.com/envoy.config.cluster.v3.Cluster}]"
    )
    done = run("--offline", "--config", tmp_path)
    assert done.exit_code == 1
    assert "broken   config: " in done.stdout


def bootstrap(monkeypatch: pytest.MonkeyPatch, server: dict[str, Any]) -> None:
    value = {"xds_servers": [{"channel_creds": [{"type": "insecure"}], **server}], "node": {"id": "x"}}
    monkeypatch.setenv("GRPC_XDS_BOOTSTRAP_CONFIG", json.dumps(value))


def test_a_bootstrap_that_can_not_be_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GRPC_XDS_BOOTSTRAP", str(tmp_path / "nothing.json"))
    assert levels(around.bootstrap) == [Level.BROKEN]


def test_the_control_plane(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        for uri in (address, f"dns:///{address}", f"ipv4:{address}"):
            bootstrap(monkeypatch, {"server_uri": uri})
            assert levels(around.bootstrap) == [Level.WELL, Level.WELL], uri
    assert levels(around.bootstrap) == [Level.WELL, Level.BROKEN]
    assert levels(around.bootstrap, Question(offline=True)) == [Level.WELL]
    bootstrap(monkeypatch, {"server_uri": f"unix://{tmp_path}/s"})
    assert levels(around.bootstrap) == [Level.WELL, Level.BROKEN]
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(f"{tmp_path}/s")
        unix.listen()
        assert levels(around.bootstrap) == [Level.WELL, Level.WELL]


@pytest.mark.parametrize(
    ("begin", "end", "level"),
    [(-100, 100, Level.WELL), (-90, 10, Level.WARNING), (-100, -1, Level.BROKEN), (50, 100, Level.BROKEN)],
)
def test_the_life_of_a_certificate(begin: float, end: float, level: Level) -> None:
    assert [finding.level for finding in around._life("x", 1000 + begin, 1000 + end, 1000)] == [level]


def test_the_credentials_of_the_control_plane(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("nothing")
    config = {"ca_certificate_file": str(tmp_path / "ca.pem")}
    bootstrap(monkeypatch, {"server_uri": "x:1", "channel_creds": [{"type": "tls", "config": config}]})
    found = [finding for finding in around.bootstrap(Question(offline=True)) if finding.level is Level.BROKEN]
    assert "no readable PEM certificate" in found[0].text
    (tmp_path / "ca.pem").unlink()
    found = [finding for finding in around.bootstrap(Question(offline=True)) if finding.level is Level.BROKEN]
    assert "can't be read" in found[0].text


def test_running_processes() -> None:
    with Upstream() as upstream, serve(service("reviews", upstream.address)) as plane:
        with meshlib.Mesh(bootstrap=plane.bootstrap(), observe=meshlib.Observe(admin=True)) as mesh:
            mesh.wait_ready("reviews:80")
            assert levels(around.processes) == [Level.WELL]
            assert levels(around.processes, Question(offline=True)) == []

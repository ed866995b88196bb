"""wait_ready, close, the default Mesh, status."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

import meshlib
import meshlib.mesh
from meshlib import proto
from meshlib.testing import Upstream, serve, service
from tests.mesh.conftest import Call


def test_wait_ready() -> None:
    with serve(service("reviews", "127.0.0.1:1")) as control_plane:
        with meshlib.Mesh(bootstrap=control_plane.bootstrap()) as mesh:
            mesh.wait_ready("reviews:80")
            assert set(mesh.snapshot.clusters) == {"reviews"}
            mesh.wait_ready()
            mesh.wait_ready("reviews:80", timeout=0.0)


def test_wait_ready_names_what_is_missing() -> None:
    config = service("reviews", "127.0.0.1:1")
    del config["resources"][1]
    with serve(config) as control_plane, meshlib.Mesh(bootstrap=control_plane.bootstrap()) as mesh:
        with pytest.raises(meshlib.ConfigTimeout):
            mesh.wait_ready("reviews:80", timeout=0.0)
        control_plane.wait_for_answer(proto.LISTENER)
        with pytest.raises(
            meshlib.ConfigTimeout, match=r"RouteConfiguration 'reviews' has not arrived after 0\.3 s"
        ):
            mesh.wait_ready("reviews:80", timeout=0.3)


def test_wait_ready_without_a_control_plane() -> None:
    with meshlib.Mesh(server_uri="127.0.0.1:1", node_id="test") as mesh:
        with pytest.raises(meshlib.ConfigTimeout, match="Listener 'reviews:80'"):
            mesh.wait_ready("reviews:80", timeout=0.1)


def test_why_there_is_no_control_plane_is_said() -> None:
    with meshlib.Mesh(server_uri="127.0.0.1:1") as mesh:
        refused = pytest.raises(meshlib.ConfigTimeout, match=r"control plane 127\.0\.0\.1:1: .*[Cc]onnect")
        with refused:
            mesh.wait_ready("reviews:80", timeout=2.0)


def test_closing_ends_the_wait() -> None:
    mesh = meshlib.Mesh(server_uri="127.0.0.1:1")
    closing = threading.Timer(0.2, mesh.close)
    closing.start()
    with pytest.raises(meshlib.MeshClosed):
        mesh.wait_ready("reviews:80", timeout=30.0)
    closing.join()


def test_files_are_ready_at_once() -> None:
    with meshlib.Mesh(service("reviews", "127.0.0.1:1")) as mesh:
        mesh.wait_ready("reviews:80", "unheard-of:80", timeout=0.0)


def test_close_is_idempotent_and_calls_fail_after_it(caller: Call) -> None:
    with Upstream() as upstream:
        mesh = meshlib.Mesh(service("reviews", upstream.address))
        client = caller(mesh)
        client.get("http://reviews/")
        mesh.close()
        mesh.close()
        with pytest.raises(httpx.ConnectError) as caught:
            client.get("http://reviews/")
        assert isinstance(caught.value, meshlib.MeshClosed)
        assert len(upstream.requests) == 1
        with pytest.raises(meshlib.MeshClosed):
            mesh.start()


def test_close_without_a_start() -> None:
    meshlib.Mesh(server_uri="127.0.0.1:1", node_id="test").close()


def test_what_a_bootstrap_asks_for_in_vain_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    server = {"server_uri": "127.0.0.1:1", "channel_creds": [{"type": "insecure"}]}
    meshlib.Mesh(bootstrap={"xds_servers": [server, server], "authorities": {"a.example": {}}}).close()
    assert [record.getMessage() for record in caplog.records] == [
        "bootstrap: xds_servers[1] is not supported and has no effect",
        'bootstrap: authorities["a.example"] is not supported and has no effect',
    ]


def test_status() -> None:
    with serve(service("reviews", "127.0.0.1:1")) as control_plane:
        with meshlib.Mesh(bootstrap=control_plane.bootstrap()) as mesh:
            mesh.wait_ready("reviews:80")
            told = {(status.kind.short, status.name): status for status in mesh.status()}
    assert set(told) == {("lds", "reviews:80"), ("rds", "reviews"), ("cds", "reviews"), ("eds", "reviews")}
    assert {status.state.name for status in told.values()} == {"ACKED"}
    assert {status.version for status in told.values()} == {"1"}


@pytest.fixture
def no_default(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(meshlib.mesh, "_default", None)
    monkeypatch.delenv("GRPC_XDS_BOOTSTRAP", raising=False)
    monkeypatch.delenv("GRPC_XDS_BOOTSTRAP_CONFIG", raising=False)
    yield
    if meshlib.mesh._default is not None:
        meshlib.mesh._default.close()


@pytest.mark.usefixtures("no_default")
def test_a_transport_without_a_mesh_takes_the_default(
    caller: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with Upstream() as upstream, serve(service("reviews", upstream.address)) as control_plane:
        file = tmp_path / "bootstrap.json"
        file.write_text(json.dumps(control_plane.bootstrap()))
        monkeypatch.setenv("GRPC_XDS_BOOTSTRAP", str(file))
        assert caller(None).get("http://reviews/").status_code == 200
        mesh = meshlib.default_mesh()
        assert mesh is meshlib.default_mesh()
        assert set(mesh.snapshot.clusters) == {"reviews"}
        mesh.close()
        renewed = meshlib.default_mesh()
        assert renewed is not mesh
        assert caller(None).get("http://reviews/").status_code == 200
        renewed.close()


@pytest.mark.usefixtures("no_default")
def test_without_an_environment_there_is_no_default() -> None:
    with pytest.raises(meshlib.ConfigError, match="GRPC_XDS_BOOTSTRAP"):
        meshlib.default_mesh()

"""CSDS beside gRPC's own: C-core with grpcio-csds, of the same control plane, and read by the generated classes of xds-protos.

Those can't be installed beside OpenTelemetry's exporter, so the peer lives in an environment of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

import meshlib
from meshlib import proto, testing
from meshlib.admin.csds import add_csds
from meshlib.controlplane import ControlPlane

pytestmark = [pytest.mark.packaging, pytest.mark.timeout(240)]

CSDS = "grpcio-csds==1.85.0"
LIMIT = 20.0

PEER = """
import json, sys
from concurrent.futures import ThreadPoolExecutor
import grpc, grpc_csds
from google.protobuf import json_format
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_pb2
from envoy.extensions.filters.http.router.v3 import router_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2
from envoy.service.status.v3 import csds_pb2, csds_pb2_grpc

targets, others = json.loads(sys.argv[1]), sys.argv[2]
server = grpc.server(ThreadPoolExecutor(2))
grpc_csds.add_csds_servicer(server)
own = server.add_insecure_port("127.0.0.1:0")
server.start()
for target in targets:
    with grpc.insecure_channel(target) as channel:
        try:
            channel.unary_unary("/a/b")(b"", timeout=20)
        except grpc.RpcError:
            pass
        stub = csds_pb2_grpc.ClientStatusDiscoveryServiceStub
        with grpc.insecure_channel(f"127.0.0.1:{own}") as mine, grpc.insecure_channel(others) as theirs:
            answers = [stub(each).FetchClientStatus(csds_pb2.ClientStatusRequest()) for each in (mine, theirs)]
    print(json.dumps([json_format.MessageToDict(answer) for answer in answers]))
server.stop(None)
"""


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The interpreter of the peer's environment."""
    venv = tmp_path_factory.mktemp("csds") / "venv"
    python = venv / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python)]
    for command in (
        [sys.executable, "-m", "venv", "--without-pip", str(venv)],
        [*pip, "install", "--quiet", "--no-compile", CSDS],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return str(python)


@pytest.fixture
def control_plane() -> Iterator[ControlPlane]:
    refused = testing.service("bad", "127.0.0.1:9")
    for resource in refused["resources"]:
        if resource["@type"] == proto.CLUSTER:
            resource["lb_policy"] = "CLUSTER_PROVIDED"
    with testing.serve(testing.service("good", "127.0.0.1:9"), refused) as running:
        yield running


def entries(config: dict[str, Any], name: str) -> dict[str, dict[str, Any]]:
    """By type, of the service of this name; what must be equal."""
    found = {}
    for entry in config["genericXdsConfigs"]:
        if entry["name"].partition(":")[0] == name:
            known = {key: entry.get(key) for key in ("name", "versionInfo", "clientStatus", "xdsConfig")}
            found[entry["typeUrl"]] = known | {"refused": entry.get("errorState", {}).get("versionInfo")}
    return found


def test_c_core_and_meshlib_say_the_same(peer: str, control_plane: ControlPlane) -> None:
    bootstrap = control_plane.bootstrap("me")
    with meshlib.Mesh(bootstrap=bootstrap) as mesh:
        mesh.wait_ready("good:80", timeout=LIMIT)
        source = mesh.engine.source
        assert source is not None
        source.want_listener("bad:80")
        control_plane.wait_for(lambda each: any(answer.error for answer in each.answers), LIMIT)
        server = grpc.server(ThreadPoolExecutor(2))
        add_csds(server, mesh)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            targets = json.dumps(["xds:///good:80", "xds:///bad:80"])
            done = subprocess.run(
                [peer, "-c", PEER, targets, f"127.0.0.1:{port}"],
                capture_output=True,
                text=True,
                env={**os.environ, "GRPC_XDS_BOOTSTRAP_CONFIG": json.dumps(bootstrap)},
                check=False,
                timeout=60,
            )
        finally:
            server.stop(None).wait()
    assert done.returncode == 0, done.stdout + done.stderr
    for name, line in zip(("good", "bad"), done.stdout.splitlines(), strict=True):
        theirs, ours = json.loads(line)
        (config,) = ours["config"]
        by_scope = {each["clientScope"]: each for each in theirs["config"]}
        expected = entries(by_scope[f"xds:/{name}:80"], name)
        assert len(expected) == (4 if name == "good" else 3)
        assert entries(config, name) == expected


def test_the_peers_environment_is_not_ours() -> None:
    assert not any(Path(folder, "grpc_csds").exists() for folder in sys.path)

"""The servers of the gRPC benchmark: the echo server, one Envoy, and a control plane for C-core."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import configuration, envoy, grpc_configuration, processes
from benchmarks.supervisor import Supervisor
from benchmarks.world import free_port, start

MANY = 64
"""Endpoints of a large cluster."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GrpcWorld:
    """Ports are on 127.0.0.1. bootstrap: for C-core's xDS client, as GRPC_XDS_BOOTSTRAP_CONFIG takes it. many: endpoints of a
    large cluster, all of the same server, the two of `upstreams` among them.
    """

    supervisor: Supervisor
    upstream_pid: int
    upstreams: list[tuple[str, int]]
    many: list[tuple[str, int]]
    envoy_port: int | None
    envoy_pids: tuple[int, ...]
    bootstrap: dict[str, Any]

    def place(self, pin: str) -> None:
        """As `World.place`."""
        cpus = set(range(os.cpu_count() or 1))
        if pin == "same":
            cpus = {max(cpus)}
        processes.place([os.getpid(), self.supervisor.pid, *self.supervisor.pids], cpus)


def _one_hop(directory: Path, port: int, upstreams: list[tuple[str, int]]) -> Path:
    routes = {
        "name": configuration.ROUTE_CONFIGURATION,
        "virtual_hosts": grpc_configuration.virtual_hosts(),
    }
    manager = configuration.http_connection_manager(route_config=routes)
    listener = envoy.socket_listener("one-hop", port, manager)
    clusters = grpc_configuration.clusters(upstreams)
    return envoy.bootstrap(directory / "grpc-one-hop.json", [listener], clusters)


@contextlib.contextmanager
def grpc_world() -> Iterator[GrpcWorld]:
    """Starts the servers; everything ends, and its folder goes, when the block ends."""
    with tempfile.TemporaryDirectory(prefix="meshlib-bench-") as name, Supervisor() as supervisor:
        directory = Path(name)
        many = [("127.0.0.1", free_port()) for _ in range(MANY)]
        upstreams = many[:2]

        def launch(server: str, argv: list[str], *listening: int) -> int:
            return start(supervisor, directory / f"{server}.log", argv, *listening)

        ports = [port for _, port in many]
        module = [sys.executable, "-m", "benchmarks.grpc_upstream", *map(str, ports)]
        upstream_pid = launch("grpc-upstream", module, *ports)
        envoy_port: int | None = None
        envoy_pids: tuple[int, ...] = ()
        if envoy.binary() is not None:
            envoy_port = free_port()
            argv = envoy.argv(_one_hop(directory, envoy_port, upstreams))
            envoy_pids = (launch("one-hop", argv, envoy_port),)
        resources = directory / "ads.json"
        resources.write_text(json.dumps(grpc_configuration.ads_resources(upstreams)))
        ads = free_port()
        serve = [sys.executable, "-m", "meshlib.cli", "serve", str(resources), "--listen", f"127.0.0.1:{ads}"]
        launch("control-plane", serve, ads)
        server = {
            "server_uri": f"127.0.0.1:{ads}",
            "channel_creds": [{"type": "insecure"}],
            "server_features": ["xds_v3"],
        }
        yield GrpcWorld(
            supervisor=supervisor,
            upstream_pid=upstream_pid,
            upstreams=upstreams,
            many=many,
            envoy_port=envoy_port,
            envoy_pids=envoy_pids,
            bootstrap={"xds_servers": [server], "node": {"id": "bench"}},
        )

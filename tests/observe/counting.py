"""An application with several workers for tests of what is counted of them: gunicorn, four workers, meshed calls to a backend.

GET /5          makes five calls of the backend; the body is the worker's pid
GET /metrics    is the admin's /stats/prometheus
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

__all__ = ["Workers", "app", "workers"]

CONFIG = "COUNTING_CONFIG"
LIMIT = 30.0


def configuration(port: int) -> dict[str, Any]:
    """Listener, route and cluster of the host `backend`."""
    endpoint = {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}}}
    router = {
        "name": "envoy.filters.http.router",
        "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
    }
    routes = [{"match": {"prefix": "/"}, "route": {"cluster": "backend"}}]
    manager = {
        "@type": (
            "type.googleapis.com/"
            "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
        ),
        "stat_prefix": "counting",
        "route_config": {"name": "r", "virtual_hosts": [{"name": "v", "domains": ["*"], "routes": routes}]},
        "http_filters": [router],
    }
    return {
        "resources": [
            {
                "@type": "type.googleapis.com/envoy.config.listener.v3.Listener",
                "name": "backend:80",
                "api_listener": {"api_listener": manager},
            },
            {
                "@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster",
                "name": "backend",
                "type": "STATIC",
                "load_assignment": {"cluster_name": "backend", "endpoints": [{"lb_endpoints": [endpoint]}]},
            },
        ]
    }


_made: list[Any] = []


def _parts() -> tuple[Any, Any]:
    """The client and the admin of this process, or of the master that loaded the application."""
    if not _made:
        import httpx

        import meshlib
        from meshlib.httpx import MeshTransport

        mesh = meshlib.Mesh(config=json.loads(os.environ[CONFIG]))
        _made.append((httpx.Client(transport=MeshTransport(mesh)), mesh.admin()))
    return _made[0]  # type: ignore[no-any-return]


if os.environ.get("COUNTING_BEFORE_FORK"):
    _parts()[0].get("http://backend/")


def app(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
    client, admin = _parts()
    if environ["PATH_INFO"] == "/metrics":
        return admin({**environ, "PATH_INFO": "/stats/prometheus"}, start_response)  # type: ignore[no-any-return]
    for _ in range(int(environ["PATH_INFO"][1:])):
        assert client.get("http://backend/").status_code == 200
    start_response("200 OK", [("content-type", "text/plain")])
    return [str(os.getpid()).encode()]


class Workers:
    """url: of the application. pids: of those workers that have answered."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.pids: set[int] = set()

    def kill(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)
        self.pids.discard(pid)


@contextlib.contextmanager
def workers(port: int, run: Path, *options: str, **environment: str) -> Iterator[Workers]:
    """Four workers. port: of the backend. run: the process directory. options: further ones of gunicorn."""
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listening:
        command = [
            sys.executable, "-m", "gunicorn", "--workers", "4", "--log-level", "warning", "--graceful-timeout", "5",
            "--bind", f"fd://{listening.fileno()}", *options, f"{__name__}:app",
        ]  # fmt: skip
        surroundings = {
            **os.environ,
            CONFIG: json.dumps(configuration(port)),
            "MESHLIB_ADMIN": "1",
            "MESHLIB_RUN_DIR": str(run),
            **environment,
        }
        with subprocess.Popen(
            command, env=surroundings, pass_fds=(listening.fileno(),), stderr=subprocess.PIPE, text=True
        ) as process:
            try:
                yield Workers(f"http://127.0.0.1:{listening.getsockname()[1]}")
            finally:
                process.terminate()
                try:
                    errors = process.communicate(timeout=LIMIT)[1]
                except subprocess.TimeoutExpired:
                    process.kill()
                    raise
    assert "Traceback" not in errors, errors

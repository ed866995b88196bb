"""A Mesh with a configuration from files, its admin, and a server that its calls reach."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

import meshlib
from meshlib.admin.admin import Admin
from meshlib.admin.http import Reply, Request
from meshlib.httpx import MeshTransport
from meshlib.testing import Reply as Answer
from meshlib.testing import Upstream, service

Get = Callable[..., Reply]


@pytest.fixture(autouse=True)
def run_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Processes of these tests find each other, and no others."""
    monkeypatch.setenv("MESHLIB_RUN_DIR", str(tmp_path / "run"))
    monkeypatch.delenv("MESHLIB_ADMIN", raising=False)
    monkeypatch.delenv("MESHLIB_ADMIN_TOKEN", raising=False)
    return tmp_path / "run"


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream(default=Answer(body=b"ok")) as server:
        yield server


def configuration(address: str) -> dict[str, Any]:
    config = service("reviews", address)
    _listener, routes, cluster, endpoints = config["resources"]
    routes["virtual_hosts"][0]["routes"] = [
        {"match": {"prefix": "/gone"}, "direct_response": {"status": 410}},
        {
            "name": "main",
            "match": {"prefix": "/"},
            "route": {
                "weighted_clusters": {
                    "clusters": [{"name": "reviews", "weight": 3}, {"name": "later", "weight": 1}]
                },
                "retry_policy": {"retry_on": "5xx"},
            },
            "request_headers_to_add": [{"header": {"key": "authorization", "value": "Bearer s3cret"}}],
        },
    ]
    cluster["outlier_detection"] = {"consecutive_5xx": 1, "max_ejection_percent": 100}
    cluster["circuit_breakers"] = {"thresholds": [{"max_connections": 4}]}
    endpoints["endpoints"][0]["lb_endpoints"] += [
        {
            "endpoint": {"address": {"socket_address": {"address": "10.1.1.1", "port_value": 80}}},
            "health_status": status,
        }
        for status in ("UNHEALTHY",)
    ]
    return config


@pytest.fixture
def mesh(upstream: Upstream) -> Iterator[meshlib.Mesh]:
    config = configuration(upstream.address)
    config["resources"][1]["virtual_hosts"][0]["routes"][1]["route"]["weighted_clusters"]["clusters"][1][
        "weight"
    ] = 0
    with meshlib.Mesh(config=[config], observe=meshlib.Observe(recent_calls=256)) as made:
        made.start()
        yield made


@pytest.fixture
def client(mesh: meshlib.Mesh) -> Iterator[httpx.Client]:
    with httpx.Client(transport=MeshTransport(mesh)) as made:
        yield made


@pytest.fixture
def admin(mesh: meshlib.Mesh) -> Admin:
    return mesh.admin(token="t0ken")


@pytest.fixture
def get(admin: Admin) -> Get:
    """Asks as a browser of this machine would."""

    def ask(
        target: str, method: str = "GET", headers: Mapping[str, str] | None = None, **facts: Any
    ) -> Reply:
        path, _, query = target.partition("?")
        return admin.handle(
            Request(
                method=method,
                path=path,
                query=Request.parameters(query),
                headers={"host": "localhost:15000", **(headers or {})},
                **facts,
            )
        )

    return ask


def text(reply: Reply) -> str:
    assert isinstance(reply.body, bytes)
    return reply.body.decode()


def parsed(reply: Reply) -> Any:
    assert reply.status == 200, text(reply)
    return json.loads(text(reply))

"""The public API as users use it. Never run: `mypy --strict` checks that it types as documented."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import assert_type

import httpx
import httpx2

import meshlib
import meshlib.httpx
import meshlib.httpx2
import meshlib.testing


def made_from_files() -> meshlib.Mesh:
    return meshlib.Mesh(config=[Path("mesh.yaml"), "folder", {"resources": []}])


def made_from_a_control_plane() -> meshlib.Mesh:
    by_keywords = meshlib.Mesh(server_uri="127.0.0.1:18000", node_id="frontend-1")
    by_bootstrap = meshlib.Mesh(bootstrap={"xds_servers": [], "node": {"id": "frontend-1"}})
    by_path = meshlib.Mesh(bootstrap=Path("bootstrap.json"), headers="envoy", unknown_hosts="passthrough")
    by_environment = meshlib.Mesh(trust_request_headers=True)
    return by_keywords or by_bootstrap or by_path or by_environment


def life_cycle(mesh: meshlib.Mesh) -> None:
    mesh.start()
    mesh.wait_ready(timeout=15.0)
    mesh.close()
    with mesh as entered:
        assert_type(entered, meshlib.Mesh)


def sync_client(mesh: meshlib.Mesh) -> None:
    transport = meshlib.httpx.MeshTransport(mesh, local_reply="response")
    with httpx.Client(
        transport=transport, mounts={"all://reviews": meshlib.httpx.MeshTransport(mesh)}
    ) as client:
        assert_type(client.get("http://reviews/"), httpx.Response)
    with httpx.Client(transport=meshlib.httpx.MeshTransport()) as client:
        client.get("http://reviews/")
    with httpx2.Client(transport=meshlib.httpx2.MeshTransport(mesh, local_reply="raise")) as client2:
        assert_type(client2.get("http://reviews/"), httpx2.Response)


async def async_client(mesh: meshlib.Mesh) -> None:
    async with httpx.AsyncClient(transport=meshlib.httpx.AsyncMeshTransport(mesh)) as client:
        assert_type(await client.get("http://reviews/"), httpx.Response)
    async with httpx2.AsyncClient(
        transport=meshlib.httpx2.AsyncMeshTransport(mesh, local_reply="response")
    ) as client2:
        assert_type(await client2.get("http://reviews/"), httpx2.Response)


def overrides() -> None:
    with meshlib.call(timeout=0.2, retries=0):
        pass
    with meshlib.call(per_try_timeout=0.1, retry_on="5xx"):
        pass


async def async_overrides() -> None:
    async with meshlib.call(timeout=0.2):
        pass


def what_happened(response: httpx.Response) -> None:
    info: meshlib.CallInfo = response.extensions["meshlib"]
    assert_type(info.flags, str)
    assert_type(info.details, str)
    assert_type(info.attempts, tuple[meshlib.AttemptRecord, ...])
    for attempt in info.attempts:
        assert_type(attempt.endpoint, str)
        assert_type(attempt.status, int | None)
        assert_type(attempt.failure, str | None)
        assert_type(attempt.duration, float)
    decision = info.decision
    assert_type(decision, meshlib.Decision | None)
    if decision is not None:
        assert_type(decision.cluster, str | None)
        assert_type(decision.attempts, tuple[meshlib.AttemptDecision, ...])
        assert_type(decision.versions, dict[str, str])


def observed() -> None:
    mesh = meshlib.Mesh(config=[], observe=meshlib.Observe(admin="127.0.0.1:15000", recent_calls=64))
    admin = mesh.admin(token="t0ken", hosts=["admin.internal"])
    with admin.serve("127.0.0.1:0") as serving:
        assert_type(serving.url, str)


def logged() -> None:
    lines = meshlib.AccessLog(
        format="%START_TIME% %RESPONSE_CODE%\n", to=Path("access.log"), calls="outbound"
    )
    records = meshlib.AccessLog(format={"code": "%RESPONSE_CODE%"}, to=logging.getLogger("calls"))
    meshlib.Mesh(config=[], observe=meshlib.Observe(access_log=[lines, records, "istio"]))
    meshlib.Mesh(config=[], observe=meshlib.Observe(access_log="envoy", listener_access_log=False))


def what_went_wrong(client: httpx.Client) -> None:
    try:
        client.get("http://reviews/")
    except meshlib.MeshError as error:
        assert_type(error.flags, str)
        assert_type(error.details, str)
        assert_type(error.decision, meshlib.Decision | None)
        assert_type(error.attempts, tuple[meshlib.AttemptRecord, ...])
        if error.local_reply is not None:
            assert_type(error.local_reply.status, int)
            assert_type(error.local_reply.body, bytes)

"""Fault injection through the transports: what the application sees, and that nothing stays behind."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

import meshlib
from meshlib.httpx import AsyncMeshTransport
from meshlib.httpx import FaultInjected as HttpxFaultInjected
from meshlib.testing import Reply, Upstream, service
from tests.mesh.conftest import Call

TYPE = "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault"
ALWAYS = {"numerator": 100}
LONG = {"delay": {"fixed_delay": "600s", "percentage": ALWAYS}}
ABORT = {"abort": {"http_status": 503, "percentage": ALWAYS}}


def faulty(address: str, **fault: Any) -> dict[str, Any]:
    config = service("reviews", address)
    filters = config["resources"][0]["api_listener"]["api_listener"]["http_filters"]
    filters.insert(0, {"name": "fault", "typed_config": {"@type": TYPE, **fault}})
    return config


def active(mesh: meshlib.Mesh) -> float:
    return mesh.stats.gauge("http.reviews.fault.active_faults").value


def test_an_abort_is_an_error_of_both_kinds(caller: Call) -> None:
    with meshlib.Mesh(faulty("127.0.0.1:1", **ABORT)) as mesh:
        client = caller(mesh)
        with pytest.raises(httpx.ConnectError) as caught:
            client.get("http://reviews/")
        assert isinstance(caught.value, HttpxFaultInjected)
        assert isinstance(caught.value, meshlib.FaultInjected)
        assert isinstance(caught.value, meshlib.UpstreamError)
        assert (caught.value.flags, caught.value.details) == ("FI", "fault_filter_abort")
        assert active(mesh) == 0


def test_or_the_response_that_envoy_would_have_given(caller: Call) -> None:
    with meshlib.Mesh(faulty("127.0.0.1:1", **ABORT)) as mesh:
        response = caller(mesh, local_reply="response").get("http://reviews/")
    assert (response.status_code, response.text) == (503, "fault filter abort")
    assert response.extensions["meshlib"].flags == "FI"


def test_a_delayed_call_goes_on(caller: Call) -> None:
    delay = {"delay": {"fixed_delay": "0.02s", "percentage": ALWAYS}}
    with (
        Upstream(default=Reply(body=b"hello")) as upstream,
        meshlib.Mesh(faulty(upstream.address, **delay)) as mesh,
    ):
        client = caller(mesh)
        response = client.get("http://reviews/")
        assert (response.text, response.extensions["meshlib"].flags) == ("hello", "DI")
        response = client.request("POST", "http://reviews/", content=b"body")
        assert upstream.requests[-1].body == b"body"
        assert response.elapsed.total_seconds() >= 0.02
        assert active(mesh) == 0


def test_the_callers_own_timeout_ends_a_delay(caller: Call) -> None:
    with meshlib.Mesh(faulty("127.0.0.1:1", **LONG)) as mesh:
        client = caller(mesh)
        with pytest.raises(httpx.ReadTimeout) as caught:
            client.get_with("http://reviews/", timeout=0.02)
        assert isinstance(caught.value, meshlib.DeadlineExceeded)
        assert caught.value.flags == "DI,UT"
        assert active(mesh) == 0


def test_a_delay_uses_up_httpx_own_patience_as_a_slow_server_would(caller: Call) -> None:
    with meshlib.Mesh(faulty("127.0.0.1:1", **LONG)) as mesh:
        client = caller(mesh)
        with pytest.raises(httpx.ReadTimeout) as caught:
            client.request("GET", "http://reviews/", timeout=httpx.Timeout(None, read=0.02))
        assert isinstance(caught.value, meshlib.DeadlineExceeded)
        assert active(mesh) == 0


def test_a_task_that_is_cancelled_gives_its_fault_back() -> None:
    async def main() -> None:
        with meshlib.Mesh(faulty("127.0.0.1:1", **LONG)) as mesh:
            async with httpx.AsyncClient(transport=AsyncMeshTransport(mesh)) as client:
                task = asyncio.ensure_future(client.get("http://reviews/"))
                while not active(mesh):
                    await asyncio.sleep(0)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert active(mesh) == 0

    asyncio.run(main())

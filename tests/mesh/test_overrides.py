"""`meshlib.call(...)`, end to end, and the application's own breaker."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

import meshlib
from meshlib.runtime.clock import FakeClock
from meshlib.testing import Hang, Reply, Reset, Upstream, service
from tests.mesh.conftest import Call


def retrying(upstream: Upstream, num_retries: int = 2) -> dict[str, Any]:
    config = service("reviews", upstream.address)
    policy = {
        "retry_on": "5xx",
        "num_retries": num_retries,
        "retry_back_off": {"base_interval": "0.001s", "max_interval": "0.001s"},
    }
    config["resources"][1]["virtual_hosts"][0]["retry_policy"] = policy
    return config


def test_without_an_override_the_route_decides(caller: Call) -> None:
    with Upstream(default=Reply(status=503)) as upstream, meshlib.Mesh(retrying(upstream)) as mesh:
        response = caller(mesh).get("http://reviews/")
    assert response.status_code == 503
    assert len(response.extensions["meshlib"].attempts) == 3
    assert response.extensions["meshlib"].flags == "URX"


def test_retries(caller: Call) -> None:
    with Upstream(default=Reply(status=503)) as upstream, meshlib.Mesh(retrying(upstream)) as mesh:
        client = caller(mesh)
        for retries in (0, 1, 4):
            before = len(upstream.requests)
            assert client.get_with("http://reviews/", retries=retries).status_code == 503
            assert len(upstream.requests) - before == retries + 1
        before = len(upstream.requests)
        client.get("http://reviews/")
        assert len(upstream.requests) - before == 3  # outside of the block, the route's own again


def test_retry_on(caller: Call) -> None:
    with Upstream([Reset(), Reply()]) as upstream, meshlib.Mesh(service("reviews", upstream.address)) as mesh:
        response = caller(mesh).get_with("http://reviews/", retries=1, retry_on="reset")
    assert response.status_code == 200
    assert len(response.extensions["meshlib"].attempts) == 2


def test_timeout(caller: Call) -> None:
    with Upstream(default=Hang()) as upstream, meshlib.Mesh(service("reviews", upstream.address)) as mesh:
        with pytest.raises(httpx.ReadTimeout) as caught:
            caller(mesh).get_with("http://reviews/", timeout=0.05)
    error = caught.value
    assert isinstance(error, meshlib.DeadlineExceeded)
    assert (error.flags, error.details) == ("UT", "response_timeout")
    assert error.local_reply is not None
    assert (error.local_reply.status, error.local_reply.body) == (504, b"upstream request timeout")


def test_per_try_timeout(caller: Call) -> None:
    with Upstream([Hang(), Reply(body=b"second")]) as upstream, meshlib.Mesh(retrying(upstream)) as mesh:
        response = caller(mesh).get_with("http://reviews/", per_try_timeout=0.5)
    assert response.text == "second"
    first, second = response.extensions["meshlib"].attempts
    assert (first.status, second.status) == (None, 200)


def test_blocks_nest_and_the_inner_one_wins_field_by_field() -> None:
    with Upstream(default=Reply(status=503)) as upstream, meshlib.Mesh(retrying(upstream)) as mesh:
        with httpx.Client(transport=meshlib.httpx.MeshTransport(mesh)) as client:
            with meshlib.call(retries=3, timeout=10.0):
                with meshlib.call(timeout=5.0):
                    client.get("http://reviews/")
                assert len(upstream.requests) == 4
                with meshlib.call(retries=0):
                    client.get("http://reviews/")
                assert len(upstream.requests) == 5


@pytest.mark.parametrize(
    "options", [{"timeout": 0}, {"timeout": -1}, {"per_try_timeout": 0.0}, {"retries": -1}]
)
def test_wrong_values(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        meshlib.call(**options)


def test_a_breaker_opens_and_closes(caller: Call) -> None:
    clock = FakeClock()
    script = [Reply(status=500), Reply(status=500)]
    breakers = {"reviews": meshlib.BreakerConfig(fail_max=2, reset_timeout=30.0)}
    with Upstream(script) as upstream:
        with meshlib.Mesh(service("reviews", upstream.address), breakers=breakers, clock=clock) as mesh:
            client = caller(mesh)
            assert [client.get("http://reviews/").status_code for _ in range(2)] == [500, 500]
            for _ in range(3):
                with pytest.raises(httpx.ConnectError) as caught:
                    client.get("http://reviews/")
                assert isinstance(caught.value, meshlib.BreakerOpen)
            assert len(upstream.requests) == 2
            clock.advance(30.0)
            assert client.get("http://reviews/").status_code == 200
            assert client.get("http://reviews/").status_code == 200

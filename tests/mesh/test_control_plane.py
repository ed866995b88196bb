"""A mesh and a control plane that changes its mind, makes mistakes, comes late and goes away."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

import meshlib
from meshlib import proto
from meshlib.snapshot import ResourceState
from meshlib.testing import ControlPlane, Reply, ResourceStore, Upstream, messages, serve, service
from tests.mesh.conftest import Call, Until
from tests.ports import reserved


def routes(action: dict[str, Any]) -> Any:
    resource = {
        "@type": proto.ROUTE,
        "name": "reviews",
        "virtual_hosts": [{"name": "v", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, **action}]}],
    }
    return messages(resource)[0]


def test_an_update_takes_effect(caller: Call, until: Until) -> None:
    with Upstream() as upstream, serve(service("reviews", upstream.address)) as control_plane:
        with meshlib.Mesh(bootstrap=control_plane.bootstrap()) as mesh:
            client = caller(mesh)
            assert client.get("http://reviews/").status_code == 200
            control_plane.store.update(routes({"direct_response": {"status": 418}}))
            until(mesh, lambda: client.get("http://reviews/").status_code == 418)
            assert control_plane.wait_for_answer(proto.ROUTE).error is None


def test_endpoints_move(caller: Call, until: Until) -> None:
    with Upstream(default=Reply(body=b"1")) as one, Upstream(default=Reply(body=b"2")) as two:
        with serve(service("reviews", one.address)) as control_plane:
            with meshlib.Mesh(bootstrap=control_plane.bootstrap()) as mesh:
                client = caller(mesh)
                assert client.get("http://reviews/").text == "1"
                control_plane.store.replace(messages(service("reviews", two.address)))
                until(mesh, lambda: client.get("http://reviews/").text == "2")


def test_a_bad_update_is_refused_and_changes_nothing(caller: Call, until: Until) -> None:
    with Upstream() as upstream, serve(service("reviews", upstream.address)) as control_plane:
        with meshlib.Mesh(bootstrap=control_plane.bootstrap()) as mesh:
            client = caller(mesh)
            assert client.get("http://reviews/").status_code == 200
            control_plane.store.update(routes({"direct_response": {"status": 9}}))
            answer = control_plane.wait_for_answer(proto.ROUTE)
            assert "virtual_hosts[0].routes[0].direct_response.status" in (answer.error or "")
            assert client.get("http://reviews/").status_code == 200
            (status,) = [status for status in mesh.status() if status.kind.value == proto.ROUTE]
            assert status.state is ResourceState.NACKED
            assert status.error is not None
            control_plane.store.update(routes({"direct_response": {"status": 204}}))
            until(mesh, lambda: client.get("http://reviews/").status_code == 204)


def test_a_host_that_does_not_exist_is_denied(caller: Call) -> None:
    with serve(service("reviews", "127.0.0.1:1"), service("ratings", "127.0.0.1:1")) as control_plane:
        with meshlib.Mesh(bootstrap=control_plane.bootstrap()) as mesh:
            client = caller(mesh)
            mesh.wait_ready("reviews:80")
            with pytest.raises(meshlib.UnknownHost, match="'other:80'"):
                client.request("GET", "http://other/")


def test_a_listener_that_appears(caller: Call, until: Until) -> None:
    with Upstream() as upstream, serve(service("ratings", "127.0.0.1:1")) as control_plane:
        with meshlib.Mesh(bootstrap=control_plane.bootstrap()) as mesh:
            client = caller(mesh, local_reply="response")
            mesh.wait_ready("ratings:80")
            assert client.get("http://reviews/").status_code == 404
            control_plane.store.replace(
                messages(service("ratings", "127.0.0.1:1"), service("reviews", upstream.address))
            )
            until(mesh, lambda: client.get("http://reviews/").status_code == 200)


def test_a_call_waits_for_its_first_configuration(caller: Call) -> None:
    with Upstream() as upstream:
        store = ResourceStore(messages(service("reviews", upstream.address)))
        control_plane = ControlPlane(store)
        with control_plane:
            address = control_plane.address
        late = ControlPlane(store, address)
        started = threading.Event()

        def start() -> None:
            started.wait()
            late.start()

        with ThreadPoolExecutor(1) as pool, meshlib.Mesh(server_uri=address, node_id="test") as mesh:
            pool.submit(start)
            started.set()
            try:
                assert caller(mesh).get("http://reviews/").status_code == 200
            finally:
                late.stop()


def test_a_call_does_not_wait_for_ever(caller: Call) -> None:
    with meshlib.Mesh(server_uri="127.0.0.1:1", node_id="test", config_timeout=0.2) as mesh:
        with pytest.raises(httpx.ConnectError) as caught:
            caller(mesh).get("http://reviews/")
    assert isinstance(caught.value, meshlib.ConfigTimeout)


def test_a_waiting_call_has_its_own_deadline(caller: Call) -> None:
    with meshlib.Mesh(server_uri="127.0.0.1:1", node_id="test") as mesh:
        with pytest.raises(meshlib.MeshError):
            caller(mesh).get_with("http://reviews/", timeout=0.1)


def test_closing_wakes_a_call_that_waits() -> None:
    with meshlib.Mesh(server_uri="127.0.0.1:1", node_id="test") as mesh, ThreadPoolExecutor(1) as pool:
        with httpx.Client(transport=meshlib.httpx.MeshTransport(mesh)) as client:
            waiting = pool.submit(client.get, "http://reviews/")
            while not mesh.engine._waiting:
                threading.Event().wait(0.001)
            mesh.close()
            with pytest.raises(meshlib.MeshClosed):
                waiting.result(timeout=20.0)


def test_traffic_goes_on_without_the_control_plane_and_it_may_come_back(caller: Call, until: Until) -> None:
    with Upstream() as upstream, reserved() as port:
        store = ResourceStore(messages(service("reviews", upstream.address)))
        address = f"127.0.0.1:{port}"
        with ControlPlane(store, address):
            mesh = meshlib.Mesh(server_uri=address, node_id="test")
            client = caller(mesh)
            assert client.get("http://reviews/").status_code == 200
        for _ in range(10):
            assert client.get("http://reviews/").status_code == 200
        assert len(upstream.requests) == 11
        store.update(routes({"direct_response": {"status": 418}}))
        with ControlPlane(store, address), mesh:
            until(mesh, lambda: client.get("http://reviews/").status_code == 418)


def test_the_template_names_the_listener(caller: Call) -> None:
    with (
        Upstream() as upstream,
        serve(service("reviews", upstream.address, listener="mesh/reviews:80")) as control_plane,
    ):
        bootstrap = control_plane.bootstrap() | {"client_default_listener_resource_name_template": "mesh/%s"}
        with meshlib.Mesh(bootstrap=bootstrap) as mesh:
            assert caller(mesh).get("http://reviews/").status_code == 200

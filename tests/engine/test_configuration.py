"""Calls that wait for configuration: for a listener, routes, a cluster, endpoints; how long, and what ends it."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from meshlib.engine.options import CallOptions
from meshlib.errors import (
    ConfigTimeout,
    ControlPlaneError,
    MeshClosed,
    NoCluster,
    NoHealthyEndpoint,
    NoRoute,
    UnknownHost,
)
from meshlib.resources.cluster import Cluster, DiscoveryType
from meshlib.resources.route import RouteAction
from meshlib.snapshot import Kind, Snapshot
from tests.engine.builders import assignment, cluster, forward, listener, retry, route_config
from tests.engine.wire import FakeCall, FakeMesh

EDS = Cluster(name="a", discovery=DiscoveryType.EDS, eds_service_name="a")


class Source:
    """A control plane that never answers by itself."""

    last_error: ControlPlaneError | None = None

    def __init__(self) -> None:
        self.started = 0
        self.listeners: list[str] = []
        self.clusters: list[str] = []

    def start(self) -> None:
        self.started += 1

    def want_listener(self, name: str) -> None:
        self.listeners.append(name)

    def want_cluster(self, name: str) -> None:
        self.clusters.append(name)


def waiting_mesh(**engine: Any) -> tuple[FakeMesh, Source]:
    mesh = FakeMesh(publish=False, **engine)
    source = Source()
    mesh.engine.source = source
    return mesh, source


def parked(call: FakeCall) -> bool:
    return not call.over and call.log[-1] == "Park"


def test_it_waits_for_each_thing_in_turn() -> None:
    mesh, source = waiting_mesh()
    mesh.listen = listener(None)
    call = mesh.call()
    assert parked(call)
    assert (source.started, source.listeners) == (1, ["svc:80"])
    here = {mesh.listen.name: mesh.listen}
    steps: list[dict[str, Any]] = [
        {"listeners": here},
        {"listeners": here, "routes": {"r": route_config(forward())}},
        {"listeners": here, "routes": {"r": route_config(forward())}, "clusters": {"a": EDS}},
    ]
    for step in steps:
        mesh.engine.publish(Snapshot(**step))
        call.attend()
        assert parked(call)
    assert source.clusters == ["a"]
    mesh.engine.publish(Snapshot(**steps[-1], endpoints={"a": assignment("a", 1)}))
    call.attend()
    call.answer(200)
    assert call.status == 200


def test_fifteen_seconds_and_no_longer() -> None:
    mesh, _ = waiting_mesh()
    call = mesh.call()
    mesh.clock.advance(10)
    mesh.engine.publish(Snapshot())
    call.attend()
    assert parked(call)
    assert call.tick() == pytest.approx(5.0)
    assert isinstance(call.error, ConfigTimeout)
    assert "Listener 'svc:80' has not arrived after 15 s" in str(call.error)


def test_its_own_deadline_may_be_nearer() -> None:
    mesh, _ = waiting_mesh()
    call = mesh.call(options=CallOptions(timeout=0.5))
    assert call.tick() == pytest.approx(0.5)
    assert isinstance(call.error, ConfigTimeout)


def test_the_routes_timeout_is_a_deadline_too() -> None:
    mesh, _ = waiting_mesh()
    mesh.listen = listener(route_config(forward(timeout=2.0)))
    mesh.engine.publish(Snapshot(listeners={"svc:80": mesh.listen}))
    call = mesh.call()
    assert parked(call)
    assert call.tick() == pytest.approx(2.0)
    assert isinstance(call.error, ConfigTimeout)
    assert "Cluster 'a'" in str(call.error)


@pytest.mark.parametrize(
    ("absent", "error"),
    [
        ({(Kind.LISTENER, "svc:80")}, UnknownHost),
        ({(Kind.ROUTE, "r")}, NoRoute),
        ({(Kind.CLUSTER, "a")}, NoCluster),
        ({(Kind.ENDPOINT, "a")}, NoHealthyEndpoint),
    ],
)
def test_what_is_known_not_to_exist_is_not_awaited(
    absent: set[tuple[Kind, str]], error: type[Exception]
) -> None:
    mesh, _ = waiting_mesh()
    kind = next(iter(absent))[0]
    snapshot: dict[str, Any] = {"absent": frozenset(absent)}
    if kind is not Kind.LISTENER:
        snapshot["listeners"] = {"svc:80": listener(None)}
    if kind in (Kind.CLUSTER, Kind.ENDPOINT):
        snapshot["routes"] = {"r": route_config(forward())}
    if kind is Kind.ENDPOINT:
        snapshot["clusters"] = {"a": EDS}
    mesh.engine.publish(Snapshot(**snapshot))
    assert isinstance(mesh.call().error, error)


def test_a_cluster_named_by_a_header_is_asked_for() -> None:
    mesh, source = waiting_mesh()
    mesh.listen = listener(route_config(RouteAction(cluster_header=":method")))
    mesh.engine.publish(Snapshot(listeners={"svc:80": mesh.listen}))
    call = mesh.call()
    assert parked(call)
    assert source.clusters == ["GET"]
    mesh.publish(cluster("GET"))
    call.attend()
    assert call.core.info.cluster == "GET"
    call.answer(200)


def test_a_retry_does_not_wait() -> None:
    mesh, _ = waiting_mesh()
    mesh.listen = listener(route_config(forward(retry_policy=retry("5xx"))))
    here = {"svc:80": mesh.listen}
    mesh.engine.publish(Snapshot(listeners=here, clusters={"a": cluster()}))
    call = mesh.call()
    call.answer(503)
    mesh.engine.publish(Snapshot(listeners=here))
    call.tick()
    assert isinstance(call.error, NoCluster)
    assert mesh.held() == {}


def test_a_retry_does_not_wait_for_endpoints_either() -> None:
    mesh, _ = waiting_mesh()
    mesh.listen = listener(route_config(forward(retry_policy=retry("5xx"))))
    here = {"svc:80": mesh.listen}
    mesh.engine.publish(Snapshot(listeners=here, clusters={"a": EDS}, endpoints={"a": assignment("a", 1)}))
    call = mesh.call()
    call.answer(503)
    mesh.engine.publish(Snapshot(listeners=here, clusters={"a": EDS}))
    call.tick()
    assert isinstance(call.error, NoHealthyEndpoint)
    assert mesh.held() == {}


class TestClose:
    def test_waiting_calls_fail(self) -> None:
        mesh, _ = waiting_mesh()
        call = mesh.call()
        mesh.engine.close()
        call.attend()
        assert isinstance(call.error, MeshClosed)

    @pytest.mark.parametrize("missing", ["routes", "clusters", "endpoints"])
    def test_whatever_they_wait_for(self, missing: str) -> None:
        mesh, _ = waiting_mesh()
        snapshot: dict[str, Any] = {"listeners": {"svc:80": listener(None)}}
        if missing != "routes":
            snapshot["routes"] = {"r": route_config(forward())}
        if missing == "endpoints":
            snapshot["clusters"] = {"a": EDS}
        mesh.engine.publish(Snapshot(**snapshot))
        call = mesh.call()
        assert parked(call)
        mesh.engine.close()
        call.attend()
        assert isinstance(call.error, MeshClosed)

    def test_later_calls_fail_when_they_begin(self) -> None:
        mesh = FakeMesh(cluster())
        mesh.engine.close()
        assert isinstance(mesh.call().error, MeshClosed)

    def test_calls_under_way_go_on(self) -> None:
        mesh = FakeMesh(cluster(), action=forward(retry_policy=retry("5xx")))
        call = mesh.call()
        mesh.engine.close()
        call.answer(503)
        call.tick()
        call.answer(200)
        assert call.status == 200


def test_a_call_that_begins_to_wait_as_the_program_changes_is_woken_at_once() -> None:
    mesh, _ = waiting_mesh()
    seen = mesh.engine.program
    mesh.engine.publish(Snapshot())
    woken = threading.Event()
    mesh.engine.await_program(woken.set, seen)
    assert woken.is_set()


def test_the_source_is_started_once_for_each_process() -> None:
    mesh, source = waiting_mesh()
    mesh.call()
    mesh.call()
    assert source.started == 1
    mesh.engine.renew_locks()
    mesh.call()
    assert source.started == 2


def test_what_did_not_change_is_not_compiled_again() -> None:
    mesh = FakeMesh(cluster("a"), cluster("b"))
    before = mesh.engine.program
    other = cluster("b", connect_timeout=1.0)
    mesh.publish(mesh.clusters[0], other)
    after = mesh.engine.program
    assert after.listeners["svc:80"] is before.listeners["svc:80"]
    assert after.clusters["a"] is before.clusters["a"]
    assert after.clusters["b"] is not before.clusters["b"]
    assert after.clusters["b"].state is before.clusters["b"].state


class TestDepartures:
    def test_pools_hear_of_endpoints_that_left(self) -> None:
        mesh = FakeMesh(cluster(hosts=2))
        for _ in range(2):
            mesh.call().answer(200)
        gone = mesh.state().endpoints["10.0.0.2:80"]
        mesh.publish(cluster(hosts=1))
        assert gone.departed
        assert gone.key in mesh.state().endpoints, "its idle connection is still counted"
        for connection in mesh.pool.idle[gone]:
            connection.close()
        mesh.publish(cluster(hosts=1, connect_timeout=1.0))
        mesh.publish(cluster(hosts=1))
        assert list(mesh.state().endpoints) == ["10.0.0.1:80"]

    def test_one_that_comes_back_is_the_same(self) -> None:
        mesh = FakeMesh(cluster())
        mesh.call().answer(200)
        host = mesh.state().endpoints["10.0.0.1:80"]
        departed = []
        for hosts in (0, 1):
            mesh.publish(cluster(hosts=hosts))
            departed.append(host.departed)
        assert departed == [True, False]
        call = mesh.call()
        assert call.starts[0].endpoint is host
        assert call.log == ["Start(1)"], "its connection is used again"

    def test_a_cluster_that_is_gone_takes_its_endpoints_with_it(self) -> None:
        mesh = FakeMesh(cluster())
        mesh.call().answer(200)
        host = mesh.state().endpoints["10.0.0.1:80"]
        departed = []
        for name in ("b", "a"):
            mesh.publish(cluster(name))
            departed.append(host.departed)
        assert departed == [True, False]

"""Requests that look the same to routing are routed once for each Program."""

from __future__ import annotations

from typing import Any

from meshlib.engine import program
from meshlib.resources.matching import FractionalPercent
from meshlib.resources.route import PathKind, PathMatch, Route, RouteConfiguration, RouteMatch, VirtualHost
from meshlib.routing.request import RequestView
from tests.engine.builders import cluster, forward, listener, route_config
from tests.engine.wire import FakeMesh


def alike(likeness: str = "like /s.S/M", path: str = "/s.S/M") -> RequestView:
    view = RequestView("POST", "http", "svc", path, [], "svc:80")
    view.likeness = likeness
    return view


def cluster_of(mesh: FakeMesh, view: RequestView) -> str | None:
    found: str | None = mesh.call(view).core.info.cluster
    return found


def routes(*rows: tuple[str, dict[str, Any]]) -> RouteConfiguration:
    """For every path, to these clusters, on these conditions."""
    anywhere = PathMatch(kind=PathKind.PREFIX, value="/")
    found = tuple(
        Route(match=RouteMatch(path=anywhere, **conditions), action=forward(name))
        for name, conditions in rows
    )
    return RouteConfiguration(name="r", virtual_hosts=(VirtualHost(name="v", domains=("*",), routes=found),))


def test_a_route_is_remembered_for_requests_of_one_likeness() -> None:
    mesh = FakeMesh(cluster())
    assert cluster_of(mesh, alike()) == "a"
    known = mesh.engine.program.known("like /s.S/M")
    assert known is not None
    call = mesh.call(alike())
    assert call.core.route is known.route
    assert mesh.engine.program.known("another") is None


def test_a_remembered_call_counts_as_any_other() -> None:
    mesh = FakeMesh(cluster())
    for _ in range(3):
        mesh.call(alike())
    stats = mesh.engine.program.listeners["svc:80"].stats
    assert stats.downstream_rq_total.value == 3
    assert stats.rq_total.value == 3


def test_a_new_program_remembers_nothing() -> None:
    mesh = FakeMesh(cluster(), cluster("b"))
    assert cluster_of(mesh, alike()) == "a"
    mesh.listen = listener(route_config(forward("b")))
    mesh.publish()
    assert cluster_of(mesh, alike()) == "b"


def test_chance_is_asked_again() -> None:
    half = {"runtime_fraction": FractionalPercent(numerator=50)}
    listen = listener(routes(("a", half), ("b", {})))
    mesh = FakeMesh(cluster(), cluster("b"), listen=listen)
    assert {cluster_of(mesh, alike()) for _ in range(40)} == {"a", "b"}


def test_a_route_before_chance_is_remembered() -> None:
    listen = listener(routes(("a", {}), ("b", {"runtime_fraction": FractionalPercent(numerator=50)})))
    mesh = FakeMesh(cluster(), cluster("b"), listen=listen)
    assert {cluster_of(mesh, alike()) for _ in range(10)} == {"a"}
    assert mesh.engine.program.known("like /s.S/M") is not None


def test_a_header_that_is_added_ends_the_likeness() -> None:
    view = alike()
    view.add("x-role", "admin")
    assert view.likeness is None
    view = alike()
    view.replace("x-role", "admin")
    assert view.likeness is None


def test_a_listener_that_changes_paths_sees_each_request() -> None:
    mesh = FakeMesh(cluster(), listen=listener(route_config(forward()), normalize_path=True))
    mesh.call(alike(path="/s.S/../s.S/M"))
    assert mesh.engine.program.known("like /s.S/M") is None


def test_what_is_remembered_does_not_grow_without_end() -> None:
    mesh = FakeMesh(cluster())
    for number in range(program.LIKENESSES + 5):
        mesh.call(alike(str(number)))
    found = [number for number in range(program.LIKENESSES + 5) if mesh.engine.program.known(str(number))]
    assert 0 < len(found) <= program.LIKENESSES
    assert found[-1] == program.LIKENESSES + 4

"""What a process remembers of its last calls and of the requests that it served."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import NoOpTracerProvider

import meshlib
from meshlib.engine.observer import InboundCall, tell
from meshlib.httpx import MeshTransport
from meshlib.observe.decision import decide
from meshlib.observe.recent import RecentCalls, RecentRequests, Rings
from meshlib.resources.endpoint import ClusterLoadAssignment
from meshlib.server.inbound import Inbound
from meshlib.server.wsgi import MeshMiddleware
from meshlib.testing import Reply, Request, Upstream, messages, serve, service


def answer(request: Request) -> Reply:
    return Reply(status=503 if "fail" in request.target else 200)


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream(answer) as server:
        yield server


def configuration(address: str) -> dict[str, Any]:
    config = service("reviews", address)
    config["resources"][1]["virtual_hosts"][0]["routes"] = [
        {"match": {"prefix": "/gone"}, "direct_response": {"status": 410}},
        {
            "match": {"prefix": "/"},
            "route": {
                "cluster": "reviews",
                "retry_policy": {
                    "retry_on": "5xx",
                    "num_retries": 1,
                    "retry_back_off": {"base_interval": "0.001s"},
                },
            },
        },
    ]
    return config


def called(upstream: Upstream, *paths: str, **observe: Any) -> RecentCalls:
    """What a Mesh remembers that made these calls."""
    observed = meshlib.Observe(**{"recent_calls": 256, **observe})
    with meshlib.Mesh(config=[configuration(upstream.address)], observe=observed) as mesh:
        with httpx.Client(transport=MeshTransport(mesh, local_reply="response")) as client:
            for path in paths:
                client.get(f"http://reviews{path}", headers={"authorization": "p4ssw0rd"})
        assert mesh.recent is not None
        return mesh.recent


def paths_of(recent: RecentCalls, limit: int | None = None) -> list[tuple[int, str]]:
    return [(number, facts.path) for number, facts, _ in recent.newest(limit)]


def test_the_newest_first(upstream: Upstream) -> None:
    recent = called(upstream, "/gone", "/api", "/moved")
    assert paths_of(recent) == [(3, "/moved"), (2, "/api"), (1, "/gone")]
    assert paths_of(recent, 1) == [(3, "/moved")]
    found = recent.find(2)
    assert found is not None
    assert found.path == "/api"
    assert recent.find(4) is None


def test_neither_headers_nor_what_an_answer_says(upstream: Upstream) -> None:
    for _, facts, _ in called(upstream, "/api", "/gone").newest():
        assert "p4ssw0rd" not in repr(tuple(facts))


def test_only_so_many(upstream: Upstream) -> None:
    recent = called(upstream, *["/api"] * 5, recent_calls=2)
    assert [number for number, _, _ in recent.newest()] == [5, 4]


def test_what_failed_is_remembered_longer(upstream: Upstream) -> None:
    recent = called(upstream, "/fail", "/api", "/fail", "/api", "/api", recent_calls=2)
    assert paths_of(recent) == [(5, "/api"), (4, "/api"), (3, "/fail"), (1, "/fail")]
    assert paths_of(recent, 1) == [(5, "/api"), (3, "/fail")]
    found = recent.find(1)
    assert found is not None
    assert (found.status, len(found.attempts), found.flags) == (503, 2, ("URX",))
    assert recent.find(2) is None


def test_none(upstream: Upstream) -> None:
    with meshlib.Mesh(
        config=[configuration(upstream.address)], observe=meshlib.Observe(recent_calls=0)
    ) as mesh:
        with httpx.Client(transport=MeshTransport(mesh)) as client:
            assert client.get("http://reviews/gone").extensions["meshlib"].decision.route == 0
        assert mesh.recent is None
        assert mesh.served is None


def test_from_the_moment_on_when_somebody_can_ask(upstream: Upstream) -> None:
    with meshlib.Mesh(config=[configuration(upstream.address)]) as mesh:
        with httpx.Client(transport=MeshTransport(mesh, local_reply="response")) as client:
            client.get("http://reviews/gone")
            before = mesh.recent
            mesh.admin()
            client.get("http://reviews/api")
            mesh.admin()
            client.get("http://reviews/moved")
        assert before is None
        assert mesh.recent is not None
        assert paths_of(mesh.recent) == [(2, "/moved"), (1, "/api")]


def test_an_admin_that_is_made_before_the_first_call(upstream: Upstream) -> None:
    with meshlib.Mesh(config=[configuration(upstream.address)]) as mesh:
        mesh.admin()
        with httpx.Client(transport=MeshTransport(mesh, local_reply="response")) as client:
            client.get("http://reviews/gone")
        assert mesh.recent is not None
        assert paths_of(mesh.recent) == [(1, "/gone")]


@pytest.mark.parametrize(("wanted", "kept"), [("unix", True), ("0", False)])
def test_with_the_environments_admin(
    wanted: str, kept: bool, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MESHLIB_ADMIN", wanted)
    with meshlib.Mesh(config=[configuration(upstream.address)]) as mesh:
        mesh.start()
        assert (mesh.recent is not None) is kept
        assert (mesh.doors is not None) is kept


def test_none_for_an_admin_either(upstream: Upstream) -> None:
    observe = meshlib.Observe(recent_calls=0)
    with meshlib.Mesh(config=[configuration(upstream.address)], observe=observe) as mesh:
        mesh.start()
        mesh.admin()
        assert mesh.recent is None


@given(st.lists(st.booleans()), st.integers(1, 4), st.none() | st.integers(0, 5))
def test_rings(remarkable: list[bool], size: int, limit: int | None) -> None:
    rings: Rings[tuple[int]] = Rings(size)
    for number, mark in enumerate(remarkable):
        rings.add((number,), mark)
    most = size if limit is None else min(size, limit)
    everything = range(len(remarkable))
    marked = [number for number in everything if remarkable[number]]
    expected = {*everything[len(everything) - min(most, len(everything)) :], *marked[::-1][:most]}
    assert [number for (number,) in rings.newest(limit)] == sorted(expected, reverse=True)
    for number in everything:
        kept = number in everything[-size:] or number in marked[-size:]
        assert (rings.find(number) is not None) is kept


def assignments() -> list[int]:
    """How many endpoints each ClusterLoadAssignment of `lonely` has that is alive."""
    gc.collect()
    found = [each for each in gc.get_objects() if type(each) is ClusterLoadAssignment]
    return sorted(each.size for each in found if each.cluster_name == "lonely")


def until(condition: Callable[[], bool]) -> None:
    """What a push leaves is put away on other threads, a little later."""
    pause = threading.Event()
    while not condition():  # the test's own time limit ends it
        pause.wait(0.02)


def test_remembered_calls_keep_no_endpoints(upstream: Upstream) -> None:
    """A push leaves nothing of the endpoints before it, although calls that went there are remembered."""
    config = service("lonely", upstream.address)
    endpoints = config["resources"][3]["endpoints"][0]["lb_endpoints"]
    remembering = meshlib.Observe(recent_calls=256)
    with serve(config) as plane, meshlib.Mesh(bootstrap=plane.bootstrap(), observe=remembering) as mesh:
        with httpx.Client(transport=MeshTransport(mesh)) as client:
            client.get("http://lonely/api")
            assert assignments() == [1]
            address = {"socket_address": {"address": "127.0.0.1", "port_value": 9}}
            endpoints.append({"endpoint": {"address": address}, "health_status": "UNHEALTHY"})
            plane.store.replace(messages(config))
            until(lambda: mesh.snapshot.endpoints["lonely"].size == 2)
            client.get("http://lonely/api")  # what follows the newest call only lets go of the one before
            until(lambda: assignments() == [2])
            assert mesh.recent is not None
            _, (_, facts, _) = mesh.recent.newest()
            assert decide(facts, 0.0).endpoint == upstream.address


# --- traces -----------------------------------------------------------------------------------------------------------


class Traced:
    """A Mesh whose calls and requests are recorded, and a WSGI application that makes a call."""

    def __init__(self, mesh: meshlib.Mesh, client: httpx.Client, exporter: InMemorySpanExporter) -> None:
        self.mesh = mesh
        self.exporter = exporter

        def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
            client.get(f"http://reviews{environ['PATH_INFO']}")
            start_response("204 No Content", [])
            return []

        outside = httpx.WSGITransport(MeshMiddleware(app, Inbound(mesh)))
        self.outside = httpx.Client(transport=outside, base_url="http://front")

    def spans(self) -> dict[str, Any]:
        return {span.kind.name: span for span in self.exporter.get_finished_spans()}


@pytest.fixture
def traced(upstream: Upstream, request: pytest.FixtureRequest) -> Iterator[Traced]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(sampler=getattr(request, "param", None), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with (
        meshlib.Mesh(
            config=[configuration(upstream.address)],
            observe=meshlib.Observe(tracing=provider, recent_calls=256),
        ) as mesh,
        httpx.Client(transport=MeshTransport(mesh, local_reply="response")) as client,
    ):
        mesh.start()
        made = Traced(mesh, client, exporter)
        with made.outside:
            yield made


def test_where_spans_stand(traced: Traced) -> None:
    assert traced.mesh.recent is not None
    assert traced.mesh.served is not None
    traced.outside.get("/fail", headers={"traceparent": f"00-{'0' * 30}aa-{'0' * 14}bb-01"})
    ((_, _, trace),) = traced.mesh.recent.newest()
    (request,) = traced.mesh.served.newest()
    spans = traced.spans()
    assert trace is not None
    assert trace.place == (0xAA, spans["INTERNAL"].context.span_id, spans["SERVER"].context.span_id)
    attempts = [each for each in traced.exporter.get_finished_spans() if each.kind.name == "CLIENT"]
    assert trace.attempts == tuple(each.context.span_id for each in attempts)
    assert len(trace.attempts) == 2
    assert request.place == (0xAA, spans["SERVER"].context.span_id, 0xBB)
    assert (request.method, request.path, request.authority, request.status) == ("GET", "/fail", "front", 204)


@pytest.mark.parametrize("traced", [ALWAYS_OFF], indirect=True)
def test_what_is_not_recorded_has_no_place(traced: Traced) -> None:
    assert traced.mesh.recent is not None
    assert traced.mesh.served is not None
    traced.outside.get("/api")
    assert [trace for _, _, trace in traced.mesh.recent.newest()] == [None]
    assert [each.place for each in traced.mesh.served.newest()] == [None]


def test_requests_of_a_process_without_an_sdk_hang_below_their_caller(upstream: Upstream) -> None:
    observed = meshlib.Observe(tracing=NoOpTracerProvider(), recent_calls=256)
    with meshlib.Mesh(config=[configuration(upstream.address)], observe=observed) as mesh:
        mesh.start()
        with httpx.Client(transport=MeshTransport(mesh)) as client:
            made = Traced(mesh, client, InMemorySpanExporter())
            with made.outside:
                made.outside.get("/api", headers={"traceparent": f"00-{'0' * 30}aa-{'0' * 14}bb-01"})
                made.outside.get("/api", headers={"traceparent": f"00-{'0' * 30}aa-{'0' * 14}bb-00"})
        assert mesh.served is not None
        assert [each.place for each in mesh.served.newest()] == [None, (0xAA, 0, 0xBB)]


def test_requests_that_failed_are_remembered_longer() -> None:
    served = RecentRequests(1, traced=False)
    for status, ended in ((500, 1.1), (200, 2.5), (200, 1.2)):
        record = InboundCall(
            method="GET",
            scheme="http",
            authority="a",
            path="/",
            headers=(),
            protocol="HTTP/1.1",
            remote="",
            started=1.0,
            epoch=5.0,
        )
        tell((served.inbound_begun,), record)
        record.status, record.ended = status, ended
        tell((served.inbound_over,), record)
    assert [(each.number, each.status) for each in served.newest()] == [(3, 200), (2, 200)]
    assert served.newest()[1].duration == 1.5

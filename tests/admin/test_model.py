"""What the page is told: services with their signals, endpoints with ejections, routes, calls, and who calls whom."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

import meshlib
import meshlib.httpx
from meshlib.admin.golden import Golden, RouteKey, Totals
from meshlib.admin.graph import merged
from meshlib.admin.http import Reply as Answer
from meshlib.admin.http import Request
from meshlib.admin.model import PARTS
from meshlib.admin.statistics import percentile, percentiles
from meshlib.runtime.clock import FakeClock
from meshlib.stats import ENVOY_BOUNDS, Registry
from meshlib.testing import Reply, Upstream, serve
from tests.admin.conftest import Get, configuration, parsed, text

KEY = RouteKey("reviews", "reviews", "reviews", "main")


def count(registry: Registry, outcome: str, milliseconds: float) -> None:
    place = tuple(zip(("cluster", "route", "route_config", "virtual_host"), (KEY[0], KEY[3], KEY[1], KEY[2])))
    registry.labelled_counter("meshlib_route_requests_total", (*place, ("outcome", outcome))).value += 1
    registry.labelled_histogram("meshlib_route_duration_milliseconds", place, ENVOY_BOUNDS).record(
        milliseconds
    )


def test_rates_are_those_of_the_last_seconds() -> None:
    registry, clock = Registry(), FakeClock()
    golden = Golden(registry, clock.monotonic)
    for _ in range(10):
        count(registry, "success", 3.0)
    clock.advance(5)
    first = golden.look().signals([KEY])
    assert (first.total, first.rate, first.window) == (10, 2.0, 5.0)
    clock.advance(10)
    for _ in range(4):
        count(registry, "error", 80.0)
    clock.advance(10)
    second = golden.look().signals([KEY])
    assert (second.total, second.errors_total) == (14, 4)
    assert second.window == 20.0
    assert second.rate == second.error_rate == 0.2
    assert second.p50 is not None
    assert 50 < second.p50 <= 100
    clock.advance(10)
    idle = golden.look().signals([KEY])
    assert (idle.rate, idle.p50, idle.window) == (0.0, None, 10.0)


def test_counting_anew_after_a_fork() -> None:
    registry, clock = Registry(), FakeClock()
    golden = Golden(registry, clock.monotonic)
    count(registry, "success", 1.0)
    count(registry, "success", 1.0)
    clock.advance(2)
    golden.look()
    registry.after_fork_in_child()
    golden.renew_lock()
    count(registry, "success", 1.0)
    clock.advance(1)
    assert golden.look().signals([KEY]).rate == 1.0


@given(
    st.lists(st.integers(0, 5), min_size=3, max_size=3), st.lists(st.integers(0, 5), min_size=3, max_size=3)
)
def test_what_was_added_since(before: list[int], more: list[int]) -> None:
    one = Totals(sum(before), 0, 0, tuple(before))
    both = one.plus(Totals(sum(more), 0, 0, tuple(more)))
    assert both.since(one) == Totals(sum(more), 0, 0, tuple(more))


@given(st.lists(st.floats(0.001, 3_600_000), min_size=1, max_size=50), st.floats(0.01, 1.0))
def test_a_percentile_is_in_the_bucket_of_its_rank(values: list[float], share: float) -> None:
    registry = Registry()
    histogram = registry.histogram("x")
    for value in values:
        histogram.record(value)
    found = percentile(histogram.bounds, histogram.buckets, share)
    assert found is not None
    exact = sorted(values)[max(0, -int(-share * len(values) // 1) - 1)]
    upper = next(bound for bound in histogram.bounds if exact <= bound)
    lower = max([bound for bound in histogram.bounds if bound < exact], default=0.0)
    assert lower <= found <= upper


@given(st.lists(st.integers(0, 9), min_size=4, max_size=4), st.lists(st.floats(0.0, 1.0), max_size=4))
def test_several_percentiles_at_once(buckets: list[int], shares: list[float]) -> None:
    bounds = (1.0, 5.0, 10.0)
    found = percentiles(bounds, buckets, sorted(shares))
    assert found == [percentile(bounds, buckets, share) for share in sorted(shares)]


def test_a_percentile_of_nothing() -> None:
    assert percentile((1.0, 2.0), (0, 0, 0), 0.5) is None
    assert percentile((1.0, 2.0), (0, 0, 3), 0.5) == 2.0


def model(get: Get) -> Any:
    return parsed(get("/mesh.json"))


def test_the_process(get: Get, mesh: meshlib.Mesh) -> None:
    process = model(get)["process"]
    assert (process["ready"], process["recent_calls"], process["meshlib"]) == (True, 256, meshlib.__version__)
    plane = process["control_plane"]
    assert (plane["kind"], plane["server"], plane["connected"]) == ("files", None, True)
    assert [each["type"] for each in process["types"]] == ["lds", "rds", "cds", "eds", "sds"]
    assert process["types"][2]["resources"] == 1


def test_services_and_routes(get: Get, client: httpx.Client, upstream: Upstream) -> None:
    for _ in range(3):
        client.get("http://reviews/x")
    client.get("http://reviews/gone")
    found = model(get)
    (service,) = found["services"]
    assert (service["name"], service["total"], service["errors_total"], service["connections"]) == (
        "reviews",
        3,
        0,
        1,
    )
    assert service["endpoints"] == {"total": 2, "healthy": 1, "degraded": 0, "unhealthy": 1, "ejected": 0}
    assert service["saturation"] == {"share": 0.25, "resource": "connections"}
    assert (service["tls"], service["mtls"], service["lb_policy"], service["breaker"]) == (
        False,
        False,
        "RoundRobin",
        None,
    )
    gone, main = found["routes"]
    assert (gone["action"], gone["route"], gone["total"]) == ("answer 410", "0", 1)
    assert (main["route"], main["match"], main["total"], main["retry"]) == ("main", "/*", 3, "5xx")
    assert main["split"] == [
        {"cluster": "reviews", "weight": 3, "share": 1.0},
        {"cluster": "later", "weight": 0, "share": 0.0},
    ]
    assert found["routes_total"] == 2
    (edge,) = found["graph"]["edges"]
    assert (edge["destination"], edge["total"], edge["mtls"], edge["principal"]) == (
        "reviews",
        3,
        False,
        None,
    )
    newest = found["calls"][0]
    assert (newest["number"], newest["status"], newest["cluster"], newest["attempts"]) == (4, 410, None, 0)
    assert found["calls"][1]["endpoint"] == upstream.address


def _balanced_by(name: str, **fields: Any) -> dict[str, Any]:
    policy = {"@type": f"type.googleapis.com/envoy.extensions.load_balancing_policies.{name}", **fields}
    return {"policies": [{"typed_extension_config": {"name": name, "typed_config": policy}}]}


def test_how_many_endpoints_a_process_calls(get: Get, upstream: Upstream) -> None:
    assert model(get)["services"][0]["subset_size"] is None
    config = configuration(upstream.address)
    child = _balanced_by("least_request.v3.LeastRequest")
    config["resources"][2]["load_balancing_policy"] = _balanced_by(
        "random_subsetting.v3.RandomSubsetting", subset_size=2, child_policy=child
    )
    with meshlib.Mesh(config=[config]) as mesh:
        asked = Request(method="GET", path="/mesh.json")
        service = parsed(mesh.admin().handler.handle(asked))["services"][0]
    assert (service["lb_policy"], service["subset_size"]) == ("LeastRequest", 2)


def test_an_ejection_and_its_reason() -> None:
    with Upstream(default=Reply(status=503)) as upstream:
        clock = FakeClock()
        config = configuration(upstream.address)
        del config["resources"][1]["virtual_hosts"][0]["routes"][1]["route"]["retry_policy"]
        del config["resources"][1]["virtual_hosts"][0]["routes"][1]["route"]["weighted_clusters"]["clusters"][
            1
        ]
        with meshlib.Mesh(config=[config], clock=clock) as mesh:
            with httpx.Client(transport=meshlib.httpx.MeshTransport(mesh)) as client:
                client.get("http://reviews/")
            handler = mesh.admin().handler
            found = parsed(handler.handle(Request(method="GET", path="/mesh.json")))
            (ejection,) = found["ejections"]
            assert (ejection["cluster"], ejection["endpoint"]) == ("reviews", upstream.address)
            assert ejection["reason"] == "consecutive_5xx"
            assert ejection["at"] == round(clock.time(), 3)
            assert ejection["until"] == pytest.approx(clock.time() + 30, abs=0.01)
            assert found["services"][0]["endpoints"]["ejected"] == 1
            query = {"cluster": "reviews"}
            page = parsed(handler.handle(Request(method="GET", path="/mesh/endpoints.json", query=query)))
            first, second = page["endpoints"]
            assert (first["usable"], first["ejection"]["reason"]) == (False, "consecutive_5xx")
            assert (second["usable"], second["health"], second["ejection"]) == (False, "UNHEALTHY", None)
            lines = text(handler.handle(Request(method="GET", path="/clusters"))).splitlines()
            assert f"reviews::{upstream.address}::health_flags::/failed_outlier_check" in lines


@pytest.fixture
def still(upstream: Upstream) -> Iterator[Get]:
    """Asks a Mesh that has made a call, and whose clock stands."""
    config = configuration(upstream.address)
    del config["resources"][1]["virtual_hosts"][0]["routes"][1]["route"]["weighted_clusters"]["clusters"][1]
    with meshlib.Mesh(config=[config], clock=FakeClock()) as mesh:
        with httpx.Client(transport=meshlib.httpx.MeshTransport(mesh)) as client:
            client.get("http://reviews/x")
        handler = mesh.admin().handler

        def ask(target: str) -> Answer:
            path, _, query = target.partition("?")
            return handler.handle(Request(method="GET", path=path, query=Request.parameters(query)))

        yield ask


def test_only_the_parts_that_are_asked_for(still: Get) -> None:
    whole = model(still)
    always = {"now", "process", "window", "alarms"}
    assert whole.keys() == {*always, *PARTS, "routes_total"}
    for part in PARTS:
        found = parsed(still(f"/mesh.json?parts={part}"))
        assert found.keys() - {"routes_total"} == {*always, part}
        assert found[part] == whole[part]
    assert parsed(still("/mesh.json?parts=")).keys() == always
    assert parsed(still("/mesh.json?parts=calls,routes")).keys() == {
        *always,
        "calls",
        "routes",
        "routes_total",
    }
    assert still("/mesh.json?parts=calls,nothing").status == 400


def test_alarms() -> None:
    with Upstream(default=Reply(status=503)) as upstream:
        config = configuration(upstream.address)
        with meshlib.Mesh(config=[config]) as mesh:
            handler = mesh.admin().handler
            asked = Request(method="GET", path="/mesh.json", query={"parts": ""})
            assert parsed(handler.handle(asked))["alarms"] == {"ejections": 0, "problems": 0, "expired": 0}
            with httpx.Client(transport=meshlib.httpx.MeshTransport(mesh, local_reply="response")) as client:
                while not parsed(handler.handle(asked))["alarms"]["ejections"]:
                    client.get("http://reviews/")


def test_clusters_come_with_those_that_are_called_most_first(still: Get) -> None:
    found = parsed(still("/mesh.json?parts=clusters,services,graph"))
    assert found["clusters"] == [each["name"] for each in found["services"] if each["exists"]] == ["reviews"]
    own, reviews = found["graph"]["nodes"]
    assert "endpoints" not in own
    assert reviews["endpoints"] == {"total": 2, "healthy": 1}
    most = parsed(still("/mesh/endpoints.json"))
    assert (most["cluster"], most["total"]) == ("reviews", 2)
    assert most["service"] == found["services"][0]


def test_endpoints_come_in_pages(get: Get, upstream: Upstream) -> None:
    page = parsed(get("/mesh/endpoints.json?cluster=reviews&start=1&limit=1"))
    assert (page["total"], page["start"], [each["address"] for each in page["endpoints"]]) == (
        2,
        1,
        ["10.1.1.1:80"],
    )
    assert parsed(get("/mesh/endpoints.json?cluster=reviews&start=9"))["endpoints"] == []
    assert get("/mesh/endpoints.json?cluster=nothing").status == 404
    assert get("/mesh/endpoints.json?cluster=reviews&limit=100000").status == 400


def test_nothing_new_is_not_sent_again(get: Get, client: httpx.Client) -> None:
    first = get("/mesh.json")
    tag = dict(first.headers)["etag"]
    second = get("/mesh/processes.json")
    again = get("/mesh/processes.json", headers={"if-none-match": dict(second.headers)["etag"]})
    assert (again.status, again.body) == (304, b"")
    client.get("http://reviews/")
    changed = get("/mesh.json", headers={"if-none-match": tag})
    assert changed.status == 200
    assert dict(changed.headers)["etag"] != tag


def test_what_the_control_plane_was_answered(upstream: Upstream) -> None:
    config = configuration(upstream.address)
    with serve(config) as plane, meshlib.Mesh(bootstrap=plane.bootstrap()) as mesh:
        mesh.wait_ready("reviews:80")
        handler = mesh.admin().handler
        found = parsed(handler.handle(Request(method="GET", path="/mesh.json")))
        plane_told = found["process"]["control_plane"]
        assert (plane_told["kind"], plane_told["server"], plane_told["streams"]) == ("xds", plane.address, 1)
        acks = {each["type"]: each["last_ack"] for each in found["process"]["types"]}
        assert acks["cds"]["version"] == "1"
        assert acks["cds"]["at"] == pytest.approx(mesh.clock.time(), abs=30)
        assert found["problems"] == []


def graph(own: str, *edges: tuple[str, str, int | None]) -> dict[str, Any]:
    nodes = {own: {"id": own, "kind": "self"}}
    listed = []
    for source, destination, rate in edges:
        for name in (source, destination):
            nodes.setdefault(name, {"id": name, "kind": "service"})
        told = rate is None
        listed.append(
            {
                "source": source,
                "destination": destination,
                "cluster": None if told else destination,
                "total": 1,
                "errors_total": 0,
                "rate": rate,
                "error_rate": None if told else 0.0,
                "p50": None,
                "p90": None,
                "p99": 5.0,
                "tls": True,
                "mtls": told,
                "principal": "spiffe://x/a" if told else None,
            }
        )
    return {"nodes": list(nodes.values()), "edges": listed}


def test_graphs_of_several_processes_are_one() -> None:
    found = merged(
        [
            graph("front", ("front", "reviews", 2)),
            graph("front", ("front", "reviews", 3)),
            graph(
                "reviews",
                ("reviews", "ratings", 1),
                ("front", "reviews", None),
                ("stranger", "reviews", None),
            ),
        ]
    )
    assert {node["id"]: node["kind"] for node in found["nodes"]} == {
        "front": "self",
        "reviews": "self",
        "ratings": "service",
        "stranger": "service",
    }
    edges = {(edge["source"], edge["destination"]): edge for edge in found["edges"]}
    assert edges["front", "reviews"]["rate"] == 5
    assert edges["front", "reviews"]["p50"] is None
    assert edges["front", "reviews"]["p99"] == 5.0
    assert edges["front", "reviews"]["total"] == 2
    assert edges["stranger", "reviews"]["rate"] is None
    assert set(edges) == {("front", "reviews"), ("reviews", "ratings"), ("stranger", "reviews")}

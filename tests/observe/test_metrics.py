"""What is counted of calls: Istio's metrics, golden signals, limits on how many there may be, across forks and pushes."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from meshlib.engine import events as ev
from meshlib.engine.observer import InboundCall
from meshlib.observe.metrics import MetricsObserver
from meshlib.observe.workload import Workload
from meshlib.policy.failure import FailureKind
from meshlib.resources.cluster import Cluster, Service
from meshlib.resources.endpoint import ClusterLoadAssignment, Endpoint, LocalityEndpoints
from meshlib.resources.route import DirectResponse
from meshlib.routing.request import RequestView
from meshlib.stats import Histogram, Registry
from tests.engine.builders import cluster, forward, retry, thresholds
from tests.engine.wire import FakeMesh, request

OWN = Workload(
    name="web-v1",
    namespace="shop",
    app="web",
    version="v1",
    cluster="east",
    canonical_service="web",
    canonical_revision="v1",
    domain="shop.svc.cluster.local",
)
ISTIO = "outbound|80|v2|ratings.shop.svc.cluster.local"
LABELS = {
    "reporter": "source",
    "source_workload": "web-v1",
    "source_canonical_service": "web",
    "source_canonical_revision": "v1",
    "source_workload_namespace": "shop",
    "source_principal": "unknown",
    "source_app": "web",
    "source_version": "v1",
    "source_cluster": "east",
    "destination_workload": "ratings-v2",
    "destination_workload_namespace": "shop",
    "destination_principal": "unknown",
    "destination_app": "unknown",
    "destination_version": "unknown",
    "destination_service": "ratings.shop.svc.cluster.local",
    "destination_canonical_service": "ratings",
    "destination_canonical_revision": "v2",
    "destination_service_name": "ratings",
    "destination_service_namespace": "shop",
    "destination_cluster": "west",
    "request_protocol": "http",
    "response_code": "200",
    "grpc_response_status": "",
    "response_flags": "-",
    "connection_security_policy": "unknown",
}


def ratings(name: str = ISTIO, **fields: Any) -> Cluster:
    host = Endpoint("10.0.0.1", 80, workload="ratings-v2;shop;ratings;v2;west")
    places = (LocalityEndpoints(endpoints=(host,), has_metadata=True),)
    assignment = ClusterLoadAssignment(cluster_name=name, localities=places)
    return cluster(name, load_assignment=assignment, **fields)


def observed(*clusters: Cluster, series: int = 100, **fields: Any) -> tuple[FakeMesh, MetricsObserver]:
    mesh = FakeMesh(*clusters, **fields)
    observer = MetricsObserver(mesh.engine, mesh.registry, OWN, series=series)
    mesh.engine.observe(observer.tally)
    mesh.engine.observe(observer)
    return mesh, observer


def found(registry: Registry, family: str) -> list[tuple[dict[str, str], Any]]:
    """Labels and value (of histograms: count and sum) of each sample."""
    return [
        (dict(metric.labels), (metric.count, metric.total) if isinstance(metric, Histogram) else metric.value)
        for metric in registry
        if metric.family == family
    ]


def test_a_call_counts_as_with_istio() -> None:
    mesh, _ = observed(ratings(), action=forward(ISTIO))
    call = mesh.call()
    mesh.clock.advance(0.02)
    call.core.account(7, 1500)
    call.answer(200)
    (labels, value), = found(mesh.registry, "istio_requests_total")  # fmt: skip
    assert labels == LABELS
    assert list(labels) == list(LABELS), "in Istio's order"
    assert value == 1
    (labels, (count, total)), = found(mesh.registry, "istio_request_duration_milliseconds")  # fmt: skip
    assert labels == LABELS
    assert count == 1
    assert total == pytest.approx(20)
    assert found(mesh.registry, "istio_request_bytes") == [(LABELS, (1, 7))]
    assert found(mesh.registry, "istio_response_bytes") == [(LABELS, (1, 1500))]
    assert found(mesh.registry, "istio_request_messages_total") == []


def test_the_service_that_the_configuration_names() -> None:
    service = Service(host="r.example", name="r", namespace="n")
    mesh, _ = observed(ratings("a", service=service))
    mesh.call().answer(200)
    labels = found(mesh.registry, "istio_requests_total")[0][0]
    names = ("destination_service", "destination_service_name", "destination_service_namespace")
    assert [labels[name] for name in names] == ["r.example", "r", "n"]


def test_each_outcome_has_its_own_count() -> None:
    mesh, _ = observed(cluster("a"), action=forward(retry_policy=retry("5xx")))
    for _ in range(2):
        mesh.call().answer(404)
    call = mesh.call()
    call.answer(503)
    call.tick()
    call.answer(503)
    broken = mesh.call()
    broken.fail(FailureKind.TERMINATED)
    broken.tick()
    broken.fail(FailureKind.TERMINATED)
    mesh.call().handle(ev.Cancelled())
    counted = {
        (labels["response_code"], labels["response_flags"]): value
        for labels, value in found(mesh.registry, "istio_requests_total")
    }
    assert counted == {("404", "-"): 2, ("503", "URX"): 1, ("503", "URX,UC"): 1, ("0", "DC"): 1}
    outcomes = {
        labels["outcome"]: value for labels, value in found(mesh.registry, "meshlib_route_requests_total")
    }
    assert outcomes == {"success": 2, "error": 2, "cancelled": 1}


def test_what_never_reached_an_endpoint_counts_too() -> None:
    mesh, _ = observed(cluster("a"), action=forward("nowhere"))
    mesh.call()
    labels, value = found(mesh.registry, "istio_requests_total")[0]
    assert (labels["response_code"], labels["response_flags"], value) == ("503", "NC", 1)
    assert labels["destination_service"] == "nowhere"
    mesh, _ = observed(cluster("a"), action=DirectResponse(status=418))
    mesh.call()
    labels, value = found(mesh.registry, "istio_requests_total")[0]
    assert (labels["response_code"], labels["destination_service"], value) == ("418", "unknown", 1)
    assert found(mesh.registry, "meshlib_route_requests_total") == [
        ({"cluster": "", "route": "0", "route_config": "r", "virtual_host": "v", "outcome": "success"}, 1)
    ]


def test_grpc() -> None:
    mesh, _ = observed(cluster("a"))

    def rpc(status: str) -> None:
        view = RequestView("POST", "http", "svc", "/s.S/M", [], target="svc:80", channel_id=7)
        call = mesh.call(view)
        call.core.account(10, 20, messages=(1, 3))
        call.answer(200, end=False)
        call.end(trailers=[("grpc-status", status)])

    for status in ("0", "0", "14", "whatever"):
        rpc(status)
    counted = {
        labels["grpc_response_status"]: (labels["request_protocol"], labels["response_code"], value)
        for labels, value in found(mesh.registry, "istio_requests_total")
    }
    assert counted == {
        "0": ("grpc", "200", 2), "14": ("grpc", "200", 1), "unknown": ("grpc", "200", 1),
    }  # fmt: skip
    sent = [value for _, value in found(mesh.registry, "istio_request_messages_total")]
    received = [value for _, value in found(mesh.registry, "istio_response_messages_total")]
    assert (sum(sent), sum(received)) == (4, 12)
    outcomes = {
        labels["outcome"]: value for labels, value in found(mesh.registry, "meshlib_route_requests_total")
    }
    assert outcomes == {"success": 3, "error": 1}


def test_latency_and_traffic_of_routes() -> None:
    mesh, _ = observed(cluster("a"), action=forward())
    for seconds in (0.004, 0.2):
        call = mesh.call()
        mesh.clock.advance(seconds)
        call.answer(200)
    (labels, (count, total)), = found(mesh.registry, "meshlib_route_duration_milliseconds")  # fmt: skip
    assert labels == {"cluster": "a", "route": "0", "route_config": "r", "virtual_host": "v"}
    assert count == 2
    assert total == pytest.approx(204)


def test_saturation_of_clusters_that_were_called() -> None:
    mesh, _ = observed(
        cluster("a", circuit_breakers=thresholds(max_requests=4, max_connections=2, max_retries=0)),
        cluster("b"),
    )
    assert found(mesh.registry, "meshlib_saturation") == []
    mesh.call().answer(200)
    mesh.call()

    def shares() -> dict[str, float]:
        return {
            f"{labels['cluster']} {labels['priority']} {labels['resource']}": value
            for labels, value in found(mesh.registry, "meshlib_saturation")
        }

    assert shares() == {
        "a default connections": 0.5,
        "a default pending": 0.0,
        "a default requests": 0.25,
        "a default retries": 1.0,
    }


def test_a_push_gives_new_labels_and_keeps_what_was_counted() -> None:
    mesh, observer = observed(ratings("a"), action=forward("a"))
    mesh.call().answer(200)
    before = observer.tally._lines
    mesh.publish(ratings("a", service=Service(host="r.example", name="r", namespace="n")))
    mesh.call().answer(200)
    assert observer.tally._lines is not before
    assert [value for _, value in found(mesh.registry, "istio_requests_total")] == [1, 1]
    mesh.publish()
    mesh.call().answer(200)
    assert sorted(value for _, value in found(mesh.registry, "istio_requests_total")) == [1, 2]


def test_too_many_series_share_one(caplog: pytest.LogCaptureFixture) -> None:
    mesh, _ = observed(
        cluster("a"), cluster("b"), action=forward("a"), series=7
    )  # 5 of them: lag, four limits
    with caplog.at_level(logging.WARNING, "meshlib.observe"):
        for status in (200, 404, 500, 404, 200):
            mesh.call().answer(status)
    counted = {
        (labels["response_code"], labels["destination_service"]): value
        for labels, value in found(mesh.registry, "istio_requests_total")
    }
    assert counted == {("200", "a"): 2, ("404", "overflow"): 2, ("500", "overflow"): 1}
    assert len(caplog.records) == 1
    total = sum(value for _, value in found(mesh.registry, "meshlib_route_requests_total"))
    assert total == 5


def test_a_forked_child_begins_at_zero_and_goes_on_counting() -> None:
    mesh, _ = observed(cluster("a"))
    mesh.call().answer(200)
    mesh.engine.renew_locks()
    assert [value for _, value in found(mesh.registry, "istio_requests_total")] == [0]
    mesh.call().answer(200)
    assert [value for _, value in found(mesh.registry, "istio_requests_total")] == [1]
    assert [count for _, (count, _) in found(mesh.registry, "istio_request_duration_milliseconds")] == [1]


def inbound(**fields: Any) -> InboundCall:
    given: dict[str, Any] = {
        "method": "GET", "scheme": "http", "authority": "web", "path": "/", "headers": (), "protocol": "HTTP/1.1",
        "remote": "10.0.0.9:1", "started": 0.0, "epoch": 0.0, "status": 200, **fields,
    }  # fmt: skip
    return InboundCall(**given)


def test_requests_that_arrive() -> None:
    mesh, observer = observed(cluster("a"))
    peer, own = "spiffe://td/ns/front/sa/page", "spiffe://td/ns/shop/sa/web"
    record = inbound(peer=peer, own=own, secure=True, bytes_received=5, bytes_sent=50)
    record.started, record.ended = 7.0, 7.5
    for _ in range(3):
        observer.inbound_over(record)
    (labels, value), = found(mesh.registry, "istio_requests_total")  # fmt: skip
    assert value == 3
    assert list(labels) == list(LABELS)
    told = {name: text for name, text in labels.items() if text not in ("unknown", "")}
    assert told == {
        "reporter": "destination",
        "source_workload_namespace": "front",
        "source_principal": peer,
        "destination_workload": "web-v1",
        "destination_workload_namespace": "shop",
        "destination_principal": own,
        "destination_app": "web",
        "destination_version": "v1",
        "destination_service": "web.shop.svc.cluster.local",
        "destination_canonical_service": "web",
        "destination_canonical_revision": "v1",
        "destination_service_name": "web",
        "destination_service_namespace": "shop",
        "destination_cluster": "east",
        "request_protocol": "http",
        "response_code": "200",
        "response_flags": "-",
        "connection_security_policy": "mutual_tls",
    }
    assert found(mesh.registry, "istio_request_bytes")[0][1] == (3, 15)
    assert found(mesh.registry, "istio_response_bytes")[0][1] == (3, 150)
    assert found(mesh.registry, "istio_request_duration_milliseconds")[0][1] == (3, pytest.approx(1500))


def test_grpc_that_arrives() -> None:
    mesh, observer = observed(cluster("a"))
    observer.inbound_over(inbound(grpc_status="5", messages_received=2, messages_sent=3))
    labels, value = found(mesh.registry, "istio_requests_total")[0]
    assert (labels["request_protocol"], labels["grpc_response_status"], value) == ("grpc", "5", 1)
    assert labels["connection_security_policy"] == "none"
    assert found(mesh.registry, "istio_request_messages_total")[0][1] == 2
    assert found(mesh.registry, "istio_response_messages_total")[0][1] == 3


def test_who_waits_for_changes_is_told_once() -> None:
    mesh, observer = observed(cluster("a"))
    told: list[int] = []
    observer.tally.changed = lambda: told.append(1)
    mesh.call().answer(200)
    assert told == []
    observer.tally.idle = True
    for _ in range(3):
        mesh.call().answer(200)
    assert told == [1]
    observer.tally.idle = True
    observer.inbound_over(inbound())
    assert told == [1, 1]


def test_the_lag_of_event_loops_is_sampled_by_calls() -> None:
    mesh, _ = observed(cluster("a"))

    def lag() -> float:
        value: float = found(mesh.registry, "meshlib_event_loop_lag_seconds")[0][1]
        return value

    async def calls() -> None:
        mesh.call().answer(200)
        mesh.call().answer(200)
        ran = asyncio.Event()
        loop = asyncio.get_running_loop()
        assert len(loop._scheduled) == 1, "one timer, however many calls"  # type: ignore[attr-defined]
        late = loop.time() + 0.1
        while loop.time() < late:
            pass
        loop.call_later(0.03, ran.set)
        await ran.wait()

    assert lag() == 0.0
    asyncio.run(calls())
    assert lag() >= 0.07
    mesh.clock.advance(11)
    assert lag() >= 0.07
    mesh.clock.advance(11)
    assert lag() == 0.0


def test_what_goes_past_the_mesh_is_not_counted() -> None:
    mesh, observer = observed(cluster("a"))
    call = mesh.call()
    call.core.passthrough = True
    observer.tally.over(call.core, 1.0)
    assert found(mesh.registry, "istio_requests_total") == []
    call.answer(200)


def test_requests_of_any_host_make_no_series() -> None:
    mesh, _ = observed(cluster("a"))
    for name in ("x", "y", "z"):
        mesh.call(request(authority=name)).answer(200)
    assert [value for _, value in found(mesh.registry, "istio_requests_total")] == [3]

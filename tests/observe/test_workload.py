"""Who calls and who answers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshlib.observe.istio import Destination, destination_of
from meshlib.observe.workload import UNKNOWN, Workload, namespace_of, of_endpoint, own_workload
from meshlib.xds.bootstrap import Node

AGENT = Node(
    id="sidecar~10.0.0.1~reviews-v1-5d8f.shop~shop.svc.cluster.local",
    cluster="reviews.shop",
    metadata={
        "NAME": "reviews-v1-5d8f",
        "NAMESPACE": "shop",
        "WORKLOAD_NAME": "reviews-v1",
        "CLUSTER_ID": "east",
        "LABELS": {"app": "reviews", "version": "v1", "service.istio.io/canonical-revision": "r1", "n": 1},
    },
)


def test_what_istios_agent_says() -> None:
    assert own_workload(AGENT, {"OTEL_SERVICE_NAME": "other"}) == Workload(
        name="reviews-v1",
        namespace="shop",
        app="reviews",
        version="v1",
        cluster="east",
        canonical_service="reviews",
        canonical_revision="r1",
        domain="shop.svc.cluster.local",
    )


def test_what_opentelemetry_is_told() -> None:
    environment = {
        "OTEL_SERVICE_NAME": "web",
        "OTEL_RESOURCE_ATTRIBUTES": "service.version=1%2E2, k8s.namespace.name=shop,k8s.cluster.name=east,junk",
    }
    assert own_workload(None, environment) == Workload(
        "web", "shop", "web", "1.2", "east", canonical_service="web", canonical_revision="1.2"
    )


def test_the_least_that_is_known() -> None:
    assert own_workload(None, {}) == Workload()
    node = Node(id="n", cluster="front", metadata={"LABELS": "none", "NAMESPACE": 3})
    assert own_workload(node, {"POD_NAMESPACE": "p"}) == Workload(
        "front", "p", canonical_service="front", canonical_revision="latest"
    )


@given(st.text(alphabet="ab;", max_size=20))
def test_endpoints(text: str) -> None:
    made = of_endpoint(text)
    parts = (text.split(";") + [""] * 5)[:5]
    assert [made.name, made.namespace, made.canonical_service] == [part or UNKNOWN for part in parts[:3]]
    assert made.canonical_revision == (parts[3] or ("latest" if text else UNKNOWN))
    assert made.cluster == (parts[4] or UNKNOWN)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("", Destination()),
        ("reviews", Destination("reviews", "reviews", UNKNOWN)),
        ("reviews.example.com", Destination("reviews.example.com", "reviews.example.com", UNKNOWN)),
        ("a.b.svc.cluster.local", Destination("a.b.svc.cluster.local", "a", "b")),
        ("outbound|80||a.b.svc.cluster.local", Destination("a.b.svc.cluster.local", "a", "b")),
        ("outbound|80|v1|api.example.com", Destination("api.example.com", "api", UNKNOWN)),
        ("outbound_.80_.v1_.a.b.svc.cluster.local", Destination("a.b.svc.cluster.local", "a", "b")),
        ("outbound|x", Destination("outbound|x", "outbound|x", UNKNOWN)),
    ],
)
def test_services(name: str, expected: Destination) -> None:
    assert destination_of(None, name) == expected


@pytest.mark.parametrize(
    ("principal", "namespace"),
    [
        ("spiffe://td/ns/shop/sa/web", "shop"),
        ("spiffe://td/workload/web", UNKNOWN),
        ("https://td/ns/shop/sa/web", UNKNOWN),
        ("", UNKNOWN),
    ],
)
def test_namespaces(principal: str, namespace: str) -> None:
    assert namespace_of(principal) == namespace

"""Listeners and clusters that a response does not name are gone; routes and endpoints are not."""

from __future__ import annotations

from meshlib.snapshot import Kind, ResourceState
from tests.snapshot.builders import assignment, cluster, inline_listener, listener, routes
from tests.xds.fake_ads import Harness

LISTENER, ROUTE, CLUSTER, ENDPOINT, SECRET = Kind


def loaded(*features: str) -> Harness:
    harness = Harness(features)
    harness.want("a:80", "b:80")
    harness.send(listener("a:80", "ra"), listener("b:80", "rb"))
    harness.send(routes("ra", "one"), routes("rb", "two"))
    harness.send(cluster("one"), cluster("two"))
    harness.send(assignment("one"), assignment("two"))
    return harness


def test_a_listener_that_is_not_named_is_deleted() -> None:
    harness = loaded()
    harness.send(listener("a:80", "ra"), version="2")
    assert list(harness.snapshot.listeners) == ["a:80"]
    assert (LISTENER, "b:80") in harness.snapshot.absent
    states = {(item.kind, item.name): item.state for item in harness.client.status()}
    assert states[LISTENER, "b:80"] is ResourceState.DOES_NOT_EXIST
    harness.send(listener("a:80", "ra"), listener("b:80", "rb"), version="3")
    assert set(harness.snapshot.listeners) == {"a:80", "b:80"}
    assert harness.snapshot.absent == frozenset()


def test_an_empty_response_deletes_all_clusters() -> None:
    harness = loaded()
    (ack,) = harness.respond(CLUSTER, version="2")
    assert ack.error is None
    assert harness.snapshot.clusters == {}


def test_routes_and_endpoints_are_not_deleted_by_absence() -> None:
    harness = loaded()
    harness.respond(ROUTE, version="2")
    harness.respond(ENDPOINT, version="2")
    assert set(harness.snapshot.routes) == {"ra", "rb"}
    assert set(harness.snapshot.endpoints) == {"one", "two"}


def test_a_bad_resource_is_named_and_so_not_deleted() -> None:
    harness = loaded()
    harness.respond(LISTENER, harness.ads.pack_bad(LISTENER, "a:80"), version="2")
    assert list(harness.snapshot.listeners) == ["a:80"]
    assert (LISTENER, "b:80") in harness.snapshot.absent


def test_a_response_with_an_unreadable_resource_deletes_nothing() -> None:
    harness = loaded()
    garbage = harness.ads.pack(inline_listener("a:80"))
    garbage.value = b"\x00"
    harness.respond(LISTENER, garbage, version="2")
    assert set(harness.snapshot.listeners) == {"a:80", "b:80"}


def test_deletion_can_be_switched_off() -> None:
    harness = loaded("ignore_resource_deletion")
    harness.respond(LISTENER, version="2")
    harness.respond(CLUSTER, version="2")
    assert set(harness.snapshot.listeners) == {"a:80", "b:80"}
    assert set(harness.snapshot.clusters) == {"one", "two"}


def test_what_is_awaited_is_not_deleted_by_a_response_that_crossed_the_request() -> None:
    harness = loaded()
    harness.want("c:80")
    harness.send(listener("a:80", "ra"), listener("b:80", "rb"), version="2")
    assert harness.snapshot.pending(LISTENER, "c:80")

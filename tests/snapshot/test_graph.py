from __future__ import annotations

import math
from typing import Any

import hypothesis
from hypothesis import strategies as st

from meshlib.errors import ResourceError
from meshlib.snapshot import Accepted, Graph, Kind, Ref, ResourceState, Snapshot
from tests.snapshot.builders import (
    Item,
    assignment,
    cluster,
    dns_cluster,
    inline_listener,
    listener,
    routes,
)

LISTENER, ROUTE, CLUSTER, ENDPOINT, SECRET = Kind


def put(
    graph: Graph, kind: Kind, *resources: Any, now: float = 0.0, version: str = "1", **options: Any
) -> None:
    named = {getattr(item, "name", None) or item.cluster_name: Item(item) for item in resources}
    graph.update(kind, named, version=version, now=now, **options)


def wanted(graph: Graph) -> list[Ref]:
    return [(kind, name) for kind in Kind for name in graph.wanted(kind)]


def full(graph: Graph) -> Graph:
    graph.want(LISTENER, "web:80", 0)
    put(graph, LISTENER, listener("web:80", "web"))
    put(graph, ROUTE, routes("web", "one", "two"))
    put(graph, CLUSTER, cluster("one"), cluster("two", "two-eds"))
    put(graph, ENDPOINT, assignment("one", "10.0.0.1"), assignment("two-eds", "10.0.0.2"))
    return graph


def test_each_resource_asks_for_what_it_names() -> None:
    graph = Graph()
    assert wanted(graph) == []
    graph.want(LISTENER, "web:80", 0)
    assert wanted(graph) == [(LISTENER, "web:80")]
    put(graph, LISTENER, listener("web:80", "web"))
    assert wanted(graph) == [(LISTENER, "web:80"), (ROUTE, "web")]
    put(graph, ROUTE, routes("web", "one"))
    assert wanted(graph)[2:] == [(CLUSTER, "one")]
    put(graph, CLUSTER, cluster("one", "one-eds"))
    assert wanted(graph)[3:] == [(ENDPOINT, "one-eds")]


def test_an_inline_route_configuration_asks_for_its_clusters() -> None:
    graph = Graph()
    graph.want(LISTENER, "web:80", 0)
    put(graph, LISTENER, inline_listener("web:80", "one"))
    assert list(graph.wanted(ROUTE)) == []
    assert list(graph.wanted(CLUSTER)) == ["one"]
    found = graph.snapshot().listener("web:80")
    assert found is not None
    assert graph.snapshot().route_config(found) is found.http.route_config


def test_the_snapshot_leads_from_the_listener_to_the_endpoints() -> None:
    snapshot = full(Graph()).snapshot()
    found = snapshot.listener("web:80")
    assert found is not None
    config = snapshot.route_config(found)
    assert config is not None
    assert config.cluster_names == {"one", "two"}
    endpoints = snapshot.assignment(snapshot.clusters["two"])
    assert endpoints is not None
    assert endpoints.cluster_name == "two-eds"
    assert snapshot.awaited == frozenset()


def test_pending_until_there_is_a_value_an_error_or_a_verdict() -> None:
    graph = Graph()
    assert graph.snapshot().pending(LISTENER, "web:80")
    for name in ("value", "error", "verdict"):
        graph.want(CLUSTER, name, 0)
    assert graph.snapshot().awaited == {(CLUSTER, "value"), (CLUSTER, "error"), (CLUSTER, "verdict")}
    put(graph, CLUSTER, cluster("value"))
    graph.update(CLUSTER, {"error": ResourceError("lb_policy", "unknown")}, version="2", now=0)
    graph.does_not_exist(CLUSTER, "verdict", 0)
    snapshot = graph.snapshot()
    assert not any(snapshot.pending(CLUSTER, name) for name in ("value", "error", "verdict"))
    assert snapshot.absent == {(CLUSTER, "verdict")}
    assert snapshot.pending_endpoints(snapshot.clusters["value"])
    put(graph, ENDPOINT, assignment("value"))
    assert not graph.snapshot().pending_endpoints(snapshot.clusters["value"])


def test_an_error_stands_beside_the_last_good_version() -> None:
    graph = full(Graph())
    good = graph.snapshot().clusters["one"]
    error = ResourceError("connect_timeout", "must be positive")
    graph.update(CLUSTER, {"one": error, "two": Item(cluster("two", "other"))}, version="2", now=7)
    snapshot = graph.snapshot()
    assert snapshot.clusters["one"] is good
    assert snapshot.error(CLUSTER, "one") is error
    assert snapshot.clusters["two"].eds_service_name == "other"
    status = {(item.kind, item.name): item for item in graph.status()}[CLUSTER, "one"]
    assert (status.state, status.version, status.error_version) == (ResourceState.NACKED, "1", "2")
    assert status.updated == 7
    graph.update(CLUSTER, {"one": Item(good)}, version="3", now=8)
    assert graph.snapshot().errors == {}
    assert graph.snapshot().clusters["one"] is good


def test_what_a_complete_response_does_not_name_is_deleted() -> None:
    graph = full(Graph())
    put(graph, CLUSTER, cluster("one"), present={"one"})
    snapshot = graph.snapshot()
    assert list(snapshot.clusters) == ["one"]
    assert (CLUSTER, "two") in snapshot.absent
    assert not snapshot.pending(CLUSTER, "two")


def test_what_was_never_seen_is_not_deleted_by_absence() -> None:
    graph = full(Graph())
    graph.want(CLUSTER, "new", 0)
    put(graph, CLUSTER, cluster("one"), cluster("two"), present={"one", "two"})
    assert graph.snapshot().pending(CLUSTER, "new")


def test_an_invalid_resource_is_present() -> None:
    graph = full(Graph())
    graph.update(CLUSTER, {"one": ResourceError("x", "bad")}, version="2", now=0, present={"one", "two"})
    assert set(graph.snapshot().clusters) == {"one", "two"}


def test_a_deleted_resource_may_come_back() -> None:
    graph = full(Graph())
    graph.does_not_exist(LISTENER, "web:80", 1)
    assert graph.snapshot().listener("web:80") is None
    put(graph, LISTENER, listener("web:80", "web"))
    snapshot = graph.snapshot()
    assert snapshot.listener("web:80") is not None
    assert snapshot.absent == frozenset()
    assert snapshot.awaited == frozenset()


def test_an_unreferenced_resource_lingers_and_is_then_forgotten_with_all_below_it() -> None:
    graph = full(Graph(linger=30))
    assert graph.expire(0) == math.inf
    put(graph, ROUTE, routes("web", "one"), now=10)
    assert graph.expire(10) == 40
    assert "two" in graph.snapshot().clusters
    assert "two" in graph.wanted(CLUSTER)
    graph.expire(40)
    assert "two" not in graph.snapshot().clusters
    assert "two" not in graph.wanted(CLUSTER)
    assert "two-eds" in graph.wanted(ENDPOINT)
    assert graph.expire(70) == math.inf
    assert "two-eds" not in graph.snapshot().endpoints


def test_a_change_that_is_taken_back_keeps_the_objects() -> None:
    graph = full(Graph(linger=30))
    before = graph.snapshot().clusters["two"]
    put(graph, ROUTE, routes("web", "one"), now=10)
    put(graph, ROUTE, routes("web", "one", "two"), now=20)
    assert graph.expire(1000) == math.inf
    assert graph.snapshot().clusters["two"] is before


def test_unwanted_listeners_are_forgotten() -> None:
    graph = full(Graph(linger=0))
    graph.unwant(LISTENER, "web:80", 5)
    graph.expire(5)
    assert wanted(graph) == []
    assert graph.snapshot().listeners == {}


def test_names_that_do_not_exist_are_capped_and_the_oldest_goes() -> None:
    graph = Graph(on_demand=2)
    for name in ("a", "b", "c"):
        graph.want(LISTENER, name, 0)
        graph.does_not_exist(LISTENER, name, 0)
    assert list(graph.wanted(LISTENER)) == ["b", "c"]
    assert graph.snapshot().absent == {(LISTENER, "b"), (LISTENER, "c")}


def test_an_unchanged_configuration_is_the_same_snapshot() -> None:
    graph = full(Graph())
    snapshot = graph.snapshot()
    assert graph.snapshot() is snapshot
    put(graph, CLUSTER, snapshot.clusters["one"])
    assert graph.snapshot() is snapshot


def test_a_new_snapshot_shares_what_did_not_change() -> None:
    graph = full(Graph())
    before = graph.snapshot()
    put(graph, ENDPOINT, assignment("one", "10.0.0.9"))
    after = graph.snapshot()
    assert after.generation == before.generation + 1
    assert after.clusters is before.clusters
    assert after.listeners is before.listeners
    assert after.endpoints["two-eds"] is before.endpoints["two-eds"]
    assert before.endpoints["one"].localities[0].endpoints[0].address == "10.0.0.1"


def test_dns_clusters_get_their_endpoints_from_the_driver() -> None:
    graph = Graph()
    graph.want(CLUSTER, "web", 0)
    put(graph, CLUSTER, dns_cluster("web", "web.example"))
    assert set(graph.dns_clusters()) == {"web"}
    assert wanted(graph) == [(CLUSTER, "web")]
    snapshot = graph.snapshot()
    assert snapshot.pending_endpoints(snapshot.clusters["web"])
    found = assignment("web", "10.1.1.1")
    graph.resolved("web", found)
    snapshot = graph.snapshot()
    assert snapshot.assignment(snapshot.clusters["web"]) is found
    put(graph, CLUSTER, cluster("web"))
    assert graph.dns_clusters() == {}
    assert graph.snapshot().resolved == {}
    graph.resolved("web", found)
    assert graph.snapshot().resolved == {}


def test_unsupported_fields_are_part_of_the_snapshot() -> None:
    graph = Graph()
    graph.want(CLUSTER, "one", 0)
    graph.update(CLUSTER, {"one": Item(cluster("one"), ("lb_subset_config",))}, version="1", now=0)
    assert graph.snapshot().unsupported == {(CLUSTER, "one"): ("lb_subset_config",)}
    put(graph, CLUSTER, cluster("one"))
    assert graph.snapshot().unsupported == {}


def test_a_graph_restored_from_a_snapshot_holds_the_same() -> None:
    before = full(Graph())
    before.want(CLUSTER, "dns", 0)
    put(before, CLUSTER, dns_cluster("dns", "web.example"))
    before.resolved("dns", assignment("dns", "10.1.1.1"))
    old = before.snapshot()
    after = Graph.restore(old, set(before.pinned()), 50)
    new = after.snapshot()
    assert new.generation == old.generation + 1
    assert set(wanted(after)) == set(wanted(before))
    for part in ("listeners", "routes", "clusters", "endpoints", "resolved", "versions", "absent", "awaited"):
        assert getattr(new, part) == getattr(old, part), part
    put(after, ENDPOINT, assignment("one", "10.0.0.9"), now=51)
    assert after.snapshot().endpoints["one"] is not old.endpoints["one"]


NAMES = st.sampled_from(["a", "b", "c"])
RESOURCES = st.one_of(
    st.builds(lambda name, target: (LISTENER, listener(name, target)), NAMES, NAMES),
    st.builds(lambda name, targets: (LISTENER, inline_listener(name, *targets)), NAMES, st.sets(NAMES)),
    st.builds(lambda name, targets: (ROUTE, routes(name, *targets)), NAMES, st.sets(NAMES)),
    st.builds(lambda name, target: (CLUSTER, cluster(name, target)), NAMES, NAMES),
    st.builds(lambda name: (CLUSTER, dns_cluster(name, "host")), NAMES),
    st.builds(lambda name: (ENDPOINT, assignment(name, "10.0.0.1")), NAMES),
)
STEPS = st.one_of(
    st.tuples(st.just("want"), st.sampled_from([LISTENER, CLUSTER]), NAMES),
    st.tuples(st.just("unwant"), st.sampled_from([LISTENER, CLUSTER]), NAMES),
    st.tuples(st.just("put"), RESOURCES, st.booleans()),
    st.tuples(st.just("reject"), st.sampled_from(list(Kind)), NAMES),
    st.tuples(st.just("absent"), st.sampled_from(list(Kind)), NAMES),
    st.tuples(st.just("wait"), st.floats(0, 50)),
)


@hypothesis.given(st.lists(STEPS, max_size=40))
def test_the_graph_is_what_follows_from_its_roots(steps: list[tuple[Any, ...]]) -> None:
    graph, now, pins = Graph(linger=30), 0.0, set[Ref]()
    frozen: list[tuple[Snapshot, dict[str, Any]]] = []
    for step in steps:
        before = {kind: (graph.revision(kind), list(graph.wanted(kind))) for kind in Kind}
        match step:
            case ("want", kind, name):
                pins.add((kind, name))
                graph.want(kind, name, now)
            case ("unwant", kind, name):
                pins.discard((kind, name))
                graph.unwant(kind, name, now)
            case ("put", (kind, resource), complete):
                name = getattr(resource, "name", None) or resource.cluster_name
                item: dict[str, Accepted | ResourceError] = {name: Item(resource)}
                present = {name} if complete and kind in (LISTENER, CLUSTER) else None
                graph.update(kind, item, version="1", now=now, present=present)
            case ("reject", kind, name):
                graph.update(kind, {name: ResourceError("x", "bad")}, version="1", now=now)
            case ("absent", kind, name):
                graph.does_not_exist(kind, name, now)
            case ("wait", seconds):
                now += seconds
        following = graph.expire(now)
        assert following > now
        for kind, (revision, names) in before.items():
            assert graph.revision(kind) != revision or list(graph.wanted(kind)) == names
        snapshot = graph.snapshot()
        _check(graph, snapshot, pins)
        for old, content in frozen:
            assert {part: dict(getattr(old, part)) for part in content} == content
        frozen.append(
            (snapshot, {p: dict(getattr(snapshot, p)) for p in ("listeners", "clusters", "errors")})
        )
    # Once nothing lingers any longer, exactly what the roots lead to is wanted.
    while (now := graph.expire(now)) < math.inf:
        pass
    assert set(wanted(graph)) == _closure(graph.snapshot(), pins)


def _closure(snapshot: Snapshot, pins: set[Ref]) -> set[Ref]:
    seen: set[Ref] = set()
    todo = list(pins)
    while todo:
        ref = todo.pop()
        if ref in seen:
            continue
        seen.add(ref)
        kind, name = ref
        if kind is LISTENER and name in snapshot.listeners:
            http = snapshot.listeners[name].http
            if http.route_config is not None:
                todo += [(CLUSTER, target) for target in http.route_config.cluster_names]
            elif http.route_config_name:
                todo.append((ROUTE, http.route_config_name))
        elif kind is ROUTE and name in snapshot.routes:
            todo += [(CLUSTER, target) for target in snapshot.routes[name].cluster_names]
        elif kind is CLUSTER and name in snapshot.clusters and snapshot.clusters[name].eds_service_name:
            todo.append((ENDPOINT, snapshot.clusters[name].eds_service_name))
    return seen


def _check(graph: Graph, snapshot: Snapshot, pins: set[Ref]) -> None:
    names = set(wanted(graph))
    assert set(graph.pinned()) == pins
    assert _closure(snapshot, pins) <= names
    known = {
        *((LISTENER, name) for name in snapshot.listeners),
        *((ROUTE, name) for name in snapshot.routes),
        *((CLUSTER, name) for name in snapshot.clusters),
        *((ENDPOINT, name) for name in snapshot.endpoints),
    }
    assert known <= names
    assert not known & snapshot.absent
    assert names == known | set(snapshot.absent) | set(snapshot.errors) | set(snapshot.awaited)
    assert not snapshot.awaited & (known | set(snapshot.absent) | set(snapshot.errors))
    assert set(snapshot.resolved) <= set(graph.dns_clusters()) <= set(snapshot.clusters)
    for kind, name in names:
        assert snapshot.pending(kind, name) == ((kind, name) in snapshot.awaited)

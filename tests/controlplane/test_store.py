from __future__ import annotations

import pytest

from meshlib import proto
from meshlib.controlplane import ResourceStore


def cluster(name: str, seconds: int = 1) -> proto.Message:
    return proto.from_dict(
        "envoy.config.cluster.v3.Cluster", {"name": name, "connect_timeout": f"{seconds}s"}
    )


def endpoints(name: str) -> proto.Message:
    return proto.from_dict("envoy.config.endpoint.v3.ClusterLoadAssignment", {"cluster_name": name})


def test_an_empty_store() -> None:
    store = ResourceStore()
    assert store.state(proto.CLUSTER).version == "0"
    assert store.state(proto.CLUSTER).resources == {}


def test_each_type_has_its_own_version() -> None:
    store = ResourceStore([cluster("a"), endpoints("a")])
    assert store.replace([cluster("a"), cluster("b"), endpoints("a")]) == {proto.CLUSTER}
    assert (store.state(proto.CLUSTER).version, store.state(proto.ENDPOINT).version) == ("2", "1")
    assert [r.version for r in store.state(proto.CLUSTER).resources.values()] == ["1", "2"]


def test_unchanged_resources_stay_the_same_objects() -> None:
    store = ResourceStore([cluster("a"), cluster("b")])
    before = store.state(proto.CLUSTER)
    assert store.replace([cluster("b"), cluster("a")]) == frozenset()
    assert store.state(proto.CLUSTER) is before
    store.update(cluster("b", 2))
    after = store.state(proto.CLUSTER).resources
    assert after["a"] is before.resources["a"]
    assert after["b"] is not before.resources["b"]


def test_replace_removes_what_is_not_named() -> None:
    store = ResourceStore([cluster("a"), endpoints("a")])
    assert store.replace([cluster("b")]) == {proto.CLUSTER, proto.ENDPOINT}
    assert list(store.state(proto.CLUSTER).resources) == ["b"]
    assert store.state(proto.ENDPOINT).resources == {}


def test_update_and_remove() -> None:
    store = ResourceStore([cluster("a")])
    assert store.update(endpoints("a")) == {proto.ENDPOINT}
    assert store.remove(proto.CLUSTER, "x") == frozenset()
    assert store.remove(proto.CLUSTER, "a") == {proto.CLUSTER}
    assert store.state(proto.CLUSTER).resources == {}


def test_the_encoded_form_is_an_any() -> None:
    store = ResourceStore([cluster("a")])
    packed = proto.parse("google.protobuf.Any", store.state(proto.CLUSTER).resources["a"].encoded)
    assert proto.unpack(packed) == cluster("a")


def test_bytes_that_are_no_message_can_be_served() -> None:
    store = ResourceStore()
    assert store.update_encoded(proto.CLUSTER, "bad", b"\xff") == {proto.CLUSTER}
    packed = proto.parse("google.protobuf.Any", store.state(proto.CLUSTER).resources["bad"].encoded)
    assert (packed.type_url, packed.value) == (proto.CLUSTER, b"\xff")


@pytest.mark.parametrize(
    "messages",
    [
        [cluster("a"), cluster("a")],
        [proto.message("envoy.config.cluster.v3.Cluster")()],
        [proto.message("google.rpc.Status")(message="x")],
    ],
)
def test_what_cannot_be_served_changes_nothing(messages: list[proto.Message]) -> None:
    store = ResourceStore([cluster("z")])
    before = store.types
    with pytest.raises(ValueError, match=r"named 'a'|is not an xDS resource"):
        store.replace(messages)
    assert store.types is before


def test_watchers_hear_of_changes_only() -> None:
    store = ResourceStore()
    seen: list[str] = []
    unwatch = store.watch(lambda: seen.append(store.state(proto.CLUSTER).version))
    store.update(cluster("a"))
    store.update(cluster("a"))
    store.update(cluster("a", 2))
    unwatch()
    store.update(cluster("a", 3))
    assert seen == ["1", "2"]

"""Secrets in the watch graph: those of the stream, and those from elsewhere."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from meshlib.resources.cluster import Cluster
from meshlib.resources.inbound import FilterChain, InboundListener
from meshlib.resources.listener import HttpConnectionManager
from meshlib.resources.secret import Secret
from meshlib.resources.tls import (
    AdsSource,
    CommonTls,
    DownstreamTls,
    SecretRef,
    SecretSource,
    ServerSource,
    TransportSocketMatch,
    UpstreamTls,
)
from meshlib.snapshot import Graph, Kind, Snapshot, from_resources
from tests.snapshot.builders import ROUTER, Item, cluster, listener
from tests.snapshot.test_graph import put, wanted

LISTENER, ROUTE, CLUSTER, ENDPOINT, SECRET = Kind
ADS = AdsSource()
SERVER = ServerSource(target="unix:/run/x.sock")


def ref(name: str, source: SecretSource = ADS) -> SecretRef:
    return SecretRef(name=name, source=source)


def upstream(*certificates: SecretRef, roots: SecretRef | None = None) -> UpstreamTls:
    return UpstreamTls(common=CommonTls(certificate_secrets=certificates, validation_secret=roots))


def secure(name: str, *certificates: SecretRef, roots: SecretRef | None = None) -> Cluster:
    return replace(cluster(name), tls=upstream(*certificates, roots=roots))


def inbound(name: str, *certificates: SecretRef, route_config: str | None = None) -> InboundListener:
    http = HttpConnectionManager(route_config_name=route_config, http_filters=(ROUTER,))
    tls = DownstreamTls(common=CommonTls(certificate_secrets=certificates))
    return InboundListener(name=name, filter_chains=(FilterChain(tls=tls, http=http),))


def graph_with(*clusters: Cluster) -> Graph:
    graph = Graph()
    for each in clusters:
        graph.want(CLUSTER, each.name, 0)
    put(graph, CLUSTER, *clusters)
    return graph


def test_a_cluster_asks_for_its_secrets() -> None:
    match = TransportSocketMatch(name="m", match={}, tls=upstream(ref("other")))
    graph = graph_with(
        replace(secure("one", ref("cert"), roots=ref("roots")), transport_socket_matches=(match,))
    )
    assert set(graph.wanted(SECRET)) == {"cert", "roots", "other"}
    snapshot = graph.snapshot()
    assert snapshot.pending_secrets(snapshot.clusters["one"])
    put(graph, SECRET, Secret(name="cert"), Secret(name="roots"), Secret(name="other"))
    snapshot = graph.snapshot()
    assert set(snapshot.secrets) == {"cert", "roots", "other"}
    assert not snapshot.pending_secrets(snapshot.clusters["one"])
    assert snapshot.secret(ref("cert")) is snapshot.secrets["cert"]


def test_a_missing_secret_holds_nothing_else_back() -> None:
    graph = graph_with(secure("one", ref("cert")), cluster("two"))
    graph.does_not_exist(SECRET, "cert", 0)
    snapshot = graph.snapshot()
    assert set(snapshot.clusters) == {"one", "two"}
    assert not snapshot.pending_secrets(snapshot.clusters["one"])
    assert snapshot.secret(ref("cert")) is None


def test_a_secret_is_let_go_with_its_last_cluster() -> None:
    graph = graph_with(secure("one", ref("cert")), secure("two", ref("cert")))
    put(graph, CLUSTER, cluster("one"))
    assert "cert" in graph.wanted(SECRET)
    put(graph, CLUSTER, cluster("two"))
    graph.expire(1000.0)
    assert "cert" not in graph.wanted(SECRET)


def test_secrets_from_elsewhere() -> None:
    elsewhere = ref("cert", SERVER)
    graph = graph_with(secure("one", elsewhere), secure("two", elsewhere))
    assert set(graph.wanted(SECRET)) == set()
    assert set(graph.external_secrets()) == {elsewhere}
    assert graph.snapshot().pending_secrets(secure("one", elsewhere))
    graph.external(elsewhere, None)
    snapshot = graph.snapshot()
    assert set(snapshot.missing_secrets) == {elsewhere}
    assert not snapshot.pending_secrets(secure("one", elsewhere))
    secret = Secret(name="cert")
    graph.external(elsewhere, secret)
    snapshot = graph.snapshot()
    assert snapshot.secret(elsewhere) is secret
    assert not snapshot.missing_secrets
    graph.external(elsewhere, None)
    assert graph.snapshot() is snapshot
    put(graph, CLUSTER, cluster("one"))
    assert set(graph.external_secrets()) == {elsewhere}
    graph.does_not_exist(CLUSTER, "two", 0)
    assert set(graph.external_secrets()) == set()
    assert not graph.snapshot().external_secrets
    graph.external(elsewhere, secret)
    assert not graph.snapshot().external_secrets


def test_the_cluster_of_a_server_is_asked_for() -> None:
    graph = graph_with(secure("one", ref("cert", ServerSource(cluster="sds"))))
    assert "sds" in graph.wanted(CLUSTER)


def test_a_listener_of_a_server() -> None:
    graph = Graph()
    graph.want(LISTENER, "in", 0)
    graph.want(LISTENER, "out", 0)
    assert graph.snapshot().pending(LISTENER, "in")
    put(graph, LISTENER, inbound("in", ref("cert"), route_config="routes"), listener("out", "routes"))
    assert wanted(graph) == [(LISTENER, "in"), (LISTENER, "out"), (ROUTE, "routes"), (SECRET, "cert")]
    snapshot = graph.snapshot()
    assert set(snapshot.listeners) == {"out"}
    assert set(snapshot.inbound) == {"in"}
    assert snapshot.inbound_listener("in") is snapshot.inbound["in"]
    assert snapshot.inbound_listener("out") is None
    assert not snapshot.pending(LISTENER, "in")
    put(graph, LISTENER, listener("in", "routes"), version="2")
    snapshot = graph.snapshot()
    assert set(snapshot.listeners) == {"in", "out"}
    assert not snapshot.inbound
    put(graph, LISTENER, inbound("in"), version="3")
    assert set(graph.snapshot().listeners) == {"out"}
    graph.does_not_exist(LISTENER, "in", 0)
    assert not graph.snapshot().inbound


def test_a_child_starts_with_the_secrets_that_it_had() -> None:
    elsewhere = ref("own", SERVER)
    graph = graph_with(secure("one", ref("cert"), roots=elsewhere))
    graph.want(LISTENER, "in", 0)
    put(graph, LISTENER, inbound("in"))
    put(graph, SECRET, Secret(name="cert"))
    graph.external(elsewhere, Secret(name="own"))
    before = graph.snapshot()
    child = Graph.restore(before, set(graph.pinned()), 0)
    after = child.snapshot()
    assert after.secrets == before.secrets
    assert after.external_secrets == before.external_secrets
    assert after.inbound == before.inbound
    assert set(child.external_secrets()) == {elsewhere}


def test_files() -> None:
    plain: Any = inbound("in", ref("cert"))
    snapshot = from_resources([Item(plain), Item(secure("one", ref("cert"))), Item(Secret(name="cert"))])
    assert snapshot.inbound_listener("in") is plain
    assert snapshot.inbound_listener("whatever") is plain
    assert snapshot.listener("in") is None
    assert snapshot.secret(ref("cert")) == Secret(name="cert")
    assert not snapshot.pending_secret(ref("unknown"))
    elsewhere = ref("own", SERVER)
    assert snapshot.pending_secret(elsewhere)
    missing = snapshot.with_secret(elsewhere, None)
    assert not missing.pending_secret(elsewhere)
    found = missing.with_secret(elsewhere, Secret(name="own"))
    assert found.secret(elsewhere) == Secret(name="own")
    assert not found.missing_secrets
    assert found.with_secret(elsewhere, None).secret(elsewhere) == Secret(name="own")
    assert found.generation == snapshot.generation + 2
    assert isinstance(found, Snapshot)

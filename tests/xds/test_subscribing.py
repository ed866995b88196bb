"""What the client asks for, and when."""

from __future__ import annotations

import pytest

from meshlib import __version__
from meshlib.errors import MeshClosed
from meshlib.snapshot import Kind, ResourceState
from tests.snapshot.builders import assignment, cluster, inline_listener, listener, routes
from tests.xds.fake_ads import Asked, Harness

LISTENER, ROUTE, CLUSTER, ENDPOINT, SECRET = Kind


def test_nothing_happens_before_the_first_use() -> None:
    harness = Harness()
    harness.worker.run()
    assert harness.ads.streams == []
    harness.client.start()
    harness.worker.run()
    assert len(harness.ads.streams) == 1
    assert harness.stream.requests == []


def test_each_response_leads_to_the_next_type() -> None:
    harness = Harness()
    assert harness.want("web:80") == [Asked(LISTENER, ("web:80",))]
    assert harness.send(listener("web:80", "web")) == [
        Asked(LISTENER, ("web:80",), "1", "n1"),
        Asked(ROUTE, ("web",)),
    ]
    acked, asked_for = harness.send(routes("web", "one", "two"), version="2")
    assert acked == Asked(ROUTE, ("web",), "2", "n2")
    assert (asked_for.kind, set(asked_for.names), asked_for.nonce) == (CLUSTER, {"one", "two"}, "")
    asked = harness.send(cluster("one"), cluster("two", "two-eds"), version="3")
    assert [(item.kind, set(item.names)) for item in asked] == [
        (CLUSTER, {"one", "two"}),
        (ENDPOINT, {"one", "two-eds"}),
    ]
    asked = harness.send(assignment("one"), assignment("two-eds"), version="4")
    assert [(item.kind, item.version, item.nonce) for item in asked] == [(ENDPOINT, "4", "n4")]
    assert harness.snapshot.awaited == frozenset()
    assert harness.snapshots[-1] is harness.snapshot
    assert {status.state for status in harness.client.status()} == {ResourceState.ACKED}


def test_the_first_request_of_a_stream_says_who_asks() -> None:
    harness = Harness()
    harness.client.want_listener("web:80")
    harness.worker.run()
    node = harness.stream.requests[0].node
    assert (node.id, node.cluster, node.locality.zone) == ("me", "mine", "z")
    assert node.metadata["team"] == "a"
    assert (node.user_agent_name, node.user_agent_version) == ("meshlib", __version__)
    assert list(node.client_features) == ["xds.config.resource-in-sotw"]
    harness.stream.take()
    harness.client.want_cluster("one")
    harness.worker.run()
    assert not harness.stream.requests[0].HasField("node")


def test_names_wanted_together_are_asked_for_together() -> None:
    harness = Harness()
    assert harness.want("a:80", "b:80", "c:80") == [Asked(LISTENER, ("a:80", "b:80", "c:80"))]
    assert harness.want("b:80") == []
    assert harness.want("d:80") == [Asked(LISTENER, ("a:80", "b:80", "c:80", "d:80"))]


def test_names_wanted_after_a_response_carry_its_version_and_nonce() -> None:
    harness = Harness()
    harness.want("a:80")
    harness.send(inline_listener("a:80"), version="5")
    assert harness.want("b:80") == [Asked(LISTENER, ("a:80", "b:80"), "5", "n1")]


def test_a_cluster_named_by_a_header_is_asked_for_by_itself() -> None:
    harness = Harness()
    harness.client.want_cluster("one")
    assert harness.take() == [Asked(CLUSTER, ("one",))]
    assert [item.names for item in harness.send(cluster("one"))] == [("one",), ("one",)]


def test_what_is_not_referred_to_any_longer_is_given_up_after_a_while() -> None:
    harness = Harness()
    harness.want("web:80")
    harness.send(inline_listener("web:80", "one"))
    harness.send(cluster("one"))
    harness.send(assignment("one"))
    assert harness.send(inline_listener("web:80"), version="2") == [
        Asked(LISTENER, ("web:80",), "2", "n4"),
    ]
    assert "one" in harness.snapshot.clusters
    harness.worker.advance(31)
    assert harness.stream.take() == [Asked(CLUSTER, (), "1", "n2")]
    assert harness.snapshot.clusters == {}
    harness.worker.advance(31)
    assert harness.stream.take() == [Asked(ENDPOINT, (), "1", "n3")]


def test_a_listener_can_be_given_up() -> None:
    harness = Harness()
    harness.want("a:80", "b:80")
    harness.client.unwant_listener("a:80")
    harness.worker.advance(31)
    assert harness.stream.take() == [Asked(LISTENER, ("b:80",))]


def test_a_closed_client_asks_for_nothing() -> None:
    harness = Harness()
    harness.want("web:80")
    harness.client.close()
    harness.client.close()
    assert harness.stream.closed
    assert harness.worker.closed
    late = Harness()
    late.client.close()
    with pytest.raises(MeshClosed):
        late.client.want_listener("web:80")


def test_what_the_bootstrap_asks_for_in_vain_is_said(caplog: pytest.LogCaptureFixture) -> None:
    Harness(("trusted_xds_server",))
    assert [record.message for record in caplog.records] == [
        "bootstrap: xds_servers[0].server_features: trusted_xds_server is not supported and has no effect"
    ]

"""Accepting and rejecting responses."""

from __future__ import annotations

import logging

import pytest

from meshlib.snapshot import Kind, ResourceState
from tests.snapshot.builders import cluster, inline_listener, listener
from tests.xds.fake_ads import Asked, Harness

LISTENER, ROUTE, CLUSTER, ENDPOINT, SECRET = Kind


def clusters(*names: str) -> Harness:
    harness = Harness()
    for name in names:
        harness.client.want_cluster(name)
    harness.take()
    return harness


def test_a_bad_resource_is_rejected_with_its_name_and_its_field() -> None:
    harness = clusters("one")
    bad = harness.ads.pack_bad(CLUSTER, "one", "connect_timeout", "must be positive")
    assert harness.respond(CLUSTER, bad, version="7") == [
        Asked(CLUSTER, ("one",), "", "n1", "Cluster 'one': connect_timeout: must be positive"),
    ]
    assert harness.count("xds.cds.update_rejected") == 1
    error = harness.snapshot.error(CLUSTER, "one")
    assert error is not None
    assert error.path == "connect_timeout"
    (status,) = harness.client.status()
    assert (status.state, status.version, status.error_version) == (ResourceState.NACKED, "", "7")
    assert status.updated == harness.clock.time()


def test_the_good_resources_of_a_rejected_response_are_used() -> None:
    harness = clusters("one", "two", "three")
    good = cluster("two")
    asked = harness.respond(
        CLUSTER,
        harness.ads.pack_bad(CLUSTER, "one", "a", "x"),
        harness.ads.pack(good),
        harness.ads.pack_bad(CLUSTER, "three", "b", "y"),
    )
    assert asked[0].error == "Cluster 'one': a: x; Cluster 'three': b: y"
    assert dict(harness.snapshot.clusters) == {"two": good}


def test_the_last_good_version_stays_and_a_good_one_clears_the_error() -> None:
    harness = clusters("one")
    first, second = cluster("one"), cluster("one", "other")
    harness.send(first, version="1")
    (nack,) = harness.respond(CLUSTER, harness.ads.pack_bad(CLUSTER, "one"), version="2")
    assert (nack.version, nack.nonce) == ("1", "n2")
    assert harness.snapshot.clusters["one"] is first
    assert harness.snapshot.error(CLUSTER, "one") is not None
    ack = harness.send(second, version="3")[0]
    assert (ack.version, ack.nonce, ack.error) == ("3", "n3", None)
    assert harness.snapshot.clusters["one"] is second
    assert harness.snapshot.errors == {}


def test_a_decoder_that_stumbles_rejects_the_resource(caplog: pytest.LogCaptureFixture) -> None:
    harness = clusters("one")
    with caplog.at_level(logging.ERROR):
        (nack,) = harness.respond(CLUSTER, harness.ads.pack_fatal(CLUSTER, "one"))
    assert nack.error == "Cluster 'one': meshlib can't decode it: RuntimeError: a bug"
    assert "a bug" in caplog.text


def test_a_resource_without_a_readable_name_is_rejected_by_its_place() -> None:
    harness = clusters("one")
    garbage = harness.ads.pack(cluster("one"))
    garbage.value = b"\xff\xff"
    (nack,) = harness.respond(CLUSTER, garbage)
    assert nack.error == "resource 0: the bytes are garbage"
    assert harness.snapshot.pending(CLUSTER, "one")


def test_a_resource_that_comes_twice_is_rejected_and_the_next_response_is_not() -> None:
    harness = clusters("one")
    first, second = harness.ads.pack(cluster("one")), harness.ads.pack(cluster("one", "x"))
    (nack,) = harness.respond(CLUSTER, first, second)
    assert nack.error == "Cluster 'one': is in the response twice"
    assert harness.respond(CLUSTER, second)[0].error is None


def test_a_resource_of_another_type_is_rejected() -> None:
    harness = clusters("one")
    (nack,) = harness.respond(CLUSTER, harness.ads.pack(listener("one", "r")))
    assert nack.error is not None
    assert "config.listener.v3.Listener' in a response of type" in nack.error


def test_a_type_that_is_not_used_is_rejected() -> None:
    harness = clusters("one")
    harness.stream.respond("type.googleapis.com/some.Other", nonce="x")
    (nack,) = harness.take()
    assert (nack.kind, nack.names, nack.nonce) == ("type.googleapis.com/some.Other", (), "x")
    assert nack.error is not None
    assert nack.error.startswith("type 'type.googleapis.com/some.Other' is not used")


def test_a_response_that_was_not_asked_for_is_not_answered() -> None:
    harness = clusters("one")
    assert harness.respond(LISTENER, harness.ads.pack(inline_listener("web"))) == []
    assert harness.count("xds.unrequested_responses") == 1
    assert harness.snapshot.listeners == {}


def test_bytes_that_are_no_response_are_counted_and_the_stream_goes_on() -> None:
    harness = clusters("one")
    harness.stream.push(b"\xff\xff\xff")
    assert harness.take() == []
    assert harness.count("xds.malformed_responses") == 1
    assert harness.client.last_error is not None
    assert harness.send(cluster("one"))[0].nonce == "n1"


def test_resources_may_be_wrapped() -> None:
    harness = clusters("one")
    good = cluster("one")
    assert harness.respond(CLUSTER, harness.ads.wrap(harness.ads.pack(good), "one"))[0].error is None
    assert harness.snapshot.clusters["one"] is good


def test_the_same_bytes_are_decoded_once() -> None:
    harness = clusters("one", "two")
    one, two = harness.ads.pack(cluster("one")), harness.ads.pack(cluster("two"))
    harness.respond(CLUSTER, one, two, version="1")
    before = harness.snapshot.clusters
    newer = harness.ads.pack(cluster("two", "x"))
    harness.respond(CLUSTER, one, newer, version="2")
    assert harness.ads.decoded == ["one", "two", "two"]
    assert harness.snapshot.clusters["one"] is before["one"]


def test_an_update_that_is_taken_back_is_not_decoded_again() -> None:
    harness = clusters("one")
    good, bad = harness.ads.pack(cluster("one")), harness.ads.pack_bad(CLUSTER, "one")
    harness.respond(CLUSTER, good, version="1")
    assert harness.respond(CLUSTER, bad, version="2")[0].error
    assert harness.respond(CLUSTER, bad, version="3")[0].error
    assert harness.respond(CLUSTER, good, version="4")[0].error is None
    assert harness.ads.decoded == ["one"]
    assert harness.snapshot.errors == {}


def test_a_resource_that_nobody_wants_is_not_decoded() -> None:
    harness = clusters("one")
    asked = harness.respond(CLUSTER, harness.ads.pack(cluster("one")), harness.ads.pack(cluster("stranger")))
    assert asked[0].error is None
    assert harness.ads.decoded == ["one"]


def test_garbage_with_a_strange_name_is_rejected_and_deletes_nothing() -> None:
    harness = clusters("one")
    harness.send(cluster("one"))
    garbage = harness.ads.pack(cluster("stranger"))
    garbage.value = garbage.value[:10] + b"\xff\xff\xff"
    (nack,) = harness.respond(CLUSTER, garbage)
    assert nack.error is not None
    assert "one" in harness.snapshot.clusters


def test_an_unchanged_response_is_acknowledged_with_its_version() -> None:
    harness = clusters("one")
    good = harness.ads.pack(cluster("one"))
    harness.respond(CLUSTER, good, version="1")
    published = len(harness.snapshots)
    assert harness.respond(CLUSTER, good, version="1")[0].nonce == "n2"
    assert len(harness.snapshots) == published


def test_unsupported_fields_are_said_once_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    harness = clusters("one", "two")
    with caplog.at_level(logging.WARNING):
        harness.respond(
            CLUSTER,
            harness.ads.pack(cluster("one"), "endpoints[0].proxy", "endpoints[1].proxy"),
            harness.ads.pack(cluster("two"), "endpoints[7].proxy"),
        )
    assert [record.message for record in caplog.records] == [
        "Cluster 'one': endpoints[0].proxy is not supported and has no effect"
    ]
    assert harness.count("xds.cds.unsupported") == 3
    assert harness.snapshot.unsupported[CLUSTER, "two"] == ("endpoints[7].proxy",)


def test_a_refusal_is_said_once_however_often_it_is_sent(caplog: pytest.LogCaptureFixture) -> None:
    harness = clusters("one")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            harness.respond(CLUSTER, harness.ads.pack_bad(CLUSTER, "one"), version="2")
        harness.respond(CLUSTER, harness.ads.pack_bad(CLUSTER, "one"), version="3")
    assert [vars(record)["meshlib"]["version"] for record in caplog.records] == ["2", "3"]
    assert vars(caplog.records[0])["meshlib"]["name"] == "one"
    assert harness.count("xds.cds.update_rejected") == 4


def test_a_long_rejection_is_cut() -> None:
    harness = clusters(*(f"c{n}" for n in range(500)))
    (nack,) = harness.respond(CLUSTER, *(harness.ads.pack_bad(CLUSTER, f"c{n}") for n in range(500)))
    assert nack.error is not None
    assert len(nack.error) == 4000
    assert nack.error.endswith("\N{HORIZONTAL ELLIPSIS}")


def test_a_subscriber_that_fails_does_not_stop_the_client(caplog: pytest.LogCaptureFixture) -> None:
    harness = clusters("one")

    def fail(_: object) -> None:
        raise ValueError("boom")

    harness.client._on_snapshot = fail
    with caplog.at_level(logging.ERROR):
        assert harness.send(cluster("one"))[0].nonce == "n1"
    assert "boom" in caplog.text
    assert "one" in harness.snapshot.clusters


def test_every_message_is_reported_as_processed() -> None:
    harness = clusters("one")
    harness.stream.push(b"\xff")
    harness.send(cluster("one"))
    harness.respond(ENDPOINT)
    assert harness.stream.unprocessed == 0

"""The stream ends and comes back; what is known stays in force."""

from __future__ import annotations

import logging

import pytest
from tenacity import wait_fixed

from meshlib.errors import ConfigError
from meshlib.snapshot import Kind
from tests.snapshot.builders import assignment, cluster, inline_listener
from tests.xds.fake_ads import Asked, Harness

LISTENER, ROUTE, CLUSTER, ENDPOINT, SECRET = Kind


def moments(harness: Harness, count: int) -> list[float]:
    """How long the client waits, `count` times, when each stream ends at once."""
    waits = []
    for _ in range(count):
        before, streams = harness.clock.monotonic(), len(harness.ads.streams)
        harness.stream.end()
        harness.worker.run()
        while len(harness.ads.streams) == streams:
            harness.worker.advance(0.05)
        waits.append(harness.clock.monotonic() - before)
    return waits


def test_the_wait_between_attempts_grows() -> None:
    harness = Harness()
    harness.client.start()
    harness.worker.run()
    waits = moments(harness, 14)
    for number, wait in enumerate(waits):
        expected = min(1.6**number, 120)
        assert 0.8 * expected <= wait <= 1.2 * expected + 0.06


def test_an_answer_makes_the_next_wait_a_first_one() -> None:
    harness = Harness()
    harness.want("a:80")
    moments(harness, 6)
    harness.send(inline_listener("a:80"))
    assert moments(harness, 1)[0] <= 1.26


def test_the_wait_can_be_given_as_a_tenacity_object() -> None:
    harness = Harness(wait=wait_fixed(7))
    harness.client.start()
    harness.worker.run()
    assert moments(harness, 2) == pytest.approx([7, 7], abs=0.06)


def test_everything_is_asked_for_again_with_the_last_versions() -> None:
    harness = Harness()
    harness.want("a:80")
    harness.send(inline_listener("a:80", "one"), version="5")
    harness.send(cluster("one"), version="6")
    before = harness.snapshot
    harness.stream.end()
    harness.worker.advance(2)
    assert harness.stream.requests[0].node.id == "me"
    assert harness.stream.take() == [
        Asked(CLUSTER, ("one",), "6"),
        Asked(ENDPOINT, ("one",)),
        Asked(LISTENER, ("a:80",), "5"),
    ]
    assert harness.snapshot is before


def test_the_last_good_configuration_is_kept_for_ever() -> None:
    harness = Harness()
    harness.client.want_cluster("one")
    harness.take()
    harness.send(cluster("one"))
    harness.send(assignment("one"))
    harness.stream.end()
    for _ in range(50):
        harness.worker.advance(121)
        harness.stream.end()
    assert "one" in harness.snapshot.clusters
    assert harness.snapshot.absent == frozenset()


def test_a_message_of_an_earlier_stream_is_passed_over() -> None:
    harness = Harness()
    harness.want("a:80")
    old = harness.stream
    old.end()
    old.respond(LISTENER.value, harness.ads.pack(inline_listener("a:80")))
    harness.worker.advance(2)
    old.end()
    harness.worker.run()
    assert len(harness.ads.streams) == 2
    assert harness.snapshot.listeners == {}
    assert old.unprocessed == 0


def test_the_state_of_the_connection_can_be_seen(caplog: pytest.LogCaptureFixture) -> None:
    harness = Harness()
    state = harness.registry.gauge("control_plane.connected_state")
    with caplog.at_level(logging.INFO, "meshlib.xds"):
        harness.want("a:80")
        seen = [harness.client.connected]
        moments(harness, 3)
        assert str(harness.client.last_error) == "control plane cp:1: UNAVAILABLE: gone"
        harness.send(inline_listener("a:80"))
        seen.append(harness.client.connected)
        assert state.value == 1
        assert harness.client.last_error is None
        harness.stream.end("UNAVAILABLE: again")
        harness.worker.run()
    seen.append(harness.client.connected)
    assert seen == [False, True, False]
    assert state.value == 0
    assert [record.message for record in caplog.records] == [
        "no connection to the control plane cp:1: UNAVAILABLE: gone",
        "connected to the control plane cp:1 again",
        "no connection to the control plane cp:1: UNAVAILABLE: again",
    ]


def test_credentials_that_cannot_be_read_are_tried_again() -> None:
    harness = Harness()
    opened = harness.client._open_stream

    def refuse(*arguments: object) -> None:
        raise ConfigError("ca.pem can't be read")

    harness.client._open_stream = refuse  # type: ignore[assignment]
    harness.client.want_listener("a:80")
    harness.worker.run()
    assert "ca.pem can't be read" in str(harness.client.last_error)
    harness.client._open_stream = opened
    harness.worker.advance(2)
    assert harness.stream.take() == [Asked(LISTENER, ("a:80",))]


def test_a_client_that_was_closed_does_not_come_back() -> None:
    harness = Harness()
    harness.client.start()
    harness.worker.run()
    harness.stream.end()
    harness.worker.run()
    harness.client.close()
    harness.worker.closed = False
    harness.worker.advance(200)
    assert len(harness.ads.streams) == 1

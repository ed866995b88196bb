"""A resource that is asked for and does not come is held to not exist after 15 seconds of an open stream."""

from __future__ import annotations

import logging

import pytest

from meshlib.snapshot import Kind
from tests.snapshot.builders import cluster, inline_listener
from tests.xds.fake_ads import Harness

LISTENER, ROUTE, CLUSTER, ENDPOINT, SECRET = Kind


def test_a_resource_that_does_not_come_does_not_exist() -> None:
    harness = Harness()
    harness.want("web:80")
    harness.worker.advance(14.9)
    assert harness.snapshot.pending(LISTENER, "web:80")
    harness.worker.advance(0.2)
    assert not harness.snapshot.pending(LISTENER, "web:80")
    assert harness.snapshot.absent == {(LISTENER, "web:80")}
    assert harness.snapshots[-1] is harness.snapshot


def test_each_resource_has_its_own_time() -> None:
    harness = Harness()
    harness.want("a:80")
    harness.worker.advance(10)
    harness.want("b:80")
    harness.worker.advance(6)
    assert harness.snapshot.absent == {(LISTENER, "a:80")}
    harness.worker.advance(10)
    assert harness.snapshot.absent == {(LISTENER, "a:80"), (LISTENER, "b:80")}


def test_a_resource_that_came_is_not_awaited_even_when_it_is_bad() -> None:
    harness = Harness()
    harness.want("a:80", "b:80")
    harness.respond(
        LISTENER, harness.ads.pack(inline_listener("a:80")), harness.ads.pack_bad(LISTENER, "b:80")
    )
    harness.worker.advance(100)
    assert harness.snapshot.absent == frozenset()
    assert harness.snapshot.error(LISTENER, "b:80") is not None


def test_what_a_new_resource_refers_to_is_awaited_too() -> None:
    harness = Harness()
    harness.want("a:80")
    harness.send(inline_listener("a:80", "one"))
    harness.worker.advance(15.1)
    assert harness.snapshot.absent == {(CLUSTER, "one")}


def test_the_time_does_not_pass_while_the_stream_is_down() -> None:
    harness = Harness()
    harness.want("a:80")
    harness.worker.advance(14.5)
    harness.stream.end()
    harness.worker.advance(0.7)
    assert len(harness.ads.streams) == 1
    assert harness.snapshot.pending(LISTENER, "a:80")


def test_a_new_stream_starts_the_time_again() -> None:
    harness = Harness()
    harness.want("a:80")
    harness.worker.advance(14)
    harness.stream.end()
    harness.worker.advance(2)
    assert len(harness.ads.streams) == 2
    harness.worker.advance(13)
    assert harness.snapshot.pending(LISTENER, "a:80")
    harness.worker.advance(15)
    assert harness.snapshot.absent == {(LISTENER, "a:80")}


def test_a_known_resource_is_not_awaited_on_a_new_stream() -> None:
    harness = Harness()
    harness.client.want_cluster("one")
    harness.take()
    harness.send(cluster("one"))
    harness.stream.end()
    harness.worker.advance(100)
    assert "one" in harness.snapshot.clusters
    assert harness.snapshot.absent == {(ENDPOINT, "one")}


def test_a_resource_that_nobody_wants_any_longer_is_not_missed(caplog: pytest.LogCaptureFixture) -> None:
    harness = Harness()
    harness.client._graph._linger = 0
    harness.want("a:80", "b:80")
    harness.client.unwant_listener("a:80")
    harness.worker.run()
    with caplog.at_level(logging.WARNING):
        harness.worker.advance(20)
    assert [record.message for record in caplog.records] == ["the control plane has given no Listener 'b:80'"]


def test_a_complete_response_without_the_name_cuts_the_time() -> None:
    harness = Harness()
    harness.want("a:80")
    harness.worker.advance(1.0)
    harness.want("b:80")
    harness.send(inline_listener("a:80"))
    harness.worker.advance(0.9)
    assert harness.snapshot.pending(LISTENER, "b:80")  # the response may have crossed the request
    harness.send(inline_listener("a:80"))
    harness.worker.advance(0.2)
    assert harness.snapshot.absent == {(LISTENER, "b:80")}
    harness.send(inline_listener("a:80"), inline_listener("b:80"))
    assert harness.snapshot.absent == frozenset()


def test_a_response_of_another_type_does_not() -> None:
    harness = Harness()
    harness.want("a:80")
    harness.send(inline_listener("a:80", "one"))
    harness.want("b:80")
    harness.send(cluster("one"))
    harness.worker.advance(14.9)
    assert harness.snapshot.pending(LISTENER, "b:80")


def test_what_comes_within_the_cut_time_was_never_absent() -> None:
    harness = Harness()
    harness.want("a:80", "b:80")
    harness.send(inline_listener("a:80"))
    harness.worker.advance(0.9)
    harness.send(inline_listener("a:80"), inline_listener("b:80"))
    harness.worker.advance(100)
    assert harness.snapshot.absent == frozenset()

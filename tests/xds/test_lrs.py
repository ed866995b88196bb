"""The stream of load reports: when it is there, what ends it, and how it comes back."""

from __future__ import annotations

import logging
from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from meshlib.runtime.clock import FakeClock
from meshlib.stats import Registry
from meshlib.xds.backoff import Backoff, reconnect_wait
from meshlib.xds.bootstrap import Node
from meshlib.xds.load_report import LoadReports
from meshlib.xds.lrs import LrsDriver
from tests.runtime.fake_stream import FakeStream
from tests.runtime.manual import ManualWorker
from tests.xds.fake_ads import LONG
from tests.xds.test_load_report import Counted, answer, load, request


class LrsStream(FakeStream):
    @staticmethod
    def decode(data: bytes) -> Any:
        return request(data)


class Reporting:
    def __init__(self) -> None:
        self.clock = FakeClock(start=1000.0)
        self.worker = ManualWorker(self.clock)
        self.registry = Registry()
        self.counted = Counted()
        self.streams: list[LrsStream] = []
        self.driver = LrsDriver(
            LoadReports(Node(id="me"), self.counted),
            executor=self.worker,
            clock=self.clock,
            registry=self.registry,
            open_stream=self._open,
            backoff=Backoff(reconnect_wait(Random(1).random)),
        )

    def _open(
        self, on_message: Callable[[Any, bytes], None], on_closed: Callable[[Any, str], None]
    ) -> LrsStream:
        self.streams.append(LrsStream(on_message, on_closed))
        return self.streams[-1]

    @property
    def stream(self) -> LrsStream:
        return self.streams[-1]

    def respond(self, data: bytes) -> None:
        self.stream.push(data)
        self.worker.run()

    def end(self, reason: str = "UNAVAILABLE: gone") -> None:
        self.stream.end(reason)
        self.worker.run()

    def count(self, name: str) -> int:
        return self.registry.counter(f"load_reporter.{name}").value


@pytest.fixture
def reporting() -> Reporting:
    return Reporting()


def test_there_is_no_stream_before_a_cluster_wants_it(reporting: Reporting) -> None:
    reporting.driver.sync(False)
    reporting.worker.advance(LONG)
    assert reporting.streams == []


def test_a_report_each_interval(reporting: Reporting) -> None:
    reporting.driver.sync(True)
    assert [each.node.id for each in reporting.stream.requests] == ["me"]
    reporting.worker.advance(60)
    assert len(reporting.stream.requests) == 1
    reporting.respond(answer("a", interval=10))
    reporting.counted.set("a", load(1, 1))
    reporting.worker.advance(35)
    issued = [
        sum(place.total_issued_requests for place in each.cluster_stats[0].upstream_locality_stats)
        for each in reporting.stream.requests[1:]
    ]
    assert issued == [1, 0, 0]
    assert reporting.stream.unprocessed == 0
    assert (reporting.count("responses"), reporting.count("requests")) == (3, 1)


def test_the_stream_ends_when_nobody_wants_it_any_longer(reporting: Reporting) -> None:
    reporting.driver.sync(True)
    reporting.respond(answer("a"))
    reporting.driver.sync(False)
    assert reporting.stream.closed
    reporting.worker.advance(LONG)
    assert len(reporting.streams) == 1
    reporting.driver.sync(True)
    assert len(reporting.streams) == 2


def test_a_stream_that_breaks_comes_back_with_what_was_counted(
    reporting: Reporting, caplog: pytest.LogCaptureFixture
) -> None:
    reporting.driver.sync(True)
    reporting.respond(answer("a"))
    reporting.counted.set("a", load(2, 2))
    with caplog.at_level(logging.WARNING, "meshlib.xds"):
        reporting.end("UNIMPLEMENTED: unknown service")
        for _ in range(3):
            reporting.worker.advance(200)
            reporting.end("UNIMPLEMENTED: unknown service")
    assert [record.getMessage() for record in caplog.records] == [
        "no load reports to the control plane: UNIMPLEMENTED: unknown service"
    ]
    reporting.worker.advance(200)
    assert len(reporting.streams) == 5
    reporting.respond(answer("a"))
    reporting.worker.advance(10)
    (place,) = reporting.stream.requests[-1].cluster_stats[0].upstream_locality_stats
    assert place.total_issued_requests == 2
    assert reporting.count("errors") == 4


def test_an_interval_of_a_stream_that_broke_sends_nothing(reporting: Reporting) -> None:
    reporting.driver.sync(True)
    reporting.respond(answer("a", interval=10))
    reporting.end()
    reporting.worker.advance(20)
    assert [len(stream.requests) for stream in reporting.streams] == [1, 1]


def test_bytes_that_are_no_answer(reporting: Reporting, caplog: pytest.LogCaptureFixture) -> None:
    reporting.driver.sync(True)
    with caplog.at_level(logging.WARNING, "meshlib.xds"):
        reporting.respond(b"\xff\xff")
    assert "LoadStatsResponse" in caplog.text
    assert reporting.stream.unprocessed == 0
    reporting.respond(answer("a"))
    reporting.worker.advance(10)
    assert len(reporting.stream.requests) == 2


def test_a_message_of_an_earlier_stream(reporting: Reporting) -> None:
    reporting.driver.sync(True)
    old = reporting.stream
    reporting.end()
    reporting.worker.advance(200)
    old.push(answer("a"))
    reporting.worker.advance(200)
    assert len(reporting.stream.requests) == 1
    assert old.unprocessed == 0


def test_around_a_fork(reporting: Reporting) -> None:
    reporting.driver.sync(True)
    reporting.respond(answer("a"))
    reporting.counted.set("a", load(1, 1))
    reporting.driver.before_fork()
    assert reporting.stream.closed
    reporting.driver.after_fork_in_parent()
    reporting.worker.run()
    assert len(reporting.streams) == 2
    reporting.respond(answer("a"))
    reporting.worker.advance(10)
    assert len(reporting.streams[0].requests) == 1
    (place,) = reporting.stream.requests[-1].cluster_stats[0].upstream_locality_stats
    assert place.total_issued_requests == 1


def test_close(reporting: Reporting) -> None:
    reporting.driver.sync(True)
    reporting.driver.close()
    assert reporting.stream.closed
    reporting.worker.advance(LONG)
    assert len(reporting.streams) == 1

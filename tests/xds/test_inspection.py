"""The second look at large assignments."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from meshlib import proto
from meshlib.resources import decode_any
from meshlib.resources.decode_endpoint import EndpointProblem
from meshlib.resources.endpoint import ClusterLoadAssignment
from meshlib.runtime.clock import FakeClock
from meshlib.runtime.threads import Worker
from meshlib.snapshot import Kind
from meshlib.xds.files import FileSource
from meshlib.xds.inspection import Inspector
from tests.runtime.manual import ManualWorker
from tests.snapshot.builders import Item, assignment, cluster
from tests.xds.fake_ads import Harness

SIZE = 10_001


def large(*bad: tuple[int, str]) -> ClusterLoadAssignment:
    message = proto.message("envoy.config.endpoint.v3.ClusterLoadAssignment")(cluster_name="one")
    place = message.endpoints.add()
    replaced = dict(bad)
    for number in range(SIZE):
        address = place.lb_endpoints.add().endpoint.address.socket_address
        address.address = replaced.get(number, f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
        address.port_value = 80
    resource = decode_any(proto.ENDPOINT, message.SerializeToString()).resource
    assert isinstance(resource, ClusterLoadAssignment)
    return resource


def inspect(harness: Harness) -> None:
    """Let the inspection threads end and the client hear of it."""
    for thread in threading.enumerate():
        if thread.name == "meshlib-xds-inspection":
            thread.join(30)
    harness.worker.run()


def loaded() -> Harness:
    harness = Harness()
    harness.client.want_cluster("one")
    harness.take()
    harness.send(cluster("one"))
    return harness


def test_bad_endpoints_of_a_large_assignment_are_left_out_counted_and_listed() -> None:
    harness = loaded()
    packed = harness.ads.pack(large((7, "nonsense"), (9, "10.0.0.1")), "policy.drop_overloads")
    published = len(harness.snapshots)
    assert harness.respond(Kind.ENDPOINT, packed)[0].error is None
    assert harness.snapshots[published].endpoints["one"].size == SIZE
    inspect(harness)
    good = harness.snapshot.endpoints["one"]
    assert good.size == SIZE - 2
    assert harness.count("xds.eds.left_out") == 2
    first, second, third = harness.snapshot.unsupported[Kind.ENDPOINT, "one"]
    assert first == "policy.drop_overloads"
    assert second.startswith("endpoints[0].lb_endpoints[7]: left out: ")
    assert third.startswith("endpoints[0].lb_endpoints[9]: left out: ")
    published = len(harness.snapshots)
    harness.respond(Kind.ENDPOINT, packed, version="1")
    inspect(harness)
    assert len(harness.snapshots) == published
    assert harness.snapshot.endpoints["one"] is good


def test_a_good_large_assignment_stays_as_it_is() -> None:
    harness = loaded()
    whole = large()
    harness.send(whole)
    inspect(harness)
    assert harness.snapshot.endpoints["one"] is whole


def test_a_newer_version_ends_the_look_at_an_older_one() -> None:
    worker = ManualWorker(FakeClock())
    reached, go = threading.Event(), threading.Event()
    seen: list[Any] = []
    done = threading.Event()

    def check(given: ClusterLoadAssignment, pause: Callable[[], None]) -> list[EndpointProblem]:
        if given is old:
            reached.set()
            assert go.wait(10)
            try:
                pause()
            finally:
                done.set()
        return [EndpointProblem(locality=0, index=0, reason="bad")]

    inspector = Inspector(worker, lambda *arguments: seen.append(arguments), check=check, threshold=0)
    old, small = assignment("one", "10.0.0.1"), assignment("one")
    inspector.begin(old)
    assert reached.wait(10)
    inspector.begin(small)
    go.set()
    assert done.wait(10)
    worker.run()
    assert seen == []


def test_closing_ends_the_look() -> None:
    worker = Worker("test")
    reached, go, ended = threading.Event(), threading.Event(), threading.Event()

    def check(given: ClusterLoadAssignment, pause: Callable[[], None]) -> list[EndpointProblem]:
        reached.set()
        assert go.wait(10)
        try:
            pause()
        finally:
            ended.set()
        return []

    inspector = Inspector(worker, lambda *arguments: None, check=check, threshold=0)
    inspector.begin(assignment("one", "10.0.0.1"))
    assert reached.wait(10)
    inspector.stop()
    go.set()
    assert ended.wait(10)
    worker.close()


def test_large_assignments_of_files_are_looked_at_when_they_are_loaded() -> None:
    source = FileSource([Item(large((3, "nonsense")))], on_snapshot=lambda snapshot: None)
    assert source.snapshot.endpoints["one"].size == SIZE - 1
    (entry,) = source.snapshot.unsupported[Kind.ENDPOINT, "one"]
    assert entry.startswith("endpoints[0].lb_endpoints[3]: left out: ")

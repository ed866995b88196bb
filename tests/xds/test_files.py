from __future__ import annotations

import threading

import pytest

from meshlib.errors import ConfigError
from meshlib.runtime.clock import FakeClock
from meshlib.snapshot import Kind, ResourceState, Snapshot
from meshlib.stats import Registry
from meshlib.xds.files import FileSource
from tests.runtime.manual import ManualWorker
from tests.snapshot.builders import Item, assignment, cluster, dns_cluster, inline_listener


def test_files_are_in_force_at_once_and_start_nothing() -> None:
    before = threading.active_count()
    source = FileSource(
        [Item(inline_listener("web", "one")), Item(cluster("one")), Item(assignment("one"))],
        on_snapshot=lambda snapshot: None,
        clock=FakeClock(epoch=5000.0),
    )
    source.start()
    source.want_listener("web")
    source.want_cluster("other")
    source.unwant_listener("web")
    assert threading.active_count() == before
    assert not source.snapshot.pending(Kind.CLUSTER, "other")
    assert {(item.kind, item.name, item.state, item.updated) for item in source.status()} == {
        (Kind.LISTENER, "web", ResourceState.ACKED, 5000.0),
        (Kind.CLUSTER, "one", ResourceState.ACKED, 5000.0),
        (Kind.ENDPOINT, "one", ResourceState.ACKED, 5000.0),
    }
    source.close()
    source.close()


def test_names_are_resolved_from_the_start_on() -> None:
    clock, seen = FakeClock(), list[Snapshot]()
    worker = ManualWorker(clock)
    found = threading.Event()

    def resolve(host: str, family: int) -> tuple[str, ...]:
        return ("10.0.0.1",)

    def published(snapshot: Snapshot) -> None:
        seen.append(snapshot)
        found.set()

    source = FileSource(
        [Item(dns_cluster("web", "web.example"))],
        on_snapshot=published,
        clock=clock,
        executor=lambda: worker,
        resolve=resolve,
    )
    web = source.snapshot.clusters["web"]
    assert source.snapshot.pending_endpoints(web)
    source.start()
    worker.run()
    while not found.is_set():
        worker.run()
    assert seen == [source.snapshot]
    endpoints = source.snapshot.assignment(web)
    assert endpoints is not None
    assert endpoints.localities[0].endpoints[0].address == "10.0.0.1"
    source.before_fork()
    source.after_fork_in_child()
    assert worker.closed
    assert source.snapshot.assignment(web) is endpoints


def test_names_are_resolved_on_a_real_thread() -> None:
    found = threading.Event()
    source = FileSource([Item(dns_cluster("web", "127.0.0.1"))], on_snapshot=lambda snapshot: found.set())
    source.start()
    assert found.wait(10)
    source.close()


def test_a_name_that_stands_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="defined twice"):
        FileSource([Item(cluster("one")), Item(cluster("one"))], on_snapshot=lambda snapshot: None)


def test_unsupported_fields_and_warnings_are_said(caplog: pytest.LogCaptureFixture) -> None:
    registry = Registry()
    FileSource(
        [Item(cluster("one"), ("lb_subset_config",), ("weights are all zero",))],
        on_snapshot=lambda snapshot: None,
        registry=registry,
    )
    assert [record.message for record in caplog.records] == [
        "Cluster 'one': lb_subset_config is not supported and has no effect",
        "Cluster 'one': weights are all zero",
    ]
    assert registry.counter("xds.cds.unsupported").value == 1

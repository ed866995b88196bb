"""os.fork with a live ADS stream, in real processes. Nothing may hang, and both sides go on."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshlib.controlplane import ControlPlane, ResourceStore
from meshlib.snapshot import Kind
from tests.snapshot.builders import assignment, cluster, dns_cluster, inline_listener
from tests.xds.fake_ads import Asked, Harness
from tests.xds.test_over_grpc import named

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    names = ("one", "parent", *(f"child{number}" for number in range(6)))
    with ControlPlane(ResourceStore([named(name) for name in names])) as control_plane:
        yield control_plane.address


@pytest.mark.shared_workers
@pytest.mark.parametrize("fork_support", [None, "0", "1"])
@pytest.mark.parametrize("mode", ["before", "one", "many", "nested", "threads", "dormant"])
def test_parent_and_child_go_on(address: str, mode: str, fork_support: str | None) -> None:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    environment.pop("GRPC_ENABLE_FORK_SUPPORT", None)
    if fork_support is not None:
        environment["GRPC_ENABLE_FORK_SUPPORT"] = fork_support
    done = subprocess.run(
        [sys.executable, "-m", "tests.xds.forking", mode, address],
        capture_output=True,
        text=True,
        timeout=40,
        env=environment,
        cwd=ROOT,
    )
    assert (done.returncode, done.stdout.count("well")) == (0, 2 if mode in ("before", "nested") else 1), (
        done.stderr
    )


def test_the_stream_is_closed_before_a_fork_and_opened_again_in_the_parent() -> None:
    harness = Harness()
    harness.want("a:80")
    harness.send(inline_listener("a:80"), version="5")
    harness.client.before_fork()
    assert harness.stream.closed
    assert harness.worker.paused
    harness.client.after_fork_in_parent()
    assert harness.take() == [Asked(Kind.LISTENER, ("a:80",), "5")]
    assert len(harness.ads.streams) == 2


def test_a_parent_that_waits_for_its_next_attempt_goes_on_waiting() -> None:
    harness = Harness()
    harness.want("a:80")
    harness.stream.end()
    harness.worker.run()
    harness.client.before_fork()
    harness.client.after_fork_in_parent()
    harness.worker.run()
    assert len(harness.ads.streams) == 1
    harness.worker.advance(2)
    assert len(harness.ads.streams) == 2


def test_the_child_keeps_the_configuration_and_connects_at_its_first_use() -> None:
    harness = Harness(resolve=lambda host, family: ("10.0.0.1",))
    harness.client.want_cluster("one")
    harness.client.want_cluster("dns")
    harness.take()
    harness.send(cluster("one"), cluster("dns"))
    harness.send(assignment("one"))
    before = harness.snapshot
    harness.client.before_fork()
    old, harness.worker = harness.worker, type(harness.worker)(harness.clock)
    harness.client.after_fork_in_child()
    assert old.closed
    assert harness.snapshot is before
    harness.worker.run()
    assert len(harness.ads.streams) == 1
    harness.client.start()
    asked = harness.take()
    assert [(item.kind, set(item.names), item.version) for item in asked] == [
        (Kind.CLUSTER, {"one", "dns"}, ""),
        (Kind.ENDPOINT, {"one", "dns"}, ""),
    ]
    assert harness.snapshot.clusters["one"] is before.clusters["one"]
    assert dns_cluster("dns") is not None
    harness.send(cluster("one", "other"), cluster("dns"))
    assert harness.snapshot.clusters["one"].eds_service_name == "other"
    assert harness.snapshot.generation > before.generation

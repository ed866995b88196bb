"""The client on grpc, against the embedded control plane."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tenacity import wait_fixed

from meshlib import proto
from meshlib.controlplane import ControlPlane, ResourceStore
from meshlib.errors import ConfigError
from meshlib.runtime.stream import over_grpc
from meshlib.snapshot import Snapshot
from meshlib.stats import Registry
from meshlib.xds.bootstrap import load
from meshlib.xds.client import AdsClient
from meshlib.xds.target import ads_target
from tests.ports import reserved
from tests.snapshot.builders import Item, cluster

LIMIT = 10.0
ROOT = Path(__file__).parents[2]
CLUSTER = "envoy.config.cluster.v3.Cluster"


def decode(type_url: str, data: bytes, pause: Callable[[], None]) -> Item:
    message = proto.parse(proto.full_name(type_url), data)
    return Item(cluster(message.name, message.eds_cluster_config.service_name))


class Watched:
    """A client whose snapshots can be waited for."""

    def __init__(self, bootstrap: Any, **options: Any) -> None:
        self._changed = threading.Condition()
        self.registry = Registry()
        self.client = AdsClient(
            load(bootstrap),
            decode=decode,
            on_snapshot=self._published,
            registry=self.registry,
            **{"wait": wait_fixed(0.05), **options},
        )

    def _published(self, _: Snapshot) -> None:
        with self._changed:
            self._changed.notify_all()

    def wait_for(self, condition: Callable[[Snapshot], bool]) -> Snapshot:
        with self._changed:
            assert self._changed.wait_for(lambda: condition(self.client.snapshot), LIMIT)
        return self.client.snapshot


def named(name: str, service: str = "") -> Any:
    message = proto.message(CLUSTER)(name=name)
    message.eds_cluster_config.service_name = service
    return message


@pytest.fixture
def control_plane() -> Iterator[ControlPlane]:
    """It may be started again at its address."""
    with (
        reserved() as port,
        ControlPlane(ResourceStore([named("one")]), listen=f"127.0.0.1:{port}") as control_plane,
    ):
        yield control_plane


@pytest.fixture
def watched(control_plane: ControlPlane) -> Iterator[Watched]:
    watched = Watched(control_plane.bootstrap("me"))
    yield watched
    watched.client.close()


def test_resources_arrive_and_change(control_plane: ControlPlane, watched: Watched) -> None:
    watched.client.want_cluster("one")
    watched.wait_for(lambda snapshot: "one" in snapshot.clusters)
    answer = control_plane.wait_for_answer(proto.CLUSTER)
    assert (answer.node_id, answer.error) == ("me", None)
    control_plane.store.update(named("one", "other"))
    watched.wait_for(lambda snapshot: snapshot.clusters["one"].eds_service_name == "other")
    assert watched.client.connected


def test_the_configuration_outlives_the_control_plane_and_the_client_comes_back(
    control_plane: ControlPlane, watched: Watched
) -> None:
    watched.client.want_cluster("one")
    watched.wait_for(lambda snapshot: "one" in snapshot.clusters)
    control_plane.wait_for(lambda _: control_plane.streams == 1)
    control_plane.drop_streams()
    control_plane.store.update(named("one", "newer"))
    snapshot = watched.wait_for(lambda snapshot: snapshot.clusters["one"].eds_service_name == "newer")
    assert snapshot.absent == frozenset()


def test_a_control_plane_that_is_not_there_is_said_and_tried_again(
    control_plane: ControlPlane, watched: Watched
) -> None:
    address = control_plane.address
    control_plane.stop()
    watched.client.want_cluster("one")
    failed = threading.Event()
    lost = watched.client._lost

    def note(reason: str) -> None:
        lost(reason)
        failed.set()

    watched.client._lost = note  # type: ignore[method-assign]
    assert failed.wait(LIMIT)
    assert address in str(watched.client.last_error)
    with ControlPlane(ResourceStore([named("one")]), listen=address):
        watched.wait_for(lambda snapshot: "one" in snapshot.clusters)
        watched.client.close()


def test_a_large_response_is_taken(control_plane: ControlPlane, watched: Watched) -> None:
    control_plane.store.update(named("one", "x" * 10_000_000))
    watched.client.want_cluster("one")
    watched.wait_for(lambda snapshot: "one" in snapshot.clusters)


def test_a_port_that_speaks_something_else_is_no_crash() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        watched = Watched(
            {"xds_servers": [{"server_uri": f"127.0.0.1:{port}", "channel_creds": [{"type": "insecure"}]}]}
        )
        watched.client.start()
        connection, _ = listener.accept()
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        connection.close()
        listener.accept()[0].close()
        watched.client.close()


def test_closing_at_any_moment_leaves_nothing_behind(control_plane: ControlPlane) -> None:
    for moment in range(10):
        watched = Watched(control_plane.bootstrap())
        watched.client.want_cluster("one")
        if moment % 2:
            watched.wait_for(lambda snapshot: "one" in snapshot.clusters)
        watched.client.close()


def test_unreadable_credentials_name_the_file() -> None:
    creds = {"type": "tls", "config": {"ca_certificate_file": "/nowhere/ca.pem"}}
    bootstrap = load({"xds_servers": [{"server_uri": "127.0.0.1:1", "channel_creds": [creds]}]})
    with pytest.raises(
        ConfigError, match=r"/nowhere/ca.pem, named by the bootstrap's channel_creds, can't be read"
    ):
        over_grpc(ads_target(bootstrap.server), lambda *_: None, lambda *_: None)


LEFT_OPEN = """
import sys
from tests.xds.test_over_grpc import Watched
creds = [{"type": "insecure"}]
watched = Watched({"xds_servers": [{"server_uri": sys.argv[1], "channel_creds": creds}]})
watched.client.want_cluster("one")
watched.wait_for(lambda snapshot: "one" in snapshot.clusters)
print("end of main")
"""


@pytest.mark.shared_workers
def test_a_process_that_ends_with_a_live_stream_ends_quietly(control_plane: ControlPlane) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LEFT_OPEN, control_plane.address],
        capture_output=True,
        text=True,
        timeout=30,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"},
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "end of main\n", "")

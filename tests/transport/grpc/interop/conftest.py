from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

import meshlib
from meshlib.testing import service
from tests.transport.grpc.interop.server import TestService, serving
from tests.transport.grpc.interop.tap import Tap
from tests.transport.grpc.secure.world import World, terminator

HOST = "interop:10000"


@pytest.fixture
def tap() -> Iterator[Tap]:
    """A tap in front of a server of the interoperability tests."""
    taps: list[Tap] = []
    with serving(TestService(lambda: taps[0].requests[-1])) as port, Tap(port) as made:
        taps.append(made)
        yield made


@pytest.fixture
def mesh(tap: Tap) -> Iterator[meshlib.Mesh]:
    """A mesh whose only service is the server behind the tap."""
    with _mesh(tap.address) as made:
        yield made


@pytest.fixture
def secure_mesh(tap: Tap) -> Iterator[meshlib.Mesh]:
    """The same with mutual TLS in front of the tap."""
    world = World()
    port = int(tap.address.rpartition(":")[2])
    with (
        terminator(world.context(), port) as secure,
        _mesh(f"127.0.0.1:{secure}", **world.cluster()) as made,
    ):
        yield made


@contextlib.contextmanager
def _mesh(address: str, **cluster: Any) -> Iterator[meshlib.Mesh]:
    """Its route retries what may be retried. cluster: fields of the Cluster."""
    config = service("interop", address, listener=HOST)
    next(each for each in config["resources"] if each["@type"].endswith(".Cluster")).update(cluster)
    retries = {"retry_on": "unavailable,reset,connect-failure", "num_retries": 2}
    config["resources"][1]["virtual_hosts"][0]["routes"][0]["route"]["retry_policy"] = retries
    with meshlib.Mesh(config=config) as made:
        yield made

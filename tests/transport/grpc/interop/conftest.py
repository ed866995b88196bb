from __future__ import annotations

from collections.abc import Iterator

import pytest

import meshlib
from meshlib.testing import service
from tests.transport.grpc.interop.server import TestService, serving
from tests.transport.grpc.interop.tap import Tap

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
    """A mesh whose only service is the server behind the tap. Its route retries what may be retried."""
    config = service("interop", tap.address, listener=HOST)
    retries = {"retry_on": "unavailable,reset,connect-failure", "num_retries": 2}
    config["resources"][1]["virtual_hosts"][0]["routes"][0]["route"]["retry_policy"] = retries
    with meshlib.Mesh(config=config) as made:
        yield made

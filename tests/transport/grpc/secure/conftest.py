from __future__ import annotations

from collections.abc import Iterator

import pytest

from meshlib.transport.grpc import tunnel_loop
from tests.transport.grpc.secure.world import World


@pytest.fixture(autouse=True, scope="session")
def hasty_loops() -> Iterator[None]:
    """The threads of tunnels end soon after their last connection, so that the check for what is left behind need not wait."""
    linger, tunnel_loop.LINGER = tunnel_loop.LINGER, 0.02
    yield
    tunnel_loop.LINGER = linger


@pytest.fixture(scope="session")
def world() -> World:
    return World()

"""Tests of the gRPC transport."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from meshlib.transport.grpc import timers


@pytest.fixture(autouse=True, scope="session")
def hasty_timers() -> Iterator[None]:
    """The thread of timers ends soon after its last one, so that the check for what is left behind need not wait for it."""
    linger, timers.LINGER = timers.LINGER, 0.02
    yield
    timers.LINGER = linger

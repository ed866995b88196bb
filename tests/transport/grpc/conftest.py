"""Tests of the gRPC transport."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from meshlib.transport.grpc import sync_expiry, sync_watch, tunnel_loop


@pytest.fixture(autouse=True, scope="session")
def hasty_threads() -> Iterator[None]:
    """Threads end soon after their last work, so that the check for what is left behind need not wait for it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tunnel_loop, "LINGER", 0.02)
        patch.setattr(sync_expiry, "PAUSE", 0.02)
        patch.setattr(sync_watch, "AGAIN", 0.02)
        yield

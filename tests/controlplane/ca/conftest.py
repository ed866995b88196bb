from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from meshlib.controlplane.ca import Authority, CaServer, Entry, Identities

WEB, API = "spiffe://example.org/web", "spiffe://example.org/api"


@pytest.fixture
def authority() -> Authority:
    return Authority("example.org")


@pytest.fixture
def identities(authority: Authority) -> Identities:
    return Identities(
        authority, [Entry(spiffe_id=WEB, dns_names=("web.local",)), Entry(spiffe_id=API, hint="api")]
    )


@pytest.fixture
def server(identities: Identities, tmp_path: Path) -> Iterator[CaServer]:
    with CaServer(identities, [f"unix:{tmp_path}/agent.sock", "127.0.0.1:0"]) as running:
        yield running

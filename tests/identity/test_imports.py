"""What identities cost a process that uses them."""

from __future__ import annotations

import pytest

from tests.test_imports import observe, roots


@pytest.mark.parametrize("module", ["store", "files", "provider", "sources", "server"])
def test_no_host_library_is_loaded(module: str) -> None:
    observed = observe(f"import meshlib.identity.{module}")
    assert not roots(observed) & {"grpc", "asyncio", "httpx", "httpx2", "h2", "spiffe", "tenacity"}
    assert observed["threads"] == ["MainThread"]
    assert observed["sockets"] == []


def test_a_mesh_with_a_workload_api_loads_the_package_when_it_connects() -> None:
    observed = observe(
        "from meshlib.identity.sources import identity_source; identity_source('unix:///run/a.sock')"
    )
    assert not roots(observed) & {"grpc", "spiffe"}
    assert observed["native_threads"] == 1

"""The benchmark of the page: what it is made of, and that it says why it can't run."""

from __future__ import annotations

import sys

import pytest

from benchmarks import page
from benchmarks.page_process import ENDPOINTS, SERVICES, configuration


def test_the_scene() -> None:
    documents = configuration("127.0.0.1:9")
    assert SERVICES * ENDPOINTS == 5000
    assert len(documents) == SERVICES
    addresses = {
        str(endpoint["endpoint"]["address"])
        for document in documents
        for endpoint in document["resources"][3]["endpoints"][0]["lb_endpoints"]
        if "health_status" in endpoint
    }
    assert len(addresses) == SERVICES * (ENDPOINTS - 1)


def test_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESHLIB_CHROMIUM", "")
    monkeypatch.setenv("PATH", "")
    assert "Chromium" in (page.missing() or "") or "playwright" in (page.missing() or "")
    monkeypatch.setitem(sys.modules, "playwright", None)
    assert page.missing() == "playwright is not installed"

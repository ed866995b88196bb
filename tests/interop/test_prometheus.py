"""A real Prometheus scrapes an application with four workers: its totals equal the calls that were made, exactly."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from meshlib.testing.upstream import Upstream
from scripts.peers import prometheus
from tests.observe.counting import workers

LIMIT = 60.0
PROGRAM = prometheus()

pytestmark = [
    pytest.mark.skipif(PROGRAM is None, reason="no Prometheus: `make peers` gets it where apt is"),
    pytest.mark.timeout(300),
]

TOTALS = (
    'sum(istio_requests_total{reporter="source"})',
    'sum(envoy_cluster_upstream_rq_total{envoy_cluster_name="backend"})',
    'sum(envoy_cluster_upstream_rq_xx{envoy_cluster_name="backend",envoy_response_code_class="2"})',
    "sum(meshlib_route_requests_total)",
    "sum(istio_request_duration_milliseconds_count)",
    'sum(istio_request_duration_milliseconds_bucket{le="+Inf"})',
)


@contextmanager
def scraping(target: str, folder: Path) -> Iterator[httpx.Client]:
    """A Prometheus that scrapes each second; gives a client of its API."""
    folder.mkdir()
    job = {"job_name": "app", "scrape_interval": "1s", "static_configs": [{"targets": [target]}]}
    (folder / "prometheus.yml").write_text(json.dumps({"scrape_configs": [job]}))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert PROGRAM is not None
    command = [
        PROGRAM,
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=warn",
    ]
    with (folder / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=LIMIT) as client:
                yield client
        finally:
            process.terminate()
            process.wait(LIMIT)


def value(client: httpx.Client, query: str) -> float | None:
    try:
        response = client.get("/api/v1/query", params={"query": query})
    except httpx.TransportError:  # it is starting
        return None
    if response.status_code != 200:
        return None
    found = response.json()["data"]["result"]
    return float(found[0]["value"][1]) if found else None


def settled(client: httpx.Client, expected: int) -> dict[str, float | None]:
    """What Prometheus says, as soon as that is what is expected, or after a while."""
    due = time.monotonic() + LIMIT
    while True:
        found = {query: value(client, query) for query in TOTALS}
        if set(found.values()) == {float(expected)} or time.monotonic() > due:
            return found
        time.sleep(0.2)


def test_totals_equal_the_calls(tmp_path: Path) -> None:
    with (
        Upstream() as upstream,
        workers(upstream.port, tmp_path / "run", "--max-requests", "60") as app,
        scraping(urlsplit(app.url).netloc, tmp_path / "prometheus") as client,
        httpx.Client(base_url=app.url, trust_env=False, timeout=LIMIT) as caller,
        ThreadPoolExecutor(8) as pool,
    ):
        made = 0
        for _ in range(3):
            for response in pool.map(lambda _: caller.get("/5"), range(60)):
                assert response.status_code == 200
                app.pids.add(int(response.text))
            made += 300
            assert settled(client, made) == dict.fromkeys(TOTALS, made)
        assert len(app.pids) >= 4
        assert len(upstream.requests) == made
        assert value(client, 'sum(resets(istio_requests_total{reporter="source"}[10m]))') == 0

"""Totals of an application under gunicorn: equal to the calls that were made, whatever happens to its workers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from meshlib.testing.upstream import Upstream
from tests.observe.counting import Workers, workers

pytestmark = pytest.mark.timeout(300)

LIMIT = 60.0
COUNTERS = (
    r'istio_requests_total\{reporter="source",.*\}',
    r"meshlib_route_requests_total\{.*\}",
    r'envoy_cluster_upstream_rq_total\{envoy_cluster_name="backend"\}',
    r'envoy_cluster_upstream_rq_xx\{envoy_response_code_class="2",envoy_cluster_name="backend"\}',
    r'istio_request_duration_milliseconds_count\{reporter="source",.*\}',
    r'envoy_cluster_upstream_rq_time_bucket\{envoy_cluster_name="backend",le="\+Inf"\}',
)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def client() -> Iterator[httpx.Client]:
    with httpx.Client(trust_env=False, timeout=LIMIT) as made:
        yield made


def calls(app: Workers, client: httpx.Client, requests: int, each: int = 3) -> int:
    """So many requests at once; how many calls of the backend they were."""
    with ThreadPoolExecutor(8) as pool:
        for response in pool.map(lambda _: client.get(f"{app.url}/{each}"), range(requests)):
            assert response.status_code == 200
            app.pids.add(int(response.text))
    return requests * each


def totals(app: Workers, client: httpx.Client) -> list[int]:
    """Of each of the counters: the sum of its samples. Each scrape may meet another worker."""
    response = client.get(f"{app.url}/metrics")
    assert response.status_code == 200, response.text
    found = []
    for pattern in COUNTERS:
        lines = re.findall(rf"^{pattern} (\d+)$", response.text, re.MULTILINE)
        found.append(sum(map(int, lines)))
    return found


def test_totals_equal_the_calls(run: Path, client: httpx.Client) -> None:
    with Upstream() as upstream, workers(upstream.port, run) as app:
        made = 0
        for _ in range(4):
            made += calls(app, client, 20)
            for _ in range(5):
                assert totals(app, client) == [made] * len(COUNTERS)
        assert len(upstream.requests) == made


def test_workers_that_end_and_are_replaced(run: Path, client: httpx.Client) -> None:
    with Upstream() as upstream, workers(upstream.port, run, "--max-requests", "8") as app:
        made = 0
        for _ in range(3):
            made += calls(app, client, 16)
            assert totals(app, client) == [made] * len(COUNTERS)
        assert len(app.pids) > 4


def test_workers_that_are_killed(run: Path, client: httpx.Client) -> None:
    """What a scrape has told is never lost."""
    with Upstream() as upstream, workers(upstream.port, run) as app:
        made = 0
        for _ in range(3):
            made += calls(app, client, 20)
            assert totals(app, client) == [made] * len(COUNTERS)
            app.kill(min(app.pids))
            assert totals(app, client) == [made] * len(COUNTERS)


def test_calls_of_the_master_count_once(run: Path, client: httpx.Client) -> None:
    with (
        Upstream() as upstream,
        workers(upstream.port, run, "--preload", COUNTING_BEFORE_FORK="yes") as app,
    ):
        made = 1 + calls(app, client, 20)
        assert totals(app, client) == [made] * len(COUNTERS)


def test_one_process_for_itself(run: Path, client: httpx.Client) -> None:
    with Upstream() as upstream, workers(upstream.port, run) as app:
        made = calls(app, client, 40)
        each = client.get(f"{app.url}/metrics?scope=process").text
        found = re.search(r'upstream_rq_total\{envoy_cluster_name="backend"\} (\d+)', each)
        assert found is not None
        assert 0 < int(found[1]) < made
        part = client.get(f"{app.url}/metrics?usedonly&filter=cluster.upstream_rq_total").text
        assert re.findall(r"^[^#].*", part, re.MULTILINE) == [
            f'envoy_cluster_upstream_rq_total{{envoy_cluster_name="backend"}} {made}'
        ]

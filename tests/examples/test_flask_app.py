"""examples/flask_app, as its README starts it."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from tests.examples.running import finish, processes_of, start

pytestmark = [pytest.mark.once, pytest.mark.timeout(300)]

EXAMPLE = ("-m", "examples.flask_app", "--visitors", "0")
SENT = 20
SAMPLE = re.compile(r"^(\w+)\{(.*)\} (\S+)$", re.MULTILINE)
LABEL = re.compile(r'(\w+)="([^"]*)"')


SAID = re.compile(r"^ *(.+?)(?:: |  +)(\S+)$")


@contextmanager
def example() -> Iterator[tuple[subprocess.Popen[str], str, dict[str, str]]]:
    """The example, once it has shown what it shows; what it said, also by the first words of each line."""
    with start(*EXAMPLE) as process:
        assert process.stdout is not None
        lines: list[str] = []
        for line in process.stdout:
            if line.startswith("Ctrl-C"):
                break
            lines.append(line.rstrip())
        else:
            pytest.fail(f"it ended: {lines} {finish(process)}")
        yield process, "\n".join(lines), {found[1]: found[2] for found in map(SAID.match, lines) if found}


def totals(text: str, name: str, **labels: str) -> float:
    """The sum of the samples of this metric that have these labels."""
    found = (
        (dict(LABEL.findall(inner)), float(value))
        for metric, inner, value in SAMPLE.findall(text)
        if metric == name
    )
    return sum(value for known, value in found if labels.items() <= known.items())


def test_it_shows_a_mesh_and_ends() -> None:
    with example() as (process, text, said), httpx.Client(timeout=30, trust_env=False) as client:
        front, page = said["the front end"], said["the page"].rstrip("/")
        assert "100 requests, 0 failed\n" in text
        shares = {version: int(said[f"answered by reviews {version}"]) for version in ("v1", "v2")}
        assert sum(shares.values()) == 100
        assert 5 <= shares["v2"] <= 40  # 20 expected, standard deviation 4
        assert int(said["calls to ratings that were tried again"]) > 0
        assert int(said["workers that have ejected the bad instance of ratings"]) > 0

        for book in range(SENT):
            answer = client.get(front.replace("/books/1", f"/books/{book}"))
            assert answer.status_code == 200
            assert answer.json()["reviews"]["asked_by"] == "spiffe://shop.test/frontend"
        scraped = client.get(said["for Prometheus"]).text
        assert totals(scraped, "istio_requests_total", reporter="source") == 100 + SENT
        assert totals(scraped, "istio_requests_total", reporter="destination") == 100 + SENT

        processes = client.get(f"{page}/mesh/processes.json").json()["processes"]
        assert len(processes) == 10
        for each in processes:
            model = client.get(f"{page}/mesh.json", params={"process": each["name"]}).json()
            assert model["process"]["ready"], model["process"]["why_not_ready"]
            assert model["problems"] == []
        edges = client.get(f"{page}/mesh/graph.json").json()["edges"]
        assert {(edge["source"], edge["destination"]) for edge in edges} == {
            ("frontend", "reviews"),
            ("reviews", "ratings"),
        }
        assert all(edge["mtls"] for edge in edges)
        traces = client.get(f"{page}/mesh/traces.json").json()["traces"]
        assert any(is_connected(trace) for trace in traces)

        process.send_signal(signal.SIGINT)
        output, errors = finish(process)
    assert process.returncode == 0, output + errors
    assert processes_of(process.pid) == []


def is_connected(trace: dict[str, Any]) -> bool:
    """One tree over three services, from the front end's request down to an attempt that reached `ratings`."""
    path = [(span["service"], span["kind"]) for span in trace["spans"]]
    roots = [span for span in trace["spans"] if span["depth"] == 0]
    return (
        trace["services"] == ["frontend", "reviews", "ratings"]
        and len(roots) == 1
        and path[0] == ("frontend", "request")
        and ("ratings", "request") in path
    )

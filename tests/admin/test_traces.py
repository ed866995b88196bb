"""Traces of several processes: put together by identifiers, whatever these say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace import TracerProvider

import meshlib
from meshlib.admin.http import Request
from meshlib.admin.traces import MOST_SPANS, MOST_TRACES, spans_of, trace_of, traces_of
from meshlib.httpx import MeshTransport
from meshlib.testing import Upstream, service
from tests.admin.conftest import Get, parsed


def span(identity: str | None, parent: str | None = None, **facts: Any) -> dict[str, Any]:
    known = {"kind": "request", "service": "s", "process": "1", "name": "GET /", "at": 1.0, "duration": 10.0}
    rest = {"status": 200, "grpc_status": None, "flags": "-", "failed": False, "note": None, "number": None}
    return {"trace": "t", "id": identity, "parent": parent, **known, **rest, **facts}


def told(*spans: dict[str, Any]) -> dict[str, Any]:
    return {
        "service": "s",
        "process": "1",
        "remembered": len(spans),
        "recorded": len(spans),
        "spans": list(spans),
    }


def shape(trace: dict[str, Any]) -> list[tuple[int, str]]:
    return [(each["depth"], each["id"]) for each in trace["spans"]]


def test_a_tree_of_three_processes() -> None:
    front = told(
        span("a2", "a1", kind="call", at=1.001, service="front"),
        span("a3", "a2", kind="attempt", at=1.001, service="front", failed=True, status=503),
        span("a4", "a2", kind="attempt", at=1.003, service="front"),
        span("a1", None, service="front", name="GET /buy", duration=20.0),
    )
    cart = told(
        span("b1", "a4", service="cart", at=1.004), span("b0", "a3", service="cart", at=1.002, failed=True)
    )
    (trace,) = traces_of([cart, front])["traces"]
    assert shape(trace) == [(0, "a1"), (1, "a2"), (2, "a3"), (3, "b0"), (2, "a4"), (3, "b1")]
    assert (trace["name"], trace["service"], trace["services"]) == ("GET /buy", "front", ["front", "cart"])
    assert (trace["errors"], trace["failed"], trace["size"], trace["duration"]) == (2, False, 6, 20.0)
    assert trace_of([front, cart], "t") == trace
    assert trace_of([front, cart], "u") is None


def test_a_call_below_a_span_of_the_application() -> None:
    """That span is unknown here: the call hangs below the request of its process during which it was made."""
    parts = told(
        span("a1", None, at=1.0, duration=100.0),
        span("a2", "unknown", kind="call", at=1.05, duration=20.0),
        span("a3", "unknown", kind="call", at=2.0, duration=20.0),
        span("b1", None, at=1.04, duration=100.0, process="2"),
    )
    (trace,) = traces_of([parts])["traces"]
    assert shape(trace) == [(0, "a1"), (1, "a2"), (0, "b1"), (0, "a3")]


IDS = st.none() | st.sampled_from("abcdef")
SPANS = st.lists(
    st.builds(
        span,
        IDS,
        IDS,
        kind=st.sampled_from(("request", "call", "attempt")),
        at=st.floats(0, 5),
        duration=st.floats(0, 5000),
        process=st.sampled_from("12"),
    ),
    min_size=1,
    max_size=12,
)


@given(SPANS)
def test_each_span_once_and_below_its_parent(spans: list[dict[str, Any]]) -> None:
    """Also where identifiers repeat, or go round in a circle."""
    trace = trace_of([told(*spans)], "t")
    assert trace is not None
    assert trace["size"] == len(trace["spans"]) == len(spans)
    depth = -1
    for each in trace["spans"]:
        assert 0 <= each["depth"] <= depth + 1
        depth = each["depth"]


def test_only_so_many() -> None:
    many = told(*(span("a", trace=str(number), at=float(number)) for number in range(MOST_TRACES + 5)))
    traces = traces_of([many])["traces"]
    assert [trace["at"] for trace in traces] == [float(MOST_TRACES + 4 - each) for each in range(MOST_TRACES)]
    long = told(*(span(f"a{number}") for number in range(MOST_SPANS + 1)))
    (trace,) = traces_of([long])["traces"]
    assert (len(trace["spans"]), trace["size"]) == (MOST_SPANS, MOST_SPANS + 1)


def test_what_a_process_tells(upstream: Upstream) -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    config = service("reviews", upstream.address)
    with meshlib.Mesh(config=[config], observe=meshlib.Observe(tracing=provider, recent_calls=256)) as mesh:
        with httpx.Client(transport=MeshTransport(mesh, local_reply="response")) as client:
            client.get("http://reviews/x?token=abc")
        found = spans_of(mesh, "7", "front")
    assert (found["remembered"], found["recorded"], found["process"]) == (1, 1, "7")
    call, attempt = found["spans"]
    assert (call["kind"], call["name"], call["note"], call["number"]) == (
        "call",
        "GET reviews/x?token=[redacted]",
        "reviews",
        1,
    )
    assert (attempt["kind"], attempt["name"], attempt["parent"]) == ("attempt", upstream.address, call["id"])
    assert call["at"] <= attempt["at"]
    assert json.loads(json.dumps(found)) == found


def test_nothing_is_recorded(get: Get, client: httpx.Client) -> None:
    client.get("http://reviews/x")
    found = parsed(get("/mesh/traces.json"))
    assert found["traces"] == []
    (own,) = found["processes"]
    assert (own["remembered"], own["recorded"]) == (1, 0)
    assert get("/mesh/trace.json?id=ab").status == 404


CHILD = """
import sys, httpx, meshlib
from meshlib.httpx import MeshTransport
from meshlib.server.inbound import Inbound
from meshlib.server.wsgi import MeshMiddleware
from opentelemetry.sdk.trace import TracerProvider
observed = meshlib.Observe(tracing=TracerProvider(), admin=True)
mesh = meshlib.Mesh(config=[], observe=observed)
mesh.start()
def app(environ, start_response):
    start_response("204 No Content", [])
    return []
with httpx.Client(transport=httpx.WSGITransport(MeshMiddleware(app, Inbound(mesh)))) as client:
    client.get("http://child/served", headers={"traceparent": sys.argv[1]})
print("served", flush=True)
sys.stdin.read()
"""


def test_another_process_is_asked(upstream: Upstream, run_directory: Path) -> None:
    """What another process served hangs below the attempt that reached it there."""
    observed = meshlib.Observe(tracing=TracerProvider(shutdown_on_exit=False), admin=True)
    config = service("reviews", upstream.address)
    with meshlib.Mesh(config=[config], observe=observed) as mesh:
        with httpx.Client(transport=MeshTransport(mesh)) as client:
            client.get("http://reviews/x")
        (request,) = upstream.requests
        traceparent = dict(request.headers)["traceparent"]
        environment = {**os.environ, "MESHLIB_RUN_DIR": str(run_directory)}
        with subprocess.Popen(
            [sys.executable, "-c", CHILD, traceparent],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        ) as child:
            assert child.stdout is not None
            assert child.stdin is not None
            assert child.stdout.readline() == "served\n"
            assert mesh.doors is not None
            asked = Request(method="GET", path="/mesh/traces.json", query={}, headers={}, trusted=True)
            (trace,) = parsed(mesh.doors.admin.handle(asked))["traces"]
            child.stdin.close()
    assert [(each["depth"], each["kind"]) for each in trace["spans"]] == [
        (0, "call"),
        (1, "attempt"),
        (2, "request"),
    ]
    assert trace["spans"][2]["process"] == str(child.pid)
    assert trace["spans"][2]["name"] == "GET /served"

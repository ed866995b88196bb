"""One trace through three services, Flask -> httpx -> ASGI -> gRPC -> grpc.aio, with one retry: no application copies a header.

Each service is a process of its own (`tests.observe.tracing.shop`), with its own Mesh, SDK, batch processor and OpenTelemetry's
own exporter. What is looked at is what OTLP receivers read off the wire.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.observe.tracing.receiver import Received, Receiver, grpc_receiver, http_receiver

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 30.0
"""Seconds in which a process ends whose input has ended."""

TREE = """
front: GET /checkout/<item> SERVER
  front: GET INTERNAL
    front: GET CLIENT
      cart: GET SERVER
    front: GET CLIENT
      cart: GET SERVER
        cart: shop.Stock/Count INTERNAL
          cart: shop.Stock/Count CLIENT
            stock: shop.Stock/Count SERVER
""".strip()

CALLER = "00-000000000000000000000000000000aa-00000000000000bb-01"


class Process:
    """One service. pid: of the process; seen: what it says at its end."""

    def __init__(self, name: str, protocol: str, receiver: Receiver) -> None:
        endpoint = receiver.endpoint if protocol == "http" else f"http://{receiver.endpoint}"
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("OTEL_")}
        self.name = name
        self.seen: dict[str, Any] = {}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.observe.tracing.shop", name, protocol],
            cwd=ROOT,
            env={
                **inherited,
                "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}",
                "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": endpoint,
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid

    def begin(self, behind: str = "") -> str:
        """Its address. behind: that of the service that it calls."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{behind}\n")
        process.stdin.flush()
        address = process.stdout.readline().strip()
        assert address, f"{self.name}: {process.communicate(timeout=LIMIT)[1]}"
        return address

    def end(self) -> None:
        """It ends in order, so its spans are sent."""
        said, errors = self._process.communicate(timeout=LIMIT)
        assert self._process.returncode == 0, f"{self.name}: {errors}"
        assert "Traceback" not in errors, f"{self.name}: {errors}"
        self.seen = json.loads(said)

    def kill(self) -> None:
        """Whatever became of it, nothing is left."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()


@contextlib.contextmanager
def processes(*arguments: tuple[str, str, Receiver]) -> Iterator[list[Process]]:
    """They start beside each other, since most of that is importing."""
    made: list[Process] = []
    try:
        made += (Process(*each) for each in arguments)
        yield made
    finally:
        for process in made:
            process.kill()


def merged(*receivers: Receiver) -> Receiver:
    return Receiver(spans=[span for receiver in receivers for span in receiver.spans])


@pytest.mark.timeout(150)
@pytest.mark.parametrize(
    ("protocols", "called"),
    [("http grpc http", False), ("grpc http grpc", True)],
    ids=["root", "within-a-trace"],
)
def test_one_connected_tree(protocols: str, called: bool) -> None:
    """protocols: of the exporters. called: within a trace of whoever calls; else it begins here."""
    first, second, third = protocols.split()
    headers = {"x-request-id": "12345678-0000-4000-8000-000000000000", "baggage": "user=me"}
    if called:
        headers["traceparent"] = CALLER
    with http_receiver() as http, grpc_receiver() as over_grpc:
        to = {"http": http, "grpc": over_grpc}
        services = ("front", first, to[first]), ("cart", second, to[second]), ("stock", third, to[third])
        with processes(*services) as (front, cart, stock):
            address = front.begin(cart.begin(stock.begin()))
            with httpx.Client(trust_env=False, timeout=30) as outside:
                response = outside.get(f"http://{address}/checkout/7", headers=headers)
            for process in (front, cart, stock):
                process.end()
        assert (response.status_code, response.text) == (200, "3 left")
        assert cart.seen == {"refused": 1}
        assert stock.seen == {"baggage": [{"user": "me"}], "request_ids": [headers["x-request-id"]]}
        assert {span.service for span in http.spans} == {name for name, by, _ in services if by == "http"}
        assert {span.service for span in over_grpc.spans} == {
            name for name, by, _ in services if by == "grpc"
        }
        whole = merged(http, over_grpc)
    assert whole.tree() == TREE, "one trace, one root, no orphan"
    spans = whole.ordered()
    assert len(spans) == len(TREE.splitlines())
    pids = {span.service: span.resource["process.pid"] for span in spans}
    assert pids == {each.name: each.pid for each in (front, cart, stock)}
    if called:
        assert (spans[0].trace_id[-2:], spans[0].parent_id[-2:]) == ("aa", "bb")
    else:
        assert not spans[0].parent_id.strip("0")
    look_at_the_retry([span for span in spans if span.service != "stock"], address)


def look_at_the_retry(spans: list[Received], front: str) -> None:
    """Each attempt is the parent of what the endpoint did for it, and of nothing else."""
    root = spans[0]
    (call, *_) = [span for span in spans if span.parent_id == root.span_id]
    refused, answered = [span for span in spans if span.parent_id == call.span_id]
    assert (refused.kind, answered.kind) == ("CLIENT", "CLIENT")
    assert refused.attributes["http.response.status_code"] == 503
    assert answered.attributes["http.response.status_code"] == 200
    assert (refused.status, answered.status, call.status, root.status) == (2, 0, 0, 0)
    assert "http.request.resend_count" not in refused.attributes
    assert answered.attributes["http.request.resend_count"] == 1
    assert answered.attributes["meshlib.retry.reason"]
    assert refused.end <= answered.start
    for attempt in (refused, answered):
        (served,) = [span for span in spans if span.parent_id == attempt.span_id]
        assert (served.service, served.kind) == ("cart", "SERVER")
        assert attempt.attributes["server.address"] == "cart"
        assert attempt.attributes["network.peer.address"] == "127.0.0.1"
        assert f"127.0.0.1:{attempt.attributes['network.peer.port']}" != front

"""The process whose page is measured: a Mesh with 200 services of 25 endpoints each, all of which it has called.

It answers to `{"do": "cpu"}` with the CPU seconds of all its threads, those that have ended included, and to `{"do": "call"}`
when it has called each service once more; one service in ten fails, of another tenth every second answer is a failure.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import Any

import httpx

import meshlib
from benchmarks.worker import Answer, say, serve
from meshlib import proto
from meshlib.httpx import MeshTransport
from meshlib.testing import Reply, Request, Upstream, service

__all__ = ["ENDPOINTS", "SERVICES"]

SERVICES = 200
ENDPOINTS = 25
"""Of each service. One of them answers; the others are UNHEALTHY, so that nobody calls them."""


def configuration(address: str) -> list[dict[str, Any]]:
    """A document for each service."""
    return [_service(number, address) for number in range(SERVICES)]


def _service(number: int, address: str) -> dict[str, Any]:
    others = [f"127.{1 + number // 200}.{number % 200}.{each + 1}:9" for each in range(ENDPOINTS - 1)]
    document = service(_name(number), address, *others)
    for resource in document["resources"]:
        if resource["@type"] == proto.ROUTE:
            (route,) = resource["virtual_hosts"][0]["routes"]
            route["route"]["retry_policy"] = {"retry_on": "5xx", "num_retries": 1}
        if resource["@type"] == proto.CLUSTER:
            resource["common_lb_config"] = {"healthy_panic_threshold": {"value": 0}}
            resource["outlier_detection"] = {"enforcing_success_rate": 0, "max_ejection_percent": 0}
        if resource["@type"] == proto.ENDPOINT:
            for endpoint in resource["endpoints"][0]["lb_endpoints"][1:]:
                endpoint["health_status"] = "UNHEALTHY"
    return document


def _name(number: int) -> str:
    return f"service-{number:03d}"


class _Answers:
    """What the upstream answers, by the last digit of the service that was called."""

    def __init__(self) -> None:
        self._seen = 0

    def __call__(self, request: Request) -> Reply:
        self._seen += 1
        kind = request.target[-1]
        return Reply(status=503 if kind == "7" or (kind == "3" and self._seen % 2) else 200)


def main() -> None:
    with ExitStack() as stack:
        upstream = stack.enter_context(Upstream(_Answers()))
        mesh = stack.enter_context(meshlib.Mesh(config=configuration(upstream.address)))
        client = stack.enter_context(httpx.Client(transport=MeshTransport(mesh, local_reply="response")))
        serving = stack.enter_context(mesh.admin().serve("127.0.0.1:0"))

        def call() -> None:
            for number in range(SERVICES):
                client.get(f"http://{_name(number)}/items/{number}")

        def handle(command: dict[str, Any]) -> Answer:
            if command["do"] == "call":
                call()
            return {"cpu": time.process_time()}

        call()
        say({"url": serving.url})
        serve(handle)


if __name__ == "__main__":
    main()

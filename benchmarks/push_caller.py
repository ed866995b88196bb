"""The client of the push benchmark: calls without a pause while the control plane replaces every endpoint.

A worker process of its own for each subject, so that nothing else shares its interpreter lock. Until the new endpoints answer,
all calls go to the cluster that is pushed (its upstream answers with the address that was called); before the push and
afterwards most go to another cluster, which never changes.
Times are `time.monotonic()`, which all processes of a machine share.
"""

from __future__ import annotations

import gc
import os
import resource
import sys
import time
from typing import Any

from benchmarks.processes import memory_mib
from benchmarks.push_server import is_unhealthy, set_of
from benchmarks.worker import say, serve

PUSHED, FIXED = "/where", "/fixed"
AUTHORITY = "push.bench"
_TIMEOUT = 30.0


class Caller:
    """Calls with an httpx client until the new endpoints answer, and a while longer."""

    def __init__(self, client: Any, base: str) -> None:
        self._client = client
        self._base = base

    def _call(self, path: str) -> tuple[float, float, str]:
        before = time.monotonic()
        response = self._client.get(self._base + path)
        after = time.monotonic()
        if response.status_code != 200:
            raise RuntimeError(f"{path}: status {response.status_code}: {response.text}")
        return before, after - before, response.text

    def watch(self, which: str, settle: float) -> dict[str, Any]:
        """Says `{}` after `settle` seconds of calls; then has the first answer from set `which`, and every call's time."""
        gc.collect()
        calls: list[tuple[float, float]] = []
        quiet_until = time.monotonic() + settle
        while time.monotonic() < quiet_until:
            calls.append(self._call(PUSHED if len(calls) % 10 == 0 else FIXED)[:2])
        say({})
        effect = None
        deadline = time.monotonic() + _TIMEOUT
        turn = 0
        while effect is None or time.monotonic() < effect + settle:
            if time.monotonic() > deadline:
                raise RuntimeError(f"no endpoint of set {which} answered within {_TIMEOUT} s")
            turn += 1
            if effect is not None and turn % 10:
                calls.append(self._call(FIXED)[:2])
                continue
            started, duration, called = self._call(PUSHED)
            calls.append((started, duration))
            found, index = set_of(called)
            if is_unhealthy(index):
                raise RuntimeError(f"the UNHEALTHY endpoint {called} was called")
            if found == which and effect is None:
                effect = started + duration
        return {"effect": effect, "calls": calls}


def _client(subject: str, port: int, plane: int) -> tuple[Any, str]:
    """An httpx client through the Envoy at `port`, or through meshlib with the control plane at `plane`."""
    import httpx

    if subject == "envoy":
        return httpx.Client(trust_env=False, headers={"host": AUTHORITY}), f"http://127.0.0.1:{port}"
    import meshlib
    from meshlib.httpx import MeshTransport

    mesh = meshlib.Mesh(server_uri=f"127.0.0.1:{plane}", node_id="push-benchmark")
    mesh.start()
    return httpx.Client(transport=MeshTransport(mesh)), f"http://{AUTHORITY}"


def main() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    subject, port, plane = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    caller = Caller(*_client(subject, port, plane))

    def handle(command: dict[str, Any]) -> dict[str, Any]:
        if "memory" in command:
            return dict(memory_mib(os.getpid()))
        return caller.watch(command["watch"], command["settle"])

    serve(handle)


if __name__ == "__main__":
    main()

"""The demo's client: steady traffic through the mesh. `python -m meshlib.cli.demo.client ADDRESS`.

An ordinary httpx client with the mesh's transport. Prints one JSON line for each tenth of a second: how many answers came
from which version, how many attempts met a 500, how many requests failed, and the last failure. Ends when its input does.
"""

from __future__ import annotations

import json
import select
import sys
import time
from collections import Counter

import httpx

import meshlib
from meshlib.httpx import MeshTransport

__all__ = ["main"]

PAUSE = 0.003
"""Seconds between two requests."""

REPORT = 0.1
"""Seconds between two lines."""


def main() -> None:
    mesh = meshlib.Mesh(server_uri=sys.argv[1], node_id="demo-client")
    with mesh, httpx.Client(transport=MeshTransport(mesh)) as client:
        mesh.wait_ready("reviews:80", timeout=15.0)
        while not _input_ended():
            _report(client)


def _report(client: httpx.Client) -> None:
    answers: Counter[str] = Counter()
    rejected = failed = 0
    last = ""
    end = time.monotonic() + REPORT
    while time.monotonic() < end:
        try:
            response = client.get("http://reviews/")
            attempts = response.extensions["meshlib"].attempts
            rejected += sum(1 for attempt in attempts if attempt.status == 500)
            if response.status_code == 200:
                answers[response.text.strip()] += 1
            else:
                failed, last = failed + 1, f"status {response.status_code}"
        except httpx.HTTPError as error:
            failed, last = failed + 1, str(error)
        time.sleep(PAUSE)
    line = {"answers": answers, "rejected": rejected, "failed": failed, "last": last}
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def _input_ended() -> bool:
    return bool(select.select([sys.stdin], [], [], 0)[0])


if __name__ == "__main__":
    main()

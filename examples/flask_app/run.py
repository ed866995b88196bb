"""Starts everything, shows who answers, and ends everything: `python examples/flask_app/run.py [--once]`.

A control plane (`meshlib serve`), two versions of the back end, and the front end on gunicorn with two workers, which fork
after the app was loaded. All on free ports of 127.0.0.1.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from queue import SimpleQueue
from string import Template

import httpx

HERE = Path(__file__).resolve().parent
REQUESTS = 100


@contextmanager
def running(
    arguments: list[str], *, give: socket.socket | None = None, **environment: str
) -> Iterator[subprocess.Popen[str]]:
    """A process of this Python that ends with the block. give: a listening socket that it takes over."""
    process = subprocess.Popen(
        [sys.executable, "-m", *arguments],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        text=True,
        pass_fds=() if give is None else (give.fileno(),),
    )
    with process:
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def listen() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0), backlog=128)


def gunicorn(app: str, at: socket.socket, *options: str) -> list[str]:
    return [
        "gunicorn",
        "--log-level",
        "warning",
        "--chdir",
        str(HERE),
        "--bind",
        f"fd://{at.fileno()}",
        *options,
        app,
    ]


def serve(stack: ExitStack, file: Path) -> str:
    """Start the control plane; returns the bootstrap for its clients, as JSON."""
    process = stack.enter_context(running(["meshlib.cli", "serve", str(file), "--listen", "127.0.0.1:0"]))
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("export GRPC_XDS_BOOTSTRAP_CONFIG="):
            bootstrap = json.loads(line.partition("=")[2].strip().strip("'"))
            bootstrap["node"]["id"] = "frontend"
            return json.dumps(bootstrap)
    raise SystemExit("the control plane did not start")


def show(url: str) -> bool:
    """Send requests; print who answered. Returns whether all succeeded and both versions had their part."""
    with httpx.Client(base_url=url, trust_env=False, timeout=30) as client, ThreadPoolExecutor(4) as pool:
        responses = list(pool.map(lambda number: client.get(f"/books/{number}"), range(REQUESTS)))
    failed = [response for response in responses if response.status_code != 200]
    pages = [response.json() for response in responses if response.status_code == 200]
    versions = Counter(page["reviews"]["version"] for page in pages)
    workers = Counter(page["worker"] for page in pages)
    print(f"{REQUESTS} requests, {len(failed)} failed")
    for version, count in sorted(versions.items()):
        print(f"  answered by reviews {version}: {count}")
    for worker, count in sorted(workers.items()):
        print(f"  through gunicorn's worker {worker}: {count}")
    for response in failed[:3]:
        print(f"  status {response.status_code}: {response.text.strip()}")
    sys.stdout.flush()
    return not failed and len(versions) == 2


def main() -> int:
    parser = argparse.ArgumentParser(
        description="A Flask front end and two versions of its back end, in a mesh."
    )
    parser.add_argument(
        "--once", action="store_true", help="end after the first requests instead of at Ctrl-C"
    )
    options = parser.parse_args()
    stop: SimpleQueue[None] = SimpleQueue()  # a handler may interrupt its get(); not so an Event's wait()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.put(None))
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="meshlib-flask-")))
        front, v1, v2 = (stack.enter_context(listen()) for _ in range(3))
        file = folder / "mesh.yaml"
        ports = {"v1_port": v1.getsockname()[1], "v2_port": v2.getsockname()[1]}
        file.write_text(Template((HERE / "mesh.yaml").read_text()).substitute(ports))
        bootstrap = serve(stack, file)
        for version, at in (("v1", v1), ("v2", v2)):
            command = gunicorn("backend:app", at, "--worker-class", "gthread", "--threads", "8")
            stack.enter_context(running(command, give=at, VERSION=version))
        command = gunicorn("frontend:app", front, "--workers", "2", "--preload")
        stack.enter_context(running(command, give=front, GRPC_XDS_BOOTSTRAP_CONFIG=bootstrap))
        url = f"http://127.0.0.1:{front.getsockname()[1]}"
        good = show(url)
        if options.once:
            return 0 if good else 1
        print(
            f"\nthe front end is at {url}/books/1; change the weights in {file}; Ctrl-C ends it", flush=True
        )
        stop.get()
    return 0


if __name__ == "__main__":
    sys.exit(main())

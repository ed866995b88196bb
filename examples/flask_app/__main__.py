"""Starts everything, shows what happens, and ends everything: `python -m examples.flask_app [--once] [--open]`.

A CA, a control plane (`meshlib serve`), the front end, two versions of `reviews` and two instances of `ratings`, each under a
gunicorn of its own with two workers. All on free ports of 127.0.0.1.
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
import threading
import time
import webbrowser
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from queue import SimpleQueue
from string import Template
from typing import Any

import httpx

from meshlib.admin.client import AdminError
from meshlib.admin.processes import Process, ProcessDirectory
from meshlib.controlplane.ca import Authority, CaServer, Entry, Identities

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
REQUESTS = 100
WORKERS = 2
START = 90.0
"""Seconds that all processes have to start: on a small machine it is a while."""

SERVICES = {
    "reviews_v1": ("reviews", {"VERSION": "v1"}),
    "reviews_v2": ("reviews", {"VERSION": "v2"}),
    "ratings_a": ("ratings", {}),
    "ratings_b": ("ratings", {"FAILURES": "0.8"}),
    "frontend": ("frontend", {}),
}
"""The module and the environment of each."""


@contextmanager
def running(
    *arguments: str, give: socket.socket | None = None, **environment: str
) -> Iterator[subprocess.Popen[str]]:
    """A process of this Python that ends with the block. give: a listening socket that it takes over."""
    process = subprocess.Popen(
        [sys.executable, "-m", *arguments],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        pass_fds=() if give is None else (give.fileno(),),
        process_group=0,  # Ctrl-C in the terminal is for this process, which ends the others in order
    )
    with process:
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()


def control_plane(stack: ExitStack, file: Path) -> str:
    """Start it; returns its address."""
    process = stack.enter_context(running("meshlib.cli", "serve", str(file), "--listen", "127.0.0.1:0"))
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("serving ADS on "):
            return line.removeprefix("serving ADS on ").strip()
    raise SystemExit("the control plane did not start")


def bootstrap(address: str, name: str) -> str:
    """What a process is told of its control plane."""
    server = {"server_uri": address, "channel_creds": [{"type": "insecure"}], "server_features": ["xds_v3"]}
    return json.dumps({"xds_servers": [server], "node": {"id": name}})


def start(stack: ExitStack, folder: Path) -> str:
    """All services. Returns where the front end is."""
    authority = Authority("shop.test", ttl=300)
    for name in ("frontend", "reviews", "ratings"):  # whoever may open a socket is that service
        identities = Identities(authority, [Entry(spiffe_id=f"spiffe://shop.test/{name}")])
        stack.enter_context(CaServer(identities, [f"unix:{folder}/{name}.sock"]))
    sockets = {
        name: stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=128)) for name in SERVICES
    }
    ports = {name: each.getsockname()[1] for name, each in sockets.items()}
    file = folder / "mesh.yaml"
    file.write_text(Template((HERE / "mesh.yaml").read_text()).substitute(ports))
    address = control_plane(stack, file)
    services = stack.enter_context(ExitStack())
    for name, (module, environment) in SERVICES.items():
        command = (
            "gunicorn",
            "--config",
            str(HERE / "gunicorn_conf.py"),
            "--bind",
            f"fd://{sockets[name].fileno()}",
        )
        process = running(
            *command,
            f"examples.flask_app.{module}:app",
            give=sockets[name],
            SERVICE=module,
            OTEL_SERVICE_NAME=module,
            OTEL_RESOURCE_ATTRIBUTES="service.namespace=shop",
            GRPC_XDS_BOOTSTRAP_CONFIG=bootstrap(address, name),
            SPIFFE_ENDPOINT_SOCKET=f"unix://{folder}/{module}.sock",
            MESHLIB_ADMIN="1",
            MESHLIB_RUN_DIR=str(folder / "run"),
            **environment,
        )
        services.enter_context(process)
    return f"http://127.0.0.1:{ports['frontend']}"


def await_processes(directory: ProcessDirectory) -> list[Process]:
    """All workers, once each of them has its configuration."""
    due, wanted = time.monotonic() + START, len(SERVICES) * WORKERS
    while True:
        found, late = directory.list(), ""
        for process in found:
            try:
                answer = directory.ask(process, "/ready")
                late = "" if answer.status == 200 else f"{process.service}: {answer.body.decode().strip()}"
            except AdminError as error:
                late = str(error)
            if late:
                break
        if len(found) == wanted and not late:
            return list(found)
        if time.monotonic() > due:
            raise SystemExit(f"{len(found)} of {wanted} workers have started. {late}")
        time.sleep(0.1)


def show(url: str, directory: ProcessDirectory) -> bool:
    """Send requests; print who answered, and what the mesh did for it. Returns whether all succeeded."""
    with httpx.Client(base_url=url, trust_env=False, timeout=30) as client, ThreadPoolExecutor(4) as pool:
        responses = list(pool.map(lambda number: client.get(f"/books/{number}"), range(REQUESTS)))
    failed = [response for response in responses if response.status_code != 200]
    pages = [response.json() for response in responses if response.status_code == 200]
    versions = Counter(page["reviews"]["version"] for page in pages)
    workers = Counter(page["worker"] for page in pages)
    retries = sum(page["reviews"]["attempts"] - 1 for page in pages)
    models: list[dict[str, Any]] = [
        directory.ask(process, "/mesh.json").json() for process in directory.list()
    ]
    ejected = sum(len(model["ejections"]) for model in models)
    print(f"{REQUESTS} requests, {len(failed)} failed")
    for version, count in sorted(versions.items()):
        print(f"  answered by reviews {version}: {count}")
    for worker, count in sorted(workers.items()):
        print(f"  through gunicorn's worker {worker}: {count}")
    print(f"  calls to ratings that were tried again: {retries}")
    print(f"  workers that have ejected the bad instance of ratings: {ejected}")
    for response in failed[:3]:
        print(f"  status {response.status_code}: {response.text.strip()}")
    return not failed and len(versions) == 2


def visit(url: str, each_second: float, stop: threading.Event) -> None:
    """A few visitors, so that the page has something to show."""
    with httpx.Client(base_url=url, trust_env=False, timeout=30) as client:
        book = 0
        while not stop.wait(1 / each_second):
            book += 1
            with suppress(httpx.HTTPError):
                client.get(f"/books/{book % 100}")


def run(options: argparse.Namespace) -> int:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="meshlib-flask-")))
        url = start(stack, folder)
        directory = stack.enter_context(ProcessDirectory(folder / "run"))
        page = next(each.url for each in await_processes(directory) if each.service == "frontend")
        good = show(url, directory)
        if options.once:
            return 0 if good else 1
        print(f"\nthe front end      {url}/books/1")
        print(f"the page           {page}/")
        print(f"traces             {page}/#/traces")
        print(f"for Prometheus     {page}/stats/prometheus")
        print(f"the configuration  {folder}/mesh.yaml: change the weights, and look at the page")
        print("Ctrl-C ends it", flush=True)
        if options.open:
            webbrowser.open(page)
        ended = threading.Event()
        visitors = threading.Thread(target=visit, args=(url, options.visitors, ended))
        if options.visitors > 0:
            visitors.start()
            stack.callback(visitors.join)
        stack.callback(ended.set)
        SimpleQueue[None]().get()  # for ever: until a signal
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m examples.flask_app",
        description="A Flask front end and two back ends on gunicorn, in a mesh with mTLS.",
    )
    parser.add_argument("--once", action="store_true", help="end after the first requests, not at Ctrl-C")
    parser.add_argument("--open", action="store_true", help="show the page of the front end in a browser")
    parser.add_argument(
        "--visitors", type=float, default=5.0, metavar="N", help="requests a second while it runs; 0: none"
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return run(parser.parse_args())
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    sys.exit(main())

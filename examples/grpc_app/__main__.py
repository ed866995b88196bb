"""Starts everything, shows who answers, and ends everything: `python -m examples.grpc_app [--once] [--ccore]`.

Two versions of `reviews` and the front end, `books`, each in a process of its own on a free port of 127.0.0.1; a control plane
(`meshlib serve`) on a Unix socket, which all of them know before it is there; and a client.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from queue import SimpleQueue
from string import Template

from examples.grpc_app.channels import CCORE

HERE = Path(__file__).resolve().parent
LISTENING = "listening on "


@contextmanager
def running(*arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A process of this Python that ends with the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", *arguments],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        text=True,
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


def said(process: subprocess.Popen[str], start: str) -> str:
    """The rest of the first line that begins so."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(start):
            return line.removeprefix(start).strip()
    raise SystemExit(f"a process ended before it had said {start!r}")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m examples.grpc_app",
        description="A gRPC front end and two versions of its back end, in a mesh.",
    )
    parser.add_argument("--once", action="store_true", help="end after the client instead of at Ctrl-C")
    parser.add_argument(
        "--ccore", action="store_true", help="call through grpcio's own xds: instead of meshlib"
    )
    options = parser.parse_args()
    stop: SimpleQueue[None] = SimpleQueue()  # a handler may interrupt its get(); not so an Event's wait()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.put(None))
    with ExitStack() as last, ExitStack() as stack:  # the control plane ends after those that listen to it
        folder = Path(last.enter_context(tempfile.TemporaryDirectory(prefix="meshlib-grpc-")))
        control_plane = f"unix:{folder}/ads.sock"
        server = {"server_uri": control_plane, "channel_creds": [{"type": "insecure"}]}
        bootstrap = json.dumps({"xds_servers": [server], "node": {"id": "grpc-app"}})
        environment = {"GRPC_XDS_BOOTSTRAP_CONFIG": bootstrap, CCORE: "1" if options.ccore else ""}

        ports = {}
        for name, module, version in (
            ("v1_port", "reviews", "v1"),
            ("v2_port", "reviews", "v2"),
            ("books_port", "books", ""),
        ):
            process = running(f"examples.grpc_app.{module}", VERSION=version, **environment)
            ports[name] = said(stack.enter_context(process), LISTENING)

        file = folder / "mesh.yaml"
        file.write_text(Template((HERE / "mesh.yaml").read_text()).substitute(ports))
        process = running("meshlib.cli", "serve", str(file), "--listen", control_plane)
        said(last.enter_context(process), "export GRPC_XDS_BOOTSTRAP_CONFIG=")

        result = subprocess.run(
            [sys.executable, "-m", "examples.grpc_app.client"], env={**os.environ, **environment}, check=False
        )
        if not options.once:
            print(f"\nchange the weights in {file}, then ask again, in another terminal:")
            settings = " ".join(f"{name}='{value}'" for name, value in environment.items())
            print(f"{settings} {sys.executable} -m examples.grpc_app.client")
            print("Ctrl-C ends it", flush=True)
            stop.get()
    return result.returncode


if __name__ == "__main__":
    sys.exit(main())

"""The examples of docs/server.md, as they stand there, as processes of their own."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import httpx
import pytest

from tests.identity.ca import Issued, TestCA
from tests.ports import reserved
from tests.server.identities import client_context

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"```(?:python|yaml)\n# (?P<name>[\w.]+)\n(?P<text>.*?)```", re.DOTALL)
WEB, OTHER = "spiffe://prod.example/ns/shop/sa/web", "spiffe://prod.example/ns/shop/sa/other"
LIMIT = 50.0

pytestmark = pytest.mark.timeout(150)


def files(folder: Path, port: int, identity: Path) -> None:
    """Every named example; only where it finds its identity, and the port, are put in."""
    found = {match["name"]: match["text"] for match in BLOCK.finditer((ROOT / "docs/server.md").read_text())}
    assert len(found) == 6
    for name, text in found.items():
        text = text.replace('"unix:///run/spire/agent.sock"', repr(str(identity)))
        (folder / name).write_text(
            text.replace("0.0.0.0:8443", f"127.0.0.1:{port}").replace("8443", str(port))
        )


class Place:
    """A folder with the examples, the identity of the server in it, and the port that it is to listen at."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.port, self.ca = folder, port, TestCA("prod.example")
        identity = folder / "identity"
        identity.mkdir()
        issued = self.ca.issue("spiffe://prod.example/ns/shop/sa/shop", dns=["localhost"])
        (identity / "tls.crt").write_bytes(issued.chain)
        (identity / "tls.key").write_bytes(issued.key)
        (identity / "ca.crt").write_bytes(self.ca.pem)
        files(folder, self.port, identity)

    @contextlib.contextmanager
    def running(self, *arguments: str) -> Iterator[None]:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        with process:
            try:
                self._await(process)
                yield
            finally:
                process.send_signal(signal.SIGTERM)
                try:
                    process.communicate(timeout=LIMIT)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    pytest.fail(f"still running: {process.communicate()[0]}")

    def _await(self, process: subprocess.Popen[str]) -> None:
        due = time.monotonic() + LIMIT
        while time.monotonic() < due and process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return
            time.sleep(0.05)
        process.kill()
        pytest.fail(f"does not listen: {process.communicate()[0]}")

    def context(self, issued: Issued | None) -> ssl.SSLContext:
        return client_context(self.folder, self.ca, issued)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with reserved() as port:
        yield Place(tmp_path, port)


@pytest.mark.parametrize(
    "command",
    [
        ("shop_uvicorn.py",),
        ("shop_hypercorn.py",),
        ("-m", "gunicorn", "shop:app"),
        ("-m", "gunicorn", "shop:app", "-k", "sync"),
    ],
    ids=["uvicorn", "hypercorn", "gunicorn-gthread", "gunicorn-sync"],
)
def test_http(command: tuple[str, ...], place: Place) -> None:
    url = f"https://127.0.0.1:{place.port}/"
    with place.running(*command):
        with httpx.Client(verify=place.context(place.ca.issue(WEB)), timeout=10) as client:
            for _ in range(3):
                answer = client.get(url)
                assert (answer.status_code, answer.text) == (200, f"Hello, {WEB}")
            assert client.post(url).status_code == 403
        with httpx.Client(verify=place.context(place.ca.issue(OTHER)), timeout=10) as client:
            assert (client.get(url).status_code, client.get(url).text) == (403, "RBAC: access denied")
        for issued in (None, place.ca.issue(WEB, OTHER), TestCA("prod.example").issue(WEB)):
            with httpx.Client(verify=place.context(issued), timeout=10) as client:
                with pytest.raises(httpx.TransportError):
                    client.get(url)


def test_grpc(place: Place) -> None:
    issued = place.ca.issue(WEB)
    with place.running("shop_grpc.py"):
        credentials = grpc.ssl_channel_credentials(place.ca.pem, issued.key, issued.chain)
        options = [("grpc.ssl_target_name_override", "localhost")]
        with grpc.secure_channel(f"127.0.0.1:{place.port}", credentials, options) as channel:
            call = channel.unary_unary("/shop.Shop/Hello", _registered_method=False)
            assert call(b"", timeout=10, wait_for_ready=True) == f"Hello, {WEB}".encode()


def test_the_rules_are_envoys(place: Place) -> None:
    import yaml

    from meshlib.server.rbac_source import load_rbac

    path = place.folder / "rbac.yaml"
    assert load_rbac(path) == load_rbac(yaml.safe_load(path.read_text()))
    as_json = place.folder / "rbac.json"
    as_json.write_text(json.dumps(yaml.safe_load(path.read_text())))
    assert load_rbac(as_json) == load_rbac(path)

"""What a compiled build is trained with, so that the C compiler knows which code runs often (`scripts/compiled.py`).

    PYTHONPATH=FOLDER python -m scripts.training        FOLDER: of a compiled build

Calls as services make them, over loopback, in plaintext and over mTLS: httpx and gRPC, blocking and on asyncio, one at a time and
many at once, by several routes and load balancers, with retries, bodies and streams, while endpoints come and go.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import importlib.util
import ssl
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import grpc
import httpx

import meshlib
import meshlib.grpc
from meshlib import testing
from meshlib.controlplane.ca import Authority
from meshlib.controlplane.ca.files import replace_files, svid_files
from meshlib.httpx import AsyncMeshTransport, MeshTransport

CALLS = 1500
"""Of each kind, one at a time. Of everything else a part."""

AT_ONCE = 32

TRUST_DOMAIN = "training.example"
SPIFFE_ID = f"spiffe://{TRUST_DOMAIN}/everybody"

BALANCERS = ("ROUND_ROBIN", "LEAST_REQUEST", "RANDOM", "RING_HASH", "MAGLEV")

PATHS = ("/api/items/17", "/api/items/18?details=all", "/items/4711", "/healthz", "/")

_TLS = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3"


class NotCompiled(Exception):
    """There is nothing to train."""


class _Answers(http.server.BaseHTTPRequestHandler):
    """Echoes bodies. What is asked of `/unsteady/` fails once."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    _failed: ClassVar[set[str]] = set()

    def _answer(self) -> None:
        body = (
            self.rfile.read(int(self.headers.get("content-length", 0))) or b'{"item": 17, "name": "training"}'
        )
        fails = self.path.startswith("/unsteady/") and self.path not in self._failed
        self._failed.add(self.path)
        self.send_response(503 if fails else 200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = _answer  # noqa: N815 - the base class looks for these names

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 - the base class's
        """Nothing is said."""


@contextlib.contextmanager
def _http(context: ssl.SSLContext | None) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Answers)
    server.daemon_threads = True
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _echo(request: bytes, _context: grpc.ServicerContext) -> bytes:
    return request


def _repeat(request: bytes, _context: grpc.ServicerContext) -> Iterator[bytes]:
    yield from [request] * 20


@contextlib.contextmanager
def _grpc(credentials: grpc.ServerCredentials | None) -> Iterator[str]:
    methods = {
        "Echo": grpc.unary_unary_rpc_method_handler(_echo),
        "Repeat": grpc.unary_stream_rpc_method_handler(_repeat),
    }
    with ThreadPoolExecutor(AT_ONCE) as executor:
        server = grpc.server(executor)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("training.Training", methods),))
        port = (
            server.add_insecure_port("127.0.0.1:0")
            if credentials is None
            else server.add_secure_port("127.0.0.1:0", credentials)
        )
        server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            server.stop(None).wait()


def _server_context(folder: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "tls.crt", folder / "tls.key")
    context.load_verify_locations(folder / "ca.crt")
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def _server_credentials(folder: Path) -> grpc.ServerCredentials:
    key, chain, roots = ((folder / name).read_bytes() for name in ("tls.key", "tls.crt", "ca.crt"))
    return grpc.ssl_server_credentials([(key, chain)], roots, require_client_auth=True)


def _transport_socket(folder: Path) -> dict[str, Any]:
    san = {"san_type": "URI", "matcher": {"exact": SPIFFE_ID}}
    common = {
        "tls_certificates": [{
            "certificate_chain": {"filename": str(folder / "tls.crt")},
            "private_key": {"filename": str(folder / "tls.key")},
        }],
        "validation_context": {
            "trusted_ca": {"filename": str(folder / "ca.crt")},
            "match_typed_subject_alt_names": [san],
        },
    }  # fmt: skip
    return {
        "name": "envoy.transport_sockets.tls",
        "typed_config": {"@type": f"{_TLS}.UpstreamTlsContext", "common_tls_context": common},
    }


def _service(
    name: str, *addresses: str, lb_policy: str = BALANCERS[0], tls: dict[str, Any] | None = None
) -> dict[str, Any]:
    """As most configurations have it: some routes, a header that decides, a part of the calls elsewhere, limits."""
    document = testing.service(name, *addresses)
    _, routes, cluster, _ = document["resources"]
    retries = {
        "retry_on": "5xx,reset,connect-failure",
        "num_retries": 2,
        "retry_back_off": {"base_interval": "0.001s"},
    }
    action: dict[str, Any] = {"timeout": "30s", "retry_policy": retries}
    if lb_policy in ("RING_HASH", "MAGLEV"):
        action["hash_policy"] = [{"header": {"header_name": "x-user"}}]
    split = {"weighted_clusters": {"clusters": [{"name": name, "weight": 80}, {"name": name, "weight": 20}]}}
    to = action | {"cluster": name}
    canary = [{"name": "x-canary", "string_match": {"exact": "always"}}]
    routes["virtual_hosts"][0]["domains"] = [name, f"{name}:80", f"*.{name}"]
    routes["virtual_hosts"][0]["routes"] = [
        {"match": {"path": "/healthz"}, "route": {"cluster": name}},
        {"match": {"prefix": "/api/", "headers": canary}, "route": to},
        {"match": {"prefix": "/api/"}, "route": action | split},
        {"match": {"path_separated_prefix": "/items"}, "route": to},
        {"match": {"prefix": "/"}, "route": to},
    ]
    cluster |= {
        "lb_policy": lb_policy,
        "circuit_breakers": {"thresholds": [{"max_requests": 4096, "max_connections": 4096}]},
        "outlier_detection": {"consecutive_5xx": 1000, "enforcing_success_rate": 0},
    }
    if tls is not None:
        cluster["transport_socket"] = tls
    return document


def _path(number: int) -> str:
    return PATHS[number % len(PATHS)] if number % 25 else f"/unsteady/{number}"


def _headers(number: int) -> dict[str, str]:
    return {"x-user": f"user-{number % 97}", "x-request-source": "training"}


def _httpx(mesh: meshlib.Mesh, service: str, calls: int) -> None:
    with httpx.Client(transport=MeshTransport(mesh), base_url=f"http://{service}") as client:
        for number in range(calls):
            path = _path(number)
            if number % 6:
                answer = client.get(path, headers=_headers(number))
            else:
                answer = client.post(path, headers=_headers(number), json={"number": number})
            answer.raise_for_status()
        with ThreadPoolExecutor(8) as threads:
            for answer in threads.map(client.get, [PATHS[0]] * (calls // 4)):
                answer.raise_for_status()


async def _httpx_async(mesh: meshlib.Mesh, service: str, calls: int) -> None:
    async with httpx.AsyncClient(transport=AsyncMeshTransport(mesh), base_url=f"http://{service}") as client:

        async def call(first: int, count: int) -> None:
            for number in range(first, first + count):
                answer = await client.get(_path(number), headers=_headers(number))
                answer.raise_for_status()

        await call(0, calls)
        await asyncio.gather(*(call(number, calls // AT_ONCE) for number in range(AT_ONCE)))


def _grpc_sync(mesh: meshlib.Mesh, service: str, calls: int) -> None:
    with meshlib.grpc.channel(f"{service}:80", mesh=mesh) as channel:
        echo = channel.unary_unary("/training.Training/Echo")
        repeat = channel.unary_stream("/training.Training/Repeat")
        for number in range(calls):
            echo(b"a request" * 10, timeout=30.0, metadata=[("x-user", f"user-{number % 97}")])
        for _ in range(calls // 20):
            assert sum(1 for _ in repeat(b"a message", timeout=30.0)) == 20


async def _grpc_aio(mesh: meshlib.Mesh, service: str, calls: int) -> None:
    async with meshlib.grpc.aio_channel(f"{service}:80", mesh=mesh) as channel:
        echo = channel.unary_unary("/training.Training/Echo")
        repeat = channel.unary_stream("/training.Training/Repeat")

        async def call(count: int) -> None:
            for _ in range(count):
                await echo(b"a request" * 10, timeout=30.0)

        await call(calls)
        await asyncio.gather(*(call(calls // AT_ONCE) for _ in range(AT_ONCE)))
        for _ in range(calls // 20):
            assert [None async for _ in repeat(b"a message", timeout=30.0)] == [None] * 20


def train(calls: int = CALLS) -> None:
    """Make all calls. Raises what a call does: each must succeed."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="meshlib-training-")))
        authority = Authority(TRUST_DOMAIN)
        replace_files(folder, svid_files(authority.issue(SPIFFE_ID), authority.bundles, 1))
        tls = _transport_socket(folder)
        web = [stack.enter_context(_http(None)) for _ in range(2)]
        secure_web = [stack.enter_context(_http(_server_context(folder))) for _ in range(2)]
        rpc = stack.enter_context(_grpc(None))
        secure_rpc = stack.enter_context(_grpc(_server_credentials(folder)))
        balanced = {f"web-{policy.lower()}": policy for policy in BALANCERS}
        control_plane = stack.enter_context(
            testing.serve(
                _service("secure-web", *secure_web, tls=tls),
                _service("rpc", rpc),
                _service("secure-rpc", secure_rpc, tls=tls),
                *(_service(name, *web, lb_policy=policy) for name, policy in balanced.items()),
            )
        )
        mesh = stack.enter_context(meshlib.Mesh(bootstrap=control_plane.bootstrap()))
        main = next(iter(balanced))
        for service in (main, "secure-web"):
            _httpx(mesh, service, calls)
            asyncio.run(_httpx_async(mesh, service, calls))
        for number in range(20):
            pushed = testing.messages(_service(main, *web[: 1 + number % 2]))
            control_plane.store.update(*pushed)
            _httpx(mesh, main, calls // 100)
        for service in balanced:
            _httpx(mesh, service, calls // 10)
        for service in ("rpc", "secure-rpc"):
            _grpc_sync(mesh, service, calls)
            asyncio.run(_grpc_aio(mesh, service, calls))


def main() -> int:
    found = importlib.util.find_spec("meshlib.engine.call")
    if found is None or found.origin is None or found.origin.endswith(".py"):
        raise NotCompiled("meshlib is not compiled here: put the folder of a compiled build on PYTHONPATH")
    train()
    return 0


if __name__ == "__main__":
    sys.exit(main())

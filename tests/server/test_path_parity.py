"""The same listeners in a real Envoy and around a server of ours: the same paths pass, arrive, are redirected or refused."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
import uvicorn

from meshlib.mesh import Mesh
from meshlib.server import asgi
from meshlib.server.inbound import Inbound
from tests.server.envoy_server import running

pytestmark = [pytest.mark.envoy, pytest.mark.timeout(300)]

HTTP = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
LISTENER = "type.googleapis.com/envoy.config.listener.v3.Listener"
FILTERS = "type.googleapis.com/envoy.extensions.filters.http"
Answer = tuple[int, str | None, str]

ACTIONS = ("KEEP_UNCHANGED", "REJECT_REQUEST", "UNESCAPE_AND_REDIRECT", "UNESCAPE_AND_FORWARD")
MANAGERS: dict[str, dict[str, Any]] = {
    f"{action}-{normalize:d}{merge:d}": {
        "path_with_escaped_slashes_action": action,
        "normalize_path": normalize,
        "merge_slashes": merge,
    }
    for action in ACTIONS
    for normalize in (False, True)
    for merge in (False, True)
}
PATHS = (
    "/", "//", "///", "/?", "//?//", "/.", "/..", "/admin", "/admin/", "//admin", "/public/../admin", "/public/%2e%2E/admin",
    "/public/..;x/admin", "/public/%2e%2e;x/admin", "/public/..\\admin", "/public/..%2fadmin", "/public/..%5Cadmin",
    "/public%2f..%2Fadmin", "/%61dmin", "/admi%6e/x", "/%2561dmin", "/admin/../public", "/public?/../admin", "/a//b///?c=//",
    "/a/%00", "/a/..%00", "/%2f%00", "/a#b", "/a?b#c", "/%", "/%%30%30", "/%%300", "/a%3fb%23c", "/a/...", "/a/.b/..c",
    "/%c3%a9%7e%3A", "/<>^`{|}", "/a;b/..;c/d;e", "/%2f%2fevil.example", "/\\evil.example",
)  # fmt: skip
PIECES = (
    "/", "/", "//", "/admin", ".", "..", "%2e", "%2f", "%5c", "\\", "%", "%%", "%0", "3", "e", "A", "%30", "%32", "%41", "%65",
    ";", "..;", "?", "~", "<",
)  # fmt: skip


def listener(name: str, manager: dict[str, Any]) -> dict[str, Any]:
    """Whoever asks for something below /admin is refused; everybody else is told the path that has arrived."""
    rule = {"url_path": {"path": {"prefix": "/admin"}}}
    policy = {"permissions": [rule], "principals": [{"any": True}]}
    rbac = {
        "@type": f"{FILTERS}.rbac.v3.RBAC",
        "rules": {"action": "DENY", "policies": {"p": policy}},
    }
    told = {"body_format": {"text_format_source": {"inline_string": "%REQ(:path)%"}}}
    route = {"match": {"prefix": ""}, "direct_response": {"status": 200, **told}}
    http_filter = {
        "@type": HTTP,
        "stat_prefix": name,
        "route_config": {"virtual_hosts": [{"name": "v", "domains": ["*"], "routes": [route]}]},
        "http_filters": [
            {"name": "rbac", "typed_config": rbac},
            {"name": "router", "typed_config": {"@type": f"{FILTERS}.router.v3.Router"}},
        ],
        **manager,
    }
    return {
        "name": name,
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
        "filter_chains": [{"filters": [{"name": "http", "typed_config": http_filter}]}],
    }


async def application(scope: Any, receive: Any, send: Any) -> None:
    path, query = scope["raw_path"], scope["query_string"]
    body = b"%s?%s" % (path, query) if query else path
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def listening() -> socket.socket:
    """asyncio switches Nagle's algorithm off only for sockets that say that they are TCP."""
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    made.bind(("127.0.0.1", 0))
    made.listen()
    return made


@contextlib.contextmanager
def serving(listeners: list[dict[str, Any]]) -> Iterator[dict[str, int]]:
    """The port of each listener; one uvicorn serves them all."""
    with contextlib.ExitStack() as stack:
        mesh = stack.enter_context(
            Mesh(config=[{"resources": [{"@type": LISTENER, **each} for each in listeners]}])
        )
        sockets = {each["name"]: stack.enter_context(listening()) for each in listeners}
        ports = {name: each.getsockname()[1] for name, each in sockets.items()}
        apps: dict[int, Any] = {
            port: asgi.MeshMiddleware(application, Inbound(mesh, listener=name))
            for name, port in ports.items()
        }

        async def chosen(scope: Any, receive: Any, send: Any) -> None:
            await apps[scope["server"][1]](scope, receive, send)

        config = uvicorn.Config(chosen, lifespan="off", log_level="critical", ws="none", http="h11")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": list(sockets.values())})
        thread.start()
        try:
            yield ports
        finally:
            server.should_exit = True
            thread.join()


class Client:
    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)

    def ask(self, path: str) -> Answer:
        """Status, location and body."""
        self._connection.putrequest("GET", path, skip_accept_encoding=True)
        self._connection.endheaders()
        response = self._connection.getresponse()
        location, body = response.headers.get("location"), response.read().decode()
        return response.status, location and _bare(location), _bare(body)

    def close(self) -> None:
        self._connection.close()


def _bare(path: str) -> str:
    """ASGI does not tell `/a?` from `/a`."""
    return path[:-1] if path.find("?") == len(path) - 1 else path


def paths(random: Random, count: int) -> Iterator[str]:
    yield from PATHS
    for _ in range(count):
        yield "/" + "".join(random.choices(PIECES, k=random.randrange(1, 12)))


def test_paths(tmp_path: Path) -> None:
    listeners = [listener(name, manager) for name, manager in MANAGERS.items()]
    random = Random(7)
    found = []
    with running(tmp_path, listeners) as envoy, serving(listeners) as ports:
        for name, port in ports.items():
            with (
                contextlib.closing(Client(envoy.ports[name])) as theirs,
                contextlib.closing(Client(port)) as ours,
            ):
                for path in paths(random, 150):
                    expected, got = theirs.ask(path), ours.ask(path)
                    if expected != got:
                        found.append(f"{name} {path}: Envoy {expected}, meshlib {got}")
    assert found == []

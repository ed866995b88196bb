"""The same admin over WSGI, over ASGI, and on its own server, which clients may treat as they like."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

import meshlib
from meshlib.admin import server
from meshlib.admin.admin import Admin, Serving
from meshlib.admin.calls import Tap
from meshlib.admin.client import AdminError, by_url
from meshlib.admin.http import Request


@pytest.fixture
def serving(admin: Admin) -> Iterator[Serving]:
    with admin.serve("127.0.0.1:0") as listening:
        yield listening


def raw(address: str, data: bytes, *, shut: bool = True) -> bytes:
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(data)
        if shut:
            connection.shutdown(socket.SHUT_WR)
        found = bytearray()
        with contextlib.suppress(ConnectionResetError):
            while chunk := connection.recv(65536):
                found += chunk
        return bytes(found)


# --- its own server


def test_it_serves(serving: Serving) -> None:
    answer = httpx.get(f"{serving.url}/ready", trust_env=False)
    assert (answer.status_code, answer.text) == (200, "LIVE\n")
    assert answer.headers["connection"] == "close"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert httpx.head(f"{serving.url}/ready", trust_env=False).text == ""


def test_only_names_of_this_machine(serving: Serving) -> None:
    answer = raw(serving.address, b"GET /ready HTTP/1.1\r\nHost: evil.test\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 403 ")


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET /ready\r\n\r\n", 400),
        (b"GET /ready HTTP/2.0\r\n\r\n", 400),
        (b"GET ready HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"GET http://localhost/ready HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"G\x00T /ready HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"GET /ready HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\n\r\n", 400),
        (b"GET /ready HTTP/1.1\r\n Host: localhost\r\n\r\n", 400),
        (b"GET /ready HTTP/1.1\r\nHost : localhost\r\n\r\n", 400),
        (b"GET /ready HTTP/1.1\r\nHost: localhost\r\nx: a\nb: c\r\n\r\n", 400),
        (b"GET /\xff HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"GET /ready HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n", 501),
        (b"GET /ready HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n", 413),
        (b"GET /ready HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999999999999\r\n\r\n", 413),
        (b"GET /ready HTTP/1.1\r\nHost: localhost\r\nx: " + b"y" * 20_000 + b"\r\n\r\n", 431),
        (b"GET /ready?" + b"&".join([b"a=b"] * 100) + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"GET /ready HTTP/1.1\r\nHost: loc", 400),
        (b"POST /healthcheck/fail HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\nabc", 401),
        (b"GET /ready HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\nab", 200),
        (b"GET //ready// HTTP/1.1\r\nHost: localhost\r\n\r\n", 200),
        (b"GET /%2e%2e/ready HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        (b"GET /static/..%2fmodel.py HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
    ],
)
def test_hostile_requests(serving: Serving, data: bytes, status: int) -> None:
    assert raw(serving.address, data).startswith(f"HTTP/1.1 {status} ".encode())
    assert httpx.get(f"{serving.url}/ready", trust_env=False).status_code == 200


def test_one_who_only_looks(serving: Serving) -> None:
    assert raw(serving.address, b"") == b""


def test_one_who_says_nothing_loses_the_connection(admin: Admin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "READ_TIMEOUT", 0.05)
    with admin.serve("127.0.0.1:0") as serving:
        assert raw(serving.address, b"GET /", shut=False).startswith(b"HTTP/1.1 408 ")


def test_there_are_only_so_many_connections(admin: Admin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MOST_CONNECTIONS", 2)
    with admin.serve("127.0.0.1:0") as serving:
        host, _, port = serving.address.rpartition(":")
        waiting = [socket.create_connection((host, int(port))) for _ in range(2)]
        assert raw(serving.address, b"", shut=False).startswith(b"HTTP/1.1 503 ")
        for connection in waiting:
            connection.close()


def test_without_descriptors_it_waits(serving: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    accept = socket.socket.accept
    monkeypatch.setattr(server, "REST", 0.01)
    failed: list[socket.socket] = []

    def fail_twice(listener: socket.socket) -> Any:
        if len(failed) < 2:
            failed.append(listener)
            raise OSError(errno.EMFILE, "Too many open files")
        return accept(listener)

    monkeypatch.setattr(socket.socket, "accept", fail_twice)
    assert httpx.get(f"{serving.url}/ready", trust_env=False).status_code == 200
    assert len(failed) == 2


def test_closing_ends_what_goes_on(admin: Admin, mesh: meshlib.Mesh) -> None:
    serving = admin.serve("127.0.0.1:0")
    lines = by_url(serving.url).lines("/tap")
    ended = threading.Event()

    def follow() -> None:
        with contextlib.suppress(AdminError):
            list(lines)
        ended.set()

    thread = threading.Thread(target=follow)
    thread.start()
    while not any(isinstance(member, Tap) for member in mesh.engine.observers.members):
        time.sleep(0.01)
    serving.close()
    serving.close()
    assert ended.wait(10)
    thread.join()


def test_a_handler_that_fails_is_an_answer(
    serving: Serving, admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_request: Request) -> None:
        raise RuntimeError("a mistake")

    monkeypatch.setattr(admin.handler, "handle", fail)
    assert httpx.get(f"{serving.url}/ready", trust_env=False).status_code == 500


def test_a_url_is_asked(serving: Serving) -> None:
    assert by_url(serving.url).ask("/ready").body == b"LIVE\n"
    assert by_url(serving.url + "/").ask("/server_info").json()["pid"] == os.getpid()
    with pytest.raises(meshlib.ConfigError, match="not a URL"):
        by_url("ftp://localhost")
    with pytest.raises(AdminError, match="404 for /nothing"):
        list(by_url(serving.url).lines("/nothing"))


# --- WSGI


def wsgi(admin: Admin, target: str, **environ: str) -> tuple[str, dict[str, str], Any]:
    path, _, query = target.partition("?")
    told: list[Any] = []
    body = admin(
        {
            "REQUEST_METHOD": "GET",
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "REMOTE_ADDR": "127.0.0.1",
            "HTTP_HOST": "localhost",
            **environ,
        },
        lambda status, headers: told.extend((status, dict(headers))),
    )
    return told[0], told[1], body


def test_wsgi(admin: Admin) -> None:
    status, headers, body = wsgi(admin, "/stats?filter=upstream_rq_total")
    assert (status, headers["content-type"]) == ("200 OK", "text/plain; charset=utf-8")
    assert b"".join(body).startswith(b"cluster.reviews.upstream_rq_total: 0\n")
    assert list(wsgi(admin, "/ready", REQUEST_METHOD="HEAD")[2]) == []
    assert wsgi(admin, "/ready", REMOTE_ADDR="10.0.0.1")[0] == "403 Forbidden"
    assert wsgi(admin, "/ready", HTTP_HOST="evil.test")[0] == "403 Forbidden"
    assert wsgi(admin, "")[0] == "200 OK"
    assert wsgi(admin, "/x?" + "&".join(["a"] * 100))[0] == "400 Bad Request"


def test_wsgi_follows_calls(admin: Admin, client: httpx.Client) -> None:
    _, headers, body = wsgi(admin, "/tap")
    assert headers["content-type"] == "application/x-ndjson"
    client.get("http://reviews/gone")
    assert json.loads(next(iter(body)))["status"] == 410
    body.close()
    assert next(iter(body), None) is None


# --- ASGI


async def asgi(admin: Admin, target: str, **scope: Any) -> list[dict[str, Any]]:
    path, _, query = target.partition("?")
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(3600)
        return {}

    async def send(message: Any) -> None:
        sent.append(dict(message))

    made = {
        "type": "http",
        "method": "GET",
        "path": path,
        "query_string": query.encode(),
        "headers": [(b"host", b"localhost")],
        "client": ("127.0.0.1", 1),
        **scope,
    }
    await admin(made, receive, send)
    return sent


def test_asgi(admin: Admin) -> None:
    start, body = asyncio.run(asgi(admin, "/ready"))
    assert (start["status"], body["body"]) == (200, b"LIVE\n")
    assert (b"referrer-policy", b"no-referrer") in start["headers"]
    assert asyncio.run(asgi(admin, "/mounted/ready", root_path="/mounted"))[0]["status"] == 200
    assert asyncio.run(asgi(admin, "/ready", client=("10.0.0.1", 1)))[0]["status"] == 403
    assert asyncio.run(asgi(admin, "/ready", client=None))[0]["status"] == 200
    assert asyncio.run(asgi(admin, "/ready", method="HEAD"))[1]["body"] == b""
    with pytest.raises(RuntimeError, match="websocket"):
        asyncio.run(asgi(admin, "/ready", type="websocket"))


def test_asgi_lifespan(admin: Admin) -> None:
    async def run() -> list[str]:
        messages = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])
        sent: list[str] = []

        async def receive() -> dict[str, Any]:
            return next(messages)

        async def send(message: Any) -> None:
            sent.append(message["type"])

        await admin({"type": "lifespan"}, receive, send)
        return sent

    assert asyncio.run(run()) == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


def test_asgi_follows_calls_until_the_client_leaves(admin: Admin, client: httpx.Client) -> None:
    async def run() -> list[dict[str, Any]]:
        sent: list[dict[str, Any]] = []
        leave = asyncio.Event()

        async def receive() -> dict[str, Any]:
            await leave.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(dict(message))
            if message["type"] == "http.response.start":
                await asyncio.to_thread(client.get, "http://reviews/gone")
            elif b"410" in message["body"]:
                leave.set()

        scope = {"type": "http", "method": "GET", "path": "/tap", "query_string": b"", "client": None}
        await admin({**scope, "headers": [(b"host", b"localhost")]}, receive, send)
        return sent

    sent = asyncio.run(run())
    assert [message["type"] for message in sent][:2] == ["http.response.start", "http.response.body"]
    assert json.loads(sent[1]["body"])["status"] == 410

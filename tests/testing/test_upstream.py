from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import httpx
import pytest

from meshlib.testing import Close, Drip, Hang, Reply, Request, Reset, Upstream


@pytest.fixture
def client() -> Iterator[httpx.Client]:
    with httpx.Client(timeout=5, trust_env=False) as made:
        yield made


def test_the_script_then_the_default(client: httpx.Client) -> None:
    script = [Reply(status=503, body=b"no", headers=(("x-a", "1"),)), Reply(status=204)]
    with Upstream(script, default=Reply(body=b"hello")) as upstream:
        answers = [client.get(f"http://{upstream.address}/p?q=1") for _ in range(4)]
        assert [(a.status_code, a.content) for a in answers] == [
            (503, b"no"),
            (204, b""),
            (200, b"hello"),
            (200, b"hello"),
        ]
        assert answers[0].headers["x-a"] == "1"
        assert upstream.connections == 1


def test_requests_are_recorded(client: httpx.Client) -> None:
    with Upstream() as upstream:
        client.post(f"http://{upstream.address}/a%20b", content=iter([b"one", b"two"]), headers={"X-B": "c"})
        (request,) = upstream.wait_for_requests(1)
        assert (request.method, request.target, request.body, request.connection) == (
            "POST",
            "/a%20b",
            b"onetwo",
            0,
        )
        assert request.header("x-b") == "c"
        assert request.header("x-c") is None


def test_a_function_decides(client: httpx.Client) -> None:
    def choose(request: Request) -> Reply:
        return Reply(body=request.target.encode())

    with Upstream(choose) as upstream:
        assert client.get(f"http://{upstream.address}/x").content == b"/x"


def test_head_has_no_body(client: httpx.Client) -> None:
    with Upstream(default=Reply(body=b"12345")) as upstream:
        answer = client.head(f"http://{upstream.address}/")
        assert (answer.content, answer.headers["content-length"]) == (b"", "5")
        assert client.get(f"http://{upstream.address}/").content == b"12345"


def test_resets_and_closes(client: httpx.Client) -> None:
    with Upstream(
        [Reset(), Close(), Close(after=b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc")]
    ) as upstream:
        with pytest.raises(httpx.ReadError):
            client.get(f"http://{upstream.address}/")
        with pytest.raises(httpx.RemoteProtocolError):
            client.get(f"http://{upstream.address}/")
        with pytest.raises(httpx.RemoteProtocolError, match="received 3 bytes, expected 9"):
            client.get(f"http://{upstream.address}/")


def test_drip_and_hang(client: httpx.Client) -> None:
    with Upstream([Drip(body=b"abc", interval=0.001), Hang()]) as upstream:
        assert client.get(f"http://{upstream.address}/").content == b"abc"
        with pytest.raises(httpx.ReadTimeout):
            client.get(f"http://{upstream.address}/", timeout=0.05)


def test_a_restart_takes_the_same_port(client: httpx.Client) -> None:
    upstream = Upstream()
    with upstream:
        address = upstream.address
        client.get(f"http://{address}/")
    with pytest.raises(httpx.ConnectError):
        client.get(f"http://{address}/")
    with upstream:
        assert upstream.address == address
        assert client.get(f"http://{address}/").status_code == 200
    upstream.stop()


def test_bytes_that_are_no_http_end_the_connection() -> None:
    with (
        Upstream() as upstream,
        socket.create_connection((upstream.host, upstream.port), timeout=5) as connection,
    ):
        connection.sendall(b"\x00\x01\r\n\r\n")
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(1) == b""


def test_waiting_for_requests_that_do_not_come() -> None:
    with Upstream() as upstream, pytest.raises(TimeoutError, match="0 of 1"):
        upstream.wait_for_requests(1, timeout=0.01)

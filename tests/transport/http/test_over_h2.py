"""HTTP/2 upstream, where the cluster asks for it."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import httpx
import pytest

import meshlib
import meshlib.httpx
from meshlib import errors
from meshlib.resources.cluster import HttpProtocol
from meshlib.resources.route import RetryPolicy
from tests.ports import reserved
from tests.transport.http.drivers import Driver
from tests.transport.http.h2_server import H2Server
from tests.transport.http.support import FakeMesh, mesh_for, serve

H2 = HttpProtocol.HTTP2


def test_requests_share_one_connection(driver: Driver) -> None:
    script = H2Server()
    with serve(script) as server:
        mesh = mesh_for([server.port], protocol=H2)
        driver.open(mesh)
        answer = driver.get(
            "/a?b=c", headers={"X-Mixed": "1", "Connection": "x-hop", "x-hop": "1", "TE": "gzip"}
        )
        assert (answer.status_code, answer.text, answer.http_version) == (200, "hello", "HTTP/2")
        assert answer.headers["x-path"] == "/a?b=c"
        assert driver.get("/b").text == "hello"
        assert server.accepted == 1
        assert mesh.permits() == (1, 0, 0, 0)
        seen = script.requests[0]
        assert seen[":authority"] == "backend"
        assert seen[":scheme"] == "http"
        assert seen["x-mixed"] == "1"
        assert not {"connection", "host", "x-hop", "te"} & set(seen)
        driver.close_client()
        assert mesh.permits() == (0, 0, 0, 0)


@pytest.mark.parametrize("size", [0, 1, 70_000, 3_000_000])
def test_bodies_larger_than_the_windows(driver: Driver, size: int) -> None:
    with serve(H2Server()) as server:
        driver.open(mesh_for([server.port], protocol=H2))
        body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
        assert driver.request("POST", "/echo", content=body).content == body
        pieces = [body[index : index + 100_000] for index in range(0, len(body), 100_000)]
        assert driver.request("POST", "/echo", content=driver.body(pieces)).content == body
        assert server.accepted == 1


def test_reading_a_stream_in_part_keeps_the_connection_only_in_asyncio(driver: Driver) -> None:
    with serve(H2Server()) as server:
        mesh = mesh_for([server.port], protocol=H2)
        driver.open(mesh)
        assert driver.request("POST", "/echo", content=b"x" * 3_000_000).content == b"x" * 3_000_000
        _, data = driver.stream("/")
        assert data == b"hello"
        assert mesh.permits()[1:] == (0, 0, 0)


def test_refused_streams_are_retried_as_such(driver: Driver) -> None:
    retry = RetryPolicy(retry_on=frozenset(["refused-stream"]), num_retries=1)
    with serve(H2Server()) as server:
        mesh = mesh_for([server.port], protocol=H2, retry=retry)
        driver.open(mesh)
        with pytest.raises(errors.StreamReset) as caught:
            driver.get("/refuse")
        assert [attempt.failure for attempt in caught.value.attempts] == ["remote refused stream reset"] * 2
        with pytest.raises(errors.StreamReset) as caught:
            driver.get("/reset")
        assert [attempt.failure for attempt in caught.value.attempts] == ["remote reset"]
        assert caught.value.flags == "UR"
        assert driver.get("/").text == "hello"
        assert mesh.permits()[1:] == (0, 0, 0)


def test_a_connection_that_ends(driver: Driver) -> None:
    with serve(H2Server()) as server:
        mesh = mesh_for([server.port], protocol=H2)
        driver.open(mesh)
        with pytest.raises(errors.StreamReset) as caught:
            driver.get("/cut")
        assert caught.value.flags == "UC"
        assert driver.get("/goaway").text == "hello"
        assert driver.get("/").text == "hello"
        assert server.accepted == 3
        assert mesh.permits() == (1, 0, 0, 0)


def test_an_early_answer(driver: Driver) -> None:
    with serve(H2Server()) as server:
        mesh = mesh_for([server.port], protocol=H2)
        driver.open(mesh)
        answer = driver.request("POST", "/early", content=driver.body([b"x" * 100_000] * 50))
        assert answer.status_code == 413
        assert mesh.permits()[1:] == (0, 0, 0)
        assert driver.get("/").text == "hello"


def test_timeouts(driver: Driver) -> None:
    with serve(H2Server()) as server:
        mesh = mesh_for([server.port], protocol=H2)
        driver.open(mesh)
        with meshlib.call(timeout=0.05), pytest.raises(errors.DeadlineExceeded):
            driver.get("/silent")
        assert mesh.permits()[1:] == (0, 0, 0)
        assert driver.get("/").text == "hello"


def test_what_is_not_http2(driver: Driver) -> None:
    with serve(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n") as server:
        mesh = mesh_for([server.port], protocol=H2)
        driver.open(mesh)
        with pytest.raises(errors.ProtocolViolation):
            driver.get("/")
        assert mesh.permits() == (0, 0, 0, 0)


def test_nothing_listens(driver: Driver) -> None:
    with reserved() as port:
        mesh = mesh_for([port], protocol=H2)
        driver.open(mesh)
        with pytest.raises(errors.ConnectFailed):
            driver.get("/")
    assert mesh.permits() == (0, 0, 0, 0)


def test_headers_cannot_add_lines(driver: Driver) -> None:
    with serve(H2Server()) as server:
        mesh = mesh_for([server.port], protocol=H2)
        driver.open(mesh)
        with pytest.raises(driver.lib.LocalProtocolError):
            driver.get("/", headers={"x": "a\r\nb: c"})
        assert driver.get("/").text == "hello"
        assert mesh.permits()[1:] == (0, 0, 0)


def asynchronous(mesh: FakeMesh) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=meshlib.httpx.AsyncMeshTransport(mesh))


def test_a_burst_opens_one_connection_and_keeps_to_the_stream_limit() -> None:
    async def main(mesh: FakeMesh) -> list[str]:
        async with asynchronous(mesh) as client:
            await client.get("http://backend/")
            answers = await asyncio.gather(*(client.get(f"http://backend/{number}") for number in range(60)))
            assert [answer.headers["x-path"] for answer in answers] == [f"/{number}" for number in range(60)]
            return [answer.text for answer in answers]

    script = H2Server(max_streams=4)
    with serve(script) as server:
        mesh = mesh_for([server.port], protocol=H2, max_connections=1)
        assert asyncio.run(main(mesh)) == ["hello"] * 60
        assert server.accepted == 1
        assert script.most_at_once <= 4
        assert mesh.permits() == (0, 0, 0, 0)


def test_a_burst_of_first_calls_shares_the_connection_that_opens() -> None:
    async def main(mesh: FakeMesh) -> None:
        async with asynchronous(mesh) as client:
            answers = await asyncio.gather(*(client.get("http://backend/") for _ in range(30)))
            assert {answer.text for answer in answers} == {"hello"}

    with serve(H2Server()) as server:
        mesh = mesh_for([server.port], protocol=H2)
        asyncio.run(main(mesh))
        assert server.accepted == 1
        assert mesh.permits() == (0, 0, 0, 0)


def test_a_slow_reader_holds_up_only_its_own_stream() -> None:
    async def main(mesh: FakeMesh) -> None:
        async with asynchronous(mesh) as client:
            body = b"x" * 3_000_000
            async with client.stream("POST", "http://backend/echo", content=body) as slow:
                reader = slow.aiter_raw()
                first = await anext(reader)
                assert (await client.get("http://backend/")).text == "hello"
                rest = [piece async for piece in reader]
                assert len(first) + sum(map(len, rest)) == len(body)

    with serve(H2Server()) as server:
        mesh = mesh_for([server.port], protocol=H2)
        asyncio.run(main(mesh))
        assert server.accepted == 1


@pytest.mark.parametrize("turns", range(0, 10, 2))
def test_cancelling_one_call_leaves_the_others_alone(turns: int) -> None:
    async def main(mesh: FakeMesh) -> None:
        async with asynchronous(mesh) as client:
            tasks = [
                asyncio.ensure_future(client.get(f"http://backend/{name}")) for name in ("silent", "a", "b")
            ]
            for _ in range(turns):
                await asyncio.sleep(0)
            tasks[0].cancel()
            done: list[Any] = await asyncio.gather(*tasks, return_exceptions=True)
            assert isinstance(done[0], asyncio.CancelledError)
            assert [answer.text for answer in done[1:]] == ["hello", "hello"]
            assert mesh.permits() == (1, 0, 0, 0)

    with serve(H2Server()) as server:
        mesh = mesh_for([server.port], protocol=H2)
        asyncio.run(main(mesh))
        assert mesh.permits() == (0, 0, 0, 0)


def test_threads_have_a_connection_each() -> None:
    script = H2Server()
    with serve(script) as server:
        mesh = mesh_for([server.port], protocol=H2)
        transport = meshlib.httpx.MeshTransport(mesh)
        with httpx.Client(transport=transport) as client:
            texts: list[str] = []
            threads = [
                threading.Thread(target=lambda: texts.append(client.get("http://backend/").text))
                for _ in range(5)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert texts == ["hello"] * 5
        assert script.most_at_once == 1
        assert mesh.permits() == (0, 0, 0, 0)

"""Many calls at once: queues, threads, cancellation, event loops, forks, responses that nobody reads."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

import meshlib.httpx
from meshlib import errors
from meshlib.resources.route import BackOff, RetryPolicy
from tests.transport.http.support import OK, FakeMesh, mesh_for, read_request, response, serve


def blocking(mesh: FakeMesh, **options: Any) -> httpx.Client:
    return httpx.Client(transport=meshlib.httpx.MeshTransport(mesh), **options)


def asynchronous(mesh: FakeMesh, **options: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=meshlib.httpx.AsyncMeshTransport(mesh), **options)


def test_threads_share_connections_up_to_the_limit() -> None:
    with serve(OK) as server:
        mesh = mesh_for([server.port], max_connections=3)
        with blocking(mesh) as client, ThreadPoolExecutor(16) as threads:
            answers = list(threads.map(lambda _: client.get("http://backend/").text, range(400)))
        assert answers == ["hello"] * 400
        assert server.accepted <= 3
        assert mesh.permits() == (0, 0, 0, 0)
        assert mesh.active() == 0


def test_tasks_share_connections_up_to_the_limit() -> None:
    async def main(mesh: FakeMesh) -> list[str]:
        async with asynchronous(mesh) as client:

            async def one() -> str:
                return (await client.get("http://backend/")).text

            return await asyncio.gather(*(one() for _ in range(200)))

    with serve(OK) as server:
        mesh = mesh_for([server.port], max_connections=3)
        assert asyncio.run(main(mesh)) == ["hello"] * 200
        assert server.accepted <= 3
        assert mesh.permits() == (0, 0, 0, 0)


def test_a_call_that_waits_takes_an_idle_connection_of_another_owner() -> None:
    """One connection is allowed; blocking code left it idle; an asyncio call needs it."""

    async def main(mesh: FakeMesh) -> str:
        async with asynchronous(mesh) as client:
            return (await client.get("http://backend/")).text

    with serve(OK) as server:
        mesh = mesh_for([server.port], max_connections=1)
        with blocking(mesh) as client:
            client.get("http://backend/")
            assert asyncio.run(main(mesh)) == "hello"
            client.get("http://backend/")
        assert server.accepted == 3
        assert mesh.permits() == (0, 0, 0, 0)


def test_a_call_that_waits_takes_over_when_another_owner_is_done() -> None:
    async def main(mesh: FakeMesh, go_on: threading.Event) -> str:
        async with asynchronous(mesh) as client:
            call = asyncio.ensure_future(client.get("http://backend/"))
            while mesh.permits()[1] == 0:
                await asyncio.sleep(0)
            go_on.set()
            return (await call).text

    go_on = threading.Event()

    def script(sock: socket.socket, number: int) -> None:
        while read_request(sock):
            if number == 0:
                go_on.wait(10)
            sock.sendall(OK)

    with serve(script) as server:
        mesh = mesh_for([server.port], max_connections=1)
        with blocking(mesh) as client, ThreadPoolExecutor(1) as thread:
            first = thread.submit(client.get, "http://backend/")
            while mesh.permits()[2] == 0:
                os.sched_yield()
            assert asyncio.run(main(mesh, go_on)) == "hello"
            assert first.result(10).text == "hello"
        assert mesh.permits() == (0, 0, 0, 0)


def test_the_pool_timeout_applies_in_the_queue() -> None:
    done = threading.Event()

    def script(sock: socket.socket, _number: int) -> None:
        read_request(sock)
        done.wait(10)
        sock.sendall(OK)

    async def main(mesh: FakeMesh) -> None:
        async with asynchronous(mesh, timeout=httpx.Timeout(10, pool=0.02)) as client:
            first = asyncio.ensure_future(client.get("http://backend/"))
            while mesh.permits()[2] == 0:
                await asyncio.sleep(0)
            with pytest.raises(meshlib.httpx.PoolTimedOut) as caught:
                await client.get("http://backend/")
            assert isinstance(caught.value, httpx.PoolTimeout)
            assert isinstance(caught.value, errors.CircuitFull)
            assert mesh.permits() == (1, 0, 1, 0)
            done.set()
            await first

    with serve(script) as server:
        mesh = mesh_for([server.port], max_connections=1)
        asyncio.run(main(mesh))
        assert mesh.permits() == (0, 0, 0, 0)


@pytest.mark.parametrize("turns", range(12))
def test_cancelling_a_task_anywhere_returns_everything(turns: int) -> None:
    """The task is cancelled after so many turns of the loop: while connecting, while waiting, while reading."""

    def script(sock: socket.socket, _number: int) -> None:
        while read_request(sock):
            sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhe")
            read_request(sock)

    async def main(mesh: FakeMesh) -> None:
        async with asynchronous(mesh) as client:
            task = asyncio.ensure_future(client.post("http://backend/", content=b"x"))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert mesh.permits() == (0, 0, 0, 0)
            assert mesh.active() == 0

    with serve(script) as server:
        mesh = mesh_for([server.port])
        asyncio.run(main(mesh))


def test_cancelling_a_call_in_the_queue_leaves_the_others_alone() -> None:
    go_on = threading.Event()

    def script(sock: socket.socket, _number: int) -> None:
        while read_request(sock):
            go_on.wait(10)
            sock.sendall(OK)

    async def main(mesh: FakeMesh) -> None:
        async with asynchronous(mesh) as client:
            calls = [asyncio.ensure_future(client.get("http://backend/")) for _ in range(4)]
            while mesh.permits()[1] < 3:
                await asyncio.sleep(0)
            calls[1].cancel()
            calls[2].cancel()
            go_on.set()
            done = await asyncio.gather(*calls, return_exceptions=True)
            assert [isinstance(answer, asyncio.CancelledError) for answer in done] == [
                False,
                True,
                True,
                False,
            ]
            assert [answer.text for answer in done if isinstance(answer, httpx.Response)] == [
                "hello",
                "hello",
            ]

    with serve(script) as server:
        mesh = mesh_for([server.port], max_connections=1)
        asyncio.run(main(mesh))
        assert server.accepted == 1
        assert mesh.permits() == (0, 0, 0, 0)


def test_cancelling_during_the_back_off() -> None:
    async def main(mesh: FakeMesh) -> None:
        async with asynchronous(mesh) as client:
            task = asyncio.ensure_future(client.get("http://backend/"))
            while mesh.permits()[3] == 0:
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert mesh.permits() == (1, 0, 0, 0)

    retry = RetryPolicy(
        retry_on=frozenset(["5xx"]),
        num_retries=1,
        back_off=BackOff(base_interval=1000.0, max_interval=10000.0),
    )
    with serve(response(b"", "503 Service Unavailable")) as server:
        mesh = mesh_for([server.port], retry=retry, timeout=0.0)
        asyncio.run(main(mesh))
        assert mesh.permits() == (0, 0, 0, 0)


def test_the_applications_iterator_is_cancelled_with_the_call() -> None:
    ended = False

    async def pieces() -> Any:
        nonlocal ended
        try:
            yield b"first"
            await asyncio.Event().wait()
        finally:
            ended = True

    async def main(mesh: FakeMesh) -> None:
        async with asynchronous(mesh) as client:
            task = asyncio.ensure_future(client.post("http://backend/", content=pieces()))
            while mesh.permits()[2] == 0:
                await asyncio.sleep(0)
            for _ in range(10):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.sleep(0)
            assert ended

    with serve(OK) as server:
        mesh = mesh_for([server.port])
        asyncio.run(main(mesh))
        assert mesh.permits() == (0, 0, 0, 0)


def test_one_transport_in_several_event_loops() -> None:
    async def main(transport: httpx.AsyncBaseTransport) -> str:
        client = httpx.AsyncClient(transport=transport)
        text = (await client.get("http://backend/")).text
        await transport.aclose()
        return text

    with serve(OK) as server:
        mesh = mesh_for([server.port])
        transport = meshlib.httpx.AsyncMeshTransport(mesh)
        assert [asyncio.run(main(transport)) for _ in range(3)] == ["hello"] * 3
        assert server.accepted == 3
        assert mesh.permits() == (0, 0, 0, 0)


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_connections_of_a_loop_that_ended_are_given_back() -> None:
    async def leave_open(transport: httpx.AsyncBaseTransport) -> None:
        await httpx.AsyncClient(transport=transport).get("http://backend/")

    async def close(transport: httpx.AsyncBaseTransport) -> None:
        await httpx.AsyncClient(transport=transport).get("http://backend/")
        await transport.aclose()

    with serve(OK) as server:
        mesh = mesh_for([server.port], max_connections=1)
        transport = meshlib.httpx.AsyncMeshTransport(mesh)
        asyncio.run(leave_open(transport))
        assert mesh.permits()[0] == 1
        asyncio.run(close(transport))
        assert mesh.permits() == (0, 0, 0, 0)
        gc.collect()


def test_two_clients_share_a_transport() -> None:
    with serve(OK) as server:
        mesh = mesh_for([server.port])
        transport = meshlib.httpx.MeshTransport(mesh)
        with httpx.Client(transport=transport) as first:
            first.get("http://backend/")
            with httpx.Client(transport=transport) as second:
                second.get("http://backend/")
            assert first.get("http://backend/").text == "hello"
        assert mesh.permits() == (0, 0, 0, 0)


def test_a_response_that_nobody_reads_is_given_back_by_the_next_call() -> None:
    def script(sock: socket.socket, number: int) -> None:
        while read_request(sock):
            sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n" + (b"hello" if number else b"he"))

    with serve(script) as server:
        mesh = mesh_for([server.port])
        with blocking(mesh) as client:
            answer = client.send(client.build_request("GET", "http://backend/"), stream=True)
            assert answer.status_code == 200
            assert mesh.permits() == (1, 0, 1, 0)
            del answer
            gc.collect()
            assert client.get("http://backend/").text == "hello"
            assert mesh.permits() == (1, 0, 0, 0)
        assert mesh.permits() == (0, 0, 0, 0)
        assert mesh.active() == 0


def test_a_response_that_nobody_reads_in_asyncio() -> None:
    def script(sock: socket.socket, number: int) -> None:
        while read_request(sock):
            sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n" + (b"hello" if number else b"he"))

    async def main(mesh: FakeMesh) -> None:
        async with asynchronous(mesh) as client:
            answer = await client.send(client.build_request("GET", "http://backend/"), stream=True)
            del answer
            gc.collect()
            await asyncio.sleep(0)
            assert (await client.get("http://backend/")).text == "hello"
            assert mesh.permits() == (1, 0, 0, 0)

    with serve(script) as server:
        mesh = mesh_for([server.port])
        asyncio.run(main(mesh))
        assert mesh.permits() == (0, 0, 0, 0)


@pytest.mark.filterwarnings("ignore:This process.*fork:DeprecationWarning")  # Python 3.12
def test_a_forked_child_opens_its_own_connections() -> None:
    with serve(OK) as server:
        mesh = mesh_for([server.port])
        client = blocking(mesh)
        assert client.get("http://backend/").text == "hello"
        child = os.fork()
        if child == 0:  # pragma: no cover - another process
            code = 1
            try:
                mesh.engine.renew_locks()
                if client.get("http://backend/").text == "hello" and mesh.permits() == (1, 0, 0, 0):
                    code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert server.accepted == 2
        assert client.get("http://backend/").text == "hello"
        assert server.accepted == 2
        client.close()


def test_trio_is_refused_clearly() -> None:
    transport = meshlib.httpx.AsyncMeshTransport(mesh_for([1]))
    call = transport.handle_async_request(httpx.Request("GET", "http://backend/"))
    with pytest.raises(RuntimeError, match="asyncio"):
        call.send(None)

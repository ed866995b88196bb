"""A process that forks, or runs several event loops, while it uses gRPC channels of a mesh: `python -m ... MODE ADDRESS`.

ADDRESS is that of the control plane. Each child makes calls of its own; the process exits with 0 when all succeeded.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import grpc

import meshlib
import meshlib.grpc
from tests.mesh.forking import fork, reap

HOST = "echo:9080"
METHOD = "/tests.Echo/Say"
STREAM = "/tests.Echo/SayTwice"
LIMIT = 20.0
MESSAGE = b"hello"

Mode = Callable[[meshlib.Mesh, grpc.Channel], None]


def calls(channel: grpc.Channel, number: int = 3) -> None:
    method, stream = channel.unary_unary(METHOD), channel.unary_stream(STREAM)
    for _ in range(number):
        assert method(MESSAGE, timeout=LIMIT) == MESSAGE
        assert list(stream(MESSAGE, timeout=LIMIT)) == [MESSAGE] * 2


async def say(channel: grpc.aio.Channel, number: int = 3) -> None:
    method, stream = channel.unary_unary(METHOD), channel.unary_stream(STREAM)
    said = await asyncio.gather(*(method(MESSAGE, timeout=LIMIT) for _ in range(number)))
    assert said == [MESSAGE] * number
    assert [message async for message in stream(MESSAGE, timeout=LIMIT)] == [MESSAGE] * 2


async def aio_calls(mesh: meshlib.Mesh) -> None:
    async with meshlib.grpc.aio_channel(HOST, mesh=mesh) as channel:
        await say(channel)


def prefork(mesh: meshlib.Mesh, channel: grpc.Channel) -> None:
    """All is made in the parent, and used in the children only."""
    reap(*[fork(lambda: calls(channel)) for _ in range(2)])


def after_use(mesh: meshlib.Mesh, channel: grpc.Channel) -> None:
    """As celery's workers: the parent has called and has live connections when it forks, and both go on."""
    calls(channel)
    children = [fork(lambda: calls(channel)) for _ in range(3)]
    calls(channel)
    reap(*children)
    calls(channel)


def during_a_stream(mesh: meshlib.Mesh, channel: grpc.Channel) -> None:
    """The parent is in the middle of a stream."""
    responses = channel.unary_stream(STREAM)(MESSAGE, timeout=LIMIT)
    assert next(responses) == MESSAGE
    child = fork(lambda: calls(channel))
    assert list(responses) == [MESSAGE]
    reap(child)
    calls(channel)


def grandchild(mesh: meshlib.Mesh, channel: grpc.Channel) -> None:
    def child() -> None:
        calls(channel)
        reap(fork(lambda: calls(channel)))
        calls(channel)

    calls(channel)
    reap(fork(child))
    calls(channel)


def while_threads_call(mesh: meshlib.Mesh, channel: grpc.Channel) -> None:
    """Other threads are in calls at the moment of the fork, and go on; the child makes no gRPC calls (docs/fork.md)."""
    stop = threading.Event()
    failures: list[BaseException] = []

    def busy() -> None:
        try:
            while not stop.is_set():
                calls(channel, 1)
        except BaseException as error:  # noqa: BLE001 - told by the main thread
            failures.append(error)

    threads = [threading.Thread(target=busy) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(10):
            reap(fork(lambda: None))
            calls(channel, 1)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert failures == [], failures


def exits(mesh: meshlib.Mesh, channel: grpc.Channel) -> None:
    """A child that leaves the usual way, through the interpreter's shutdown."""
    calls(channel)
    pid = os.fork()
    if pid == 0:
        calls(channel)
        channel.close()
        mesh.close()
        sys.exit(0)
    reap(pid)


_inherited: list[grpc.Channel] = []


def _task(_: int) -> int:
    calls(_inherited[0])
    return os.getpid()


def pool(mesh: meshlib.Mesh, channel: grpc.Channel) -> None:
    """multiprocessing's workers, which fork from the parent when they are first needed."""
    calls(channel)
    _inherited.append(channel)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as workers:
        assert os.getpid() not in set(workers.map(_task, range(6)))
    calls(channel)


def asyncio_child(mesh: meshlib.Mesh, channel: grpc.Channel) -> None:
    """asyncio before the fork, in the child, and after it in the parent; blocking calls beside it."""
    asyncio.run(aio_calls(mesh))
    calls(channel)

    def child() -> None:
        asyncio.run(aio_calls(mesh))
        calls(channel)

    pid = fork(child)
    asyncio.run(aio_calls(mesh))
    reap(pid)
    asyncio.run(aio_calls(mesh))


def loops_one_after_the_other(mesh: meshlib.Mesh, channel: grpc.Channel) -> None:
    for _ in range(5):
        asyncio.run(aio_calls(mesh))


def loops_at_once(mesh: meshlib.Mesh, channel: grpc.Channel) -> None:
    """An asyncio server in the main loop; other loops in threads open channels of their own, and blocking code has one too."""
    failures: list[BaseException] = []

    def run(work: Callable[[], object]) -> None:
        try:
            for _ in range(5):
                work()
        except BaseException as error:  # noqa: BLE001 - told by the main thread
            failures.append(error)

    works: list[Callable[[], object]] = [lambda: asyncio.run(aio_calls(mesh))] * 3
    threads = [threading.Thread(target=run, args=(work,)) for work in (*works, lambda: calls(channel))]

    async def main() -> None:
        server = grpc.aio.server()

        async def forward(request: bytes, context: Any) -> bytes:
            answer: bytes = await method(request, timeout=LIMIT)
            return answer

        handler = grpc.unary_unary_rpc_method_handler(forward)
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("tests.Front", {"Say": handler}),)
        )
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        for thread in threads:
            thread.start()
        async with (
            meshlib.grpc.aio_channel(HOST, mesh=mesh) as meshed,
            grpc.aio.insecure_channel(f"127.0.0.1:{port}") as front,
        ):
            method = meshed.unary_unary(METHOD)
            for _ in range(5):
                assert await front.unary_unary("/tests.Front/Say")(MESSAGE, timeout=LIMIT) == MESSAGE
                await say(meshed)
            for thread in threads:
                await asyncio.to_thread(thread.join)
        await server.stop(None)

    asyncio.run(main())
    assert failures == [], failures


def one_channel_in_two_loops(mesh: meshlib.Mesh, channel: grpc.Channel) -> None:
    """A channel that a module made once serves each loop that uses it."""
    made: list[grpc.aio.Channel] = []

    async def use() -> None:
        if not made:
            made.append(meshlib.grpc.aio_channel(HOST, mesh=mesh))
        await say(made[0])

    async def last() -> None:
        await use()
        await made[0].close()

    asyncio.run(use())
    asyncio.run(last())


MODES: dict[str, Mode] = {
    mode.__name__: mode
    for mode in (
        prefork,
        after_use,
        during_a_stream,
        while_threads_call,
        grandchild,
        exits,
        pool,
        asyncio_child,
        loops_one_after_the_other,
        loops_at_once,
        one_channel_in_two_loops,
    )
}


def main(mode: str, address: str) -> None:
    with (
        meshlib.Mesh(server_uri=address, node_id=mode) as mesh,
        meshlib.grpc.channel(HOST, mesh=mesh) as channel,
    ):
        MODES[mode](mesh, channel)


if __name__ == "__main__":
    main(*sys.argv[1:])

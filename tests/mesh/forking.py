"""A process that forks while it uses a mesh. Run by test_fork.py: `python -m tests.mesh.forking MODE ADDRESS`.

Each child makes calls of its own; the process exits with 0 when the parent's and all children's calls succeeded. A process that
is still there `STUCK` seconds after its start, or its last fork, says where each of its threads stands.
"""

from __future__ import annotations

import asyncio
import faulthandler
import os
import sys
import threading
from collections.abc import Callable

import httpx

import meshlib
from meshlib.httpx import AsyncMeshTransport, MeshTransport
from meshlib.runtime import stream

HOST = "http://reviews/"
STUCK = 20.0


def sync_calls(client: httpx.Client, number: int) -> None:
    for _ in range(number):
        assert client.get(HOST).status_code == 200


async def async_calls(mesh: meshlib.Mesh, number: int) -> None:
    async with httpx.AsyncClient(transport=AsyncMeshTransport(mesh)) as client:
        for response in await asyncio.gather(*(client.get(HOST) for _ in range(number))):
            assert response.status_code == 200


def until_changed(mesh: meshlib.Mesh, client: httpx.Client) -> None:
    """The child's own stream brings it what the control plane serves next."""
    while True:
        seen, woken = mesh.engine.program, threading.Event()
        if client.get(HOST).headers.get("x-generation") == "2":
            return
        mesh.engine.await_program(woken.set, seen)
        assert woken.wait(15.0)


def watched_fork() -> int:
    """Each process has a watch of its own: a child that was born with one would wait for its thread, which is the parent's."""
    faulthandler.cancel_dump_traceback_later()
    pid = os.fork()
    faulthandler.dump_traceback_later(STUCK)
    return pid


def fork(work: Callable[[], None]) -> int:
    pid = watched_fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:  # noqa: BLE001 - a child says what went wrong and ends here, whatever it was
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stderr.flush()
            os._exit(status)
    return pid


def reap(*pids: int) -> None:
    for pid in pids:
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert code == 0, code


def live(mesh: meshlib.Mesh, client: httpx.Client) -> None:
    """The parent has a stream and open connections when it forks."""
    sync_calls(client, 3)
    children = [fork(lambda: sync_calls(client, 3)) for _ in range(3)]
    sync_calls(client, 3)
    reap(*children)
    sync_calls(client, 3)


def prefork(mesh: meshlib.Mesh, client: httpx.Client) -> None:
    """As gunicorn with preload_app: all is made in the parent and used in the children only."""
    reap(*[fork(lambda: sync_calls(client, 3)) for _ in range(2)])


def asyncio_child(mesh: meshlib.Mesh, client: httpx.Client) -> None:
    asyncio.run(async_calls(mesh, 3))
    child = fork(lambda: asyncio.run(async_calls(mesh, 3)))
    asyncio.run(async_calls(mesh, 3))
    reap(child)


def grandchild(mesh: meshlib.Mesh, client: httpx.Client) -> None:
    def child() -> None:
        sync_calls(client, 1)
        reap(fork(lambda: sync_calls(client, 3)))
        sync_calls(client, 1)

    sync_calls(client, 1)
    reap(fork(child))
    sync_calls(client, 1)


def update(mesh: meshlib.Mesh, client: httpx.Client) -> None:
    """Says `ready` when parent and child have the first configuration; both must then get the second one."""
    sync_calls(client, 1)
    reader, writer = os.pipe()

    def child() -> None:
        sync_calls(client, 1)
        os.write(writer, b"!")
        until_changed(mesh, client)

    pid = fork(child)
    os.read(reader, 1)
    print("ready", flush=True)
    until_changed(mesh, client)
    reap(pid)


def while_threads_call(mesh: meshlib.Mesh, client: httpx.Client) -> None:
    """Locks may be held by other threads at the moment of the fork."""
    stop = threading.Event()

    def busy() -> None:
        while not stop.is_set():
            sync_calls(client, 1)

    threads = [threading.Thread(target=busy) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(5):
        reap(fork(lambda: sync_calls(client, 2)))
    stop.set()
    for thread in threads:
        thread.join()


def exits(mesh: meshlib.Mesh, client: httpx.Client) -> None:
    """A child that leaves the usual way, through the interpreter's shutdown."""
    sync_calls(client, 1)
    pid = watched_fork()
    if pid == 0:
        sync_calls(client, 1)
        client.close()
        mesh.close()
        sys.exit(0)
    reap(pid)


def impatient(mesh: meshlib.Mesh, client: httpx.Client) -> None:
    """No thread of grpc has time to end before the fork looks."""
    vars(stream)["FORK_WAIT"] = 0.0
    exits(mesh, client)


MODES = {
    mode.__name__: mode
    for mode in (live, prefork, asyncio_child, grandchild, update, while_threads_call, exits, impatient)
}


def main(mode: str, address: str) -> None:
    faulthandler.dump_traceback_later(STUCK)
    mesh = meshlib.Mesh(server_uri=address, node_id=mode)
    with mesh, httpx.Client(transport=MeshTransport(mesh)) as client:
        MODES[mode](mesh, client)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""A process that forks while its client has a live stream. Run by test_fork.py: `python -m tests.xds.forking MODE ADDRESS`."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable

from meshlib.snapshot import Snapshot
from meshlib.xds.bootstrap import load
from meshlib.xds.client import AdsClient
from tests.xds.test_over_grpc import decode

LIMIT = 10.0
changed = threading.Condition()


def published(_: Snapshot) -> None:
    with changed:
        changed.notify_all()


def wait_for(client: AdsClient, condition: Callable[[Snapshot], bool]) -> None:
    with changed:
        if not changed.wait_for(lambda: condition(client.snapshot), LIMIT):
            raise TimeoutError(f"{client.snapshot}, {client.last_error}")


def child(client: AdsClient, number: int) -> None:
    """Keeps what the parent knew, has no thread until it is used, and then a connection of its own."""
    global changed
    assert threading.active_count() == 1, threading.enumerate()
    assert "one" in client.snapshot.clusters
    assert not client.connected
    changed = threading.Condition()
    name = f"child{number}"
    client.want_cluster(name)
    wait_for(client, lambda snapshot: name in snapshot.clusters)
    assert "one" in client.snapshot.clusters


def fork(client: AdsClient, number: int) -> int:
    pid = os.fork()
    if pid == 0:
        child(client, number)
        client.close()
        sys.exit(0)
    return pid


def reap(pids: list[int]) -> None:
    for pid in pids:
        _, status = os.waitpid(pid, 0)
        assert status == 0, status


def main(mode: str, address: str) -> None:
    client = AdsClient(
        load(server_uri=address, node_id=mode, environ={}), decode=decode, on_snapshot=published
    )
    if mode == "before":
        # A preloading server: forks before the first use, each child starts by itself.
        pid = os.fork()
        client.want_cluster("one")
        wait_for(client, lambda snapshot: "one" in snapshot.clusters)
        if pid:
            reap([pid])
    else:
        client.want_cluster("one")
        wait_for(client, lambda snapshot: "one" in snapshot.clusters)
    if mode == "one":
        reap([fork(client, 1)])
    elif mode == "many":
        reap([fork(client, number) for number in range(6)])
    elif mode == "nested":
        pid = os.fork()
        child(client, 1) if pid == 0 else None
        reap([fork(client, 2)] if pid == 0 else [pid])
    elif mode == "threads":
        threads = [
            threading.Thread(target=lambda number=number: reap([fork(client, number)])) for number in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    elif mode == "dormant":
        # A child that never uses the client, and ends without closing it.
        pid = os.fork()
        if pid == 0:
            sys.exit(0)
        reap([pid])
    client.want_cluster("parent")
    wait_for(client, lambda snapshot: "parent" in snapshot.clusters)
    client.close()
    print("well", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

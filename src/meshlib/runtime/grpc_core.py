"""grpc's core around a fork, seen from outside: nothing here imports grpc.

A core that is busy at the moment of a fork may hold locks that nobody releases in the child; one that has shut down starts
afresh there. It shuts down by itself when the last of grpc's objects is gone: in a few milliseconds, unless the machine is busy.
"""

from __future__ import annotations

import gc
import sys
import time
from functools import cache
from pathlib import Path

from meshlib.runtime import fork

__all__ = ["FORK_WAIT", "await_shutdown", "let_fork_guard_come_first"]

FORK_WAIT = 0.1
"""Seconds that a fork waits for the threads of a stream to end before it looks whether anybody else needs them."""

LONGEST = 5.0
"""Seconds that a fork waits at most for a core that nobody needs. On a busy machine its threads end late; a child would hang."""

POLL = 0.001
THREADS = ("event_engine", "grpc_", "lifeguard")

_KINDS = (
    ("grpc._channel", "Channel"),
    ("grpc._server", "_Server"),
    ("grpc.aio._channel", "Channel"),
    ("grpc.aio._server", "Server"),
)

_TASKS = Path("/proc/self/task")


def await_shutdown(timeout: float) -> None:
    """Wait until the core has shut down, before a fork, in the thread that forks.

    timeout: in seconds. Where the application has channels or servers of its own, the core stays up and the wait ends then;
    otherwise it goes on for as long as LONGEST.
    """
    if not _is_down_within(timeout) and not _is_needed():
        _is_down_within(LONGEST)


def _is_down_within(timeout: float) -> bool:
    for _ in range(int(timeout / POLL)):
        if not _is_up():
            return True
        time.sleep(POLL)  # noqa: TID251 - in the thread that forks, there is no timer to ask for
    return not _is_up()


def _is_up() -> bool:
    try:
        return any((task / "comm").read_text().startswith(THREADS) for task in _TASKS.iterdir())
    except OSError:
        # A thread ended meanwhile (look again), or this is no Linux (then there is nothing to look at).
        return _TASKS.is_dir()


def _is_needed() -> bool:
    """Whether there is a channel or a server, whoever's. A search through everything: some 10 ms for 100,000 objects."""
    kinds = {getattr(sys.modules.get(module), name, None) for module, name in _KINDS} - {None}
    return any(type(each) in kinds for each in gc.get_objects())


@cache
def let_fork_guard_come_first() -> None:
    """To be called when grpc has set its own guard up, which is with the first channel; once for each process."""
    fork.come_first()

"""grpc's core around a fork, seen from outside: nothing here imports grpc.

A core that is busy at the moment of a fork may hold locks that nobody releases in the child; one that has shut down starts
afresh there. It shuts down by itself, in a few milliseconds, when the last of grpc's objects is gone.
"""

from __future__ import annotations

import time
from functools import cache
from pathlib import Path

from meshlib.runtime import fork

__all__ = ["FORK_WAIT", "await_shutdown", "let_fork_guard_come_first"]

FORK_WAIT = 0.1
"""Seconds that a fork waits at most for the threads of a stream to end."""

POLL = 0.001
THREADS = ("event_engine", "grpc_", "lifeguard")

_TASKS = Path("/proc/self/task")


def await_shutdown(timeout: float) -> None:
    """Wait until the core has shut down, before a fork, in the thread that forks.

    timeout: in seconds. Where the application has channels of its own, the core stays up and the wait ends then.
    """
    for _ in range(int(timeout / POLL)):
        if not _is_up():
            return
        time.sleep(POLL)  # noqa: TID251 - in the thread that forks, there is no timer to ask for


def _is_up() -> bool:
    try:
        return any((task / "comm").read_text().startswith(THREADS) for task in _TASKS.iterdir())
    except OSError:
        # A thread ended meanwhile (look again), or this is no Linux (then there is nothing to look at).
        return _TASKS.is_dir()


@cache
def let_fork_guard_come_first() -> None:
    """To be called when grpc has set its own guard up, which is with the first channel; once for each process."""
    fork.come_first()

"""What must happen around `os.fork`, for everything that holds threads, locks or connections.

An object registers itself once and is held weakly. Before the fork it pauses (in reverse order of registration); after it,
the parent's goes on and the child's lets go of what the fork broke: threads are gone, locks may be held by nobody, sockets
are shared with the parent. `subprocess` and `os.posix_spawn` do not come here, they run no Python in the child.
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Callable, Iterable
from typing import Protocol

from meshlib.runtime.logs import failed

__all__ = ["PATIENCE", "ForkAware", "come_first", "register"]

PATIENCE = 1.0
"""Seconds that a fork waits at most for a background task to end."""

logger = logging.getLogger("meshlib.runtime")


class ForkAware(Protocol):
    """What an object that registers itself has to offer. None of these may wait for long."""

    def before_fork(self) -> None: ...

    def after_fork_in_parent(self) -> None: ...

    def after_fork_in_child(self) -> None: ...


_registered: list[weakref.ref[ForkAware]] = []
_installed = 0


class _Paused(threading.local):
    """What was paused by this thread's fork; another thread may fork at the same time."""

    items: tuple[ForkAware, ...] = ()


_paused = _Paused()


def register(item: ForkAware) -> None:
    """Tell the object about every fork from now on, as long as it lives."""
    if not _installed:
        come_first()
    _registered[:] = [reference for reference in _registered if reference() is not None]
    _registered.append(weakref.ref(item))


def come_first() -> None:
    """Pause before, and go on after, everything that has registered itself with `os.register_at_fork` until now.

    Python runs the hooks before a fork from the last to the first one registered. grpc adds its own when its first channel
    is made, and then waits for its threads, which wait for our stream: so ours has to be closed before.
    """
    global _installed
    if not hasattr(os, "register_at_fork"):
        return
    _installed += 1
    number = _installed
    os.register_at_fork(
        before=lambda: _before(number),
        after_in_parent=lambda: _in_parent(number),
        after_in_child=lambda: _in_child(number),
    )


def _before(number: int) -> None:
    if number == _installed:
        _paused.items = tuple(item for reference in _registered if (item := reference()) is not None)
        _each(item.before_fork for item in reversed(_paused.items))


def _in_parent(number: int) -> None:
    if number == _installed:
        items, _paused.items = _paused.items, ()
        _each(item.after_fork_in_parent for item in items)


def _in_child(number: int) -> None:
    if number == _installed:
        items, _paused.items = _paused.items, ()
        _each(item.after_fork_in_child for item in items)


def _each(steps: Iterable[Callable[[], None]]) -> None:
    for step in steps:
        try:
            step()
        except Exception:  # noqa: BLE001 - the fork happens anyway
            failed(logger, "preparing for fork failed")

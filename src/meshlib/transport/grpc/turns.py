"""Idle connections make room for calls that wait: the channels of a process share the permits of a cluster.

An inner channel keeps its connection when its calls are over, and with it a permit of `max_connections`. A call of another
mesh channel, or of another event loop, that waits for a permit would wait until its deadline. So who is parked asks the others
once, and whose last call ends while somebody waits gives the connection up by itself.
"""

from __future__ import annotations

import threading
import weakref
from typing import Protocol

from meshlib.runtime import fork
from meshlib.state import EndpointState

__all__ = ["Sharer", "ask_others", "take_part"]


class Sharer(Protocol):
    """Who owns connections: the inner channels of one mesh channel, on one event loop."""

    def spare(self, endpoint: EndpointState) -> None:
        """Close the connections to this endpoint that no call uses. From any thread."""


class _Turns:
    def __init__(self) -> None:
        self._sharers: weakref.WeakSet[Sharer] = weakref.WeakSet()
        self._lock = threading.Lock()
        fork.register(self)

    def add(self, sharer: Sharer) -> None:
        with self._lock:
            self._sharers.add(sharer)

    def others(self, asker: Sharer) -> list[Sharer]:
        with self._lock:
            return [sharer for sharer in self._sharers if sharer is not asker]

    def before_fork(self) -> None:
        """Nothing has to be closed."""

    def after_fork_in_parent(self) -> None:
        """Nothing has changed."""

    def after_fork_in_child(self) -> None:
        self._lock = threading.Lock()


_turns = _Turns()


def take_part(sharer: Sharer) -> None:
    """Be asked from now on, as long as the sharer lives."""
    _turns.add(sharer)


def ask_others(asker: Sharer, endpoint: EndpointState) -> None:
    """A call of `asker` waits for a connection to this endpoint."""
    for sharer in _turns.others(asker):
        sharer.spare(endpoint)

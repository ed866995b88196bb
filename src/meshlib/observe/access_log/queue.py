"""Lines and records on their way to a sink: a bounded queue, emptied by a thread of its own.

A call only appends; a disk, a pipe or a logging handler that is slow never holds it up. What waits is written when there is
enough of it, or a second after the first of it came, whichever is earlier; and at close, at exit and before a fork. When
`MOST_WAITING` wait, more are dropped and counted. A crash loses what waits.
"""

from __future__ import annotations

import atexit
import logging
import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from meshlib.runtime import fork
from meshlib.runtime.threads import Worker

if TYPE_CHECKING:
    from meshlib.runtime.clock import Clock
    from meshlib.runtime.threads import Executor
    from meshlib.stats.metrics import Counter

__all__ = ["FLUSH_INTERVAL", "MANY", "MOST_WAITING", "Counters", "Queue", "Sink"]

logger = logging.getLogger("meshlib.observe")

FLUSH_INTERVAL = 1.0
"""Seconds that an entry waits at most."""

MANY = 256
"""Entries that are written without waiting for more; some 64 KiB of Envoy's default lines."""

MOST_WAITING = 20_000
"""Entries that may wait."""

PATIENCE = 2.0
"""Seconds that closing waits for a write that has begun."""

T = TypeVar("T")


class Counters(Protocol):
    """Of all sinks of a Mesh: entries taken, dropped because too many waited, and flushes that were due to time."""

    @property
    def buffered(self) -> Counter: ...
    @property
    def dropped(self) -> Counter: ...
    @property
    def by_timer(self) -> Counter: ...


class Sink(Protocol[T]):
    """Where entries end. Called by one thread at a time."""

    def write(self, entries: list[T]) -> None:
        """Write them all. What it raises is logged, and these entries are lost."""

    def close(self) -> None: ...


class Queue(Generic[T]):
    """`put` from any thread. executor: runs the writing; None makes a thread, when the first entry comes."""

    def __init__(
        self, sink: Sink[T], *, clock: Clock, counters: Counters, make: Callable[[], Executor] | None = None
    ) -> None:
        self._sink = sink
        self._clock = clock
        self._counters = counters
        self._make = make or self._worker
        self._executor = self._make()
        self._waiting: deque[T] = deque()
        self._writing = threading.Lock()
        self._timed = False
        self._urgent = False
        self._full = False
        self._closed = False
        _open.add(self)
        fork.register(self)

    def _worker(self) -> Executor:
        return Worker("meshlib-log", self._clock)

    def put(self, entry: T) -> None:
        waiting = self._waiting
        if len(waiting) >= MOST_WAITING:
            self._drop()
            return
        waiting.append(entry)
        self._counters.buffered.value += 1
        if not self._timed:
            self._timed = True
            if self._closed:
                self.flush()
            else:
                self._executor.call_at(self._clock.monotonic() + FLUSH_INTERVAL, self._due)
        elif not self._urgent and len(waiting) >= MANY:
            self._urgent = True
            self._executor.post(self._now)

    def _drop(self) -> None:
        self._counters.dropped.value += 1
        if not self._full:
            self._full = True
            logger.warning("access log entries are dropped: %d wait to be written", MOST_WAITING)

    def _now(self) -> None:
        self.flush()

    def _due(self) -> None:
        self._counters.by_timer.value += 1
        self.flush()

    def flush(self, patience: float = -1.0) -> bool:
        """Write all that waits. patience: seconds to wait for a write that is under way, -1 for ever. False: it took longer."""
        if not self._writing.acquire(timeout=patience):
            return False
        try:
            # An entry that comes now sets the timer anew: none is left behind.
            self._timed = self._urgent = False
            entries = []
            waiting = self._waiting
            while waiting:
                entries.append(waiting.popleft())
            if entries:
                self._sink.write(entries)
        except Exception:
            if not self._full:
                self._full = True
                logger.exception("access log entries could not be written")
        else:
            self._full = False
        finally:
            self._writing.release()
        return True

    def close(self) -> None:
        """Write what waits and end the thread. Entries that come later are written at once, by their own thread."""
        if self._closed:
            return
        self._closed = True
        _open.discard(self)
        self._executor.close(PATIENCE)
        if self.flush(PATIENCE):
            self._sink.close()

    # --- fork ----------------------------------------------------------------------------------------------------------

    def before_fork(self) -> None:
        """The child must not find what the parent is going to write."""
        self._executor.pause(fork.PATIENCE)
        self.flush(fork.PATIENCE)

    def after_fork_in_parent(self) -> None:
        self._executor.resume()

    def after_fork_in_child(self) -> None:
        self._executor.abandon()
        self._waiting = deque()
        self._writing = threading.Lock()
        self._timed = self._urgent = False
        if not self._closed:
            self._executor = self._make()
            _open.add(self)


_open: weakref.WeakSet[Queue[Any]] = weakref.WeakSet()


def _close_all() -> None:
    for queue in list(_open):
        queue.close()


atexit.register(_close_all)

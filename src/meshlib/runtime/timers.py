"""Timers for code that has no event loop: one thread for the whole process, while there are any.

The thread is started by the first timer and ends when it has had nothing to do for `LINGER` seconds. Timers of calls that are
over are not taken out at once: the thread looks for them whenever it wakes, at least once a second while it lives.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
from collections import deque
from collections.abc import Callable

from meshlib.runtime import fork
from meshlib.runtime.clock import SystemClock
from meshlib.runtime.logs import failed
from meshlib.runtime.threads import Timer

__all__ = ["Timers", "timers"]

LINGER = 1.0
"""Seconds."""

MANY = 256
"""From so many timers on, dead ones are looked for in the middle of the heap too."""

logger = logging.getLogger("meshlib.runtime")

Task = Callable[[], None]


class Timers:
    """See the module."""

    def __init__(self, monotonic: Callable[[], float] = SystemClock.monotonic) -> None:
        self._monotonic = monotonic
        self._numbers = itertools.count()
        self._running = threading.Lock()
        self._paused = False
        self._clear()
        fork.register(self)

    def _clear(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._heap: list[tuple[float, int, Timer]] = []
        self._soon: deque[Task] = deque()
        self._thread: threading.Thread | None = None

    def later(self, delay: float, task: Task) -> Timer:
        """Run the task after `delay` seconds."""
        timer = Timer(self._monotonic() + delay, task)
        entry = (timer.when, next(self._numbers), timer)
        with self._changed:
            heapq.heappush(self._heap, entry)
            self._start()
            if self._heap[0] is entry:
                self._changed.notify()
        return timer

    def from_finalizer(self, task: Task) -> None:
        """Run the task soon, if the thread lives. Takes no lock that its own thread might hold; the task is not in a hurry."""
        self._soon.append(task)
        if self._changed.acquire(blocking=False):
            try:
                self._changed.notify()
            finally:
                self._changed.release()

    def ready(self) -> None:
        """Have the thread, so that `from_finalizer` finds it."""
        with self._changed:
            self._start()

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="meshlib-timers", daemon=True)
            try:
                self._thread.start()
            except RuntimeError:  # the interpreter shuts down: nobody waits for timers any more
                self._thread = None

    def _run(self) -> None:
        me = threading.current_thread()
        while True:
            task = self._next(me)
            if task is None:
                return
            try:
                with self._running:
                    task()
            except Exception:  # noqa: BLE001 - it ends this timer only
                failed(logger, "a timer failed")

    def _next(self, me: threading.Thread) -> Task | None:
        """The next task, waited for; None when the thread is to end."""
        with self._changed:
            while self._thread is me:
                if self._soon:
                    return self._soon.popleft()
                self._forget_dead()
                heap = self._heap
                now = self._monotonic()
                if heap and heap[0][0] <= now:
                    task = heapq.heappop(heap)[2].task
                    if task is not None:
                        return task
                    continue
                woken = self._changed.wait(min(heap[0][0] - now, LINGER) if heap else LINGER)
                if not woken and not self._heap and not self._soon:
                    self._thread = None
        return None

    def _forget_dead(self) -> None:
        heap = self._heap
        while heap and heap[0][2].task is None:
            heapq.heappop(heap)
        if len(heap) > MANY:
            alive = [entry for entry in heap if entry[2].task is not None]
            if len(alive) < len(heap) // 2:
                heapq.heapify(alive)
                self._heap = alive

    # --- around a fork -----------------------------------------------------------------------------------------------

    def before_fork(self) -> None:
        """Wait for the task that runs now: it may hold a lock that nobody would release in the child."""
        if self._thread is not threading.current_thread():
            self._paused = self._running.acquire(timeout=fork.PATIENCE)

    def after_fork_in_parent(self) -> None:
        if self._paused:
            self._paused = False
            self._running.release()

    def after_fork_in_child(self) -> None:
        self._paused = False
        self._running = threading.Lock()
        self._clear()


_timers: Timers | None = None
_lock = threading.Lock()


def timers() -> Timers:
    """Those of this process."""
    global _timers
    known = _timers
    if known is None:
        with _lock:
            known = _timers
            if known is None:
                known = _timers = Timers()
    return known

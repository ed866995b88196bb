"""The background thread of a Mesh, and how work on it leaves room for the threads that make calls.

A `Worker` is one daemon thread that runs tasks in the order in which they were posted, and timers when they are due. It is
started by the first task, so that a Mesh that is only built starts nothing. Tasks arrive through a `queue.SimpleQueue`, whose
`put` takes no lock that a finalizer or a signal handler could find taken by its own thread. What runs on a Worker needs no
lock of its own: the state machines of the control plane live there.
"""

from __future__ import annotations

import atexit
import heapq
import itertools
import logging
import math
import queue
import sys
import threading
import time
import weakref
from collections.abc import Callable
from typing import Protocol

from meshlib.errors import ConfigError
from meshlib.runtime.clock import Clock, SystemClock
from meshlib.runtime.logs import failed

__all__ = ["Executor", "Schedule", "Slicer", "Timer", "Worker", "refuse_gevent"]

logger = logging.getLogger("meshlib.runtime")

Task = Callable[[], None]

LONGEST_WAIT = 3600.0
"""Seconds; a wait that ends early is harmless."""


class Timer:
    """A task that is due at `when` (monotonic seconds), until it has run or is cancelled. Cancel from any thread."""

    __slots__ = ("task", "when")

    def __init__(self, when: float, task: Task) -> None:
        self.when = when
        self.task: Task | None = task

    def cancel(self) -> None:
        self.task = None


class Executor(Protocol):
    """Runs tasks one after the other, on one thread."""

    def post(self, task: Task) -> None:
        """Run the task soon. From any thread; after `close` nothing happens."""

    def call_at(self, when: float, task: Task) -> Timer:
        """Run the task at this time of the clock's `monotonic`. From any thread."""

    def close(self, timeout: float = ...) -> None:
        """Run nothing any longer. Idempotent."""

    def pause(self, timeout: float) -> None:
        """Before a fork: wait for the end of the task that runs now, and start no other until `resume`.

        A fork in the middle of a task would leave a lock in the child that nobody releases: that of a module which the task
        imports, for example. After `timeout` seconds the fork goes on all the same.
        """

    def resume(self) -> None:
        """After the fork, in the parent."""

    def abandon(self) -> None:
        """After the fork, in the child, where the thread does not exist: forget it."""


class Schedule:
    """The timers of a Worker, as a state machine: what is due, and when the next one is."""

    __slots__ = ("_heap", "_numbers")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Timer]] = []
        self._numbers = itertools.count()

    def add(self, timer: Timer) -> None:
        heapq.heappush(self._heap, (timer.when, next(self._numbers), timer))

    def due(self, now: float) -> Task | None:
        """Take the earliest task whose time has come; None when there is none."""
        while self._heap and (self._heap[0][0] <= now or self._heap[0][2].task is None):
            task = heapq.heappop(self._heap)[2].task
            if task is not None:
                return task
        return None

    @property
    def next(self) -> float:
        """When the next timer is due (or a cancelled one is cleared away); infinity without any."""
        return self._heap[0][0] if self._heap else math.inf


class Worker:
    """See the module's text. An error in a task is logged and ends that task only."""

    def __init__(self, name: str, clock: Clock | None = None) -> None:
        self._name = name
        self._clock = clock or SystemClock()
        self._inbox: queue.SimpleQueue[Task | Timer | None] = queue.SimpleQueue()
        self._starting = threading.Lock()
        self._running = threading.Lock()
        self._paused = False
        self._thread: threading.Thread | None = None
        self._closed = False

    def post(self, task: Task) -> None:
        self._inbox.put(task)
        self._start()

    def call_at(self, when: float, task: Task) -> Timer:
        timer = Timer(when, task)
        self._inbox.put(timer)
        self._start()
        return timer

    def close(self, timeout: float = 2.0) -> None:
        """Stop after the task that runs now, and wait for it up to `timeout` seconds."""
        self._closed = True
        _open.discard(self)
        thread = self._thread
        if thread is not None:
            self._inbox.put(None)
            if thread is not threading.current_thread():
                thread.join(timeout)

    def pause(self, timeout: float) -> None:
        if self._thread is not threading.current_thread():
            self._paused = self._running.acquire(timeout=timeout)

    def resume(self) -> None:
        if self._paused:
            self._paused = False
            self._running.release()

    def abandon(self) -> None:
        self._closed = True
        _open.discard(self)

    def _start(self) -> None:
        if self._thread is not None or self._closed:
            return
        with self._starting:
            if self._thread is None:
                _open.add(self)
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()

    def _run(self) -> None:
        schedule = Schedule()
        now = self._clock.monotonic
        while not self._closed:
            task = schedule.due(now())
            if task is None:
                item = self._next(schedule.next - now())
                if item is None:
                    continue
                if isinstance(item, Timer):
                    schedule.add(item)
                    continue
                task = item
            try:
                with self._running:
                    task()
            except Exception:  # noqa: BLE001 - it ends this task only
                failed(logger, "a background task of meshlib failed")

    def _next(self, wait: float) -> Task | Timer | None:
        try:
            return self._inbox.get(timeout=min(max(wait, 0.0), LONGEST_WAIT))
        except queue.Empty:
            return None


_open: weakref.WeakSet[Worker] = weakref.WeakSet()


def _close_all() -> None:
    for worker in list(_open):
        worker.close(timeout=1.0)


atexit.register(_close_all)


class Slicer:
    """Lets other threads run during long work on the background thread.

    A thread that computes keeps the interpreter for 5 ms at a time. `pause`, called often by the work, sleeps for a moment
    (`rest` seconds) whenever more than `budget` seconds have passed since the last time, which gives the interpreter away.
    """

    __slots__ = ("_budget", "_clock", "_rest", "_since", "_sleep")

    def __init__(
        self,
        *,
        budget: float = 0.001,
        rest: float = 0.00005,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,  # noqa: TID251 - it is what this class is for
    ) -> None:
        self._budget = budget
        self._rest = rest
        self._clock = clock
        self._sleep = sleep
        self._since = clock()

    def begin(self) -> None:
        """A new piece of work starts: what went before does not count."""
        self._since = self._clock()

    def pause(self) -> None:
        if self._clock() - self._since > self._budget:
            self.rest()

    def rest(self) -> None:
        """Give the interpreter away now, however little was done."""
        self._sleep(self._rest)
        self._since = self._clock()


def refuse_gevent() -> None:
    """Raise ConfigError when gevent has replaced `threading`: its green threads would stop inside grpc's core."""
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None and monkey.is_module_patched("threading"):
        raise ConfigError(
            "gevent has patched `threading`; meshlib's connection to the control plane needs real threads: call "
            "gevent.monkey.patch_all(thread=False), or use Mesh(config=[...]), which has no control plane"
        )

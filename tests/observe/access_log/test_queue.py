"""Entries are written soon, in order and once; a slow sink holds nobody up; close and fork leave nothing behind."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from meshlib.observe.access_log.files import FileStats
from meshlib.observe.access_log.queue import FLUSH_INTERVAL, MANY, MOST_WAITING, Queue
from meshlib.runtime.clock import FakeClock, SystemClock
from meshlib.stats import Registry
from tests.runtime.manual import ManualWorker


class Kept:
    """A sink that keeps what it gets, and fails when it is told to."""

    def __init__(self) -> None:
        self.writes: list[list[str]] = []
        self.error: OSError | None = None
        self.closed = False

    @property
    def entries(self) -> list[str]:
        return [entry for write in self.writes for entry in write]

    def write(self, entries: list[str]) -> None:
        if self.error is not None:
            raise self.error
        self.writes.append(entries)

    def close(self) -> None:
        self.closed = True


class World:
    def __init__(self) -> None:
        self.clock = FakeClock()
        self.sink = Kept()
        self.registry = Registry()
        self.workers: list[ManualWorker] = []
        self.queue: Queue[str] = Queue(
            self.sink, clock=self.clock, counters=FileStats(self.registry), make=self._worker
        )

    def _worker(self) -> ManualWorker:
        self.workers.append(ManualWorker(self.clock))
        return self.workers[-1]

    def counter(self, name: str) -> int:
        value = self.registry.counter(f"filesystem.{name}").value
        return int(value)


@pytest.fixture
def world() -> Iterator[World]:
    with ExitStack() as stack:
        made = World()
        stack.callback(made.queue.close)
        yield made


def test_what_waits_is_written_after_a_second(world: World) -> None:
    world.queue.put("a")
    world.workers[0].advance(FLUSH_INTERVAL / 2)
    world.queue.put("b")
    assert world.sink.writes == []
    world.workers[0].advance(FLUSH_INTERVAL / 2)
    assert world.sink.writes == [["a", "b"]]
    world.queue.put("c")
    world.workers[0].advance(FLUSH_INTERVAL)
    assert world.sink.writes == [["a", "b"], ["c"]]
    assert world.counter("write_buffered") == 3
    assert world.counter("flushed_by_timer") == 2


def test_many_are_written_at_once(world: World) -> None:
    for number in range(MANY):
        world.queue.put(str(number))
    world.workers[0].run()
    assert world.sink.entries == [str(number) for number in range(MANY)]
    assert world.counter("flushed_by_timer") == 0


def test_more_than_may_wait_are_dropped_counted_and_said_once(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(MOST_WAITING + 3):
        world.queue.put(str(number))
    assert world.counter("write_dropped") == 3
    world.workers[0].run()
    assert len(world.sink.entries) == MOST_WAITING
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    world.queue.put("later")
    world.workers[0].advance(FLUSH_INTERVAL)
    assert world.sink.entries[-1] == "later"


def test_an_error_of_the_sink_is_said_once(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.sink.error = OSError("broken")
    for _ in range(2):
        world.queue.put("lost")
        world.workers[0].advance(FLUSH_INTERVAL)
    assert len(caplog.records) == 1
    world.sink.error = None
    world.queue.put("kept")
    world.workers[0].advance(FLUSH_INTERVAL)
    assert world.sink.entries == ["kept"]


def test_close_writes_what_waits_and_what_comes_later(world: World) -> None:
    world.queue.put("a")
    world.queue.close()
    assert world.sink.entries == ["a"]
    assert world.sink.closed
    assert world.workers[0].closed
    world.queue.put("late")
    assert world.sink.entries == ["a", "late"]
    world.queue.put("later")
    assert world.sink.entries == ["a", "late", "later"]


def test_a_fork_happens_with_nothing_waiting(world: World) -> None:
    world.queue.put("parent")
    world.queue.before_fork()
    assert world.sink.entries == ["parent"]
    assert world.workers[0].paused
    world.queue.after_fork_in_parent()
    world.queue.put("after")
    world.workers[0].advance(FLUSH_INTERVAL)
    assert world.sink.entries == ["parent", "after"]


def test_a_child_has_a_thread_of_its_own_and_none_of_its_parents_entries(world: World) -> None:
    world.queue.put("parent")
    world.queue.before_fork()
    world.queue.put("of another thread, meanwhile")
    world.queue.after_fork_in_child()
    world.queue.put("child")
    assert len(world.workers) == 2
    world.workers[1].advance(FLUSH_INTERVAL)
    assert world.sink.entries == ["parent", "child"]


def test_writers_on_many_threads_lose_nothing() -> None:
    sink, registry = Kept(), Registry()
    queue: Queue[str] = Queue(sink, clock=SystemClock(), counters=FileStats(registry))

    def write(name: int) -> None:
        for number in range(500):
            queue.put(f"{name}-{number}")

    threads = [threading.Thread(target=write, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    queue.close()
    assert sorted(sink.entries) == sorted(f"{name}-{number}" for name in range(4) for number in range(500))
    for name in range(4):
        own = [int(entry.partition("-")[2]) for entry in sink.entries if entry.startswith(f"{name}-")]
        assert own == sorted(own)


def test_a_sink_that_hangs_holds_nobody_up() -> None:
    entered, let_go = threading.Event(), threading.Event()

    class Hangs(Kept):
        def write(self, entries: list[str]) -> None:
            entered.set()
            assert let_go.wait(20)
            super().write(entries)

    sink = Hangs()
    queue: Queue[str] = Queue(sink, clock=SystemClock(), counters=FileStats(Registry()))
    for number in range(MANY):
        queue.put(str(number))
    assert entered.wait(20)
    queue.put("while it hangs")
    let_go.set()
    queue.close()
    assert len(sink.entries) == MANY + 1


def test_what_waits_at_exit_is_written() -> None:
    program = """
from meshlib.observe.access_log.files import FileStats, LineStream
from meshlib.observe.access_log.queue import Queue
from meshlib.runtime.clock import SystemClock
from meshlib.stats import Registry

stats = FileStats(Registry())
queue = Queue(LineStream(1, stats), clock=SystemClock(), counters=stats)
queue.put("last\\n")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    assert (done.stdout, done.stderr, done.returncode) == ("last\n", "", 0)

from __future__ import annotations

import logging
import queue
import subprocess
import sys
import threading
import types

import hypothesis
import pytest
from hypothesis import strategies as st

from meshlib.errors import ConfigError
from meshlib.runtime.clock import FakeClock
from meshlib.runtime.threads import Schedule, Slicer, Timer, Worker, refuse_gevent
from tests.runtime.manual import ManualWorker

LIMIT = 10.0


def nothing() -> None:
    pass


def test_a_worker_starts_with_its_first_task() -> None:
    before = threading.active_count()
    worker = Worker("test")
    assert threading.active_count() == before
    done = threading.Event()
    worker.post(done.set)
    assert done.wait(LIMIT)
    worker.close()
    assert threading.active_count() == before


def test_tasks_run_in_order_on_one_thread() -> None:
    worker = Worker("test")
    seen: queue.SimpleQueue[tuple[int, str]] = queue.SimpleQueue()
    for number in range(20):
        worker.post(lambda number=number: seen.put((number, threading.current_thread().name)))  # type: ignore[misc]
    assert [seen.get(timeout=LIMIT) for _ in range(20)] == [(number, "test") for number in range(20)]
    worker.close()


def test_a_timer_runs_when_it_is_due_and_not_when_cancelled() -> None:
    worker = Worker("test")
    ran: queue.SimpleQueue[str] = queue.SimpleQueue()
    gate = threading.Event()
    worker.post(lambda: ran.put("gate") if gate.wait(LIMIT) else None)
    worker.call_at(0.0, lambda: ran.put("cancelled")).cancel()
    gate.set()
    worker.call_at(0.0, lambda: ran.put("due"))
    assert ran.get(timeout=LIMIT) == "gate"
    assert ran.get(timeout=LIMIT) == "due"
    far = worker.call_at(float("inf"), lambda: ran.put("never"))
    worker.post(lambda: ran.put("posted"))
    assert ran.get(timeout=LIMIT) == "posted"
    far.cancel()
    worker.close()
    assert ran.empty()


def test_a_task_that_fails_is_logged_and_the_next_one_runs(caplog: pytest.LogCaptureFixture) -> None:
    worker = Worker("test")
    done = threading.Event()

    def fail() -> None:
        raise ValueError("boom")

    with caplog.at_level(logging.ERROR, "meshlib.runtime"):
        worker.post(fail)
        worker.post(done.set)
        assert done.wait(LIMIT)
    worker.close()
    assert "boom" in caplog.text


def test_close_is_idempotent_and_final() -> None:
    worker = Worker("test")
    worker.close()
    worker.post(nothing)
    worker.call_at(0.0, nothing)
    worker.close()
    assert not any(thread.name == "test" for thread in threading.enumerate())


def test_a_worker_may_close_itself() -> None:
    worker = Worker("test")
    done = threading.Event()

    def close() -> None:
        worker.close()
        done.set()

    worker.post(close)
    assert done.wait(LIMIT)


def test_a_pause_waits_for_the_running_task_and_holds_the_next_one() -> None:
    worker = Worker("test")
    ran: queue.SimpleQueue[str] = queue.SimpleQueue()
    running, gate = threading.Event(), threading.Event()

    def first() -> None:
        running.set()
        assert gate.wait(LIMIT)
        ran.put("first")

    worker.post(first)
    worker.post(lambda: ran.put("second"))
    assert running.wait(LIMIT)
    worker.pause(0.01)
    assert ran.empty()
    worker.resume()
    gate.set()
    worker.pause(LIMIT)
    worker.post(lambda: ran.put("third"))
    seen = [ran.get(timeout=LIMIT) for _ in range(ran.qsize())]
    worker.resume()
    while len(seen) < 3:
        seen.append(ran.get(timeout=LIMIT))
    assert seen == ["first", "second", "third"]
    worker.close()


def test_a_task_may_pause_its_own_worker() -> None:
    worker = Worker("test")
    done = threading.Event()

    def fork_in_a_task() -> None:
        worker.pause(LIMIT)
        worker.resume()

    worker.post(fork_in_a_task)
    worker.post(done.set)
    assert done.wait(LIMIT)
    worker.close()


def test_an_open_worker_does_not_keep_the_interpreter() -> None:
    code = """
from meshlib.runtime.threads import Worker
import threading
worker, started = Worker("test"), threading.Event()
worker.post(started.set)
worker.call_at(1e18, print)
assert started.wait(10)
print("end of main")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (0, "end of main\n", "")


@hypothesis.given(st.lists(st.tuples(st.floats(0, 10), st.booleans())), st.lists(st.floats(0, 10)))
def test_timers_run_in_order_of_time_each_once(
    timers: list[tuple[float, bool]], moments: list[float]
) -> None:
    schedule = Schedule()
    ran: list[int] = []
    for number, (when, cancelled) in enumerate(timers):
        timer = Timer(when, lambda number=number: ran.append(number))  # type: ignore[misc]
        schedule.add(timer)
        if cancelled:
            timer.cancel()
    for now in sorted(moments):
        while task := schedule.due(now):
            task()
        assert schedule.next > now
        expected = [n for n, (when, cancelled) in enumerate(timers) if when <= now and not cancelled]
        assert ran == sorted(expected, key=lambda number: timers[number][0])


def test_the_manual_worker_runs_each_timer_at_its_own_time() -> None:
    clock = FakeClock(start=100.0)
    worker = ManualWorker(clock)
    seen: list[float] = []

    def tick() -> None:
        seen.append(clock.monotonic())
        worker.call_at(clock.monotonic() + 2, tick)

    worker.call_at(101.0, tick)
    worker.advance(5)
    assert seen == [101.0, 103.0, 105.0]


def test_a_slicer_sleeps_only_after_its_budget() -> None:
    now, slept = [0.0], list[float]()

    def sleep(seconds: float) -> None:
        slept.append(seconds)

    slicer = Slicer(budget=1.0, rest=0.25, clock=lambda: now[0], sleep=sleep)
    slicer.pause()
    now[0] = 1.0
    slicer.pause()
    assert slept == []
    now[0] = 1.5
    slicer.pause()
    slicer.pause()
    assert slept == [0.25]
    now[0] = 3.0
    slicer.begin()
    slicer.pause()
    assert slept == [0.25]
    slicer.rest()
    assert slept == [0.25, 0.25]


def test_gevent_with_patched_threads_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_gevent()
    monkey = types.ModuleType("gevent.monkey")
    monkey.is_module_patched = lambda name: name == "threading"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "gevent.monkey", monkey)
    with pytest.raises(ConfigError, match="patch_all\\(thread=False\\)"):
        refuse_gevent()
    monkey.is_module_patched = lambda name: False  # type: ignore[attr-defined]
    refuse_gevent()

"""The threads that move bytes: what is submitted runs, whatever the thread does at that moment."""

from __future__ import annotations

import threading
from types import TracebackType

from meshlib.transport.grpc.tunnel_loop import Loop

LIMIT = 10


class Meanwhile:
    """A lock. Once, right after the loop's own thread has released it, somebody else submits a task."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._lock = threading.Lock()
        self._armed = True
        self.done = threading.Event()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()
        if self._armed and threading.current_thread().name == self._loop.name:
            self._armed = False
            other = threading.Thread(target=self._loop.submit, args=(self.done.set,))
            other.start()
            other.join()


def test_a_task_submitted_while_the_thread_takes_tasks_wakes_it_again() -> None:
    loop = Loop("loop")
    loop._lock = meanwhile = Meanwhile(loop)  # type: ignore[assignment]
    first = threading.Event()
    loop.submit(first.set)
    assert first.wait(LIMIT)
    assert meanwhile.done.wait(LIMIT)

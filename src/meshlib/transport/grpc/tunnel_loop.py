"""The threads that move the bytes of TLS connections: each waits for all of its sockets at once.

There are two in a process. One opens connections (TCP, the handshake, the check of the peer), which takes a millisecond of
computing each; the other one only moves bytes, so that calls under way do not wait for handshakes. Both are started when there is
something to do, and end when there has been nothing for `LINGER` seconds: a process without TLS endpoints has neither.

A handler gets the events of its socket as a mask of `IN`, `OUT` and `GONE`, and never blocks. Events are level-triggered.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import logging
import os
import select
import selectors
import socket
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from meshlib.runtime import fork
from meshlib.runtime.clock import SystemClock
from meshlib.runtime.logs import failed
from meshlib.runtime.threads import Timer

__all__ = ["BUFFER", "GONE", "IN", "OUT", "Loop", "opening_loop", "pumping_loop"]

LINGER = 1.0
"""Seconds."""

MANY = 256
"""From so many alarms on, those that were cancelled are looked for in the middle of the heap too."""

BUFFER = 256 * 1024
"""Bytes that a thread reads at once. What a peer does not take of them waits, one such piece for each direction at most."""

IN, OUT, GONE = 1, 4, 8 | 16
"""As epoll numbers them: may be read, may be written, broken or closed by the other side."""

logger = logging.getLogger("meshlib.transport")

Handler = Callable[[int], None]
Broken = Callable[[Exception], None]
Task = Callable[[], None]


class Poller(Protocol):
    """What `select.epoll` offers."""

    def register(self, fd: int, eventmask: int = ..., /) -> None: ...
    def modify(self, fd: int, eventmask: int, /) -> None: ...
    def unregister(self, fd: int, /) -> None: ...
    def poll(self, timeout: float | None = ..., /) -> list[tuple[int, int]]: ...
    def close(self) -> None: ...


class PortablePoller:
    """The same where there is no epoll. A socket that is not waited for is not watched at all."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()

    def register(self, fd: int, eventmask: int = IN, /) -> None:
        if eventmask:
            self._selector.register(fd, _portable(eventmask))

    def modify(self, fd: int, eventmask: int, /) -> None:
        self.unregister(fd)
        self.register(fd, eventmask)

    def unregister(self, fd: int, /) -> None:
        if fd in self._selector.get_map():
            self._selector.unregister(fd)

    def poll(self, timeout: float | None = None, /) -> list[tuple[int, int]]:
        found = self._selector.select(None if timeout is None or timeout < 0 else timeout)
        return [(key.fd, _events(ready)) for key, ready in found]

    def close(self) -> None:
        self._selector.close()


def _events(ready: int) -> int:
    return (IN if ready & selectors.EVENT_READ else 0) | (OUT if ready & selectors.EVENT_WRITE else 0)


def _portable(mask: int) -> int:
    return (selectors.EVENT_READ if mask & IN else 0) | (selectors.EVENT_WRITE if mask & OUT else 0)


class Loop:
    """One such thread. `submit` may be called from any thread, everything else only on its own."""

    def __init__(self, name: str, poller: Callable[[], Poller] | None = None) -> None:
        self.name = name
        self.buffer = bytearray(BUFFER)
        self.view = memoryview(self.buffer)
        made: Any = poller or getattr(select, "epoll", PortablePoller)
        self._make: Callable[[], Poller] = made
        self._clear()
        fork.register(self)

    def _clear(self) -> None:
        self._running = threading.Lock()
        self._paused = False
        self._lock = threading.Lock()
        self._tasks: deque[Task] = deque()
        self._handlers: dict[int, Handler] = {}
        self._broken: dict[int, Broken] = {}
        self._alarms: list[tuple[float, int, Timer]] = []
        self._crowded = MANY
        self._numbers = itertools.count()
        self._poller: Poller | None = None
        self._wake: tuple[socket.socket, socket.socket] | None = None
        self._asleep = True
        self._woken = False
        self._thread: threading.Thread | None = None
        self.sockets: set[socket.socket] = set()

    # --- from any thread -------------------------------------------------------------------------------------------

    def submit(self, task: Task) -> None:
        """Have the task run on the thread, soon."""
        with self._lock:
            self._tasks.append(task)
            if self._poller is None:
                self._start()
            if self._asleep and self._wake is not None:
                self._asleep = False
                self._wake[1].send(b"\0")

    def _start(self) -> None:
        """The caller holds the lock."""
        self._poller = self._make()
        ours, _ = self._wake = socket.socketpair()
        for end in self._wake:
            end.setblocking(False)
        self._poller.register(ours.fileno(), IN)
        self._handlers[ours.fileno()] = self._awake
        self._asleep = True
        self._thread = threading.Thread(target=self._run, args=(self._poller,), name=self.name, daemon=True)
        try:
            self._thread.start()
        except RuntimeError:  # the interpreter shuts down: nobody waits for a connection any more
            self._stop()

    # --- on the thread ---------------------------------------------------------------------------------------------

    def watch(self, sock: socket.socket, mask: int, handler: Handler, broken: Broken) -> None:
        """Call the handler for these events of the socket until `forget`. broken: told what a handler raised by mistake."""
        assert self._poller is not None
        fd = sock.fileno()
        self._poller.register(fd, mask)
        self._handlers[fd] = handler
        self._broken[fd] = broken
        self.sockets.add(sock)

    def change(self, sock: socket.socket, mask: int) -> None:
        assert self._poller is not None
        self._poller.modify(sock.fileno(), mask)

    def hand_over(self, sock: socket.socket, handler: Handler) -> None:
        """Another handler for a socket that is watched."""
        self._handlers[sock.fileno()] = handler

    def forget(self, sock: socket.socket) -> None:
        """Stop watching. Nothing happens when it is not watched."""
        if sock in self.sockets:
            assert self._poller is not None
            self.sockets.discard(sock)
            del self._handlers[sock.fileno()], self._broken[sock.fileno()]
            self._poller.unregister(sock.fileno())

    def later(self, delay: float, task: Task) -> Timer:
        """Run the task after `delay` seconds, unless the alarm is cancelled."""
        alarm = Timer(SystemClock.monotonic() + delay, task)
        if len(self._alarms) >= self._crowded:
            alive = [entry for entry in self._alarms if entry[2].task is not None]
            self._alarms[:] = alive
            heapq.heapify(self._alarms)
            self._crowded = max(MANY, 2 * len(alive))
        heapq.heappush(self._alarms, (alarm.when, next(self._numbers), alarm))
        return alarm

    def _run(self, poller: Poller) -> None:
        poll, handlers, running = poller.poll, self._handlers, self._running
        limit, resting = 0.0, False
        while True:
            found = poll(limit)
            with running:
                for fd, mask in found:
                    handler = handlers.get(fd)
                    if handler is None:  # closed a moment ago
                        continue
                    try:
                        handler(mask)
                    except Exception as error:  # noqa: BLE001 - it ends this connection only
                        failed(logger, "a TLS connection of a gRPC channel broke")
                        self._tell(fd, error)
                if self._woken:
                    self._do_tasks()
                if resting and not found and self._quit():
                    return
                limit = self._limit()
                resting = not self._alarms and len(handlers) <= 1

    def _limit(self) -> float:
        """How long to sleep, after what is due now."""
        alarms = self._alarms
        while alarms:
            left = alarms[0][0] - SystemClock.monotonic()
            task = alarms[0][2].task
            if task is not None and left > 0:
                return left
            heapq.heappop(alarms)
            if task is not None:
                self._do(task)
        return -1 if len(self._handlers) > 1 else LINGER

    def _quit(self) -> bool:
        """Nothing was watched for a while: whether the thread is to end."""
        with self._lock:
            if self._tasks:
                return False
            self._stop()
            return True

    def _stop(self) -> None:
        """The caller holds the lock. The next task starts another thread."""
        poller, self._poller = self._poller, None
        wake, self._wake = self._wake, None
        self._handlers = {}
        if wake is not None:
            for end in wake:
                end.close()
        if poller is not None:
            poller.close()

    def _awake(self, _mask: int) -> None:
        """There are tasks. They make sockets, whose numbers may be those of sockets closed just now: events come first."""
        self._woken = True

    def _do_tasks(self) -> None:
        self._woken = False
        with self._lock:
            if self._wake is not None:
                with contextlib.suppress(BlockingIOError):
                    self._wake[0].recv(64)  # before another task can wake us: its byte must stay
            self._asleep = True
            tasks, self._tasks = self._tasks, deque()
        for task in tasks:
            self._do(task)

    def _do(self, task: Task) -> None:
        try:
            task()
        except Exception:  # noqa: BLE001 - it ends this task only
            failed(logger, "a task of %s failed", self.name)

    def _tell(self, fd: int, error: Exception) -> None:
        broken = self._broken.get(fd)
        if broken is not None:
            self._do(partial(broken, error))

    # --- around a fork ---------------------------------------------------------------------------------------------

    def before_fork(self) -> None:
        """Wait until the thread sleeps: a lock of OpenSSL that it holds would be held in the child for ever."""
        if self._poller is not None and self._thread is not threading.current_thread():
            self._paused = self._running.acquire(timeout=fork.PATIENCE)

    def after_fork_in_parent(self) -> None:
        if self._paused:
            self._paused = False
            self._running.release()

    def after_fork_in_child(self) -> None:
        """The thread is not here. Close what is this process's of the parent's sockets, which the parent does not notice."""
        inherited = self.sockets
        if self._wake is not None:
            inherited.update(self._wake)
        for sock in inherited:
            os.close(sock.detach())
        if self._poller is not None:
            self._poller.close()
        _inherited.append((self._handlers, self._tasks, self._alarms))
        self._clear()


_inherited: list[object] = []
"""The parent's connections, in a forked child: their TLS may have been at work in another thread, so nothing of it is freed."""

_loops: dict[str, Loop] = {}
_loops_lock = threading.Lock()


def _loop(name: str) -> Loop:
    known = _loops.get(name)
    if known is None:
        with _loops_lock:
            known = _loops.get(name)
            if known is None:
                known = _loops[name] = Loop(name)
    return known


def opening_loop() -> Loop:
    """Where connections are opened."""
    return _loop("meshlib-grpc-connect")


def pumping_loop() -> Loop:
    """Where open connections are served."""
    return _loop("meshlib-grpc-tls")

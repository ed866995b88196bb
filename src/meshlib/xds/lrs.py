"""Load reports: the stream that they travel on. What they say is `meshlib.xds.load_report`.

There is a stream while a cluster asks for it (`lrs_server: {self: {}}`), beside the one that configuration comes on and to the
same server. It runs on the same background thread and stops around a fork like that one; a child counts from zero, so it reports
its own load only.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

from meshlib.errors import ConfigError, ControlPlaneError
from meshlib.runtime.clock import Clock
from meshlib.runtime.logs import Once
from meshlib.runtime.stream import JOIN, Connection, Stream
from meshlib.runtime.threads import Executor, Timer
from meshlib.stats import Registry
from meshlib.xds.backoff import Backoff
from meshlib.xds.load_report import LoadReports

__all__ = ["LrsDriver", "OpenLrs"]

logger = logging.getLogger("meshlib.xds")

OpenLrs = Callable[[Callable[[Stream, bytes], None], Callable[[Stream, str], None]], Stream]
"""Begin to connect: `on_message` and `on_closed` get the stream first, on any thread. Raises ConfigError."""


class LrsDriver:
    """Reports while `sync` says so. Counters as Envoy's: `load_reporter.responses` (reports sent), `.requests` (answers) and
    `.errors`.

    All but `close` and what is around a fork happens on the executor's thread.
    """

    def __init__(
        self,
        reports: LoadReports,
        *,
        executor: Executor,
        clock: Clock,
        registry: Registry,
        open_stream: OpenLrs,
        backoff: Backoff,
    ) -> None:
        self._reports = reports
        self._executor = executor
        self._clock = clock
        self._sent = registry.counter("load_reporter.responses")
        self._answers = registry.counter("load_reporter.requests")
        self._errors = registry.counter("load_reporter.errors")
        self._backoff = backoff
        self._open_stream = open_stream
        self._connection = Connection(self._open)
        self._wanted = False
        self._warned = False
        self._malformed = Once()
        self._timer: Timer | None = None

    def sync(self, wanted: bool) -> None:
        """Whether some cluster asks for reports."""
        if wanted is self._wanted:
            return
        self._wanted = wanted
        if wanted:
            self._connect()
        else:
            self._stop_timer()
            stream = self._connection.stream
            if stream is not None:
                self._connection.ended(stream)

    def close(self) -> None:
        """End the stream, and wait for its thread. From any thread, when the executor runs no longer."""
        stream = self._connection.close()
        if stream is not None:
            stream.join(JOIN)

    def before_fork(self) -> None:
        self._connection.before_fork()

    def after_fork_in_parent(self) -> None:
        if self._connection.after_fork_in_parent():
            self._executor.post(self._resume)

    def after_fork_in_child(self) -> None:
        """The driver of the child is another one; this one only keeps the parent's stream from being finalized."""
        self._connection.after_fork_in_child()

    def _open(self) -> Stream:
        return self._open_stream(self._on_message, self._on_closed)

    def _connect(self) -> None:
        if not self._wanted:
            return
        try:
            if not self._connection.open():
                return
        except ConfigError as error:
            self._lost(str(error))
            return
        self._send(self._reports.connected())

    def _resume(self) -> None:
        self._stop_timer()
        self._connect()

    def _on_message(self, stream: Stream, data: bytes) -> None:
        self._executor.post(partial(self._received, stream, data))

    def _on_closed(self, stream: Stream, reason: str) -> None:
        self._executor.post(partial(self._stream_closed, stream, reason))

    def _received(self, stream: Stream, data: bytes) -> None:
        try:
            if stream is self._connection.stream:
                self._answers.value += 1
                self._backoff.reset()
                self._warned = False
                if self._reports.answered(data, self._clock.monotonic()):
                    self._begin_interval()
        except ControlPlaneError as error:
            self._errors.value += 1
            if self._malformed(str(error)):
                logger.warning("%s", error)
        finally:
            stream.processed()

    def _begin_interval(self) -> None:
        self._stop_timer()
        interval = self._reports.interval
        assert interval is not None, "set by every answer"
        self._timer = self._executor.call_at(self._clock.monotonic() + interval, self._report)

    def _report(self) -> None:
        if self._connection.stream is not None:
            self._sent.value += 1
            self._send(self._reports.report(self._clock.monotonic()))
            self._begin_interval()

    def _stream_closed(self, stream: Stream, reason: str) -> None:
        if self._connection.ended(stream):
            self._lost(reason)

    def _lost(self, reason: str) -> None:
        self._errors.value += 1
        if not self._warned:
            self._warned = True
            logger.warning("no load reports to the control plane: %s", reason)
        self._stop_timer()
        due = self._clock.monotonic() + self._backoff.next()
        self._executor.call_at(due, self._connect)

    def _stop_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    def _send(self, data: bytes) -> None:
        stream = self._connection.stream
        if stream is not None:
            stream.send(data)

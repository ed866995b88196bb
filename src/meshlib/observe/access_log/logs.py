"""All access logs of one Mesh: what each of them writes, compiled, and the sinks, each opened once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from random import Random
from typing import TYPE_CHECKING, Any

from meshlib.observe.access_log.files import FileStats, LineFile, LineStream
from meshlib.observe.access_log.filters import Predicate, compile_filter
from meshlib.observe.access_log.formatter import compile_fields, compile_line, compile_value
from meshlib.observe.access_log.inbound import InboundFacts
from meshlib.observe.access_log.outbound import CallFacts
from meshlib.observe.access_log.queue import Queue
from meshlib.observe.access_log.records import Entry, LoggingSink, OpenTelemetryLogs
from meshlib.resources.access_log import (
    AccessLog,
    FileSink,
    Filter,
    JsonFormat,
    LogFormat,
    OpenTelemetryFormat,
    OpenTelemetrySink,
    StreamSink,
    TextFormat,
)
from meshlib.runtime.memo import Memo

if TYPE_CHECKING:
    from meshlib.runtime.clock import Clock
    from meshlib.runtime.threads import Executor
    from meshlib.stats.registry import Registry

__all__ = ["Logs", "Write"]

AnyFacts = CallFacts | InboundFacts

Write = Callable[[AnyFacts], None]
"""Logs one call, if the log's filter lets it."""


class Logs:
    """make: the threads that write; None: of their own kind."""

    def __init__(
        self, registry: Registry, clock: Clock, random: Random, make: Callable[[], Executor] | None = None
    ) -> None:
        self._clock = clock
        self._random = random
        self._make = make
        self._stats = FileStats(registry)
        self._lines: dict[str, Queue[str]] = {}
        self._records: dict[object, Queue[Entry]] = {}
        self.writes = Memo[tuple[AccessLog, ...], tuple[Write, ...]](self._compile)
        """Of the access logs of an HttpConnectionManager."""

    def _compile(self, logs: tuple[AccessLog, ...]) -> tuple[Write, ...]:
        return tuple(self._write(log) for log in logs)

    def _write(self, log: AccessLog) -> Write:
        sink = log.sink
        if isinstance(sink, OpenTelemetrySink):
            return self.to_open_telemetry(log.format, log.filter, name=sink.log_name)
        assert not isinstance(log.format, OpenTelemetryFormat)
        if isinstance(sink, StreamSink):
            return self.to_stream(sink.stream, log.format, log.filter)
        assert isinstance(sink, FileSink)
        return self.to_file(sink.path, log.format, log.filter)

    def to_stream(self, stream: str, shown: TextFormat | JsonFormat, chosen: Filter | None) -> Write:
        """stream: `stdout` or `stderr`, of the process."""
        descriptor = 1 if stream == "stdout" else 2
        return self._line_write(f"/dev/{stream}", lambda: LineStream(descriptor, self._stats), shown, chosen)

    def to_file(self, path: str, shown: TextFormat | JsonFormat, chosen: Filter | None) -> Write:
        return self._line_write(path, lambda: LineFile(path, self._stats), shown, chosen)

    def _line_write(
        self, key: str, sink: Callable[[], LineStream], shown: TextFormat | JsonFormat, chosen: Filter | None
    ) -> Write:
        queue = self._lines.get(key)
        if queue is None:
            made: Queue[str] = Queue(sink(), clock=self._clock, counters=self._stats, make=self._make)
            queue = self._lines.setdefault(key, made)
        line, put = compile_line(shown), queue.put
        return self._filtered(chosen, lambda facts: put(line(facts)))

    def to_logger(
        self, logger: logging.Logger, shown: TextFormat | JsonFormat, chosen: Filter | None
    ) -> Write:
        """Records at level INFO; members of a JSON format are attributes of theirs."""
        sink = LoggingSink(logger)
        put = self._record_queue(logger, lambda: sink).put
        line = compile_line(shown)
        fields: Callable[[Any], dict[str, Any]] = _no_fields
        if isinstance(shown, JsonFormat):
            fields = compile_fields(shown.root, omit_empty=shown.omit_empty)

        def write(facts: AnyFacts) -> None:
            if sink.wanted:
                text = line(facts)
                put(
                    Entry(
                        text=text.removesuffix("\n"),
                        fields=fields(facts),
                        began=facts.started,
                        ended=facts.ended,
                    )
                )

        return self._filtered(chosen, write)

    def to_open_telemetry(
        self, shown: LogFormat, chosen: Filter | None, *, provider: Any = None, name: str = ""
    ) -> Write:
        """provider: a LoggerProvider, None for the process's own. A text is the body, members of JSON are attributes."""
        put = self._record_queue(
            ("otel", id(provider)) if provider is not None else "otel", lambda: OpenTelemetryLogs(provider)
        ).put
        fixed = {"log_name": name} if name else {}
        body: Callable[[Any], Any] = _no_body
        fields: Callable[[Any], dict[str, Any]] = _no_fields
        if isinstance(shown, TextFormat):
            line = compile_line(shown)
            body = lambda facts: line(facts).removesuffix("\n")  # noqa: E731
        elif isinstance(shown, JsonFormat):
            fields = compile_fields(shown.root, omit_empty=shown.omit_empty)
        else:
            body = compile_value(shown.body, text=True)
            fields = compile_value(shown.attributes, text=True)

        def write(facts: AnyFacts) -> None:
            put(
                Entry(
                    text=body(facts),
                    fields={**fixed, **fields(facts)},
                    began=facts.started,
                    ended=facts.ended,
                    trace=facts.trace,
                )
            )

        return self._filtered(chosen, write)

    def _record_queue(self, key: object, sink: Callable[[], Any]) -> Queue[Entry]:
        queue = self._records.get(key)
        if queue is None:
            made: Queue[Entry] = Queue(sink(), clock=self._clock, counters=self._stats, make=self._make)
            queue = self._records.setdefault(key, made)
        return queue

    def _filtered(self, chosen: Filter | None, write: Write) -> Write:
        if chosen is None:
            return write
        passes: Predicate = compile_filter(chosen, self._random)

        def write_some(facts: AnyFacts) -> None:
            if passes(facts):
                write(facts)

        return write_some

    def _queues(self) -> Iterable[Queue[Any]]:
        return (*self._lines.values(), *self._records.values())

    def flush(self) -> None:
        """Write all that waits, now and on this thread."""
        for queue in self._queues():
            queue.flush()

    def close(self) -> None:
        """Write all that waits and end the threads. Later entries are written by the thread that logs them."""
        for queue in self._queues():
            queue.close()


def _no_fields(facts: Any) -> dict[str, Any]:
    return {}


def _no_body(facts: Any) -> None:
    return None

"""Records instead of lines: for `logging`, and for OpenTelemetry's logs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opentelemetry._logs import LoggerProvider

__all__ = ["Entry", "LoggingSink", "OpenTelemetryLogs"]

_RESERVED = frozenset((*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"))
"""Attributes of a LogRecord, which `extra` must not set."""

_SCOPE = "meshlib.access"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One call. text: a line without its newline; None for a record that has fields only. began: seconds since the epoch.

    trace: trace id and span id, hexadecimal.
    """

    text: Any
    fields: dict[str, Any]
    began: float
    ended: float
    trace: tuple[str, str] | None = None


class LoggingSink:
    """Entries into a logger, at level INFO: the text is the message, the fields are attributes of the record.

    A field with the name of an attribute that every record has gets `access_` in front. `created` is the end of the call.
    """

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger

    @property
    def wanted(self) -> bool:
        return self._logger.isEnabledFor(logging.INFO)

    def write(self, entries: list[Entry]) -> None:
        logger = self._logger
        for entry in entries:
            extra = {
                f"access_{name}" if name in _RESERVED else name: value for name, value in entry.fields.items()
            }
            record = logger.makeRecord(
                logger.name, logging.INFO, "", 0, entry.text, (), None, None, extra or None
            )
            record.msecs = (entry.ended - int(entry.ended)) * 1000
            record.created = entry.ended
            logger.handle(record)

    def close(self) -> None:
        """The logger is the application's."""


class OpenTelemetryLogs:
    """Entries as log records of a provider: the given one, or the process's own, looked up when the first one comes."""

    def __init__(self, provider: LoggerProvider | None = None) -> None:
        self._provider = provider
        self._logger: Any = None
        self._severity: Any = None
        self._record: Callable[..., Any] | None = None

    def write(self, entries: list[Entry]) -> None:
        make = self._record or self._start()
        for entry in entries:
            trace, span = (0, 0) if entry.trace is None else (int(part, 16) for part in entry.trace)
            self._logger.emit(
                make(
                    timestamp=int(entry.began * 1e9),
                    observed_timestamp=int(entry.ended * 1e9),
                    trace_id=trace,
                    span_id=span,
                    severity_number=self._severity,
                    body=entry.text,
                    attributes=entry.fields,
                )
            )

    def close(self) -> None:
        """The provider is the application's."""

    def _start(self) -> Callable[..., Any]:
        from opentelemetry import _logs as api
        from opentelemetry.sdk import _logs as sdk

        provider = self._provider or api.get_logger_provider()
        self._logger = provider.get_logger(_SCOPE)
        self._severity = api.SeverityNumber.INFO
        older = getattr(sdk, "LogRecord", None)  # until 1.38 exporters wanted the SDK's own class
        resource = getattr(provider, "resource", None)
        self._record = api.LogRecord if older is None else partial(older, resource=resource)
        return self._record

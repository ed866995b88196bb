"""Access logs that an application asks for itself: `Observe(access_log=[AccessLog(...)])`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import logging

    from opentelemetry._logs import LoggerProvider

__all__ = ["AccessLog"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessLog:
    """One log of calls.

    format: `"envoy"` (Envoy's default), `"istio"`, `"json"` (those of Istio's sidecars), a text with Envoy's operators, or a
    mapping for JSON. to: `"logging"` (the logger `meshlib.access`, level INFO), `"stdout"`, `"stderr"`, `"otel"` (the process's
    OpenTelemetry LoggerProvider); a path, which has a slash or is a PathLike; a Logger or a LoggerProvider of your own.
    filter: an AccessLogFilter in its JSON form, for example
    `{"status_code_filter": {"comparison": {"op": "GE", "value": {"default_value": 500, "runtime_key": "any"}}}}`.
    calls: which direction. omit_empty_values: as Envoy's field of this name.

    Raises ConfigError when the Mesh starts: a format, a filter or a destination that does not exist.
    """

    format: str | Mapping[str, Any] = "envoy"
    to: str | os.PathLike[str] | logging.Logger | LoggerProvider = "logging"
    filter: Mapping[str, Any] | None = None
    calls: Literal["outbound", "inbound", "all"] = "all"
    omit_empty_values: bool = False

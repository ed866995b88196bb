"""From settings to observers."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from meshlib import proto
from meshlib.errors import ConfigError, ResourceError
from meshlib.observe.access_log.logs import Logs, Write
from meshlib.observe.access_log.observer import InboundLog, OutboundLog
from meshlib.observe.access_log.settings import AccessLog
from meshlib.resources.access_log import NAMED_FORMATS, Filter, JsonFormat, TextFormat, shows_connections
from meshlib.resources.decode_access_log import decode_filter, decode_log_format
from meshlib.resources.reader import Reader, Reading

if TYPE_CHECKING:
    from random import Random

    from meshlib.engine.engine import Engine
    from meshlib.runtime.clock import Clock
    from meshlib.stats.registry import Registry

__all__ = ["subscribe"]

logger = logging.getLogger("meshlib.observe")

T = TypeVar("T")

_FORMAT = "envoy.config.core.v3.SubstitutionFormatString"
_FILTER = "envoy.config.accesslog.v3.AccessLogFilter"


def subscribe(
    engine: Engine,
    registry: Registry,
    clock: Clock,
    random: Random,
    wanted: Sequence[AccessLog | str] | AccessLog | str,
    *,
    configured: bool,
) -> Logs:
    """Have calls logged from now on. configured: also by the access logs of Listeners. Raises ConfigError."""
    logs = Logs(registry, clock, random)
    several = [wanted] if isinstance(wanted, AccessLog | str) else wanted
    asked = [AccessLog(format=each) if isinstance(each, str) else each for each in several]
    outbound = tuple(_write(logs, each) for each in asked if each.calls != "inbound")
    inbound = tuple(_write(logs, each) for each in asked if each.calls != "outbound")
    if any(shows_connections(_format(each)) for each in asked if each.calls != "inbound"):
        engine.shows_connections = True
    if configured or outbound:
        engine.observe(OutboundLog(logs, clock, outbound, configured=configured))
    if configured or inbound:
        engine.observe(InboundLog(logs, inbound, configured=configured))
    return logs


def _write(logs: Logs, asked: AccessLog) -> Write:
    shown = _format(asked)
    chosen = None if asked.filter is None else _filter(asked.filter)
    to = asked.to
    if isinstance(to, logging.Logger):
        return logs.to_logger(to, shown, chosen)
    if isinstance(to, str | os.PathLike):
        path = os.fspath(to)
        if path == "logging":
            return logs.to_logger(logging.getLogger("meshlib.access"), shown, chosen)
        if path in ("stdout", "stderr"):
            return logs.to_stream(path, shown, chosen)
        if path == "otel":
            return logs.to_open_telemetry(shown, chosen)
        if isinstance(to, str) and "/" not in path:
            raise ConfigError(f"access log: {path!r} is neither a destination nor a path with a slash")
        return logs.to_file(path, shown, chosen)
    if not hasattr(to, "get_logger"):
        raise ConfigError(f"access log: nothing can be written to {to!r}")
    return logs.to_open_telemetry(shown, chosen, provider=to)


def _format(asked: AccessLog) -> TextFormat | JsonFormat:
    shown, omit = asked.format, asked.omit_empty_values
    if isinstance(shown, str):
        if shown in NAMED_FORMATS:
            return replace(NAMED_FORMATS[shown], omit_empty=omit)
        if "%" not in shown:
            names = ", ".join(NAMED_FORMATS)
            raise ConfigError(
                f"access log: {shown!r} is no format: neither one of {names} nor with an operator"
            )
        value: dict[str, Any] = {"text_format_source": {"inline_string": shown}}
    else:
        value = {"json_format": dict(shown)}
    return _decoded(_FORMAT, {**value, "omit_empty_values": omit}, decode_log_format)


def _filter(value: Any) -> Filter:
    return _decoded(_FILTER, dict(value), decode_filter)


def _decoded(name: str, value: dict[str, Any], decoder: Callable[[Reader], T]) -> T:
    reading = Reading()
    try:
        found = decoder(reading.root(proto.from_dict(name, value)))
        unsupported = reading.finish()
    except (ResourceError, proto.FieldError) as error:
        raise ConfigError(f"access log: {error.path}: {error.reason}") from None
    if unsupported:
        logger.warning("access log: not supported: %s", ", ".join(unsupported))
    return found

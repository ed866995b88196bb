"""Access logs as configuration gives them (config.accesslog.v3.AccessLog and the loggers of extensions.access_loggers).

An AccessLog is a filter, a format and a sink. `DEFAULT_FORMAT` is Envoy's own; `NAMED_FORMATS` are those that users may call by
name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import Literal

from meshlib.resources.format import Format, Operator, parse
from meshlib.resources.matching import FractionalPercent, HeaderMatch
from meshlib.resources.operators import OF_CONNECTIONS

__all__ = [
    "DEFAULT_FORMAT",
    "NAMED_FORMATS",
    "AccessLog",
    "AndFilter",
    "Comparison",
    "Constant",
    "DurationFilter",
    "FileSink",
    "Filter",
    "GrpcStatusFilter",
    "HeaderFilter",
    "JsonFormat",
    "JsonList",
    "JsonObject",
    "JsonValue",
    "LogFormat",
    "LogTypeFilter",
    "NotHealthCheckFilter",
    "OpenTelemetryFormat",
    "OpenTelemetrySink",
    "Operation",
    "OrFilter",
    "ResponseFlagFilter",
    "RuntimeFilter",
    "Sink",
    "StatusCodeFilter",
    "StreamSink",
    "TextFormat",
    "TraceableFilter",
    "shows_connections",
]


# --- formats -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class JsonList:
    """An array of a JSON format."""

    items: tuple[JsonValue, ...]


@dataclass(frozen=True, slots=True)
class JsonObject:
    """An object of a JSON format. members: in the order of the output, which in JSON is that of the names."""

    members: tuple[tuple[str, JsonValue], ...]


JsonValue = Format | JsonList | JsonObject | float | bool | None
"""A Format is a text with operators; one that is nothing but an operator keeps the type of its value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextFormat:
    """text_format. The text ends its own line. omit_empty: missing values are left out instead of written as `-`."""

    format: Format
    omit_empty: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonFormat:
    """json_format: one object in a line. omit_empty: members without a value are left out instead of written as null."""

    root: JsonObject
    omit_empty: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenTelemetryFormat:
    """What a log record of OpenTelemetry holds. body: None for none. Values are texts: of a number, its digits."""

    body: JsonValue = None
    attributes: JsonObject = JsonObject(())


LogFormat = TextFormat | JsonFormat | OpenTelemetryFormat


_SENT = re.compile("US_(CX|HS|TX)_")


def shows_connections(shown: LogFormat) -> bool:
    """Whether the format has one of `operators.OF_CONNECTIONS`, or asks %COMMON_DURATION% for moments of them."""
    if isinstance(shown, TextFormat):
        return _shows_connections(shown.format)
    if isinstance(shown, JsonFormat):
        return _shows_connections(shown.root)
    return _shows_connections(shown.body) or _shows_connections(shown.attributes)


def _shows_connections(value: JsonValue) -> bool:
    if isinstance(value, Format):
        found = [each for each in value.segments if isinstance(each, Operator)]
        return any(
            each.name in OF_CONNECTIONS or (each.name == "COMMON_DURATION" and _SENT.search(each.argument))
            for each in found
        )
    if isinstance(value, JsonObject):
        return any(_shows_connections(member) for _, member in value.members)
    return isinstance(value, JsonList) and any(map(_shows_connections, value.items))


# --- sinks ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSink:
    """extensions.access_loggers.file.v3.FileAccessLog. path: never empty; opened when the first line is written."""

    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamSink:
    """extensions.access_loggers.stream.v3: the process's own standard output or error."""

    stream: Literal["stdout", "stderr"]


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenTelemetrySink:
    """extensions.access_loggers.open_telemetry.v3. Records go to the LoggerProvider of the process.

    log_name: the attribute `log_name` of each record, empty for none.
    """

    log_name: str = ""


Sink = FileSink | StreamSink | OpenTelemetrySink


# --- filters -------------------------------------------------------------------------------------------------------------


class Operation(Enum):
    """ComparisonFilter.Op."""

    EQ = 0
    GE = 1
    LE = 2
    NE = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """ComparisonFilter: `value OPERATION self.value`."""

    operation: Operation
    value: int


@dataclass(frozen=True, slots=True)
class StatusCodeFilter:
    comparison: Comparison


@dataclass(frozen=True, slots=True)
class DurationFilter:
    """comparison: of milliseconds."""

    comparison: Comparison


@dataclass(frozen=True, slots=True)
class NotHealthCheckFilter:
    """All but requests that a health check filter has answered, which there is none of."""


@dataclass(frozen=True, slots=True)
class TraceableFilter:
    """Requests whose trace was asked for by the request itself (x-envoy-force-trace)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeFilter:
    """A share. independent: of random numbers of its own; otherwise of the request id, so that all hops log the same requests."""

    fraction: FractionalPercent
    independent: bool = False


@dataclass(frozen=True, slots=True)
class AndFilter:
    filters: tuple[Filter, ...]


@dataclass(frozen=True, slots=True)
class OrFilter:
    filters: tuple[Filter, ...]


@dataclass(frozen=True, slots=True)
class HeaderFilter:
    """Of the request."""

    match: HeaderMatch


@dataclass(frozen=True, slots=True)
class ResponseFlagFilter:
    """flags: Envoy's short names; empty for any flag at all."""

    flags: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class GrpcStatusFilter:
    """statuses: numbers. A response without a status counts as UNKNOWN (2)."""

    statuses: frozenset[int]
    exclude: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LogTypeFilter:
    """types: names of AccessLogType. All logs here are of type `DownstreamEnd`."""

    types: frozenset[str]
    exclude: bool = False


@dataclass(frozen=True, slots=True)
class Constant:
    """A filter whose answer is known: of metadata that nobody sets, or one that is not implemented."""

    matches: bool


Filter = (
    StatusCodeFilter
    | DurationFilter
    | NotHealthCheckFilter
    | TraceableFilter
    | RuntimeFilter
    | AndFilter
    | OrFilter
    | HeaderFilter
    | ResponseFlagFilter
    | GrpcStatusFilter
    | LogTypeFilter
    | Constant
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessLog:
    """One access log of an HttpConnectionManager. filter: None writes every call."""

    sink: Sink
    format: LogFormat
    filter: Filter | None = None


# --- formats with names --------------------------------------------------------------------------------------------------

_ENVOY = (
    '[%START_TIME%] "%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%" %RESPONSE_CODE% %RESPONSE_FLAGS%'
    " %BYTES_RECEIVED% %BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%"
    ' "%REQ(X-FORWARDED-FOR)%" "%REQ(USER-AGENT)%" "%REQ(X-REQUEST-ID)%" "%REQ(:AUTHORITY)%" "%UPSTREAM_HOST%"\n'
)
_ISTIO = (
    '[%START_TIME%] "%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%" %RESPONSE_CODE% %RESPONSE_FLAGS%'
    " %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS%"
    ' "%UPSTREAM_TRANSPORT_FAILURE_REASON%" %BYTES_RECEIVED% %BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%'
    ' "%REQ(X-FORWARDED-FOR)%" "%REQ(USER-AGENT)%" "%REQ(X-REQUEST-ID)%" "%REQ(:AUTHORITY)%" "%UPSTREAM_HOST%"'
    " %UPSTREAM_CLUSTER_RAW% %UPSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS%"
    " %REQUESTED_SERVER_NAME% %ROUTE_NAME%\n"
)
_JSON = {
    "authority": "%REQ(:AUTHORITY)%",
    "bytes_received": "%BYTES_RECEIVED%",
    "bytes_sent": "%BYTES_SENT%",
    "connection_termination_details": "%CONNECTION_TERMINATION_DETAILS%",
    "downstream_local_address": "%DOWNSTREAM_LOCAL_ADDRESS%",
    "downstream_remote_address": "%DOWNSTREAM_REMOTE_ADDRESS%",
    "duration": "%DURATION%",
    "method": "%REQ(:METHOD)%",
    "path": "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%",
    "protocol": "%PROTOCOL%",
    "request_id": "%REQ(X-REQUEST-ID)%",
    "requested_server_name": "%REQUESTED_SERVER_NAME%",
    "response_code": "%RESPONSE_CODE%",
    "response_code_details": "%RESPONSE_CODE_DETAILS%",
    "response_flags": "%RESPONSE_FLAGS%",
    "route_name": "%ROUTE_NAME%",
    "start_time": "%START_TIME%",
    "upstream_cluster": "%UPSTREAM_CLUSTER_RAW%",
    "upstream_host": "%UPSTREAM_HOST%",
    "upstream_local_address": "%UPSTREAM_LOCAL_ADDRESS%",
    "upstream_service_time": "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%",
    "upstream_transport_failure_reason": "%UPSTREAM_TRANSPORT_FAILURE_REASON%",
    "user_agent": "%REQ(USER-AGENT)%",
    "x_forwarded_for": "%REQ(X-FORWARDED-FOR)%",
}

DEFAULT_FORMAT = TextFormat(format=parse(_ENVOY))
"""Of a logger whose configuration names no format."""

NAMED_FORMATS: dict[str, TextFormat | JsonFormat] = {
    "envoy": DEFAULT_FORMAT,
    "istio": TextFormat(format=parse(_ISTIO)),
    "json": JsonFormat(root=JsonObject(tuple((name, parse(_JSON[name])) for name in sorted(_JSON)))),
}
"""Envoy's default, and the defaults of Istio's sidecars: `accessLogEncoding: TEXT` and `JSON`."""

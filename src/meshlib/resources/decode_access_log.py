"""Access logs of an HttpConnectionManager: which of Envoy's loggers, in which format, for which calls.

A mistake that Envoy refuses is refused. A logger or a filter that is not implemented is reported; such a filter lets every call
through, since a log that is too long is the smaller harm.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from meshlib.resources import operators
from meshlib.resources.access_log import (
    DEFAULT_FORMAT,
    AccessLog,
    AndFilter,
    Comparison,
    Constant,
    DurationFilter,
    FileSink,
    Filter,
    GrpcStatusFilter,
    HeaderFilter,
    JsonFormat,
    JsonList,
    JsonObject,
    JsonValue,
    LogFormat,
    LogTypeFilter,
    NotHealthCheckFilter,
    OpenTelemetryFormat,
    OpenTelemetrySink,
    Operation,
    OrFilter,
    ResponseFlagFilter,
    RuntimeFilter,
    Sink,
    StatusCodeFilter,
    StreamSink,
    TextFormat,
    TraceableFilter,
)
from meshlib.resources.decode_common import data_source, format_string, fractional_percent
from meshlib.resources.decode_matching import header_match
from meshlib.resources.format import Format
from meshlib.resources.matching import FractionalPercent
from meshlib.resources.reader import Reader

__all__ = ["decode_access_logs", "decode_filter", "decode_log_format"]

_LOGGERS = "envoy.extensions.access_loggers."
_KNOWN_LOGGERS = ("envoy.extensions.", "envoy.config.accesslog.")
"""Packages of types that Envoy knows: those that are not implemented here are reported. Others are refused, as by Envoy."""

_OPERATIONS = {each.value: each for each in Operation}


def decode_access_logs(reader: Reader) -> tuple[AccessLog, ...]:
    """The field `access_log`. Raises ResourceError."""
    return tuple(log for entry in reader.items("access_log") if (log := _access_log(entry)) is not None)


def _access_log(entry: Reader) -> AccessLog | None:
    entry.text("name")
    config = entry.child("typed_config")
    if config is None:
        raise entry.fail("typed_config", "must say which logger")
    chosen = entry.child("filter")
    passed = None if chosen is None else decode_filter(chosen)
    kind = config.message.type_url.rpartition("/")[2]
    decoder = _DECODERS.get(kind)
    if decoder is None:
        if not kind.startswith(_KNOWN_LOGGERS):
            raise entry.fail("typed_config", f"there is no access logger of type {kind!r}")
        config.leave("type_url", "value")
        entry.unsupported("typed_config")
        return None
    sink, shown = decoder(config.unpacked())
    return AccessLog(sink=sink, format=shown, filter=passed)


# --- loggers -------------------------------------------------------------------------------------------------------------


def _file(reader: Reader) -> tuple[Sink, LogFormat]:
    path = reader.text("path")
    sink: Sink = FileSink(path=path)
    if path in ("/dev/stdout", "/dev/stderr"):
        sink = StreamSink(stream="stdout" if path.endswith("out") else "stderr")
    kind = reader.which("access_log_format")
    if kind == "format" and reader.text(kind):
        return sink, TextFormat(format=_text(reader, kind, reader.text(kind)))
    if kind in ("json_format", "typed_json_format"):
        return sink, JsonFormat(root=_json(reader, kind))
    if kind == "log_format":
        return sink, decode_log_format(reader.required(kind))
    return sink, DEFAULT_FORMAT


def _stream(reader: Reader) -> tuple[Sink, LogFormat]:
    output = reader.type_name.endswith("StdoutAccessLog")
    chosen = reader.child("log_format")
    shown: LogFormat = DEFAULT_FORMAT if chosen is None else decode_log_format(chosen)
    return StreamSink(stream="stdout" if output else "stderr"), shown


def _open_telemetry(reader: Reader) -> tuple[Sink, LogFormat]:
    common = reader.child("common_config")
    name = ""
    if common is not None:
        name = common.text("log_name")
        common.leave("transport_api_version")
    reader.leave("disable_builtin_labels", "stat_prefix")
    extra = _formatters(reader)
    body = reader.child("body")
    attributes = reader.child("attributes")
    shown = OpenTelemetryFormat(
        body=None if body is None or body.which("value") is None else _any_value(body, extra),
        attributes=JsonObject(()) if attributes is None else _key_values(attributes, extra),
    )
    return OpenTelemetrySink(log_name=name), shown


_DECODERS: dict[str, Callable[[Reader], tuple[Sink, LogFormat]]] = {
    _LOGGERS + "file.v3.FileAccessLog": _file,
    _LOGGERS + "stream.v3.StdoutAccessLog": _stream,
    _LOGGERS + "stream.v3.StderrAccessLog": _stream,
    _LOGGERS + "open_telemetry.v3.OpenTelemetryAccessLogConfig": _open_telemetry,
}


# --- formats -------------------------------------------------------------------------------------------------------------


def decode_log_format(reader: Reader) -> TextFormat | JsonFormat:
    """A core.v3.SubstitutionFormatString. Raises ResourceError."""
    omit = reader.flag("omit_empty_values")
    reader.leave("content_type")  # of local replies
    reader.leave("json_format_options")  # members are sorted anyway
    extra = _formatters(reader)
    kind = reader.which("format")
    if kind == "json_format":
        return JsonFormat(root=_json(reader, kind, extra), omit_empty=omit)
    if kind == "text_format":
        return TextFormat(format=_text(reader, kind, reader.text(kind), extra), omit_empty=omit)
    if kind == "text_format_source":
        text = data_source(reader.required(kind)).decode("utf-8", "surrogateescape")
        return TextFormat(format=_text(reader, kind, text, extra), omit_empty=omit)
    raise reader.fail("", "must have a format")


Extra = frozenset[str]
"""Operators that formatters bring."""

_NONE: Extra = frozenset()


def _formatters(reader: Reader) -> Extra:
    found = set()
    for entry in reader.items("formatters"):
        entry.text("name")
        config = entry.required("typed_config")
        kind = config.message.type_url.rpartition("/")[2]
        config.leave("type_url", "value")
        if kind in operators.BY_FORMATTER:
            found.add(operators.BY_FORMATTER[kind])
        elif kind not in operators.BUILT_IN_FORMATTERS:
            entry.unsupported("typed_config")
    return frozenset(found)


def _text(reader: Reader, field: str, text: str, extra: Extra = _NONE) -> Format:
    return format_string(reader, field, text, operators.LOGGED, extra)


def _json(reader: Reader, field: str, extra: Extra = _NONE) -> JsonObject:
    root = reader.required(field)
    root.leave("fields")
    return _json_object(reader, field, root.message, extra)


def _json_object(reader: Reader, field: str, message: Any, extra: Extra) -> JsonObject:
    """A google.protobuf.Struct that stands in this field."""
    members = message.fields
    return JsonObject(
        tuple(
            (name, _json_value(reader, f'{field}["{name}"]', members[name], extra))
            for name in sorted(members, key=lambda name: str(name).encode())
        )
    )


def _json_value(reader: Reader, field: str, value: Any, extra: Extra) -> JsonValue:
    kind = value.WhichOneof("kind")
    if kind == "string_value":
        return _text(reader, field, value.string_value, extra)
    if kind == "struct_value":
        return _json_object(reader, field, value.struct_value, extra)
    if kind == "list_value":
        items = value.list_value.values
        return JsonList(
            tuple(_json_value(reader, f"{field}[{index}]", item, extra) for index, item in enumerate(items))
        )
    if kind == "number_value":
        return float(value.number_value)
    return bool(value.bool_value) if kind == "bool_value" else None


def _key_values(reader: Reader, extra: Extra) -> JsonObject:
    """An opentelemetry.proto.common.v1.KeyValueList, in its own order."""
    return JsonObject(
        tuple(
            (entry.text("key"), _any_value(entry.required("value"), extra))
            for entry in reader.items("values")
        )
    )


def _any_value(reader: Reader, extra: Extra) -> JsonValue:
    """An opentelemetry.proto.common.v1.AnyValue."""
    kind = reader.which("value")
    if kind == "string_value":
        return _text(reader, kind, reader.text(kind), extra)
    if kind == "kvlist_value":
        return _key_values(reader.required(kind), extra)
    if kind == "array_value":
        return JsonList(tuple(_any_value(each, extra) for each in reader.required(kind).items("values")))
    raise reader.fail(kind or "", "only texts, lists and nested key-value lists may be in it")


# --- filters -------------------------------------------------------------------------------------------------------------


def decode_filter(reader: Reader) -> Filter:
    """An AccessLogFilter. Raises ResourceError."""
    kind = reader.which("filter_specifier")
    if kind == "extension_filter":
        reader.unsupported(kind)
        return Constant(True)
    if kind is None or kind not in _FILTERS:
        raise reader.fail(kind or "", "must say what to filter by")
    return _FILTERS[kind](reader.required(kind))


def _filters(reader: Reader) -> tuple[Filter, ...]:
    return tuple(decode_filter(each) for each in reader.items("filters"))


def _comparison(reader: Reader) -> Comparison:
    comparison = reader.required("comparison")
    value = comparison.required("value")
    value.leave("runtime_key")  # there is no runtime, so the default counts
    return Comparison(operation=comparison.enum("op", _OPERATIONS), value=value.number("default_value"))


def _runtime(reader: Reader) -> RuntimeFilter:
    reader.leave("runtime_key")
    share = reader.child("percent_sampled")
    fraction = FractionalPercent(numerator=0) if share is None else fractional_percent(share)
    return RuntimeFilter(fraction=fraction, independent=reader.flag("use_independent_randomness"))


def _log_types(reader: Reader) -> LogTypeFilter:
    names = reader.message.DESCRIPTOR.fields_by_name["types"].enum_type.values_by_number
    return LogTypeFilter(
        types=frozenset(names[number].name for number in reader.values("types")),
        exclude=reader.flag("exclude"),
    )


def _metadata(reader: Reader) -> Constant:
    """No filter here sets metadata, so the answer is that for a key that is missing."""
    found = reader.boxed("match_if_key_not_found")
    if reader.has("matcher"):
        reader.unsupported("matcher")
    return Constant(True if found is None else bool(found))


def _header(reader: Reader) -> HeaderFilter:
    return HeaderFilter(header_match(reader.required("header")))


_FILTERS: dict[str, Callable[[Reader], Filter]] = {
    "status_code_filter": lambda reader: StatusCodeFilter(_comparison(reader)),
    "duration_filter": lambda reader: DurationFilter(_comparison(reader)),
    "not_health_check_filter": lambda reader: NotHealthCheckFilter(),
    "traceable_filter": lambda reader: TraceableFilter(),
    "runtime_filter": _runtime,
    "and_filter": lambda reader: AndFilter(_filters(reader)),
    "or_filter": lambda reader: OrFilter(_filters(reader)),
    "header_filter": _header,
    "response_flag_filter": lambda reader: ResponseFlagFilter(frozenset(reader.values("flags"))),
    "grpc_status_filter": lambda reader: GrpcStatusFilter(
        statuses=frozenset(reader.values("statuses")), exclude=reader.flag("exclude")
    ),
    "log_type_filter": _log_types,
    "metadata_filter": _metadata,
}

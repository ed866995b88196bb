"""Access logs of an HttpConnectionManager; what is refused was asked of Envoy 1.40 (tests/observe/access_log/test_like_envoy)."""

from __future__ import annotations

from typing import Any

import pytest

from meshlib import proto
from meshlib.resources import Decoded
from meshlib.resources.access_log import (
    DEFAULT_FORMAT,
    NAMED_FORMATS,
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
    LogTypeFilter,
    NotHealthCheckFilter,
    OpenTelemetryFormat,
    OpenTelemetrySink,
    Operation,
    OrFilter,
    ResponseFlagFilter,
    RuntimeFilter,
    StatusCodeFilter,
    StreamSink,
    TextFormat,
    TraceableFilter,
)
from meshlib.resources.format import parse
from meshlib.resources.listener import Listener
from meshlib.resources.matching import FractionalPercent, HeaderMatch, StringKind, StringMatch
from tests.resources.building import EXTENSIONS, api_listener, decoded, refused

LOGGERS = EXTENSIONS + "access_loggers."


def logger(kind: str, **config: Any) -> dict[str, Any]:
    return {"name": "log", "typed_config": {"@type": LOGGERS + kind, **config}}


def file(**config: Any) -> dict[str, Any]:
    return logger("file.v3.FileAccessLog", **{"path": "/tmp/log", **config})


def listener(*logs: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return api_listener(access_log=list(logs), **fields)


def read(*logs: dict[str, Any], **fields: Any) -> Decoded:
    return decoded(proto.LISTENER, listener(*logs, **fields))


def one(log: dict[str, Any]) -> AccessLog:
    resource = read(log).resource
    assert isinstance(resource, Listener)
    (found,) = resource.http.access_log
    return found


def text(inline: str) -> dict[str, Any]:
    return {"text_format_source": {"inline_string": inline}}


@pytest.mark.parametrize(
    ("config", "shown"),
    [
        ({}, DEFAULT_FORMAT),
        ({"format": ""}, DEFAULT_FORMAT),
        ({"format": "%PROTOCOL%\n"}, TextFormat(format=parse("%PROTOCOL%\n"))),
        ({"log_format": {"text_format": "x"}}, TextFormat(format=parse("x"))),
        ({"log_format": {"text_format": ""}}, TextFormat(format=parse(""))),
        (
            {"log_format": {**text("%REQ(a)%"), "omit_empty_values": True, "content_type": "text/plain"}},
            TextFormat(format=parse("%REQ(a)%"), omit_empty=True),
        ),
        ({"json_format": {"a": "%PROTOCOL%"}}, JsonFormat(root=JsonObject((("a", parse("%PROTOCOL%")),)))),
        ({"typed_json_format": {"a": 1}}, JsonFormat(root=JsonObject((("a", 1.0),)))),
        (
            {
                "log_format": {
                    "json_format": {"b": [True, None, {"d": "%DURATION%"}], "a": "x", "c": {}},
                    "json_format_options": {"sort_properties": True},
                    "omit_empty_values": True,
                }
            },
            JsonFormat(
                root=JsonObject(
                    (
                        ("a", parse("x")),
                        ("b", JsonList((True, None, JsonObject((("d", parse("%DURATION%")),))))),
                        ("c", JsonObject(())),
                    )
                ),
                omit_empty=True,
            ),
        ),
    ],
)
def test_formats_of_a_file(config: dict[str, Any], shown: object) -> None:
    found = read(file(**config))
    assert found.unsupported == ()
    assert one(file(**config)) == AccessLog(sink=FileSink(path="/tmp/log"), format=shown)  # type: ignore[arg-type]


def test_streams() -> None:
    assert one(logger("stream.v3.StdoutAccessLog")).sink == StreamSink(stream="stdout")
    error = one(logger("stream.v3.StderrAccessLog", log_format=text("x")))
    assert error == AccessLog(sink=StreamSink(stream="stderr"), format=TextFormat(format=parse("x")))
    assert one(file(path="/dev/stdout")).sink == StreamSink(stream="stdout")
    assert one(file(path="/dev/stderr")).sink == StreamSink(stream="stderr")


def test_open_telemetry() -> None:
    config = {
        "common_config": {
            "log_name": "mesh",
            "transport_api_version": "V3",
            "grpc_service": {"envoy_grpc": {"cluster_name": "collector"}},
        },
        "body": {"string_value": "%REQ(:method)%"},
        "attributes": {
            "values": [
                {"key": "b", "value": {"string_value": "%PROTOCOL%"}},
                {"key": "a", "value": {"array_value": {"values": [{"string_value": "x"}]}}},
                {
                    "key": "c",
                    "value": {"kvlist_value": {"values": [{"key": "d", "value": {"string_value": ""}}]}},
                },
            ]
        },
    }
    log = logger("open_telemetry.v3.OpenTelemetryAccessLogConfig", **config)
    assert one(log) == AccessLog(
        sink=OpenTelemetrySink(log_name="mesh"),
        format=OpenTelemetryFormat(
            body=parse("%REQ(:method)%"),
            attributes=JsonObject(
                (
                    ("b", parse("%PROTOCOL%")),
                    ("a", JsonList((parse("x"),))),
                    ("c", JsonObject((("d", parse("")),))),
                )
            ),
        ),
    )
    (unsupported,) = read(log).unsupported
    assert unsupported.endswith("common_config.grpc_service")


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (
            {
                "status_code_filter": {
                    "comparison": {"op": "GE", "value": {"default_value": 400, "runtime_key": "k"}}
                }
            },
            StatusCodeFilter(Comparison(operation=Operation.GE, value=400)),
        ),
        (
            {
                "duration_filter": {
                    "comparison": {"op": "NE", "value": {"default_value": 7, "runtime_key": "k"}}
                }
            },
            DurationFilter(Comparison(operation=Operation.NE, value=7)),
        ),
        ({"not_health_check_filter": {}}, NotHealthCheckFilter()),
        ({"traceable_filter": {}}, TraceableFilter()),
        ({"runtime_filter": {"runtime_key": "k"}}, RuntimeFilter(fraction=FractionalPercent(numerator=0))),
        (
            {
                "runtime_filter": {
                    "runtime_key": "k",
                    "percent_sampled": {"numerator": 5, "denominator": "TEN_THOUSAND"},
                    "use_independent_randomness": True,
                }
            },
            RuntimeFilter(fraction=FractionalPercent(numerator=5, denominator=10_000), independent=True),
        ),
        (
            {"and_filter": {"filters": [{"traceable_filter": {}}, {"not_health_check_filter": {}}]}},
            AndFilter((TraceableFilter(), NotHealthCheckFilter())),
        ),
        (
            {"or_filter": {"filters": [{"traceable_filter": {}}, {"traceable_filter": {}}]}},
            OrFilter((TraceableFilter(), TraceableFilter())),
        ),
        (
            {"header_filter": {"header": {"name": "A", "string_match": {"exact": "b"}}}},
            HeaderFilter(HeaderMatch(name="a", string=StringMatch(kind=StringKind.EXACT, value="b"))),
        ),
        ({"response_flag_filter": {}}, ResponseFlagFilter()),
        ({"response_flag_filter": {"flags": ["UF", "NC"]}}, ResponseFlagFilter(frozenset({"UF", "NC"}))),
        (
            {"grpc_status_filter": {"statuses": ["OK", "INTERNAL"], "exclude": True}},
            GrpcStatusFilter(statuses=frozenset({0, 13}), exclude=True),
        ),
        (
            {"log_type_filter": {"types": ["DownstreamEnd"]}},
            LogTypeFilter(types=frozenset({"DownstreamEnd"})),
        ),
        ({"metadata_filter": {}}, Constant(True)),
        ({"metadata_filter": {"match_if_key_not_found": False}}, Constant(False)),
    ],
)
def test_filters(config: dict[str, Any], expected: Filter) -> None:
    log = {**file(), "filter": config}
    assert one(log).filter == expected
    assert read(log).unsupported == ()


@pytest.mark.parametrize(
    ("log", "place"),
    [
        ({**file(), "filter": {"extension_filter": {"name": "cel"}}}, "filter.extension_filter"),
        (
            {
                **file(),
                "filter": {
                    "metadata_filter": {
                        "matcher": {"filter": "f", "path": [{"key": "k"}], "value": {"present_match": True}}
                    }
                },
            },
            "filter.metadata_filter.matcher",
        ),
        (logger("grpc.v3.HttpGrpcAccessLogConfig"), "typed_config"),
        (
            file(log_format=text("%CEL(request.path)% %UPSTREAM_TLS_CIPHER%")),
            "log_format.text_format_source<%CEL%>",
        ),
        (file(json_format={"a": {"b": ["%CEL(x)%"]}}), 'json_format["a"]["b"][0]<%CEL%>'),
        (
            file(
                log_format={
                    **text("x"),
                    "formatters": [
                        {"name": "f", "typed_config": {"@type": LOGGERS + "file.v3.FileAccessLog"}}
                    ],
                }
            ),
            "log_format.formatters[0].typed_config",
        ),
    ],
)
def test_what_is_reported(log: dict[str, Any], place: str) -> None:
    assert any(path.endswith(place) for path in read(log).unsupported), read(log).unsupported


def test_options_that_ask_for_more_lines_are_reported() -> None:
    found = read(file(), access_log_options={"flush_access_log_on_new_request": True})
    assert any(path.endswith("access_log_options") for path in found.unsupported)


def test_a_formatter_brings_its_operator() -> None:
    formatters = [
        {
            "name": "f",
            "typed_config": {"@type": EXTENSIONS + "formatter.req_without_query.v3.ReqWithoutQuery"},
        },
        {"name": "m", "typed_config": {"@type": EXTENSIONS + "formatter.metadata.v3.Metadata"}},
    ]
    log = file(log_format={**text("%REQ_WITHOUT_QUERY(:path)%"), "formatters": formatters})
    assert read(log).unsupported == ()
    assert one(log).format == TextFormat(
        format=parse("%REQ_WITHOUT_QUERY(:path)%", frozenset({"REQ_WITHOUT_QUERY"}))
    )


REFUSED: list[tuple[dict[str, Any], str]] = [
    (file(format="%FOO%"), "format"),
    (file(json_format={"a": "%FOO%"}), 'json_format["a"]'),
    (file(path=""), "path"),
    (file(log_format={}), "log_format"),
    (file(log_format=text("%PER_REQUEST_STATE(k)%")), "text_format_source"),
    (file(log_format=text("%REQ_WITHOUT_QUERY(:path)%")), "text_format_source"),
    (file(log_format={"text_format_source": {"filename": "/nonexistent"}}), "filename"),
    (logger("stream.v3.StdoutAccessLog", log_format=text("%GRPC_STATUS(X)%")), "text_format_source"),
    ({"name": "zz"}, "typed_config"),
    (
        {"name": "zz", "typed_config": {"@type": "type.googleapis.com/envoy.config.core.v3.Node"}},
        "typed_config",
    ),
    ({**file(), "filter": {"response_flag_filter": {"flags": ["XX"]}}}, "flags"),
    ({**file(), "filter": {"and_filter": {"filters": [{"not_health_check_filter": {}}]}}}, "filters"),
    ({**file(), "filter": {"runtime_filter": {}}}, "runtime_key"),
    ({**file(), "filter": {"header_filter": {}}}, "header"),
    ({**file(), "filter": {"duration_filter": {}}}, "comparison"),
    ({**file(), "filter": {}}, "filter"),
    (
        logger(
            "open_telemetry.v3.OpenTelemetryAccessLogConfig",
            common_config={"log_name": "x", "grpc_service": {"envoy_grpc": {"cluster_name": "c"}}},
            body={"int_value": 1},
        ),
        "int_value",
    ),
]


@pytest.mark.parametrize(("log", "place"), REFUSED)
def test_what_is_refused(log: dict[str, Any], place: str) -> None:
    error = refused(proto.LISTENER, listener(log))
    assert "access_log[0]" in error.path
    assert place in error.path


def test_formats_by_name() -> None:
    assert NAMED_FORMATS["envoy"] is DEFAULT_FORMAT
    istio = NAMED_FORMATS["istio"]
    assert isinstance(istio, TextFormat)
    assert istio.format.text.endswith("%REQUESTED_SERVER_NAME% %ROUTE_NAME%\n")
    json = NAMED_FORMATS["json"]
    assert isinstance(json, JsonFormat)
    assert [name for name, _ in json.root.members] == sorted(name for name, _ in json.root.members)

"""What a Mesh logs: by its settings, by its listeners, of calls in both directions; to loggers and OpenTelemetry."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor

import meshlib
from meshlib.engine.observer import InboundCall, tell
from meshlib.httpx import MeshTransport
from meshlib.observe.access_log.observer import OutboundLog
from meshlib.resources.access_log import AccessLog, FileSink, TextFormat
from meshlib.resources.format import parse
from meshlib.resources.listener import HttpConnectionManager
from meshlib.testing import Reply, Request, Upstream, service
from tests.observe.access_log.envoy import TYPES, file_log

SHORT = "%REQ(:METHOD)% %PATH% %RESPONSE_CODE% %RESPONSE_FLAGS%\n"


def observed(*logs: meshlib.AccessLog | str, **options: Any) -> meshlib.Observe:
    return meshlib.Observe(
        **{"access_log": logs, "tracing": False, "metrics": False, "recent_calls": 0, **options}
    )


def configuration(upstream: Upstream, *logs: dict[str, Any]) -> dict[str, Any]:
    found = service("svc", upstream.address)
    found["resources"][0]["api_listener"]["api_listener"]["access_log"] = list(logs)
    return found


def run(
    observe: meshlib.Observe, *logs: dict[str, Any], paths: tuple[str, ...] = ("/a",), **options: Any
) -> None:
    with (
        Upstream(lambda request: Reply(status=503 if "503" in request.target else 200)) as upstream,
        meshlib.Mesh(config=[configuration(upstream, *logs)], observe=observe, **options) as mesh,
        httpx.Client(transport=MeshTransport(mesh)) as client,
    ):
        for path in paths:
            client.get(f"http://svc{path}")


def test_the_listeners_own_log(tmp_path: Path) -> None:
    log = file_log(tmp_path / "log", log_format={"text_format_source": {"inline_string": SHORT}})
    chosen = {
        "status_code_filter": {
            "comparison": {"op": "GE", "value": {"default_value": 500, "runtime_key": "k"}}
        }
    }
    run(
        meshlib.Observe(),
        log,
        {**file_log(tmp_path / "bad", format=SHORT), "filter": chosen},
        paths=("/a", "/503"),
    )
    assert (tmp_path / "log").read_text() == "GET /a 200 -\nGET /503 503 -\n"
    assert (tmp_path / "bad").read_text() == "GET /503 503 -\n"


def test_the_listeners_own_log_may_be_switched_off(tmp_path: Path) -> None:
    run(observed(listener_access_log=False), file_log(tmp_path / "log"))
    assert not (tmp_path / "log").exists()


def test_nobody_listens_where_nothing_is_logged() -> None:
    with Upstream() as upstream:
        for observe, config, expected in (
            (observed(), configuration(upstream), False),
            (observed(), configuration(upstream, file_log("/dev/stdout")), True),
            (observed("envoy"), configuration(upstream), True),
        ):
            with meshlib.Mesh(config=[config], observe=observe) as mesh:
                mesh.start()
                members = mesh.engine.observers.members
                assert any(isinstance(member, OutboundLog) for member in members) is expected


def test_a_path_and_two_directions(tmp_path: Path) -> None:
    both = (
        meshlib.AccessLog(format=SHORT, to=tmp_path / "out", calls="outbound"),
        meshlib.AccessLog(format=SHORT, to=str(tmp_path / "in"), calls="inbound"),
    )
    run(observed(*both))
    assert (tmp_path / "out").read_text() == "GET /a 200 -\n"
    assert not (tmp_path / "in").exists()


def test_a_rewritten_path_is_known_without_envoys_headers(tmp_path: Path) -> None:
    shown = "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %REQ(:PATH)% %REQ(x-added)%\n"
    with Upstream() as upstream:
        config = service("svc", upstream.address)
        route = config["resources"][1]["virtual_hosts"][0]["routes"][0]
        route["route"]["prefix_rewrite"] = "/new/"
        route["request_headers_to_add"] = [{"header": {"key": "x-added", "value": "yes"}}]
        log = meshlib.AccessLog(format=shown, to=tmp_path / "log")
        with (
            meshlib.Mesh(config=[config], observe=observed(log)) as mesh,
            httpx.Client(transport=MeshTransport(mesh)) as client,
        ):
            client.get("http://svc/a")
        assert upstream.requests[0].header("x-envoy-original-path") is None
    assert (tmp_path / "log").read_text() == "/a /new/a yes\n"


def test_a_call_that_has_no_listener(tmp_path: Path) -> None:
    log = meshlib.AccessLog(format=SHORT.replace("%PATH%", "%REQ(:AUTHORITY)%"), to=tmp_path / "log")
    with Upstream() as upstream:
        config = [service("svc", upstream.address), service("other", upstream.address)]
        with (
            meshlib.Mesh(config=config, observe=observed(log)) as mesh,
            httpx.Client(transport=MeshTransport(mesh)) as client,
            pytest.raises(meshlib.UnknownHost),
        ):
            client.get("http://elsewhere/")
    line = (tmp_path / "log").read_text()
    assert line.startswith("GET elsewhere ")
    assert line.count("\n") == 1


# --- loggers -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def records(caplog: pytest.LogCaptureFixture) -> Callable[[], list[logging.LogRecord]]:
    caplog.set_level(logging.INFO, "meshlib.access")
    return lambda: [record for record in caplog.records if record.name == "meshlib.access"]


def test_a_logger_gets_the_line(records: Callable[[], list[logging.LogRecord]]) -> None:
    run(observed(meshlib.AccessLog(format=SHORT)))
    (record,) = records()
    assert (record.levelname, record.getMessage()) == ("INFO", "GET /a 200 -")


def test_a_logger_gets_fields(records: Callable[[], list[logging.LogRecord]]) -> None:
    run(observed("json", meshlib.AccessLog(format={"name": "%PROTOCOL%", "n": "%RESPONSE_CODE%"})))
    first, second = records()
    assert vars(first)["response_code"] == 200
    assert vars(first)["route_name"] is None
    assert json.loads(first.getMessage())["path"] == "/a"
    assert (vars(second)["access_name"], vars(second)["n"], second.name) == (
        "HTTP/1.1",
        200,
        "meshlib.access",
    )
    assert first.created <= second.created


def test_a_logger_that_is_not_interested_costs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("tests.access")
    logger.setLevel(logging.WARNING)
    run(observed(meshlib.AccessLog(format=SHORT, to=logger)))
    assert not [record for record in caplog.records if record.name == "tests.access"]


# --- OpenTelemetry -------------------------------------------------------------------------------------------------------


def test_open_telemetry(tmp_path: Path) -> None:
    exporter: Any = InMemoryLogRecordExporter()  # type: ignore[no-untyped-call]
    provider = LoggerProvider()
    provider.add_log_record_processor(SimpleLogRecordProcessor(exporter))
    run(
        observed(
            meshlib.AccessLog(format=SHORT, to=provider),
            meshlib.AccessLog(format={"code": "%RESPONSE_CODE%", "none": "%REQ(none)%"}, to=provider),
        )
    )
    provider.shutdown()
    line, fields = (data.log_record for data in exporter.get_finished_logs())
    assert line.body == "GET /a 200 -"
    assert line.timestamp is not None
    assert line.observed_timestamp is not None
    assert line.observed_timestamp >= line.timestamp
    assert fields.body is None
    assert fields.attributes is not None
    assert fields.attributes["code"] == 200


def test_open_telemetry_by_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    exporter: Any = InMemoryLogRecordExporter()  # type: ignore[no-untyped-call]
    provider = LoggerProvider()
    provider.add_log_record_processor(SimpleLogRecordProcessor(exporter))
    monkeypatch.setattr("opentelemetry._logs.get_logger_provider", lambda: provider)
    log = {
        "name": "otel",
        "typed_config": {
            "@type": TYPES + "extensions.access_loggers.open_telemetry.v3.OpenTelemetryAccessLogConfig",
            "common_config": {"log_name": "mesh", "grpc_service": {"envoy_grpc": {"cluster_name": "c"}}},
            "body": {"string_value": "%REQ(:METHOD)%"},
            "attributes": {
                "values": [
                    {"key": "code", "value": {"string_value": "%RESPONSE_CODE%"}},
                    {"key": "none", "value": {"string_value": "%REQ(none)%"}},
                ]
            },
        },
    }
    run(observed(), log, trust_request_headers=True)
    provider.shutdown()
    (data,) = exporter.get_finished_logs()
    assert data.log_record.body == "GET"
    assert data.log_record.attributes == {"log_name": "mesh", "code": "200", "none": "-"}


# --- inbound -------------------------------------------------------------------------------------------------------------

PARENT = f"00-{'ab' * 16}-{'cd' * 8}-01"


def inbound(manager: HttpConnectionManager | None) -> InboundCall:
    return InboundCall(
        method="POST",
        scheme="https",
        authority="svc",
        path="/in?x=1",
        headers=[("content-type", "application/grpc"), ("traceparent", PARENT)],
        protocol="HTTP/2",
        remote="10.0.0.9:1234",
        started=5.0,
        ended=5.25,
        epoch=1_700_000_000.0,
        peer="spiffe://td/caller",
        own="spiffe://td/me",
        operation="/pkg.Service/Method",
        listener="in",
        status=200,
        grpc_status="5",
        details="via_upstream",
        bytes_received=7,
        bytes_sent=9,
        response_headers=[("x-b", "1")],
        response_trailers=[("grpc-status", "5")],
        manager=manager,
    )


def test_inbound_requests(tmp_path: Path) -> None:
    shown = (
        "%REQ(:METHOD)% %REQ(:SCHEME)%://%REQ(:AUTHORITY)%%PATH% %PROTOCOL% %RESPONSE_CODE% %GRPC_STATUS% %BYTES_RECEIVED%"
        " %BYTES_SENT% %DURATION% %DOWNSTREAM_REMOTE_ADDRESS% %DOWNSTREAM_PEER_URI_SAN% %DOWNSTREAM_LOCAL_ADDRESS%"
        " %UPSTREAM_HOST% %ROUTE_NAME% %TRACE_ID% %RESP(x-b)% %TRAILER(grpc-status)% %LISTENER_NAME% %START_TIME(%s)%"
        " %UPSTREAM_REQUEST_ATTEMPT_COUNT% %RESPONSE_DURATION%\n"
    )
    asked = meshlib.AccessLog(format=shown, to=tmp_path / "log", calls="inbound")
    of_listener = AccessLog(
        sink=FileSink(path=str(tmp_path / "listener")), format=TextFormat(format=parse("%DURATION%\n"))
    )
    manager = HttpConnectionManager(http_filters=(), route_config_name="r", access_log=(of_listener,))
    with Upstream() as upstream:
        config = configuration(upstream, file_log(tmp_path / "other"))
        with meshlib.Mesh(config=[config], observe=observed(asked)) as mesh:
            mesh.start()
            for record in (inbound(manager), inbound(None)):
                tell(mesh.engine.observers.inbound_over, record)
    expected = (
        "POST https://svc/in?x=1 HTTP/2 200 NotFound 7 9 250 10.0.0.9:1234 - -"
        f" - /pkg.Service/Method {'ab' * 16} 1 5 in 1700000000 0 -\n"
    )
    assert (tmp_path / "log").read_text() == expected * 2
    assert (tmp_path / "listener").read_text() == "250\n"


def test_one_log_needs_no_list(tmp_path: Path, records: Callable[[], list[logging.LogRecord]]) -> None:
    run(observed(access_log=meshlib.AccessLog(format=SHORT, to=tmp_path / "log")))
    run(observed(access_log="envoy"))
    assert (tmp_path / "log").read_text() == "GET /a 200 -\n"
    assert len(records()) == 1


def test_calls_that_leave_the_mesh_are_not_logged(tmp_path: Path) -> None:
    log = meshlib.AccessLog(format=SHORT, to=tmp_path / "log")
    with Upstream() as upstream, Upstream() as outside:
        config = [service("svc", upstream.address), service("other", upstream.address)]
        with (
            meshlib.Mesh(config=config, unknown_hosts="passthrough", observe=observed(log)) as mesh,
            httpx.Client(transport=MeshTransport(mesh)) as client,
        ):
            assert client.get(f"http://{outside.address}/x").status_code == 200
            client.get("http://svc/a")
    assert (tmp_path / "log").read_text() == "GET /a 200 -\n"


@pytest.mark.parametrize(
    ("asked", "word"),
    [
        (meshlib.AccessLog(format="nginx"), "nginx"),
        (meshlib.AccessLog(format="%FOO%"), "FOO"),
        (meshlib.AccessLog(format={"a": "%REQ%"}), "REQ"),
        (meshlib.AccessLog(to="stdoutt"), "stdoutt"),
        (meshlib.AccessLog(to=3), "3"),  # type: ignore[arg-type]
        (meshlib.AccessLog(filter={"status_code_filter": {}}), "comparison"),
        (meshlib.AccessLog(filter={"nonsense": {}}), "nonsense"),
        (meshlib.AccessLog(filter={}), "filter"),
    ],
)
def test_mistakes_are_said_at_the_start(asked: meshlib.AccessLog, word: str) -> None:
    with (
        Upstream() as upstream,
        meshlib.Mesh(config=[configuration(upstream)], observe=observed(asked)) as mesh,
    ):
        for _ in range(2):
            with pytest.raises(meshlib.ConfigError, match=word):
                mesh.start()


def test_what_is_not_supported_is_said(caplog: pytest.LogCaptureFixture) -> None:
    run(observed(meshlib.AccessLog(format="%CEL(request.path)%")))
    assert "CEL" in caplog.text


def test_a_call_of_a_control_plane_is_logged_from_the_first_one(tmp_path: Path) -> None:
    def answer(request: Request) -> Reply:
        return Reply(body=b"ok")

    with Upstream(answer) as upstream:
        config = configuration(upstream, file_log(tmp_path / "log", format=SHORT))
        config["resources"][0]["name"] = "svc:80"
        with (
            meshlib.testing.serve(config) as control_plane,
            meshlib.Mesh(bootstrap=control_plane.bootstrap(), observe=observed()) as mesh,
            httpx.Client(transport=MeshTransport(mesh)) as client,
        ):
            client.get("http://svc/first")
    assert (tmp_path / "log").read_text() == "GET /first 200 -\n"

"""Spans of servers, and the context that the application finds itself in."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from contextvars import copy_context
from typing import Any

import flask
import grpc
import httpx
import pytest
import werkzeug.serving
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import baggage, propagate, trace
from opentelemetry import context as contexts
from opentelemetry.propagators.b3 import B3MultiFormat
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased
from opentelemetry.trace import NonRecordingSpan, SpanKind, StatusCode

import meshlib
from meshlib.engine.context import INBOUND
from meshlib.grpc import aio_channel, channel
from meshlib.httpx import MeshTransport
from meshlib.observe.server_tracing import ServerTracingObserver
from meshlib.runtime.clock import FakeClock, SystemClock
from meshlib.server import asgi, wsgi
from meshlib.server.inbound import Inbound
from meshlib.testing import service
from tests.observe.tracing.spans import parent_of, tree
from tests.server import http_servers
from tests.server.identities import CLIENT
from tests.server.records import QUIET
from tests.server.servers import SERVICE, asyncio_server, blocking_server
from tests.server.test_inbound import NAME, arrival, certified, chain, listener
from tests.server.test_middleware import environ, run, scope

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TRACE_ID, SPAN_ID = 0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331


class Traced:
    """A Mesh whose servers are traced, and the spans that have ended."""

    def __init__(self, *resources: Any, sampler: Any = None, clock: Any = None) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        files = [{"resources": list(resources)}] if resources else []
        self.mesh = meshlib.Mesh(config=files, observe=QUIET, clock=clock)
        self.mesh.start()
        self.mesh.engine.observe(ServerTracingObserver(provider=self.provider))

    @property
    def spans(self) -> list[ReadableSpan]:
        return list(self.exporter.get_finished_spans())

    @property
    def only(self) -> ReadableSpan:
        (span,) = self.spans
        return span

    def wsgi(self, app: Any, given: dict[str, Any], **inbound: Any) -> None:
        response: Any = wsgi.MeshMiddleware(app, Inbound(self.mesh, **inbound))(given, lambda *_: None)
        list(response)

    def asgi(self, app: Any, given: dict[str, Any], **inbound: Any) -> None:
        run(asgi.MeshMiddleware(app, Inbound(self.mesh, **inbound)), given)


@contextlib.contextmanager
def traced(*resources: Any, **more: Any) -> Iterator[Traced]:
    made = Traced(*resources, **more)
    with made.mesh:
        yield made
    made.provider.shutdown()


def answering(status: str = "200 OK", look: Any = None) -> Any:
    def app(environ: Any, start_response: Any) -> list[bytes]:
        if look is not None:
            look()
        start_response(status, [])
        return [b"12"]

    return app


def attributes_of(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def test_the_attributes_of_a_request() -> None:
    clock = FakeClock()
    asked = environ(
        PATH_INFO="/a", QUERY_STRING="q=1&sig=secret", HTTP_HOST="svc.example:8080", REMOTE_PORT="4711",
        HTTP_USER_AGENT="probe/1", HTTP_X_REQUEST_ID="a", HTTP_TRACEPARENT=PARENT, CONTENT_LENGTH="7",
    )  # fmt: skip
    with traced(clock=clock) as it:
        it.wsgi(answering(look=lambda: clock.advance(0.5)), asked)
        span = it.only
    assert (span.name, span.kind, span.status.status_code) == ("GET", SpanKind.SERVER, StatusCode.UNSET)
    assert span.context is not None
    assert (span.context.trace_id, parent_of(span)) == (TRACE_ID, SPAN_ID)
    assert span.start_time is not None
    assert span.end_time is not None
    assert span.end_time - span.start_time == 500_000_000
    assert span.start_time == (clock.time() - 0.5) * 1e9
    assert attributes_of(span) == {
        "http.request.method": "GET",
        "url.scheme": "http",
        "url.path": "/a",
        "url.query": "q=1&sig=REDACTED",
        "user_agent.original": "probe/1",
        "server.address": "svc.example",
        "server.port": 8080,
        "client.address": "10.0.0.1",
        "network.peer.address": "10.0.0.1",
        "network.peer.port": 4711,
        "network.protocol.version": "1.1",
        "http.response.status_code": 200,
        "component": "proxy",
        "response_flags": "-",
        "request_size": "7",
        "response_size": "2",
        "guid:x-request-id": "a",
        "meshlib.details": "via_upstream",
    }


@pytest.mark.parametrize(
    ("status", "failed"), [(200, False), (404, False), (499, False), (500, True), (503, True)]
)
def test_what_is_an_error(status: int, failed: bool) -> None:
    with traced() as it:
        it.wsgi(answering(f"{status} Whatever"), environ())
        span = it.only
    assert span.status.is_ok is not failed
    assert attributes_of(span).get("error.type") == (str(status) if failed else None)


def test_an_exception() -> None:
    def app(environ: Any, start_response: Any) -> Any:
        raise ValueError("no such user")

    with traced() as it:
        with pytest.raises(ValueError, match="no such user"):
            it.wsgi(app, environ())
        span = it.only
    assert attributes_of(span)["error.type"] == "ValueError"
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "no such user")
    assert [event.name for event in span.events] == ["exception"]


def test_an_unknown_method_is_not_a_name() -> None:
    with traced() as it:
        it.wsgi(answering(), environ(REQUEST_METHOD="BREW"))
        span = it.only
    assert span.name == "HTTP"
    assert attributes_of(span)["http.request.method"] == "_OTHER"
    assert attributes_of(span)["http.request.method_original"] == "BREW"


def test_a_refusal_has_a_span_too() -> None:
    with traced() as it:
        it.wsgi(answering(), environ(HTTP_TRACEPARENT=PARENT), rbac={"rules": {"action": "ALLOW"}})
        span = it.only
    assert attributes_of(span)["http.response.status_code"] == 403
    assert attributes_of(span)["meshlib.details"] == "rbac_access_denied_matched_policy[none]"
    assert parent_of(span) == SPAN_ID


def test_routes_of_frameworks() -> None:
    app = flask.Flask(__name__)

    @app.get("/users/<int:number>")
    def user(number: int) -> str:
        return str(number)

    async def routed(scope: Any, receive: Any, send: Any) -> None:
        scope["route"] = type("Route", (), {"path": "/users/{number}"})
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    with traced() as it:
        app.wsgi_app = wsgi.MeshMiddleware(app.wsgi_app, Inbound(it.mesh))  # type: ignore[method-assign]
        assert app.test_client().get("/users/7").text == "7"
        it.asgi(routed, scope())
        first, second = it.spans
    assert (first.name, attributes_of(first)["http.route"]) == (
        "GET /users/<int:number>",
        "/users/<int:number>",
    )
    assert (second.name, attributes_of(second)["http.route"]) == ("GET /users/{number}", "/users/{number}")


# --- the context of the application --------------------------------------------------------------------------------------


def test_the_application_is_inside_of_the_span_and_of_the_baggage() -> None:
    found: list[Any] = []

    def look() -> None:
        trace.get_current_span().set_attribute("user", "7")
        found.append((trace.get_current_span().get_span_context(), dict(baggage.get_all())))

    asked = environ(HTTP_TRACEPARENT=PARENT, HTTP_BAGGAGE="tenant=blue,a=b", HTTP_TRACESTATE="a=1,b=2")
    with traced() as it:
        it.wsgi(answering(look=look), asked)

        async def app(scope: Any, receive: Any, send: Any) -> None:
            look()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b""})
            look()  # in the background

        headers = [(b"traceparent", PARENT.encode()), (b"tracestate", b"a=1"), (b"tracestate", b"b=2")]
        it.asgi(app, scope(headers=[*headers, (b"baggage", b"tenant=blue,a=b")]))
        spans = it.spans
        assert not trace.get_current_span().get_span_context().is_valid
        assert baggage.get_all() == {}
    assert [each for each, _ in found] == [spans[0].context, spans[1].context, spans[1].context]
    assert {tuple(sorted(each.items())) for _, each in found} == {(("a", "b"), ("tenant", "blue"))}
    for span in spans:
        assert span.context is not None
        assert span.context.trace_state.to_header() == "a=1,b=2"
        assert attributes_of(span)["user"] == "7"


def test_other_propagators(monkeypatch: pytest.MonkeyPatch) -> None:
    before = propagate.get_global_textmap()
    propagate.set_global_textmap(B3MultiFormat())
    try:
        with traced() as it:
            it.wsgi(
                answering(),
                environ(
                    HTTP_X_B3_TRACEID=f"{TRACE_ID:032x}",
                    HTTP_X_B3_SPANID=f"{SPAN_ID:016x}",
                    HTTP_X_B3_SAMPLED="1",
                ),
            )
            assert parent_of(it.only) == SPAN_ID
    finally:
        propagate.set_global_textmap(before)


def test_the_context_goes_on_without_an_sdk() -> None:
    found: list[Any] = []
    with meshlib.Mesh(
        config=[], observe=meshlib.Observe(tracing=True, metrics=False, recent_calls=0)
    ) as mesh:
        given: Any = wsgi.MeshMiddleware(
            answering(look=lambda: found.append(trace.get_current_span().get_span_context())), Inbound(mesh)
        )(environ(HTTP_TRACEPARENT=PARENT), lambda *_: None)
        list(given)
    (seen,) = found
    assert (seen.trace_id, seen.span_id, seen.is_remote) == (TRACE_ID, SPAN_ID, True)


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=80))
def test_whatever_a_caller_sends_as_a_trace(text: str) -> None:
    with traced() as it:
        it.wsgi(answering(), environ(HTTP_TRACEPARENT=text, HTTP_TRACESTATE=text, HTTP_BAGGAGE=text))
        assert it.only.kind is SpanKind.SERVER


def test_what_is_not_sampled_is_not_recorded() -> None:
    unsampled = PARENT[:-1] + "0"
    with traced(sampler=ParentBased(ALWAYS_OFF)) as it:
        for headers in ({}, {"HTTP_TRACEPARENT": unsampled}):
            it.wsgi(answering(), environ(**headers))
        assert it.spans == []
        it.wsgi(answering(), environ(HTTP_TRACEPARENT=PARENT))
        assert parent_of(it.only) == SPAN_ID


# --- only one span -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampled", [True, False])
@pytest.mark.parametrize("sent", [True, False])
def test_instrumentation_around_us_has_the_only_span(sampled: bool, sent: bool) -> None:
    given = environ(**({"HTTP_TRACEPARENT": PARENT if sampled else PARENT[:-1] + "0"} if sent else {}))
    with traced(sampler=None if sampled else ParentBased(ALWAYS_OFF)) as it:
        carrier = {"traceparent": given["HTTP_TRACEPARENT"]} if sent else {}
        context = propagate.extract(carrier)
        tracer = it.provider.get_tracer("opentelemetry.instrumentation.wsgi")
        found: list[Any] = []
        with tracer.start_as_current_span("theirs", context, SpanKind.SERVER) as theirs:
            it.wsgi(answering(look=lambda: found.append(trace.get_current_span())), given)
        assert [span.name for span in it.spans] == (["theirs"] if sampled else [])
    if sent or sampled:
        assert found == [theirs]


def test_a_span_of_another_request_is_not_ours() -> None:
    """Services of one process that call each other without a network."""
    with traced() as it:
        tracer = it.provider.get_tracer("x")
        with tracer.start_as_current_span("front", kind=SpanKind.SERVER):
            with tracer.start_as_current_span("call", kind=SpanKind.CLIENT):
                carrier: dict[str, str] = {}
                propagate.inject(carrier)
            it.wsgi(answering(), environ(HTTP_TRACEPARENT=carrier["traceparent"]))
        with tracer.start_as_current_span("call", kind=SpanKind.CLIENT):
            it.wsgi(answering(), environ())
        names = [span.name for span in it.spans]
        spans = {span.name: span for span in it.spans[:3]}
    assert names == ["call", "GET", "front", "GET", "call"]
    assert spans["call"].context is not None
    assert parent_of(spans["GET"]) == spans["call"].context.span_id


def test_two_middlewares_make_one_span() -> None:
    with traced() as it:
        inner = wsgi.MeshMiddleware(answering(), Inbound(it.mesh))
        it.wsgi(inner, environ(HTTP_TRACEPARENT=PARENT))
        it.wsgi(inner, environ())
        assert len(it.spans) == 2


# --- Envoy's decision ------------------------------------------------------------------------------------------------------


def shares(**percent: float) -> Any:
    return listener(chain(tracing={name: {"value": value} for name, value in percent.items()}))


def test_envoys_sampling_of_the_listener() -> None:
    with traced(shares(random_sampling=0.0)) as it:
        found: list[Any] = []
        look = lambda: found.append(trace.get_current_span().get_span_context())  # noqa: E731
        it.wsgi(answering(look=look), environ(), listener=NAME)
        assert it.spans == []
        assert found[0].is_valid
        assert not found[0].trace_flags.sampled
        it.wsgi(answering(), environ(HTTP_TRACEPARENT=PARENT), listener=NAME)
        assert len(it.spans) == 1, "a request inside of a trace follows that"
        it.wsgi(answering(), environ(HTTP_X_ENVOY_FORCE_TRACE="1"), listener=NAME)
        assert len(it.spans) == 1, "nobody knows who asks"
        forced = arrival(connection=certified(CLIENT))
        forced.headers.append(("x-envoy-force-trace", "1"))
        inbound = Inbound(it.mesh, listener=NAME)
        copy_context().run(inbound.receive, forced, "HTTP/1.1").over()
        assert len(it.spans) == 2


def test_the_tags_of_the_listener() -> None:
    tags = [
        {"tag": "build", "literal": {"value": "42"}},
        {"tag": "tenant", "request_header": {"name": "x-tenant", "default_value": "none"}},
    ]
    with traced(listener(chain(tracing={"custom_tags": tags, "max_path_tag_length": 4}))) as it:
        it.wsgi(
            answering(), environ(HTTP_X_TENANT="blue", PATH_INFO="/abcdef", QUERY_STRING="q"), listener=NAME
        )
        found = attributes_of(it.only)
    assert (found["build"], found["tenant"], found["url.path"], found["url.query"]) == (
        "42",
        "blue",
        "/abc",
        "q",
    )


# --- gRPC --------------------------------------------------------------------------------------------------------------


def settled(it: Traced, number: int) -> list[ReadableSpan]:
    pause = threading.Event()
    for _ in range(2_000):
        if len(it.spans) >= number:
            return it.spans
        pause.wait(0.005)
    raise AssertionError(f"{len(it.spans)} of {number} have ended")


def _unary(kind: str, behavior: Any) -> Any:
    async def later(request: Any, context: Any) -> Any:
        return behavior(request, context)

    return grpc.unary_unary_rpc_method_handler(later if kind == "asyncio" else behavior)


@pytest.mark.parametrize("kind", ["blocking", "asyncio"])
def test_grpc_servers(kind: str) -> None:
    found: list[Any] = []

    def good(request: Any, context: Any) -> bytes:
        found.append((trace.get_current_span().get_span_context(), dict(baggage.get_all())))
        return b""

    def missing(request: Any, context: Any) -> bytes:
        context.set_code(grpc.StatusCode.NOT_FOUND)
        return b""

    def broken(request: Any, context: Any) -> bytes:
        context.set_code(grpc.StatusCode.INTERNAL)
        return b""

    handlers = {each.__name__: _unary(kind, each) for each in (good, missing, broken)}
    server = blocking_server if kind == "blocking" else asyncio_server
    with traced() as it:
        with (
            server(handlers, SystemClock(), Inbound(it.mesh)) as address,
            grpc.insecure_channel(address) as plain,
        ):
            metadata = (("traceparent", PARENT), ("baggage", "tenant=blue"))
            for name in handlers:
                plain.unary_unary(f"/{SERVICE}/{name}").future(b"", timeout=20, metadata=metadata).code()
        spans = {span.name.rpartition("/")[2]: span for span in settled(it, 3)}
    assert found == [(spans["good"].context, {"tenant": "blue"})]
    for name, code, failed in (
        ("good", "OK", False),
        ("missing", "NOT_FOUND", False),
        ("broken", "INTERNAL", True),
    ):
        span, attributes = spans[name], attributes_of(spans[name])
        assert (span.name, span.kind, parent_of(span)) == (f"{SERVICE}/{name}", SpanKind.SERVER, SPAN_ID)
        assert attributes["rpc.system.name"] == "grpc"
        assert attributes["rpc.method"] == f"{SERVICE}/{name}"
        assert attributes["rpc.response.status_code"] == code
        assert attributes.get("error.type") == (code if failed else None)
        assert span.status.is_ok is not failed
        assert attributes["client.address"] == "127.0.0.1"
        assert "http.request.method" not in attributes


# --- all of them ---------------------------------------------------------------------------------------------------------


def test_four_services_are_one_tree_and_one_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flask -> httpx -> ASGI, with a retry -> gRPC -> grpc.aio; no application copies a header."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    observe = meshlib.Observe(tracing=provider, metrics=False, recent_calls=0)
    seen: dict[str, Any] = {}
    tries: list[int] = []

    def look(name: str) -> None:
        inbound = INBOUND.get()
        assert inbound is not None
        assert inbound.deadline is not None
        left = inbound.deadline - SystemClock().monotonic()
        seen[name] = (inbound.request_id, baggage.get_baggage("tenant"), 0 < left <= 20)

    def mesh_for(*upstreams: dict[str, Any]) -> meshlib.Mesh:
        return stack.enter_context(meshlib.Mesh(list(upstreams), headers="envoy", observe=observe))

    def grpc_service(name: str, address: str) -> dict[str, Any]:
        made = service(name, address)
        made["resources"][2]["http2_protocol_options"] = {}
        return made

    with contextlib.ExitStack() as stack:
        stack.callback(provider.shutdown)

        async def last(request: bytes, context: Any) -> bytes:
            look("last")
            return b"hello"

        address = stack.enter_context(
            asyncio_server(
                {"last": grpc.unary_unary_rpc_method_handler(last)}, SystemClock(), Inbound(mesh_for())
            )
        )
        back_mesh = mesh_for(grpc_service("last", address))
        to_last = stack.enter_context(channel("last:80", mesh=back_mesh))

        def back(request: bytes, context: Any) -> bytes:
            look("back")
            return to_last.unary_unary(f"/{SERVICE}/last")(b"")  # type: ignore[no-any-return]

        address = stack.enter_context(
            blocking_server(
                {"back": grpc.unary_unary_rpc_method_handler(back)}, SystemClock(), Inbound(back_mesh)
            )
        )
        middle_mesh = mesh_for(grpc_service("back", address))

        async def middle(scope: Any, receive: Any, send: Any) -> None:
            look("middle")
            tries.append(1)
            body = b""
            if len(tries) > 1:
                async with aio_channel("back:80", mesh=middle_mesh) as to_back:
                    body = await asyncio.create_task(_awaited(to_back.unary_unary(f"/{SERVICE}/back")(b"")))
            status = 503 if len(tries) == 1 else 200
            length = (b"content-length", str(len(body)).encode())
            await send({"type": "http.response.start", "status": status, "headers": [length]})
            await send({"type": "http.response.body", "body": body})

        lifespan = http_servers.asgi_app

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await (lifespan if scope["type"] == "lifespan" else middle)(scope, receive, send)

        monkeypatch.setattr(http_servers, "asgi_app", app)
        port = stack.enter_context(http_servers.serving("uvicorn-h11", Inbound(middle_mesh, mode="DISABLE")))
        to_middle = service("middle", f"127.0.0.1:{port}")
        policy = {"retry_on": "5xx", "num_retries": 1}
        to_middle["resources"][1]["virtual_hosts"][0]["retry_policy"] = policy
        front_mesh = mesh_for(to_middle)
        client = stack.enter_context(httpx.Client(transport=MeshTransport(front_mesh)))

        front = flask.Flask(__name__)

        @front.get("/front/<int:number>")
        def answer(number: int) -> str:
            look("front")
            return client.get("http://middle/").text

        front.wsgi_app = wsgi.MeshMiddleware(front.wsgi_app, Inbound(front_mesh))  # type: ignore[method-assign]
        server = werkzeug.serving.make_server(
            "127.0.0.1", 0, front, threaded=True, request_handler=http_servers._Quiet
        )
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        stack.callback(server.server_close)
        stack.callback(thread.join)
        stack.callback(server.shutdown)

        headers = {"x-request-id": "a", "x-envoy-expected-rq-timeout-ms": "20000", "baggage": "tenant=blue"}
        with httpx.Client() as outside:
            assert outside.get(f"http://127.0.0.1:{server.port}/front/7", headers=headers).text == "hello"
        pause = threading.Event()
        while len(exporter.get_finished_spans()) < 12:
            pause.wait(0.005)
        spans = list(exporter.get_finished_spans())
    assert seen == dict.fromkeys(("front", "middle", "back", "last"), ("a", "blue", True))
    back_name, last_name = f"{SERVICE}/back", f"{SERVICE}/last"
    reached: dict[str, Any] = {f"{last_name} 0": {f"{last_name} 0": {f"{last_name} 0": {}}}}
    assert tree(spans) == {
        "GET /front/<int:number>": {
            "GET 0": {
                "GET 0": {"GET 0": {}},
                "GET 1": {"GET 0": {f"{back_name} 0": {f"{back_name} 0": {f"{back_name} 0": reached}}}},
            }
        }
    }
    assert sum(span.kind is SpanKind.SERVER for span in spans) == 5


async def _awaited(call: Any) -> Any:
    return await call


def test_nothing_stays_attached(monkeypatch: pytest.MonkeyPatch) -> None:
    before = contexts.get_current()
    with traced() as it:
        it.wsgi(answering(), environ(HTTP_TRACEPARENT=PARENT))
        assert contexts.get_current() is before or contexts.get_current() == before

        async def main() -> None:
            async def app(scope: Any, receive: Any, send: Any) -> None:
                raise ZeroDivisionError

            for _ in range(2):
                with pytest.raises(ZeroDivisionError):
                    await asgi.MeshMiddleware(app, Inbound(it.mesh))(
                        scope(headers=[(b"traceparent", PARENT.encode())]),
                        None,  # type: ignore[arg-type]
                        None,  # type: ignore[arg-type]
                    )
                assert not trace.get_current_span().get_span_context().is_valid

            refusing = asgi.MeshMiddleware(app, Inbound(it.mesh, rbac={"rules": {"action": "ALLOW"}}))

            async def ignore(*_: Any) -> None: ...

            await refusing(scope(headers=[(b"traceparent", PARENT.encode())]), ignore, ignore)  # type: ignore[arg-type]
            assert not trace.get_current_span().get_span_context().is_valid

        asyncio.run(main())
        assert isinstance(trace.get_current_span(), NonRecordingSpan)
        assert len(it.spans) == 4

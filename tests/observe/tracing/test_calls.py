"""The spans of a call and of its attempts, and the headers that go out with them."""

from __future__ import annotations

import asyncio
import os
import re
from typing import Any

import grpc
import pytest
from opentelemetry import baggage, context, propagate, trace
from opentelemetry.propagators import b3
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased, TraceIdRatioBased
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, StatusCode, TraceFlags, TraceState

from meshlib.engine.observer import CallObserver
from meshlib.errors import DeadlineExceeded
from meshlib.observe.tracing import TracingObserver
from meshlib.observe.tracing.attributes import error_type, redacted, server_of
from meshlib.observe.tracing.chance import OwnRandom
from meshlib.observe.tracing.gate import Gate
from meshlib.observe.tracing.spans import ApiSpans, SdkSpans, spans_of
from meshlib.policy.failure import FailureKind
from meshlib.resources.cluster import HttpProtocol
from meshlib.resources.route import (
    DirectResponse,
    PathKind,
    PathMatch,
    Route,
    RouteConfiguration,
    RouteMatch,
    VirtualHost,
)
from meshlib.routing.request import RequestView
from tests.engine.builders import HEDGING, NO_BACK_OFF, cluster, forward, listener, retry
from tests.engine.wire import FakeCall, FakeMesh, request
from tests.observe.tracing.spans import Traced, parent_of, sent, tree

TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})").fullmatch
OUTER = SpanContext(
    0xABC, 0xDEF, is_remote=True, trace_flags=TraceFlags(1), trace_state=TraceState([("k", "v")])
)


def traced(*clusters: Any, straight: bool = True, sampler: Any = None, **fields: Any) -> Traced:
    return Traced(FakeMesh(*(clusters or (cluster(),)), **fields), straight=straight, sampler=sampler)


def rpc_view() -> RequestView:
    headers = [("content-type", "application/grpc"), ("te", "trailers")]
    return RequestView("POST", "http", "svc", "/shop.Cart/Add", headers, target="svc:80", channel_id=7)


def inside(span: SpanContext) -> Any:
    """Attach a context with this span; give the token back to `context.detach`."""
    return context.attach(trace.set_span_in_context(NonRecordingSpan(span)))


@pytest.fixture(params=[True, False], ids=["straight", "api"])
def straight(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


# --- spans ------------------------------------------------------------------------------------------------------------


def test_a_call_and_its_attempt(straight: bool) -> None:
    world = traced(straight=straight)
    call = world.call(request("/x?a=1", headers=[("x-request-id", "r-1")]))
    world.mesh.clock.advance(0.25)
    call.answer(200)
    attempt, whole = world.spans()
    assert whole.kind is SpanKind.INTERNAL
    assert attempt.kind is SpanKind.CLIENT
    assert whole.name == attempt.name == "GET"
    assert parent_of(whole) is None
    assert whole.context is not None
    assert parent_of(attempt) == whole.context.span_id
    assert whole.start_time is not None
    assert whole.end_time is not None
    assert whole.end_time - whole.start_time == pytest.approx(0.25e9, abs=1000)
    assert whole.start_time == pytest.approx(1_700_000_000e9, abs=1e4)
    assert whole.status.status_code is attempt.status.status_code is StatusCode.UNSET
    assert dict(whole.attributes or {}) == {
        "http.request.method": "GET",
        "url.full": "http://svc/x?a=1",
        "server.address": "svc",
        "server.port": 80,
        "http.response.status_code": 200,
        "meshlib.virtual_host": "v",
        "meshlib.route_config": "r",
        "meshlib.route": "0",
        "meshlib.attempts": 1,
        "meshlib.details": "via_upstream",
        "component": "proxy",
        "response_flags": "-",
        "request_size": "0",
        "response_size": "0",
        "upstream_cluster": "a",
        "upstream_cluster.name": "a",
        "upstream_address": "10.0.0.1:80",
        "guid:x-request-id": "r-1",
    }
    assert dict(attempt.attributes or {}) == {
        "http.request.method": "GET",
        "url.full": "http://svc/x?a=1",
        "server.address": "svc",
        "server.port": 80,
        "network.peer.address": "10.0.0.1",
        "network.peer.port": 80,
        "network.protocol.version": "1.1",
        "http.response.status_code": 200,
        "upstream_cluster": "a",
    }
    scope = whole.instrumentation_scope
    assert scope is not None
    assert scope.name == "meshlib"
    assert scope.schema_url == "https://opentelemetry.io/schemas/1.44.0"


def test_a_retry(straight: bool) -> None:
    action = forward(retry_policy=retry("5xx,reset", times=2, back_off=NO_BACK_OFF))
    world = traced(cluster(hosts=3), straight=straight, action=action)
    call = world.call()
    call.answer(503)
    first = sent(call)
    call.tick()
    call.fail(FailureKind.TERMINATED)
    call.tick()
    call.answer(200)
    spans = world.spans()
    assert tree(spans) == {"GET": {"GET 0": {}, "GET 1": {}, "GET 2": {}}}
    one, two, three, whole = spans
    assert [span.attributes.get("http.request.resend_count") for span in spans if span.attributes] == [
        None,
        1,
        2,
        None,
    ]
    assert one.attributes is not None
    assert two.attributes is not None
    assert three.attributes is not None
    assert (one.attributes["http.response.status_code"], one.attributes["error.type"]) == (503, "503")
    assert one.status.status_code is StatusCode.ERROR
    assert one.status.description is None
    assert two.attributes["meshlib.retry.reason"] == "503"
    assert two.attributes["error.type"] == FailureKind.TERMINATED.value.replace(" ", "_")
    assert three.attributes["meshlib.retry.reason"] == FailureKind.TERMINATED.value
    assert whole.status.status_code is StatusCode.UNSET
    assert (
        len({span.attributes["network.peer.address"] for span in (one, two, three) if span.attributes}) == 3
    )
    parents = [TRACEPARENT(sent(call, number)["traceparent"]) for number in range(3)]
    assert sent(call, 0) == first
    for match, span in zip(parents, (one, two, three)):
        assert match is not None
        assert span.context is not None
        assert (int(match[1], 16), int(match[2], 16)) == (span.context.trace_id, span.context.span_id)
        assert int(match[3], 16) & 1


def test_hedging() -> None:
    policy = retry("5xx", times=1, per_try_timeout=0.1, back_off=NO_BACK_OFF)
    world = traced(cluster(hosts=2), action=forward(retry_policy=policy, hedge_policy=HEDGING))
    call = world.call()
    call.tick()
    call.tick()
    call.answer(200, attempt=1)
    second, first, _ = world.spans()
    assert second.attributes is not None
    assert second.attributes["meshlib.hedged"] is True
    assert second.status.status_code is StatusCode.UNSET, "it was given up, it did not fail"
    assert first.attributes is not None
    assert first.attributes["http.response.status_code"] == 200


@pytest.mark.parametrize(("status", "code"), [(200, None), (302, None), (404, "404"), (500, "500")])
def test_statuses(status: int, code: str | None, straight: bool) -> None:
    world = traced(straight=straight)
    world.call().answer(status)
    for span in world.spans():
        assert span.attributes is not None
        assert span.attributes["http.response.status_code"] == status
        assert span.attributes.get("error.type") == code
        assert span.status.status_code is (StatusCode.ERROR if code else StatusCode.UNSET)


def test_a_timeout(straight: bool) -> None:
    world = traced(straight=straight, action=forward(timeout=1.0))
    world.call().tick()
    attempt, whole = world.spans()
    assert whole.attributes is not None
    assert attempt.attributes is not None
    assert whole.attributes["error.type"] == "meshlib.errors.DeadlineExceeded"
    assert whole.attributes["response_flags"] == "UT"
    assert whole.attributes["http.response.status_code"] == 504
    assert "response timeout" in (whole.status.description or "") or whole.status.description
    assert attempt.attributes["error.type"] == "response_timeout"
    assert "http.response.status_code" not in attempt.attributes


def test_a_call_given_up_is_no_error(straight: bool) -> None:
    world = traced(straight=straight)
    world.call().cancel()
    for span in world.spans():
        assert span.status.status_code is StatusCode.UNSET
        assert "error.type" not in (span.attributes or {})


def test_an_rpc_given_up_is_no_error(straight: bool) -> None:
    world = traced(straight=straight)
    world.call(rpc_view()).cancel()
    for span in world.spans():
        assert span.status.status_code is StatusCode.UNSET
        assert "error.type" not in (span.attributes or {})


class Coded(Exception):
    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("x"), "ValueError"),
        (DeadlineExceeded("x"), "meshlib.errors.DeadlineExceeded"),
        (Coded(), "RESOURCE_EXHAUSTED"),
        (asyncio.CancelledError(), "CANCELLED"),
        (GeneratorExit(), "CANCELLED"),
    ],
)
def test_what_an_error_is_called(error: BaseException, expected: str) -> None:
    assert error_type(error) == expected


def test_no_attempt_no_listener_and_a_direct_response() -> None:
    world = traced(action=DirectResponse(status=404))
    world.call()
    (span,) = world.spans()
    assert span.attributes is not None
    assert span.attributes["http.response.status_code"] == 404
    assert "upstream_cluster" not in span.attributes
    world.mesh.publish(listeners={"svc:80": world.mesh.listen, "x:80": world.mesh.listen})
    view = request(authority="other")
    view.target = "other:80"
    world.call(view)
    (span,) = world.spans()
    assert span.attributes is not None
    assert span.attributes["error.type"] == "meshlib.errors.UnknownHost"
    assert span.attributes["response_flags"] == "NR"


def test_an_rpc(straight: bool) -> None:
    world = traced(cluster(protocol=HttpProtocol.HTTP2), straight=straight)
    world.call(rpc_view()).answer(200, [("grpc-status", "5")])
    attempt, whole = world.spans()
    for span in (attempt, whole):
        assert span.name == "shop.Cart/Add"
        attributes = dict(span.attributes or {})
        assert attributes["rpc.system.name"] == "grpc"
        assert attributes["rpc.method"] == "shop.Cart/Add"
        assert attributes["rpc.response.status_code"] == attributes["error.type"] == "NOT_FOUND"
        assert attributes["server.address"] == "svc"
        assert not [name for name in attributes if name.startswith(("http.", "url."))]
        assert span.status.status_code is StatusCode.ERROR
    assert attempt.kind is SpanKind.CLIENT
    assert attempt.attributes is not None
    assert attempt.attributes["network.protocol.version"] == "2"
    world.call(rpc_view()).answer(200, [("grpc-status", "0")])
    for span in world.spans():
        assert span.attributes is not None
        assert span.attributes["rpc.response.status_code"] == "OK"
        assert span.status.status_code is StatusCode.UNSET


def test_names() -> None:
    def only(path: PathMatch, operation: str = "") -> RouteConfiguration:
        route = Route(match=RouteMatch(path=path), action=forward(), operation=operation)
        return RouteConfiguration(
            name="r", virtual_hosts=(VirtualHost(name="v", domains=("*",), routes=(route,)),)
        )

    exact = PathMatch(kind=PathKind.PATH, value="/users")
    prefix = PathMatch(kind=PathKind.PREFIX, value="/")
    for path, operation, method, name in (
        (exact, "", "GET", "GET /users"),
        (prefix, "", "GET", "GET"),
        (prefix, "checkout", "GET", "checkout"),
        (prefix, "", "BREW", "HTTP"),
    ):
        world = Traced(FakeMesh(cluster(), listen=listener(only(path, operation))))
        world.call(request("/users", method)).answer(200)
        attempt, whole = world.spans()
        assert whole.name == name
        assert attempt.name == ("HTTP" if method == "BREW" else method)
        assert whole.attributes is not None
        assert whole.attributes["http.request.method"] == ("_OTHER" if method == "BREW" else method)
        assert whole.attributes.get("http.request.method_original") == (method if method == "BREW" else None)


def test_secrets_of_signed_urls_are_not_shown() -> None:
    assert (
        redacted("/b?x=1&X-Amz-Signature=abc&sig=q&y=2") == "/b?x=1&X-Amz-Signature=REDACTED&sig=REDACTED&y=2"
    )
    assert redacted("/b?design=1") == "/b?design=1"
    assert redacted("/sig=1") == "/sig=1"


def test_bytes_that_are_no_text_do_not_reach_an_exporter() -> None:
    world = traced()
    odd = b"/caf\xc3\xa9/\xff?x=\xfe".decode("utf-8", "surrogateescape")
    world.call(request(odd, headers=[("x-request-id", odd)], authority=odd[1:])).answer(200)
    for span in world.spans():
        span.to_json().encode()
        for value in (span.attributes or {}).values():
            str(value).encode()


def test_a_forked_child_draws_other_numbers() -> None:
    drawn = OwnRandom()
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.write(writer, str(drawn.getrandbits(64)).encode())
        os._exit(0)
    os.waitpid(child, 0)
    told = int(os.read(reader, 100))
    os.close(reader)
    os.close(writer)
    assert told != drawn.getrandbits(64)


def test_servers() -> None:
    assert server_of("reviews:80") == ("reviews", 80)
    assert server_of("[::1]:8080") == ("::1", 8080)
    assert server_of("reviews") == ("reviews", None)
    assert server_of("xds-name/with:stuff") == ("xds-name/with:stuff", None)


# --- the context ------------------------------------------------------------------------------------------------------


def test_a_call_hangs_below_the_span_around_it(straight: bool) -> None:
    world = traced(straight=straight)
    token = inside(OUTER)
    try:
        call = world.call()
    finally:
        context.detach(token)
    call.answer(200)
    attempt, whole = world.spans()
    assert parent_of(whole) == OUTER.span_id
    assert whole.context is not None
    assert attempt.context is not None
    assert whole.context.trace_id == OUTER.trace_id
    headers = sent(call)
    assert headers["traceparent"] == f"00-{OUTER.trace_id:032x}-{attempt.context.span_id:016x}-01"
    assert headers["tracestate"] == "k=v"


def test_what_is_not_recorded_passes_the_context_on_as_it_is(straight: bool) -> None:
    world = traced(straight=straight, sampler=ALWAYS_OFF)
    token = inside(OUTER)
    try:
        call = world.call()
    finally:
        context.detach(token)
    call.answer(200)
    assert world.spans() == []
    assert sent(call) == {
        "traceparent": f"00-{OUTER.trace_id:032x}-{OUTER.span_id:016x}-01",
        "tracestate": "k=v",
    }


def test_a_trace_that_is_not_recorded_from_its_beginning_says_so(straight: bool) -> None:
    world = traced(straight=straight, sampler=ParentBased(ALWAYS_OFF))
    call = world.call()
    call.answer(200)
    assert world.spans() == []
    match = TRACEPARENT(sent(call)["traceparent"])
    assert match is not None
    assert match[3] == "00"
    assert int(match[1], 16)
    assert int(match[2], 16)


def test_without_an_sdk_the_context_still_goes_on() -> None:
    mesh = FakeMesh(cluster())
    mesh.engine.observe(Gate(TracingObserver()))
    call = mesh.call()
    assert sent(call) == {}
    token = context.attach(
        baggage.set_baggage("who", "me", trace.set_span_in_context(NonRecordingSpan(OUTER)))
    )
    try:
        call = mesh.call()
    finally:
        context.detach(token)
    assert sent(call) == {
        "traceparent": f"00-{OUTER.trace_id:032x}-{OUTER.span_id:016x}-01",
        "tracestate": "k=v",
        "baggage": "who=me",
    }


def test_what_the_application_sends_by_itself_stays(straight: bool) -> None:
    world = traced(straight=straight)
    own = ("traceparent", f"00-{1:032x}-{2:016x}-01")
    call = world.call(request(headers=[own]))
    call.answer(200)
    assert sent(call) == {}
    assert len(world.spans()) == 2
    off = traced(straight=straight, sampler=ALWAYS_OFF)
    assert sent(off.call(request(headers=[own]))) == {}


def test_baggage_goes_on_unless_the_application_sends_its_own() -> None:
    world = traced()
    token = context.attach(baggage.set_baggage("who", "me and you"))
    try:
        assert sent(world.call())["baggage"] == "who=me+and+you"
        assert set(sent(world.call(request(headers=[("baggage", "x=y")])))) == {"traceparent"}
    finally:
        context.detach(token)


def test_requests_of_exporters_are_not_traced() -> None:
    world = traced()
    token = context.attach(context.set_value(context._SUPPRESS_INSTRUMENTATION_KEY, True))
    try:
        call = world.call()
    finally:
        context.detach(token)
    call.answer(200)
    assert world.spans() == []
    assert sent(call) == {}


def test_a_host_that_is_let_through_gets_the_context_and_no_span() -> None:
    world = traced()
    world.mesh.engine.passthrough = True
    world.mesh.publish(listeners={"svc:80": world.mesh.listen, "x:80": world.mesh.listen})
    view = request(authority="other")
    view.target = "other:80"
    token = inside(OUTER)
    try:
        call = world.call(view)
    finally:
        context.detach(token)
    assert world.spans() == []
    assert dict(call.core.headers_to_add)["traceparent"].startswith(f"00-{OUTER.trace_id:032x}-")


def test_other_propagators_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for propagator, names in (
        (b3.B3SingleFormat(), {"b3"}),
        (b3.B3MultiFormat(), {"x-b3-traceid", "x-b3-spanid", "x-b3-sampled"}),
    ):
        monkeypatch.setattr(propagate, "get_global_textmap", lambda used=propagator: used)
        world = traced()
        call = world.call()
        call.answer(200)
        attempt, _ = world.spans()
        headers = sent(call)
        assert set(headers) == names
        assert attempt.context is not None
        assert f"{attempt.context.span_id:016x}" in " ".join(headers.values())
        assert sent(world.call(request(headers=[(min(names), "mine")]))) == {}
        off = traced(sampler=ALWAYS_OFF)
        assert "0" in sent(off.call()).get("x-b3-sampled", "0")


# --- how spans are made -----------------------------------------------------------------------------------------------


def test_which_way_spans_are_made() -> None:
    plain = traced().provider
    limited = traced(straight=False).provider
    assert isinstance(spans_of(plain, "x", "1", ""), SdkSpans)
    assert isinstance(spans_of(limited, "x", "1", ""), ApiSpans)
    assert spans_of(trace.NoOpTracerProvider(), "x", "1", "") is None


def test_an_sdk_that_is_switched_off_decides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those behind are not told that nobody wants the trace."""
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    world = traced()
    call = world.call()
    call.answer(200)
    assert sent(call) == {}
    assert world.spans() == []


@pytest.mark.parametrize(
    "sampler",
    [ALWAYS_ON, ALWAYS_OFF, ParentBased(ALWAYS_ON), ParentBased(ALWAYS_OFF), TraceIdRatioBased(0.5)],
)
@pytest.mark.parametrize("sampled", [0, 1, None])
@pytest.mark.parametrize("remote", [False, True])
def test_both_ways_ask_the_sampler(sampler: Any, sampled: int | None, remote: bool) -> None:
    """For a given parent the same answer; of a root the SDK's own spans say what to expect."""
    outcomes = []
    for straight in (True, False):
        world = traced(straight=straight, sampler=sampler)
        world.provider.id_generator.generate_trace_id = lambda: 0xFFFF  # type: ignore[method-assign]
        above = SpanContext(0xFFFF, 5, is_remote=remote, trace_flags=TraceFlags(sampled or 0))
        token = None if sampled is None else inside(above)
        try:
            call = world.call()
        finally:
            if token is not None:
                context.detach(token)
        call.answer(200)
        spans = world.spans()
        outcomes.append([(span.name, span.kind, bool(parent_of(span))) for span in spans])
        flags = sent(call)["traceparent"][-2:]
        assert int(flags, 16) & 1 == (1 if spans else (sampled or 0))
    assert outcomes[0] == outcomes[1]


def test_a_provider_that_is_set_later_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    mesh = FakeMesh(cluster())
    mesh.engine.observe(Gate(TracingObserver()))
    mesh.call().answer(200)
    world = Traced(FakeMesh(cluster()))
    monkeypatch.setattr("opentelemetry.trace._TRACER_PROVIDER", world.provider)
    mesh.call().answer(200)
    assert len(world.spans()) == 2


def test_where_the_api_does_not_show_its_provider_each_call_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    mesh = FakeMesh(cluster())
    tracing = TracingObserver()
    mesh.engine.observe(Gate(tracing))
    mesh.call().answer(200)
    assert tracing.silent
    asked: list[object] = []
    monkeypatch.setattr(TracingObserver, "begun", lambda _self, call, _now: asked.append(call))
    mesh.call().answer(200)
    assert asked == []
    monkeypatch.delattr("opentelemetry.trace._TRACER_PROVIDER")
    mesh.call().answer(200)
    assert len(asked) == 1


def test_other_observers_see_what_goes_out() -> None:
    class Witness(CallObserver):
        seen: list[str] = []  # noqa: RUF012

        def over(self, call: Any, now: float) -> None:
            self.seen += [name for name, _ in call.request_headers_sent]

    world = traced()
    witness = Witness()
    world.mesh.engine.observe(witness)
    call: FakeCall = world.call()
    call.answer(200)
    assert witness.seen == ["traceparent"]

"""Envoy's decision about tracing, and the tags that a configuration asks for."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import context, trace
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from meshlib.engine.context import INBOUND, InboundContext
from meshlib.observe.tracing.sampling import Reason, packed, reason_of, wanted
from meshlib.resources.matching import FractionalPercent
from meshlib.resources.route import PathKind, PathMatch, Route, RouteConfiguration, RouteMatch, VirtualHost
from meshlib.resources.tracing import CustomTag, RouteTracing, TagSource, Tracing
from tests.engine.builders import cluster, forward, listener
from tests.engine.wire import FakeMesh, request
from tests.observe.tracing.spans import Traced, sent

NONE = FractionalPercent(numerator=0)
HALF = FractionalPercent(numerator=5_000, denominator=10_000)
UUID = "{:08x}-0000-4000-8000-000000000000"


def decide(
    tracing: Tracing, *headers: tuple[str, str], route: RouteTracing | None = None, **more: Any
) -> Reason:
    more.setdefault("trusted", False)
    return wanted(tracing, route, request(headers=headers), Random(1), **more)


def test_everything_by_default() -> None:
    assert decide(Tracing()) is Reason.SAMPLED


@given(st.integers(0, 2**32 - 1))
def test_the_number_comes_from_the_request_id(number: int) -> None:
    """As seen of Envoy: the first eight digits, modulo 10,000, against the share."""
    identity = ("x-request-id", UUID.format(number))
    expected = Reason.SAMPLED if number % 10_000 < 5_000 else Reason.NONE
    assert decide(Tracing(random_sampling=HALF), identity) is expected
    assert decide(Tracing(overall_sampling=HALF), identity) is expected


@pytest.mark.parametrize("identity", ["abc", "not-a-uuid-at-all", "zzzzzzzz-0000-4000-8000-000000000000"])
def test_an_id_without_a_number_is_never_sampled(identity: str) -> None:
    assert decide(Tracing(), ("x-request-id", identity)) is Reason.NONE


@pytest.mark.parametrize(
    ("digit", "reason"), [("9", Reason.SAMPLED), ("a", Reason.FORCED), ("b", Reason.CLIENT)]
)
def test_who_came_before_has_decided(digit: str, reason: Reason) -> None:
    identity = f"00000000-0000-{digit}000-8000-000000000000"
    assert decide(Tracing(random_sampling=NONE), ("x-request-id", identity)) is reason
    assert (
        decide(Tracing(random_sampling=NONE, overall_sampling=NONE), ("x-request-id", identity))
        is Reason.NONE
    )


def test_force_and_client() -> None:
    never = Tracing(random_sampling=NONE)
    assert decide(never) is Reason.NONE
    assert decide(never, ("x-envoy-force-trace", "true")) is Reason.NONE
    assert decide(never, ("x-envoy-force-trace", "true"), trusted=True) is Reason.FORCED
    assert decide(never, forced=True) is Reason.FORCED
    assert decide(never, ("x-client-trace-id", "1")) is Reason.CLIENT
    shut = Tracing(random_sampling=NONE, client_sampling=NONE)
    assert decide(shut, ("x-client-trace-id", "1")) is Reason.NONE


def test_the_route_says_otherwise() -> None:
    assert decide(Tracing(), route=RouteTracing(random_sampling=NONE)) is Reason.NONE
    assert (
        decide(Tracing(random_sampling=NONE), route=RouteTracing(random_sampling=HALF), forced=True)
        is Reason.FORCED
    )
    assert decide(Tracing(overall_sampling=NONE), route=RouteTracing()) is Reason.SAMPLED, (
        "all of its shares count"
    )


def test_packing() -> None:
    identity = "12345678-9abc-4def-8000-000000000000"
    for reason in Reason:
        made = packed(identity, reason)
        assert len(made) == len(identity)
        assert reason_of(made) is reason
    assert packed("abc", Reason.SAMPLED) == "abc"
    assert reason_of("abc") is reason_of(None) is Reason.NONE


# --- at work ------------------------------------------------------------------------------------------------------------


def world(
    tracing: Tracing | None, *, headers: bool = False, metadata: Any = None, route: Any = None, **fields: Any
) -> Traced:
    only = Route(
        match=RouteMatch(path=PathMatch(kind=PathKind.PREFIX, value="/")),
        action=forward(),
        tracing=route,
        metadata=metadata or {},
    )
    config = RouteConfiguration(
        name="r", virtual_hosts=(VirtualHost(name="v", domains=("*",), routes=(only,)),)
    )
    mesh = FakeMesh(cluster(), listen=listener(config, tracing=tracing), envoy_headers=headers)
    return Traced(mesh, packs=headers, **fields)


def test_both_must_want_a_trace_that_begins_here() -> None:
    for tracing, sampler, count in (
        (None, None, 2),
        (Tracing(), None, 2),
        (Tracing(random_sampling=NONE), None, 0),
        (Tracing(), ALWAYS_OFF, 0),
    ):
        made = world(tracing, sampler=sampler)
        call = made.call()
        call.answer(200)
        assert len(made.spans()) == count
        assert bool(int(sent(call)["traceparent"][-2:], 16) & 1) is bool(count)


def test_a_call_inside_a_trace_follows_it() -> None:
    made = world(Tracing(random_sampling=NONE))
    outer = SpanContext(1, 2, is_remote=False, trace_flags=TraceFlags(1))
    token = context.attach(trace.set_span_in_context(NonRecordingSpan(outer)))
    try:
        call = made.call()
    finally:
        context.detach(token)
    call.answer(200)
    assert len(made.spans()) == 2


def test_a_forced_request_forces_the_calls_that_are_made_for_it() -> None:
    made = world(Tracing(random_sampling=NONE))
    token = INBOUND.set(InboundContext(forced=True))
    try:
        call = made.call()
    finally:
        INBOUND.reset(token)
    call.answer(200)
    assert len(made.spans()) == 2


def test_the_decision_is_written_into_the_request_id() -> None:
    made = world(Tracing(), headers=True)
    call = made.call(request(headers=[("x-request-id", UUID.format(1))]))
    assert dict(call.starts[0].headers or ())["x-request-id"] == "00000001-0000-9000-8000-000000000000"
    call.answer(200)
    _, whole = made.spans()
    assert (whole.attributes or {})["guid:x-request-id"] == "00000001-0000-9000-8000-000000000000"
    made = world(Tracing(random_sampling=NONE), headers=True)
    call = made.call(request(headers=[("x-request-id", UUID.format(1))]))
    assert dict(call.starts[0].headers or ())["x-request-id"] == UUID.format(1)


def test_custom_tags(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGION", "north")
    monkeypatch.delenv("NOWHERE", raising=False)
    tags = (
        CustomTag(tag="fixed", source=TagSource.LITERAL, name="x"),
        CustomTag(tag="replaced", source=TagSource.LITERAL, name="manager"),
        CustomTag(tag="region", source=TagSource.ENVIRONMENT, name="REGION"),
        CustomTag(tag="unset", source=TagSource.ENVIRONMENT, name="NOWHERE"),
        CustomTag(tag="default", source=TagSource.ENVIRONMENT, name="NOWHERE", default="d"),
        CustomTag(tag="user", source=TagSource.REQUEST_HEADER, name="x-user"),
        CustomTag(tag="deep", source=TagSource.ROUTE_METADATA, name="k", path=("p", "q")),
        CustomTag(tag="list", source=TagSource.ROUTE_METADATA, name="k", path=("l",)),
        CustomTag(tag="lost", source=TagSource.ROUTE_METADATA, name="k", path=("p", "q", "r")),
        CustomTag(tag="host", source=TagSource.NOWHERE, name="k", default="none"),
    )
    route = RouteTracing(custom_tags=(CustomTag(tag="replaced", source=TagSource.LITERAL, name="route"),))
    metadata = {"k": {"p": {"q": "value"}, "l": [1.0, "a"]}}
    made = world(Tracing(custom_tags=tags), metadata=metadata, route=route)
    made.call(request(headers=[("x-user", "me")])).answer(200)
    _, whole = made.spans()
    attributes = whole.attributes or {}
    wanted_tags = {
        "fixed": "x",
        "replaced": "route",
        "region": "north",
        "default": "d",
        "user": "me",
        "deep": "value",
        "list": '[1.0,"a"]',
        "host": "none",
    }
    assert {name: attributes[name] for name in wanted_tags} == wanted_tags
    assert not {"unset", "lost"} & set(attributes)


def test_long_paths_are_cut() -> None:
    made = world(Tracing(max_path_tag_length=6))
    made.call(request("/abcdefghij?x=1")).answer(200)
    attempt, whole = made.spans()
    assert (whole.attributes or {})["url.full"] == "http://svc/abcde"
    assert (attempt.attributes or {})["url.full"] == "http://svc/abcde"

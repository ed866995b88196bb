from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshlib.observe.access_log.filters import compile_filter
from meshlib.resources.access_log import (
    AndFilter,
    Comparison,
    Constant,
    DurationFilter,
    Filter,
    GrpcStatusFilter,
    HeaderFilter,
    LogTypeFilter,
    NotHealthCheckFilter,
    Operation,
    OrFilter,
    ResponseFlagFilter,
    RuntimeFilter,
    StatusCodeFilter,
    TraceableFilter,
)
from meshlib.resources.matching import FractionalPercent, HeaderMatch, StringKind, StringMatch
from tests.observe.access_log.made import MadeFacts

HALF = FractionalPercent(numerator=50)
ID = "0000001a-0000-4000-8000-000000000000"
"""Its number is 26."""


def status(operation: Operation, value: int) -> StatusCodeFilter:
    return StatusCodeFilter(Comparison(operation=operation, value=value))


def duration(operation: Operation, value: int) -> DurationFilter:
    return DurationFilter(Comparison(operation=operation, value=value))


def share(numerator: int, denominator: int = 100, *, independent: bool = False) -> RuntimeFilter:
    fraction = FractionalPercent(numerator=numerator, denominator=denominator)
    return RuntimeFilter(fraction=fraction, independent=independent)


@pytest.mark.parametrize(
    ("chosen", "facts", "logged"),
    [
        (status(Operation.GE, 200), MadeFacts(), True),
        (status(Operation.GE, 201), MadeFacts(), False),
        (status(Operation.LE, 200), MadeFacts(), True),
        (status(Operation.LE, 199), MadeFacts(), False),
        (status(Operation.EQ, 200), MadeFacts(), True),
        (status(Operation.NE, 200), MadeFacts(), False),
        (status(Operation.EQ, 0), MadeFacts(status=0), True),
        (duration(Operation.GE, 12), MadeFacts(), True),
        (duration(Operation.GE, 13), MadeFacts(), False),
        (NotHealthCheckFilter(), MadeFacts(), True),
        (TraceableFilter(), MadeFacts(), False),
        (TraceableFilter(), MadeFacts([("x-envoy-force-trace", "1")]), True),
        (TraceableFilter(), MadeFacts([("x-request-id", ID)]), False),
        (TraceableFilter(), MadeFacts([("x-request-id", ID[:14] + "a" + ID[15:])]), True),
        (share(27), MadeFacts([("x-request-id", ID)]), True),
        (share(26), MadeFacts([("x-request-id", ID)]), False),
        (share(27, 10_000), MadeFacts([("x-request-id", ID)]), True),
        (share(0), MadeFacts(), False),
        (share(100), MadeFacts([("x-request-id", "not hexadecimal")]), True),
        (share(100), MadeFacts([("x-request-id", "1")]), True),
        (AndFilter((Constant(True), Constant(False))), MadeFacts(), False),
        (AndFilter((Constant(True), Constant(True))), MadeFacts(), True),
        (OrFilter((Constant(True), Constant(False))), MadeFacts(), True),
        (OrFilter((Constant(False), Constant(False))), MadeFacts(), False),
        (HeaderFilter(HeaderMatch(name="a")), MadeFacts([("a", "1")]), True),
        (HeaderFilter(HeaderMatch(name="a", invert=True)), MadeFacts([("a", "1")]), False),
        (
            HeaderFilter(HeaderMatch(name=":path", string=StringMatch(kind=StringKind.PREFIX, value="/p"))),
            MadeFacts(),
            True,
        ),
        (ResponseFlagFilter(), MadeFacts(), False),
        (ResponseFlagFilter(), MadeFacts(flags="UF"), True),
        (ResponseFlagFilter(frozenset({"UF"})), MadeFacts(flags="URX,UF"), True),
        (ResponseFlagFilter(frozenset({"UF"})), MadeFacts(flags="URX"), False),
        (ResponseFlagFilter(frozenset({"UF"})), MadeFacts(), False),
        (GrpcStatusFilter(statuses=frozenset({0})), MadeFacts(grpc_status="0"), True),
        (GrpcStatusFilter(statuses=frozenset({0}), exclude=True), MadeFacts(grpc_status="0"), False),
        (GrpcStatusFilter(statuses=frozenset({14})), MadeFacts(status=503), True),
        (GrpcStatusFilter(statuses=frozenset({2})), MadeFacts(), True),
        (GrpcStatusFilter(statuses=frozenset({2})), MadeFacts(status=0), True),
        (LogTypeFilter(types=frozenset({"DownstreamEnd"})), MadeFacts(), True),
        (LogTypeFilter(types=frozenset({"DownstreamEnd"}), exclude=True), MadeFacts(), False),
        (LogTypeFilter(types=frozenset({"TcpPeriodic"}), exclude=True), MadeFacts(), True),
    ],
)
def test_filters(chosen: Filter, facts: MadeFacts, logged: bool) -> None:
    assert compile_filter(chosen, Random(1))(facts) is logged


def test_a_share_without_request_ids_is_drawn() -> None:
    predicate = compile_filter(share(30), Random(7))
    logged = sum(predicate(MadeFacts()) for _ in range(5000))
    assert 1350 < logged < 1650
    independent = compile_filter(share(50, independent=True), Random(7))
    drawn = {independent(MadeFacts([("x-request-id", ID)])) for _ in range(50)}
    assert drawn == {True, False}


@given(st.integers(0, 600), st.integers(0, 600), st.sampled_from(Operation))
def test_comparisons(given_status: int, value: int, operation: Operation) -> None:
    expected = {
        Operation.EQ: given_status == value,
        Operation.GE: given_status >= value,
        Operation.LE: given_status <= value,
        Operation.NE: given_status != value,
    }
    found = compile_filter(status(operation, value), Random(1))(MadeFacts(status=given_status))
    assert found is expected[operation]

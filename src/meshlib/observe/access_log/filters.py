"""Filters of access logs (config.accesslog.v3.AccessLogFilter), compiled into predicates on facts."""

from __future__ import annotations

import operator
from collections.abc import Callable
from random import Random
from typing import Any

from meshlib.observe.access_log.facts import LogFacts
from meshlib.observe.access_log.operators import grpc_status_number
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
from meshlib.routing.format import first
from meshlib.routing.matchers.header import compile_header

__all__ = ["Predicate", "compile_filter"]

Predicate = Callable[[Any], bool]

_OPERATIONS = {
    Operation.EQ: operator.eq,
    Operation.GE: operator.ge,
    Operation.LE: operator.le,
    Operation.NE: operator.ne,
}

_UNKNOWN = 2


def compile_filter(chosen: Filter, random: Random) -> Predicate:
    """Whether a call is logged."""
    match chosen:
        case StatusCodeFilter(comparison):
            return _compared(comparison, lambda facts: facts.status)
        case DurationFilter(comparison):
            return _compared(comparison, lambda facts: int(facts.duration * 1000))
        case AndFilter(filters):
            all_of = tuple(compile_filter(each, random) for each in filters)
            return lambda facts: all(predicate(facts) for predicate in all_of)
        case OrFilter(filters):
            any_of = tuple(compile_filter(each, random) for each in filters)
            return lambda facts: any(predicate(facts) for predicate in any_of)
        case HeaderFilter(match):
            header = compile_header(match)
            return lambda facts: header(facts.request)
        case ResponseFlagFilter(flags):
            return _flagged(flags)
        case GrpcStatusFilter():
            return _status(chosen)
        case LogTypeFilter():
            logged = ("DownstreamEnd" in chosen.types) is not chosen.exclude
            return lambda facts: logged
        case RuntimeFilter():
            return _share(chosen, random)
        case TraceableFilter():
            return _traced
        case NotHealthCheckFilter():
            return lambda facts: True
        case Constant(matches):
            return lambda facts: matches


def _compared(comparison: Comparison, number: Callable[[LogFacts], int]) -> Predicate:
    compare, value = _OPERATIONS[comparison.operation], comparison.value
    return lambda facts: bool(compare(number(facts), value))


def _flagged(flags: frozenset[str]) -> Predicate:
    if not flags:
        return lambda facts: bool(facts.flags != "-")
    return lambda facts: not flags.isdisjoint(facts.flags.split(","))


def _status(chosen: GrpcStatusFilter) -> Predicate:
    statuses, exclude = chosen.statuses, chosen.exclude

    def matches(facts: LogFacts) -> bool:
        number = grpc_status_number(facts)
        return ((_UNKNOWN if number is None else number) in statuses) is not exclude

    return matches


def _share(chosen: RuntimeFilter, random: Random) -> Predicate:
    numerator, denominator = chosen.fraction.numerator, chosen.fraction.denominator

    def sampled(facts: LogFacts) -> bool:
        number = None if chosen.independent else _request_number(facts)
        if number is None:
            number = random.getrandbits(64)
        return number % denominator < numerator

    return sampled


def _request_number(facts: LogFacts) -> int | None:
    """The number that Envoy takes from a request id: its first eight hexadecimal digits."""
    identifier = first(facts.request, "x-request-id", "")
    try:
        return int(identifier[:8], 16) if identifier is not None and len(identifier) >= 8 else None
    except ValueError:
        return None


def _traced(facts: LogFacts) -> bool:
    """Whether the request itself asked for its trace: a header, or the mark of it that Envoy leaves in a request id."""
    if first(facts.request, "x-envoy-force-trace", "") is not None:
        return True
    identifier = first(facts.request, "x-request-id", "")
    return identifier is not None and len(identifier) == 36 and identifier[14] == "a"

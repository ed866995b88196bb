"""Envoy's outcomes against a runner's: the list of what differs."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from conformance import chance
from conformance.facts import Facts, facts

if TYPE_CHECKING:
    from conformance.case import Case, Compare
    from conformance.outcome import Outcome

_ABSENT = "(absent)"
_TICK = 0.005
"""Seconds: timers count whole milliseconds, and the caller's clock starts after the call's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One field that differs. ``where`` says in which request; ``field`` is what listed.yaml names."""

    field: str
    where: str
    envoy: object
    other: object

    def __str__(self) -> str:
        return f"{self.where}{self.field}: Envoy {_shown(self.envoy)}, here {_shown(self.other)}"


def _shown(value: object) -> str:
    """The value in full, but for bodies of many kilobytes."""
    text = repr(value)
    return text if len(text) <= 1000 else f"{text[:200]} ... ({len(text)} characters)"


def differences(case: Case, envoy: list[Outcome], other: list[Outcome]) -> list[Difference]:
    """Everything that differs between two runs of ``case``. Empty means equal."""
    compare = case.compare
    found = [*_time_bounds(case, other), *_endpoints(compare, envoy, other)]
    if compare.distribution is not None:
        return found + _distributed(compare, envoy, other)
    one = [_without_endpoints(facts(outcome, compare), compare) for outcome in envoy]
    two = [_without_endpoints(facts(outcome, compare), compare) for outcome in other]
    if compare.any_order:
        return found + _unordered(one, two)
    for index, (expected, actual) in enumerate(zip(one, two)):
        found += _fields(expected, actual, f"request {index}: ")
    return found


def _fields(expected: Facts, actual: Facts, where: str) -> list[Difference]:
    return [
        Difference(
            field=name, where=where, envoy=expected.get(name, _ABSENT), other=actual.get(name, _ABSENT)
        )
        for name in sorted({*expected, *actual})
        if expected.get(name, _ABSENT) != actual.get(name, _ABSENT)
    ]


def _without_endpoints(found: Facts, compare: Compare) -> Facts:
    """Without what a free choice of the endpoint decides, where that is compared apart or not at all."""
    if compare.endpoints == "exact":
        return found
    return {
        name: value
        for name, value in found.items()
        if not re.fullmatch(r"body|messages|upstream\[\d+\]\.name", name)
    }


def _endpoints(compare: Compare, envoy: list[Outcome], other: list[Outcome]) -> list[Difference]:
    one = [hit.upstream for outcome in envoy for hit in outcome.hits]
    two = [hit.upstream for outcome in other for hit in outcome.hits]
    equal = {
        "exact": True,
        "ignored": True,
        "rotation": chance.is_rotation(one, two),
        "counts": chance.same_counts(one, two),
        "set": set(one) == set(two),
    }[compare.endpoints]
    if equal:
        return []
    if compare.endpoints == "rotation":
        return [Difference(field="endpoints", where="", envoy=" ".join(one), other=" ".join(two))]
    return [Difference(field="endpoints", where="", envoy=_counts(one), other=_counts(two))]


def _counts(names: list[str]) -> dict[str, int]:
    return dict(sorted(Counter(names).items()))


def _unordered(one: list[Facts], two: list[Facts]) -> list[Difference]:
    """Pair equal outcomes off; what is left is compared in sorted order."""
    left, right = sorted(one, key=repr), sorted(two, key=repr)
    for entry in tuple(left):
        if entry in right:
            left.remove(entry)
            right.remove(entry)
    found: list[Difference] = []
    for expected, actual in zip(left, right):
        found += _fields(expected, actual, "some request: ")
    return found


def drawn_value(outcome: Outcome, of: str) -> str:
    """The value of ``outcome`` that is random."""
    if of == "upstream":
        return outcome.hits[-1].upstream if outcome.hits else ""
    if of == "body":
        return outcome.body.decode("latin-1")
    if of == "location":
        return dict(outcome.headers).get("location", "")
    if of == "code":
        return outcome.code
    return str(outcome.status)


def _distributed(compare: Compare, envoy: list[Outcome], other: list[Outcome]) -> list[Difference]:
    drawn = compare.distribution
    assert drawn is not None
    one = Counter(drawn_value(outcome, drawn.of) for outcome in envoy)
    two = Counter(drawn_value(outcome, drawn.of) for outcome in other)
    found = []
    name, z = chance.worst_two_samples(one, two)
    if z > drawn.z:
        found.append(_distribution(f"z {z:.1f} for {name!r}", dict(one), dict(two)))
    if drawn.expected:
        name, z = chance.worst_expected(two, drawn.expected)
        if z > drawn.z:
            found.append(_distribution(f"z {z:.1f} for {name!r} from {drawn.expected}", dict(one), dict(two)))
    groups, other_groups = _by_value(compare, envoy, drawn.of), _by_value(compare, other, drawn.of)
    for value in sorted(groups.keys() & other_groups.keys()):
        found += _unordered(groups[value], other_groups[value])
        if len(groups[value]) != len(other_groups[value]):
            kinds = (len(groups[value]), len(other_groups[value]))
            found.append(Difference(field="kinds", where=f"{value}: ", envoy=kinds[0], other=kinds[1]))
    return found


def _distribution(note: str, envoy: dict[str, int], other: dict[str, int]) -> Difference:
    return Difference(field="distribution", where=f"{note}: ", envoy=envoy, other=other)


def _by_value(compare: Compare, outcomes: list[Outcome], of: str) -> dict[str, list[Facts]]:
    """The different kinds of outcome for each drawn value, each kind once."""
    groups: dict[str, list[Facts]] = {}
    seen: set[str] = set()
    for outcome in outcomes:
        found = facts(outcome, compare)
        value = drawn_value(outcome, of)
        key = f"{value}|{found!r}"
        if key not in seen:
            seen.add(key)
            groups.setdefault(value, []).append(found)
    return groups


def _time_bounds(case: Case, outcomes: list[Outcome]) -> list[Difference]:
    found = []
    wanted = [request for request in case.requests for _ in range(request.repeat)]
    for index, (request, outcome) in enumerate(zip(wanted, outcomes)):
        where = f"request {index}: "
        if request.at_least is not None and outcome.elapsed + _TICK < request.at_least:
            bound = f"at least {request.at_least} s"
            found.append(
                Difference(field="elapsed", where=where, envoy=bound, other=round(outcome.elapsed, 3))
            )
        if request.at_most is not None and outcome.elapsed > request.at_most:
            bound = f"at most {request.at_most} s"
            found.append(
                Difference(field="elapsed", where=where, envoy=bound, other=round(outcome.elapsed, 3))
            )
    return found


def unexpected(case: Case, envoy: list[Outcome]) -> list[Difference]:
    """Where the real Envoy does not do what the case itself writes under ``expect``, or breaks its time bounds."""
    found = _time_bounds(case, envoy)
    drawn = case.compare.distribution
    if drawn is not None and drawn.expected:
        counts = Counter(drawn_value(outcome, drawn.of) for outcome in envoy)
        name, z = chance.worst_expected(counts, drawn.expected)
        if z > drawn.z:
            note = f"z {z:.1f} for {name!r}: "
            found.append(
                Difference(field="expect.distribution", where=note, envoy=dict(counts), other=drawn.expected)
            )
    if not case.expect:
        return found
    wanted = case.expect if len(case.expect) == len(envoy) else case.expect * len(envoy)
    for index, (expected, outcome) in enumerate(zip(wanted, envoy)):
        for field, value in expected.items():
            found += _check(field, value, outcome, f"request {index}: expect.")
    return found


def _check(field: str, value: Any, outcome: Outcome, where: str) -> list[Difference]:
    if field in ("headers", "trailers", "upstream"):
        found = []
        if field == "upstream":
            hit = outcome.hits[-1] if outcome.hits else None
            pairs = hit.headers if hit else ()
            named: dict[str, object] = {}
            if hit:
                named = {"method": hit.method, "target": hit.target, "version": hit.version}
            if hit and outcome.code:
                named["cancelled"] = hit.cancelled
            named["body"] = hit.body.decode("latin-1") if hit else _ABSENT
        else:
            pairs, named = (outcome.headers if field == "headers" else outcome.trailers), {}
        for name, wanted in value.items():
            actual: object = named[name] if name in named else _joined(pairs, name)
            if actual != wanted:
                found.append(Difference(field=f"{field}.{name}", where=where, envoy=actual, other=wanted))
        return found
    actual_value: object = {
        "status": outcome.status,
        "flags": outcome.flags,
        "details": outcome.details,
        "attempts": outcome.attempts,
        "body": outcome.body.decode("latin-1"),
        "complete": outcome.complete,
        "code": outcome.code,
        "message": outcome.message,
        "messages": [message.decode("latin-1") for message in outcome.messages],
        "upstreams": [hit.upstream for hit in outcome.hits],
    }[field]
    if actual_value != value:
        return [Difference(field=field, where=where, envoy=actual_value, other=value)]
    return []


def _joined(pairs: tuple[tuple[str, str], ...], name: str) -> str | None:
    values = [value for key, value in pairs if key == name]
    return ",".join(values) if values else None

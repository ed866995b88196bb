"""The comparer: each kind of difference is found, and nothing else is."""

from __future__ import annotations

from dataclasses import replace

import pytest

from conformance.case import Case, Compare, Distribution, Request
from conformance.compare import differences, unexpected
from tests.conformance.helpers import hit, outcome


def a_case(count: int = 1, **compare: object) -> Case:
    return Case(
        name="area/case",
        file="area.yaml",
        requests=(Request(repeat=count),),
        compare=Compare(**compare),  # type: ignore[arg-type]
    )


def fields(case: Case, envoy: list[object], other: list[object]) -> list[str]:
    return [difference.field for difference in differences(case, envoy, other)]  # type: ignore[arg-type]


def test_equal_outcomes() -> None:
    assert differences(a_case(), [outcome()], [outcome()]) == []


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"status": 503}, "status"),
        ({"body": b"B"}, "body"),
        ({"complete": False}, "complete"),
        ({"flags": "UF"}, "flags"),
        ({"details": "route_not_found"}, "details"),
        ({"attempts": 2}, "attempts"),
        ({"cluster": "other"}, "cluster"),
        ({"route": "other"}, "route"),
        ({"headers": (("x-a", "b"),)}, "headers.x-a"),
        ({"hits": ()}, "upstream.requests"),
        ({"hits": (hit("B"),)}, "upstream[0].name"),
        ({"hits": (hit(target="/x"),)}, "upstream[0].target"),
        ({"hits": (hit(headers=(("host", "other"),)),)}, "upstream[0].host"),
        ({"hits": (hit(headers=(("host", "mesh.example"), ("x-a", "1"))),)}, "upstream[0].headers.x-a"),
        ({"hits": (hit(body=b"x"),)}, "upstream[0].body"),
    ],
)
def test_each_field_is_compared(changes: dict[str, object], field: str) -> None:
    found = fields(a_case(), [outcome()], [outcome(**changes)])  # type: ignore[arg-type]
    assert field in found


def test_an_ignored_field_is_not_compared() -> None:
    assert fields(a_case(ignore=frozenset({"details"})), [outcome()], [outcome(details="x")]) == []


def test_volatile_headers_are_dropped_or_masked() -> None:
    one = outcome(headers=(("date", "1"), ("x-envoy-upstream-service-time", "3")))
    two = outcome(headers=(("date", "2"), ("x-envoy-upstream-service-time", "9")))
    none = outcome(headers=(("date", "2"),))
    assert fields(a_case(), [one], [two]) == []
    assert fields(a_case(), [one], [none]) == ["headers.x-envoy-upstream-service-time"]


def test_only_named_headers() -> None:
    one = outcome(headers=(("x-a", "1"), ("x-b", "1")))
    two = outcome(headers=(("x-a", "1"), ("x-b", "2")))
    assert fields(a_case(headers=("x-a",)), [one], [two]) == []
    assert fields(a_case(headers=("x-b",)), [one], [two]) == ["headers.x-b"]


def test_the_order_of_repeated_headers_counts() -> None:
    one = outcome(headers=(("x-a", "1"), ("x-a", "2")))
    two = outcome(headers=(("x-a", "2"), ("x-a", "1")))
    assert fields(a_case(), [one], [two]) == ["headers.x-a"]


def test_what_is_left_of_the_timeout_is_compared_coarsely_on_retries_only() -> None:
    def told(first: str, second: str) -> object:
        name = "x-envoy-expected-rq-timeout-ms"
        hits = tuple(hit(headers=(("host", "mesh.example"), (name, value))) for value in (first, second))
        return outcome(hits=hits)

    assert fields(a_case(), [told("15000", "14990")], [told("15000", "14975")]) == []
    assert fields(a_case(), [told("15000", "300")], [told("15000", "14975")]) != []
    assert fields(a_case(), [told("15000", "14990")], [told("14990", "14990")]) != []
    assert fields(a_case(), [told("80", "80")], [told("80", "79")]) != []


def test_any_order() -> None:
    one = [outcome(0), outcome(1, status=503)]
    two = [outcome(0, status=503), outcome(1)]
    assert fields(a_case(2, any_order=True), [*one], [*two]) == []
    assert "status" in fields(a_case(2), [*one], [*two])
    assert fields(a_case(2, any_order=True), [*one], [outcome(0), outcome(1)]) == ["status"]


def test_rotation_of_endpoints() -> None:
    envoy = [outcome(n, name) for n, name in enumerate("ABCABC")]
    turned = [outcome(n, name) for n, name in enumerate("CABCAB")]
    swapped = [outcome(n, name) for n, name in enumerate("ACBACB")]
    case = a_case(6, endpoints="rotation")
    assert fields(case, [*envoy], [*turned]) == []
    assert fields(case, [*envoy], [*swapped]) == ["endpoints"]


def test_counts_and_sets_of_endpoints() -> None:
    envoy = [outcome(n, name) for n, name in enumerate("AABB")]
    other = [outcome(n, name) for n, name in enumerate("ABBB")]
    assert fields(a_case(4, endpoints="counts"), [*envoy], [*other]) == ["endpoints"]
    assert fields(a_case(4, endpoints="set"), [*envoy], [*other]) == []


def test_distribution() -> None:
    case = a_case(1000, distribution=Distribution(of="upstream", expected={"A": 0.5, "B": 0.5}))

    def sample(share: int) -> list[object]:
        return [outcome(n, "A" if n < share else "B") for n in range(1000)]

    assert fields(case, sample(500), sample(520)) == []
    assert fields(case, sample(500), sample(600)) == ["distribution", "distribution"]


def test_a_distribution_does_not_hide_other_differences() -> None:
    case = a_case(1000, distribution=Distribution(of="upstream", expected={}))
    envoy = [outcome(n, "A" if n % 2 else "B") for n in range(1000)]
    other = [outcome(n, "A" if n % 2 else "B", flags="UF" if n % 2 else "-") for n in range(1000)]
    assert fields(case, [*envoy], [*other]) == ["flags"]


def test_time_bounds_are_one_sided() -> None:
    case = Case(name="a/b", file="a.yaml", requests=(Request(at_least=0.2, at_most=1.0),))
    assert fields(case, [outcome()], [outcome(elapsed=0.5)]) == []
    assert fields(case, [outcome()], [outcome(elapsed=0.1)]) == ["elapsed"]
    assert fields(case, [outcome()], [outcome(elapsed=1.1)]) == ["elapsed"]


def test_expectations_of_the_case_are_held_against_envoy() -> None:
    case = replace(
        a_case(), expect=({"status": 200, "upstreams": ["A"], "upstream": {"host": "mesh.example"}},)
    )
    assert unexpected(case, [outcome()]) == []
    assert [d.field for d in unexpected(case, [outcome(status=503)])] == ["status"]
    assert [d.field for d in unexpected(case, [outcome(hits=())])] == ["upstreams", "upstream.host"]


def test_an_expected_absence() -> None:
    case = replace(a_case(), expect=({"headers": {"location": None}},))
    assert unexpected(case, [outcome()]) == []
    assert [d.field for d in unexpected(case, [outcome(headers=(("location", "/"),))])] == [
        "headers.location"
    ]

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshlib.resources.matching import FractionalPercent, HeaderMatch, QueryParameterMatch
from meshlib.resources.route import (
    NonForwardingAction,
    PathKind,
    RouteConfiguration,
    TlsRequirement,
    WeightedCluster,
    WeightedClusters,
)
from meshlib.routing.request import RequestView
from meshlib.routing.table import RouteTable
from tests.routing.build import cluster, config, host, match, path_match, request, route, text

RANDOM = Random(1)


def body(table: RouteTable, *arguments: Any, **options: Any) -> str | None:
    """The direct response's body for a request."""
    asked = request(*arguments, **options)
    found = table.find(asked, RANDOM)
    if found is None:
        return None
    reply = found.reply(asked)
    assert reply is not None
    return reply.body.decode()


def test_the_first_route_that_matches_wins() -> None:
    table = RouteTable(config(host(route("long", "/a/b"), route("short", "/a"), route("never", "/a/b/c"))))
    assert body(table, "/a/b/c") == "long"
    assert body(table, "/a/x?/a/b") == "short"
    assert body(table, "/b") is None


def test_a_virtual_host_without_a_match_does_not_fall_back_to_another() -> None:
    table = RouteTable(
        config(
            host(route("a", "/a"), domains=["svc"], name="one"), host(route("b"), domains=["*"], name="two")
        )
    )
    assert body(table, "/b", authority="svc") is None
    assert body(table, "/b", authority="other") == "b"
    assert table.virtual_host("svc") is table.virtual_hosts[0]


def test_the_query_is_not_part_of_the_path() -> None:
    table = RouteTable(config(host(route("exact", path_match(PathKind.PATH, "/exact")))))
    assert body(table, "/exact?x=1") == "exact"
    assert body(table, "/exact?") == "exact"
    assert body(table, "/exact/?x=1") is None


def test_every_condition_of_a_route_must_hold() -> None:
    strict = match(
        "/a",
        headers=(HeaderMatch(name="x", string=text("1")),),
        query_parameters=(QueryParameterMatch(name="q"),),
        grpc=True,
        runtime_fraction=FractionalPercent(numerator=100),
    )
    table = RouteTable(config(host(route("strict", strict), route("other"))))
    grpc = ("content-type", "application/grpc")
    assert body(table, "/a?q", [("x", "1"), grpc]) == "strict"
    assert body(table, "/a", [("x", "1"), grpc]) == "other"
    assert body(table, "/a?q", [("x", "2"), grpc]) == "other"
    assert body(table, "/a?q", [("x", "1")]) == "other"
    assert body(table, "/b?q", [("x", "1"), grpc]) == "other"


class NeverAsked:
    """Headers that nobody may look at."""

    def listed(self) -> list[tuple[str, str]]:
        raise AssertionError("the headers were asked for")

    def by_name(self) -> dict[str, list[str]]:
        raise AssertionError("the headers were asked for by name")


def test_headers_are_not_made_for_routes_that_look_at_none() -> None:
    asked = RequestView("GET", "http", "a", "/", NeverAsked())
    table = RouteTable(config(host(route(cluster("a")))))
    found = table.find(asked, RANDOM)
    assert found is not None
    plan = found.forward(asked, RANDOM)
    assert plan is not None
    assert plan.plain
    assert plan.response_plain


WEIGHTS = WeightedClusters(
    clusters=(
        WeightedCluster(name="a", weight=70),
        WeightedCluster(name="b", weight=0),
        WeightedCluster(name="c", weight=30),
    ),
    header_name="x-w",
)


def pick(table: RouteTable, random: Random, headers: list[tuple[str, str]] | None = None) -> str:
    asked = request("/", headers or [])
    found = table.find(asked, random)
    assert found is not None
    plan = found.forward(asked, random)
    assert plan is not None
    return plan.cluster


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("0", "a"),
        ("69", "a"),
        ("70", "c"),
        ("99", "c"),
        ("100", "a"),
        ("169", "a"),
        ("+1", "a"),
        (" 5", "a"),
        ("0000000000000000000000000000000000000000000000000000000000000000000000000099", "c"),
        ("18446744073709551615", "a"),
    ],
)
def test_a_header_chooses_the_weighted_cluster(value: str, expected: str) -> None:
    table = RouteTable(config(host(route(cluster("", cluster=None, weighted_clusters=WEIGHTS)))))
    assert {pick(table, Random(seed), [("x-w", value)]) for seed in range(20)} == {expected}


@pytest.mark.parametrize(
    "values", [["-1"], ["abc"], ["1e2"], ["0x10"], ["18446744073709551616"], [""], ["69", "69"], []]
)
def test_anything_else_in_that_header_falls_back_to_chance(values: list[str]) -> None:
    table = RouteTable(config(host(route(cluster("", cluster=None, weighted_clusters=WEIGHTS)))))
    assert {pick(table, Random(seed), [("x-w", value) for value in values]) for seed in range(40)} == {
        "a",
        "c",
    }


@given(st.lists(st.integers(0, 50), min_size=1, max_size=6).filter(any), st.integers(0, 2**64 - 1))
def test_weights_are_intervals_in_list_order(weights: list[int], number: int) -> None:
    entries = tuple(WeightedCluster(name=str(index), weight=weight) for index, weight in enumerate(weights))
    table = RouteTable(
        config(host(route(cluster("", cluster=None, weighted_clusters=WeightedClusters(clusters=entries)))))
    )
    asked = request("/")
    asked._random = number
    found = table.find(asked, RANDOM)
    assert found is not None
    plan = found.forward(asked, RANDOM)
    assert plan is not None
    assert plan.weighted is entries[int(plan.cluster)]
    before = sum(weights[: int(plan.cluster)])
    assert before <= number % sum(weights) < before + weights[int(plan.cluster)]


def test_fraction_and_weights_share_the_random_number_of_the_request() -> None:
    """Seen on Envoy: 50 % of the requests, then 50/50, sends all of them to the first cluster."""
    halves = WeightedClusters(
        clusters=(WeightedCluster(name="a", weight=50), WeightedCluster(name="b", weight=50))
    )
    half = match("/", runtime_fraction=FractionalPercent(numerator=50))
    table = RouteTable(
        config(host(route(cluster("", cluster=None, weighted_clusters=halves), half), route(cluster("rest"))))
    )
    assert {pick(table, Random(seed)) for seed in range(60)} == {"a", "rest"}


def test_a_header_names_the_cluster() -> None:
    table = RouteTable(config(host(route(cluster("", cluster=None, cluster_header="x-c")))))
    assert pick(table, RANDOM, [("x-c", "first"), ("x-c", "second")]) == "first"
    assert pick(table, RANDOM) == ""
    found = table.find(request(), RANDOM)
    assert found is not None
    once = found.forward(request(headers=[("x-c", "n")]), RANDOM)
    assert found.forward(request(headers=[("x-c", "n")]), RANDOM) is once


def test_plans_for_named_clusters_do_not_grow_without_end() -> None:
    table = RouteTable(config(host(route(cluster("", cluster=None, cluster_header="x-c")))))
    for number in range(3000):
        assert pick(table, RANDOM, [("x-c", str(number))]) == str(number)


def test_a_weighted_cluster_may_be_named_by_a_header() -> None:
    entries = (WeightedCluster(cluster_header="x-c", weight=1),)
    table = RouteTable(
        config(host(route(cluster("", cluster=None, weighted_clusters=WeightedClusters(clusters=entries)))))
    )
    assert pick(table, RANDOM, [("x-c", "named")]) == "named"


def test_a_non_forwarding_action_has_no_cluster() -> None:
    table = RouteTable(config(host(route(NonForwardingAction()))))
    assert pick(table, RANDOM) == ""


@pytest.mark.parametrize("requirement", [TlsRequirement.ALL, TlsRequirement.EXTERNAL_ONLY])
@pytest.mark.parametrize(
    ("authority", "options", "location"),
    [
        ("svc", {}, "https://svc/p?q=1"),
        ("svc:80", {}, "https://svc:80/p?q=1"),
        ("svc", {"scheme": "https"}, None),
        ("svc", {"headers": [("x-forwarded-proto", "https")]}, None),
        ("svc", {"scheme": "https", "headers": [("x-forwarded-proto", "http")]}, "https://svc/p?q=1"),
    ],
)
def test_required_tls_redirects(
    requirement: TlsRequirement, authority: str, options: dict[str, Any], location: str | None
) -> None:
    table = RouteTable(config(host(route("plain"), require_tls=requirement)))
    asked = request("/p?q=1", authority=authority, **options)
    found = table.find(asked, RANDOM)
    assert found is not None
    reply = found.reply(asked)
    assert reply is not None
    if location is None:
        assert reply.body == b"plain"
    else:
        assert (reply.status, reply.headers) == (301, (("location", location), ("content-length", "0")))
        assert found.forward(asked, RANDOM) is None


def test_the_most_specific_filter_configuration_wins() -> None:
    entries = (
        WeightedCluster(name="a", weight=1, typed_per_filter_config={"f": "weighted"}),
        WeightedCluster(name="b", weight=1),
    )
    resource: RouteConfiguration = config(
        host(
            route(
                cluster(
                    "", cluster=None, weighted_clusters=WeightedClusters(clusters=entries, header_name="x-w")
                ),
                typed_per_filter_config={"f": "route"},
            ),
            typed_per_filter_config={"f": "vhost", "g": "vhost"},
        ),
        typed_per_filter_config={"f": "config", "g": "config", "h": "config"},
    )
    table = RouteTable(resource)
    for number, expected in (("0", "weighted"), ("1", "route")):
        asked = request(headers=[("x-w", number)])
        found = table.find(asked, RANDOM)
        assert found is not None
        plan = found.forward(asked, RANDOM)
        assert found.filter_config("f", plan) == expected
        assert found.filter_config("g", plan) == "vhost"
        assert found.filter_config("h", plan) == "config"
        assert found.filter_config("i", plan) is None
        assert found.filter_config("f", None) == "route"

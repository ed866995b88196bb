"""What load reports say, as a state machine."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshlib import proto
from meshlib.errors import ControlPlaneError
from meshlib.resources.endpoint import Locality
from meshlib.xds.bootstrap import Node
from meshlib.xds.load_report import ClusterLoad, EndpointLoad, LoadReports

ZONE = Locality(region="r", zone="z")


@dataclass
class Counted:
    """What somebody counts."""

    clusters: dict[str, ClusterLoad] = field(default_factory=dict)

    def set(self, cluster: str, *endpoints: EndpointLoad, dropped: int = 0) -> None:
        self.clusters[cluster] = ClusterLoad(
            name=cluster, service_name=f"{cluster}-eds", endpoints=endpoints, dropped=dropped
        )

    def __call__(self, names: Collection[str] | None) -> Sequence[ClusterLoad]:
        return [load for name, load in self.clusters.items() if names is None or name in names]


def load(
    issued: int = 0,
    succeeded: int = 0,
    failed: int = 0,
    in_progress: int = 0,
    *,
    address: str = "10.0.0.1",
    locality: Locality = ZONE,
    priority: int = 0,
) -> EndpointLoad:
    return EndpointLoad(
        address=address,
        port=0 if address.startswith("/") else 80,
        locality=locality,
        priority=priority,
        issued=issued,
        succeeded=succeeded,
        failed=failed,
        in_progress=in_progress,
    )


def answer(
    *clusters: str, all_of_them: bool = False, interval: float = 10.0, by_endpoint: bool = False
) -> bytes:
    message = proto.message("envoy.service.load_stats.v3.LoadStatsResponse")(
        clusters=clusters, send_all_clusters=all_of_them, report_endpoint_granularity=by_endpoint
    )
    message.load_reporting_interval.FromNanoseconds(round(interval * 1e9))
    data: bytes = message.SerializeToString()
    return data


def request(data: bytes) -> Any:
    return proto.parse("envoy.service.load_stats.v3.LoadStatsRequest", data)


@pytest.fixture
def counted() -> Counted:
    return Counted()


@pytest.fixture
def reports(counted: Counted) -> LoadReports:
    return LoadReports(Node(id="me", cluster="mine", zone="z"), counted)


def test_the_first_request_says_who_and_nothing_else(reports: LoadReports, counted: Counted) -> None:
    counted.set("a", load(1, 1))
    first = request(reports.connected())
    assert (first.node.id, first.node.cluster, first.node.locality.zone) == ("me", "mine", "z")
    assert "envoy.lrs.supports_send_all_clusters" in first.node.client_features
    assert not first.cluster_stats
    assert reports.interval is None


def test_a_report_is_what_came_since_the_answer(reports: LoadReports, counted: Counted) -> None:
    counted.set("a", load(5, 4, 1), dropped=2)
    counted.set("b", load(5, 4, 1))
    reports.connected()
    assert reports.answered(answer("a"), 100.0)
    assert reports.interval == 10.0
    counted.set("a", load(9, 6, 2, 1), load(1, 1, address="10.0.0.2"), dropped=5)
    (stats,) = request(reports.report(110.0)).cluster_stats
    assert (stats.cluster_name, stats.cluster_service_name) == ("a", "a-eds")
    assert stats.load_report_interval.ToTimedelta().total_seconds() == 10.0
    assert stats.total_dropped_requests == 3
    (place,) = stats.upstream_locality_stats
    assert (place.locality.region, place.locality.zone, place.priority) == ("r", "z", 0)
    assert place.total_issued_requests == 5
    assert place.total_successful_requests == 3
    assert place.total_error_requests == 1
    assert place.total_requests_in_progress == 1
    assert not place.upstream_endpoint_stats


def test_what_was_reported_is_not_reported_again(reports: LoadReports, counted: Counted) -> None:
    reports.answered(answer("a"), 0.0)
    counted.set("a", load(1, 1))
    reports.report(10.0)
    (stats,) = request(reports.report(22.5)).cluster_stats
    assert not stats.upstream_locality_stats
    assert stats.load_report_interval.ToTimedelta().total_seconds() == 12.5


def test_localities_and_priorities_stand_apart(reports: LoadReports, counted: Counted) -> None:
    reports.answered(answer(all_of_them=True), 0.0)
    other = Locality(zone="y", sub_zone="s")
    counted.set(
        "a",
        load(1, address="10.0.0.1"),
        load(2, address="10.0.0.2", locality=other),
        load(4, address="10.0.0.3", locality=other, priority=1),
    )
    (stats,) = request(reports.report(1.0)).cluster_stats
    assert [
        (place.locality.sub_zone, place.priority, place.total_issued_requests)
        for place in stats.upstream_locality_stats
    ] == [("", 0, 1), ("s", 0, 2), ("s", 1, 4)]


def test_endpoints_where_they_are_asked_for(reports: LoadReports, counted: Counted) -> None:
    reports.answered(answer("a", by_endpoint=True), 0.0)
    counted.set("a", load(3, 2, 1), load(1, 1, address="/run/x.sock"), load(address="10.0.0.9"))
    (stats,) = request(reports.report(1.0)).cluster_stats
    first, second = stats.upstream_locality_stats[0].upstream_endpoint_stats
    assert (first.address.socket_address.address, first.address.socket_address.port_value) == ("10.0.0.1", 80)
    assert (first.total_issued_requests, first.total_successful_requests, first.total_error_requests) == (
        3,
        2,
        1,
    )
    assert second.address.pipe.path == "/run/x.sock"


def test_requests_in_progress_are_reported_without_new_ones(reports: LoadReports, counted: Counted) -> None:
    counted.set("a", load(2, in_progress=2))
    reports.answered(answer("a"), 0.0)
    (stats,) = request(reports.report(1.0)).cluster_stats
    assert stats.upstream_locality_stats[0].total_requests_in_progress == 2


def test_a_cluster_that_appears_is_reported_whole(reports: LoadReports, counted: Counted) -> None:
    reports.answered(answer(all_of_them=True), 0.0)
    counted.set("late", load(3, 3))
    (stats,) = request(reports.report(10.0)).cluster_stats
    assert stats.upstream_locality_stats[0].total_issued_requests == 3
    assert stats.load_report_interval.ToTimedelta().total_seconds() == 10.0


def test_the_same_answer_changes_nothing_and_another_one_does(reports: LoadReports, counted: Counted) -> None:
    counted.set("a", load(1, 1))
    assert reports.answered(answer("a"), 0.0)
    counted.set("a", load(2, 2))
    assert not reports.answered(answer("a"), 5.0)
    assert reports.answered(answer("a", interval=20), 6.0)
    (stats,) = request(reports.report(26.0)).cluster_stats
    assert stats.upstream_locality_stats[0].total_issued_requests == 1
    assert stats.load_report_interval.ToTimedelta().total_seconds() == 26.0


def test_load_is_kept_while_there_is_no_stream(reports: LoadReports, counted: Counted) -> None:
    reports.connected()
    reports.answered(answer("a"), 0.0)
    counted.set("a", load(1, 1))
    reports.connected()
    counted.set("a", load(2, 2))
    assert reports.answered(answer("a"), 50.0)
    (stats,) = request(reports.report(60.0)).cluster_stats
    assert stats.upstream_locality_stats[0].total_issued_requests == 2
    assert stats.load_report_interval.ToTimedelta().total_seconds() == 60.0


@pytest.mark.parametrize("interval", [0.0, -1.0, 0.001])
def test_intervals_have_a_least_length(reports: LoadReports, interval: float) -> None:
    reports.answered(answer("a", interval=interval), 0.0)
    assert reports.interval == 1.0


def test_bytes_that_are_no_answer(reports: LoadReports) -> None:
    with pytest.raises(ControlPlaneError, match="LoadStatsResponse"):
        reports.answered(b"\xff\xff", 0.0)
    assert reports.interval is None


@given(st.lists(st.lists(st.integers(0, 9), min_size=3, max_size=3), min_size=1, max_size=20))
def test_reports_add_up_to_what_was_counted(steps: list[list[int]]) -> None:
    counted = Counted()
    reports = LoadReports(Node(id="me"), counted)
    reports.answered(answer(all_of_them=True), 0.0)
    total, told = [0, 0, 0], [0, 0, 0]
    for moment, step in enumerate(steps, 1):
        total = [before + more for before, more in zip(total, step, strict=True)]
        counted.set("a", load(*total))
        for stats in request(reports.report(float(moment))).cluster_stats:
            for place in stats.upstream_locality_stats:
                told[0] += place.total_issued_requests
                told[1] += place.total_successful_requests
                told[2] += place.total_error_requests
    assert told == total

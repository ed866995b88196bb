"""HTTPFault in the chain and on routes: what is read, what is refused, what is reported."""

from __future__ import annotations

from typing import Any

import pytest

from meshlib import proto
from meshlib.resources.fault import FaultAbort, FaultDelay, HttpFault
from meshlib.resources.matching import FractionalPercent, HeaderMatch, StringKind, StringMatch
from meshlib.resources.route import FilterConfig
from tests.resources.building import (
    EXTENSIONS,
    ROUTER,
    TYPES,
    api_listener,
    decode_listener,
    decode_one_route,
    decoded,
    refused,
    route_config,
)

TYPE = EXTENSIONS + "filters.http.fault.v3.HTTPFault"
FIELD = "api_listener.api_listener.http_filters[0].typed_config"


def chain(**fault: Any) -> dict[str, Any]:
    entry = {"name": "fault", "typed_config": {"@type": TYPE, **fault}}
    return api_listener(http_filters=[entry, ROUTER])


def read(**fault: Any) -> HttpFault:
    config = decode_listener(chain(**fault)).http.http_filters[0].config
    assert isinstance(config, HttpFault)
    return config


def test_nothing() -> None:
    assert read() == HttpFault()


def test_everything_that_is_read() -> None:
    found = read(
        delay={"fixed_delay": "1.5s", "percentage": {"numerator": 3}},
        abort={"http_status": 503, "percentage": {"numerator": 7, "denominator": "MILLION"}},
        upstream_cluster="c",
        headers=[{"name": "X-A", "string_match": {"exact": "b"}}],
        downstream_nodes=["one", "two"],
        max_active_faults=5,
        disable_downstream_cluster_stats=True,
    )
    assert found == HttpFault(
        delay=FaultDelay(percentage=FractionalPercent(numerator=3), milliseconds=1500),
        abort=FaultAbort(percentage=FractionalPercent(numerator=7, denominator=1_000_000), http_status=503),
        upstream_cluster="c",
        headers=(HeaderMatch(name="x-a", string=StringMatch(kind=StringKind.EXACT, value="b")),),
        downstream_nodes=frozenset(("one", "two")),
        max_active_faults=5,
        downstream_cluster_stats=False,
    )
    assert decoded(proto.LISTENER, chain(abort={"http_status": 503})).unsupported == ()


@pytest.mark.parametrize(
    ("duration", "milliseconds"),
    [("0.57s", 570), ("0.0019s", 1), ("0.0009999s", 0), ("0.29s", 290), ("86400s", 86_400_000)],
)
def test_a_delay_has_whole_milliseconds(duration: str, milliseconds: int) -> None:
    found = read(delay={"fixed_delay": duration}).delay
    assert found == FaultDelay(percentage=FractionalPercent(numerator=0), milliseconds=milliseconds)


def test_what_headers_control() -> None:
    share = {"percentage": {"numerator": 50, "denominator": "TEN_THOUSAND"}}
    found = read(delay={"header_delay": {}, **share}, abort={"header_abort": {}, **share})
    percentage = FractionalPercent(numerator=50, denominator=10_000)
    assert found.delay == FaultDelay(percentage=percentage)
    assert found.abort == FaultAbort(percentage=percentage)


def test_a_limit_of_0_is_a_limit() -> None:
    assert read(max_active_faults=0).max_active_faults == 0
    assert read().max_active_faults is None


def test_grpc_status() -> None:
    abort = read(abort={"grpc_status": 0, "percentage": {"numerator": 1}}).abort
    assert abort == FaultAbort(percentage=FractionalPercent(numerator=1), grpc_status=0)


@pytest.mark.parametrize(
    ("fault", "field"),
    [
        ({"abort": {"http_status": 199}}, "abort.http_status"),
        ({"abort": {"http_status": 600}}, "abort.http_status"),
        ({"abort": {"percentage": {"numerator": 1}}}, "abort"),
        ({"delay": {"fixed_delay": "0s"}}, "delay.fixed_delay"),
        ({"delay": {}}, "delay"),
        ({"delay": {"fixed_delay": "1s", "percentage": {"denominator": 7}}}, "delay.percentage.denominator"),
        ({"response_rate_limit": {"fixed_limit": {}}}, "response_rate_limit.fixed_limit.limit_kbps"),
        (
            {"headers": [{"name": "x", "safe_regex_match": {"regex": "("}}]},
            "headers[0].safe_regex_match.regex",
        ),
    ],
)
def test_what_is_refused(fault: dict[str, Any], field: str) -> None:
    assert refused(proto.LISTENER, chain(**fault)).path.startswith(f"{FIELD}.{field}")


@pytest.mark.parametrize(
    "fault",
    [
        {"abort_percent_runtime": "a"},
        {"delay_percent_runtime": "a"},
        {"delay_duration_runtime": "a"},
        {"abort_http_status_runtime": "a"},
        {"abort_grpc_status_runtime": "a"},
        {"max_active_faults_runtime": "a"},
        {"response_rate_limit_percent_runtime": "a"},
        {"filter_metadata": {"a": 1}},
        {"response_rate_limit": {"fixed_limit": {"limit_kbps": 1}}},
    ],
)
def test_what_is_reported(fault: dict[str, Any]) -> None:
    (name,) = fault
    assert decoded(proto.LISTENER, chain(**fault)).unsupported == (f"{FIELD}.{name}",)


def test_on_a_route() -> None:
    fault = {"@type": TYPE, "abort": {"http_status": 404}}
    never = FractionalPercent(numerator=0)
    wanted = HttpFault(abort=FaultAbort(percentage=never, http_status=404))
    route = decode_one_route(typed_per_filter_config={"fault": fault})
    assert dict(route.typed_per_filter_config) == {"fault": wanted}
    wrapper = TYPES + "envoy.config.route.v3.FilterConfig"
    route = decode_one_route(typed_per_filter_config={"fault": {"@type": wrapper, "config": fault}})
    assert dict(route.typed_per_filter_config) == {"fault": FilterConfig(config=wanted)}


def test_an_error_on_a_route_names_its_place() -> None:
    wrong = {"@type": TYPE, "abort": {"http_status": 1}}
    error = refused(proto.ROUTE, route_config(typed_per_filter_config={"fault": wrong}))
    assert error.path == 'virtual_hosts[0].routes[0].typed_per_filter_config["fault"].abort.http_status'

"""RouteConfiguration: what is read, where errors point, what is reported."""

from __future__ import annotations

from typing import Any

import pytest

from meshlib import proto
from meshlib.errors import ResourceError
from meshlib.resources import decode
from meshlib.resources.format import parse
from meshlib.resources.headers import AppendAction, HeaderEdits, HeaderValueOption
from meshlib.resources.matching import FractionalPercent, Int64Range, StringKind, StringMatch
from meshlib.resources.route import (
    BackOff,
    DirectResponse,
    FilterConfig,
    HedgePolicy,
    HostRewrite,
    HostRewriteKind,
    MaxStreamDuration,
    NonForwardingAction,
    PathKind,
    PathMatch,
    Priority,
    RateLimitedBackOff,
    Redirect,
    ResetHeader,
    RetryPolicy,
    RouteAction,
    TlsRequirement,
)
from tests.resources.building import (
    EXTENSIONS,
    TYPES,
    decode_one_route,
    decode_routes,
    decoded,
    refused,
    route_config,
    routes_config,
)

ROUTE = "virtual_hosts[0].routes[0]"


def action(**fields: Any) -> RouteAction:
    made = decode_one_route(route={"cluster": "c", **fields}).action
    assert isinstance(made, RouteAction)
    return made


def test_the_simplest_route() -> None:
    config = decode_routes(route_config())
    host = config.virtual_hosts[0]
    assert (config.name, host.name, host.domains) == ("rc", "v", ("*",))
    route = host.routes[0]
    assert route.match.path == PathMatch(kind=PathKind.PREFIX, value="/")
    assert route.action == RouteAction(cluster="c")
    assert config.cluster_names == {"c"}


@pytest.mark.parametrize(
    ("match", "path"),
    [
        ({"prefix": ""}, PathMatch(kind=PathKind.PREFIX, value="")),
        (
            {"path": "/a", "case_sensitive": False},
            PathMatch(kind=PathKind.PATH, value="/a", case_sensitive=False),
        ),
        ({"path_separated_prefix": "/a"}, PathMatch(kind=PathKind.PATH_SEPARATED_PREFIX, value="/a")),
    ],
)
def test_paths(match: dict[str, Any], path: PathMatch) -> None:
    assert decode_one_route(match=match).match.path == path


def test_a_regex_path() -> None:
    path = decode_one_route(match={"safe_regex": {"regex": "/a/[0-9]+"}}).match.path
    assert path.kind is PathKind.SAFE_REGEX
    assert path.regex is not None
    assert path.regex.regex is not None
    assert path.regex.regex.fullmatch("/a/12")
    assert not path.regex.regex.fullmatch("/a/b")


@pytest.mark.parametrize(
    ("header", "string", "span", "present"),
    [
        ({"string_match": {"exact": "x"}}, StringMatch(kind=StringKind.EXACT, value="x"), None, None),
        (
            {"string_match": {"prefix": "x", "ignore_case": True}},
            StringMatch(kind=StringKind.PREFIX, value="x", ignore_case=True),
            None,
            None,
        ),
        ({"suffix_match": "x"}, StringMatch(kind=StringKind.SUFFIX, value="x"), None, None),
        ({"contains_match": "x"}, StringMatch(kind=StringKind.CONTAINS, value="x"), None, None),
        ({"range_match": {"start": -5, "end": 10}}, None, Int64Range(start=-5, end=10), None),
        ({"present_match": False}, None, None, False),
        ({}, None, None, True),
    ],
)
def test_header_matchers(
    header: dict[str, Any], string: StringMatch | None, span: Int64Range | None, present: bool | None
) -> None:
    match = {"prefix": "/", "headers": [{"name": "X-A", **header}]}
    found = decode_one_route(match=match).match.headers[0]
    assert (found.name, found.string, found.range, found.present) == ("x-a", string, span, present)


def test_header_matcher_flags() -> None:
    header = {"name": "a", "invert_match": True, "treat_missing_header_as_empty": True, "exact_match": ""}
    found = decode_one_route(match={"prefix": "/", "headers": [header]}).match.headers[0]
    assert found.invert
    assert found.treat_missing_as_empty


def test_other_matchers() -> None:
    match = decode_one_route(
        match={
            "prefix": "/",
            "grpc": {},
            "runtime_fraction": {"default_value": {"numerator": 5, "denominator": "TEN_THOUSAND"}},
            "query_parameters": [{"name": "q"}, {"name": "r", "present_match": False}],
        }
    ).match
    assert match.grpc
    assert match.runtime_fraction == FractionalPercent(numerator=5, denominator=10_000)
    assert [(q.name, q.present) for q in match.query_parameters] == [("q", True), ("r", False)]


def test_a_route_action_with_everything() -> None:
    made = action(
        cluster_not_found_response_code="NOT_FOUND",
        prefix_rewrite="/new",
        host_rewrite_literal="h",
        append_x_forwarded_host=True,
        timeout="0.25s",
        max_stream_duration={"max_stream_duration": "1s", "grpc_timeout_header_max": "0s"},
        priority="HIGH",
        retry_policy={"retry_on": "5xx"},
    )
    assert made == RouteAction(
        cluster="c",
        cluster_not_found_response_code=404,
        prefix_rewrite="/new",
        host_rewrite=HostRewrite(kind=HostRewriteKind.LITERAL, value="h"),
        append_x_forwarded_host=True,
        timeout=0.25,
        max_stream_duration=MaxStreamDuration(max_stream_duration=1.0, grpc_timeout_header_max=0.0),
        priority=Priority.HIGH,
        retry_policy=RetryPolicy(retry_on=frozenset({"5xx"})),
    )


def test_defaults_of_a_route_action() -> None:
    assert action().timeout == 15.0
    assert action(timeout="0s").timeout == 0.0
    assert action(host_rewrite_literal="", prefix_rewrite="") == action()
    assert action(auto_host_rewrite=False).host_rewrite is None


@pytest.mark.parametrize(
    ("fields", "rewrite"),
    [
        ({"auto_host_rewrite": True}, HostRewrite(kind=HostRewriteKind.AUTO)),
        ({"host_rewrite_header": "X-H"}, HostRewrite(kind=HostRewriteKind.HEADER, value="x-h")),
    ],
)
def test_host_rewrites(fields: dict[str, Any], rewrite: HostRewrite) -> None:
    assert action(**fields).host_rewrite == rewrite


def test_regex_rewrites() -> None:
    rewrite = {"pattern": {"regex": "^/a/(.*)$"}, "substitution": "/\\1"}
    path = action(regex_rewrite=rewrite).regex_rewrite
    assert path is not None
    assert path.pattern.sub(path.substitution, "/a/b") == "/b"
    host = action(host_rewrite_path_regex=rewrite).host_rewrite
    assert host is not None
    assert host.regex == path


def test_weighted_clusters() -> None:
    weighted = decode_one_route(
        route={
            "weighted_clusters": {
                "clusters": [
                    {"name": "a", "weight": 90, "host_rewrite_literal": "h"},
                    {"cluster_header": "X-C", "weight": 10, "request_headers_to_remove": ["X-R"]},
                ],
                "header_name": "X-Pick",
                "total_weight": 7,
            }
        }
    ).action
    assert isinstance(weighted, RouteAction)
    assert weighted.weighted_clusters is not None
    first, second = weighted.weighted_clusters.clusters
    assert (first.name, first.weight, first.host_rewrite_literal) == ("a", 90, "h")
    assert (second.name, second.cluster_header, second.weight) == (None, "x-c", 10)
    assert second.request_headers == HeaderEdits(remove=("x-r",))
    assert weighted.weighted_clusters.header_name == "x-pick"


def test_a_retry_policy_with_everything() -> None:
    policy = action(
        retry_policy={
            "retry_on": " 5xx , reset,unavailable,",
            "num_retries": 3,
            "per_try_timeout": "0.5s",
            "retry_back_off": {"base_interval": "0.1s"},
            "rate_limited_retry_back_off": {
                "reset_headers": [{"name": "Retry-After"}, {"name": "x", "format": "UNIX_TIMESTAMP"}]
            },
            "retriable_status_codes": [503, 409],
            "retriable_headers": [{"name": "A"}],
            "retriable_request_headers": [{"name": "B", "present_match": True}],
        }
    ).retry_policy
    assert policy is not None
    assert policy.retry_on == {"5xx", "reset", "unavailable"}
    assert (policy.num_retries, policy.per_try_timeout) == (3, 0.5)
    assert policy.back_off == BackOff(base_interval=0.1, max_interval=1.0)
    assert policy.rate_limited_back_off == RateLimitedBackOff(
        reset_headers=(ResetHeader(name="retry-after"), ResetHeader(name="x", unix_timestamp=True))
    )
    assert policy.retriable_status_codes == {503, 409}
    assert [header.name for header in policy.retriable_headers] == ["a"]
    assert [header.name for header in policy.retriable_request_headers] == ["b"]


@pytest.mark.parametrize(
    ("back_off", "expected"),
    [
        ({"base_interval": "0.0001s"}, BackOff(base_interval=0.001, max_interval=0.01)),
        (
            {"base_interval": "0.0005s", "max_interval": "0.0001s"},
            BackOff(base_interval=0.001, max_interval=0.001),
        ),
        ({"base_interval": "1s", "max_interval": "1s"}, BackOff(base_interval=1.0, max_interval=1.0)),
    ],
)
def test_back_off_is_at_least_a_millisecond(back_off: dict[str, str], expected: BackOff) -> None:
    policy = action(retry_policy={"retry_back_off": back_off}).retry_policy
    assert policy is not None
    assert policy.back_off == expected


def test_a_typed_retry_policy() -> None:
    typed = {"@type": TYPES + "envoy.config.route.v3.RetryPolicy", "num_retries": 0}
    assert action(retry_policy_typed_config=typed).retry_policy == RetryPolicy(num_retries=0)


@pytest.mark.parametrize(
    ("redirect", "expected"),
    [
        ({}, Redirect()),
        (
            {"https_redirect": True, "response_code": "PERMANENT_REDIRECT"},
            Redirect(scheme="https", response_code=308),
        ),
        ({"https_redirect": False}, Redirect()),
        (
            {"scheme_redirect": "ftp", "host_redirect": "h", "port_redirect": 8},
            Redirect(scheme="ftp", host="h", port=8),
        ),
        ({"path_redirect": "/a?b", "strip_query": True}, Redirect(path="/a?b", strip_query=True)),
        ({"prefix_rewrite": "/p"}, Redirect(prefix_rewrite="/p")),
    ],
)
def test_redirects(redirect: dict[str, Any], expected: Redirect) -> None:
    assert decode_one_route(route=None, redirect=redirect).action == expected


def test_direct_responses(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "body").write_bytes(b"file")
    monkeypatch.setenv("MESHLIB_TEST_BODY", "environment")
    bodies: list[tuple[dict[str, Any], bytes]] = [
        ({"inline_string": "text"}, b"text"),
        ({"inline_bytes": "AAE="}, b"\0\1"),
        ({"filename": str(tmp_path / "body")}, b"file"),
        ({"environment_variable": "MESHLIB_TEST_BODY"}, b"environment"),
    ]
    for source, body in bodies:
        made = decode_one_route(route=None, direct_response={"status": 200, "body": source}).action
        assert made == DirectResponse(status=200, body=body)
    formatted = {"status": 599, "body_format": {"text_format_source": {"inline_string": "%REQ(a)%"}}}
    assert decode_one_route(route=None, direct_response=formatted).action == DirectResponse(
        status=599, body_format=parse("%REQ(a)%")
    )


def test_the_size_of_a_direct_response() -> None:
    direct = {
        "match": {"prefix": "/"},
        "direct_response": {"status": 200, "body": {"inline_string": "x" * 4097}},
    }
    assert refused(proto.ROUTE, routes_config(direct)).path == f"{ROUTE}.direct_response.body"
    assert decode_routes(routes_config(direct, max_direct_response_body_size_bytes=4097))


def test_non_forwarding() -> None:
    assert decode_one_route(route=None, non_forwarding_action={}).action == NonForwardingAction()


def test_header_edits() -> None:
    made = decode_one_route(
        request_headers_to_add=[
            {"header": {"key": "A", "value": "%REQ(x)%"}},
            {
                "header": {"key": "b", "value": "1"},
                "append_action": "ADD_IF_ABSENT",
                "keep_empty_value": True,
            },
            {"header": {"key": "c", "value": "1"}, "append": False},
            {"header": {"key": "d", "raw_value": "eHl6"}, "append": True},
        ],
        response_headers_to_remove=["Server"],
    )
    assert made.request_headers == HeaderEdits(
        add=(
            HeaderValueOption(name="a", value=parse("%REQ(x)%")),
            HeaderValueOption(
                name="b", value=parse("1"), action=AppendAction.ADD_IF_ABSENT, keep_empty_value=True
            ),
            HeaderValueOption(name="c", value=parse("1"), action=AppendAction.OVERWRITE_IF_EXISTS_OR_ADD),
            HeaderValueOption(name="d", value=parse("xyz")),
        )
    )
    assert made.response_headers == HeaderEdits(remove=("server",))


def test_a_virtual_host_with_everything() -> None:
    host = decode_routes(
        {
            "virtual_hosts": [
                {
                    "name": "v",
                    "domains": ["a", "*.b"],
                    "require_tls": "EXTERNAL_ONLY",
                    "include_request_attempt_count": True,
                    "include_attempt_count_in_response": True,
                    "include_is_timeout_retry_header": True,
                    "per_request_buffer_limit_bytes": 7,
                    "retry_policy": {"retry_on": "reset"},
                    "virtual_clusters": [
                        {"name": "reads", "headers": [{"name": ":method", "exact_match": "GET"}]},
                        {"name": "all"},
                    ],
                    "routes": [{"match": {"prefix": "/"}, "stat_prefix": "s", "route": {"cluster": "c"}}],
                }
            ],
            "ignore_port_in_host_matching": True,
            "most_specific_header_mutations_wins": True,
        }
    ).virtual_hosts[0]
    assert host.domains == ("a", "*.b")
    assert host.require_tls is TlsRequirement.EXTERNAL_ONLY
    assert host.include_request_attempt_count
    assert host.include_attempt_count_in_response
    assert host.include_is_timeout_retry_header
    assert host.per_request_buffer_limit_bytes == 7
    assert host.retry_policy == RetryPolicy(retry_on=frozenset({"reset"}))
    assert [(each.name, len(each.headers)) for each in host.virtual_clusters] == [("reads", 1), ("all", 0)]
    assert host.routes[0].stat_prefix == "s"


def test_a_disabled_filter() -> None:
    config = {"x": {"@type": TYPES + "envoy.config.route.v3.FilterConfig", "disabled": True}}
    assert decode_one_route(typed_per_filter_config=config).typed_per_filter_config == {
        "x": FilterConfig(disabled=True)
    }


MATCH_ERRORS: list[tuple[dict[str, Any], str]] = [
    ({}, ""),
    ({"safe_regex": {"regex": "("}}, "safe_regex.regex"),
    ({"safe_regex": {"regex": ""}}, "safe_regex.regex"),
    ({"path_separated_prefix": "/a/"}, "path_separated_prefix"),
    ({"path_separated_prefix": "/a?"}, "path_separated_prefix"),
    ({"connect_matcher": {}}, "connect_matcher"),
    ({"prefix": "/", "headers": [{"name": ""}]}, "headers[0].name"),
    (
        {"prefix": "/", "headers": [{"name": "a"}, {"name": "b", "string_match": {}}]},
        "headers[1].string_match",
    ),
    ({"prefix": "/", "headers": [{"name": "a", "prefix_match": ""}]}, "headers[0].prefix_match"),
    (
        {"prefix": "/", "headers": [{"name": "a", "string_match": {"safe_regex": {"regex": "a++"}}}]},
        "headers[0].string_match.safe_regex.regex",
    ),
    (
        {
            "prefix": "/",
            "headers": [{"name": "a", "string_match": {"safe_regex": {"regex": "a"}, "ignore_case": True}}],
        },
        "headers[0].string_match.ignore_case",
    ),
    ({"prefix": "/", "query_parameters": [{"name": ""}]}, "query_parameters[0].name"),
    ({"prefix": "/", "query_parameters": [{"name": "a" * 1025}]}, "query_parameters[0].name"),
    ({"prefix": "/", "runtime_fraction": {}}, "runtime_fraction.default_value"),
    (
        {"prefix": "/", "runtime_fraction": {"default_value": {"denominator": 7}}},
        "runtime_fraction.default_value.denominator",
    ),
    ({"prefix": "/", "tls_context": {"presented": True}}, "tls_context"),
    (
        {
            "prefix": "/",
            "dynamic_metadata": [{"filter": "a", "path": [{"key": "b"}], "value": {"present_match": True}}],
        },
        "dynamic_metadata",
    ),
    ({"prefix": "/", "filter_state": [{"key": "a", "string_match": {"exact": "x"}}]}, "filter_state"),
]


@pytest.mark.parametrize(("match", "path"), MATCH_ERRORS)
def test_errors_in_a_match(match: dict[str, Any], path: str) -> None:
    error = refused(proto.ROUTE, route_config(match=match))
    assert error.path == f"{ROUTE}.match" + (f".{path}" if path else "")
    assert error.name == "rc"


def weighted(*clusters: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"cluster": None, "weighted_clusters": {"clusters": list(clusters), **fields}}


ACTION_ERRORS: list[tuple[dict[str, Any], str]] = [
    ({"cluster": None}, ""),
    ({"cluster": ""}, "cluster"),
    ({"cluster": None, "cluster_header": ""}, "cluster_header"),
    (weighted(), "weighted_clusters.clusters"),
    (weighted({"name": "a"}), "weighted_clusters.clusters[0].weight"),
    (weighted({"name": "a", "weight": 0}), "weighted_clusters.clusters"),
    (weighted({"name": "a", "weight": 2**32 - 1}, {"name": "b", "weight": 1}), "weighted_clusters.clusters"),
    (weighted({"name": "a", "weight": 1}, {"weight": 1}), "weighted_clusters.clusters[1]"),
    (weighted({"name": "a", "cluster_header": "b", "weight": 1}), "weighted_clusters.clusters[0]"),
    ({"cluster_not_found_response_code": 9}, "cluster_not_found_response_code"),
    ({"prefix_rewrite": "/a", "regex_rewrite": {"pattern": {"regex": "a"}}}, ""),
    ({"prefix_rewrite": "a\nb"}, "prefix_rewrite"),
    ({"regex_rewrite": {"substitution": "a"}}, "regex_rewrite.pattern"),
    ({"regex_rewrite": {"pattern": {"regex": "("}}}, "regex_rewrite.pattern.regex"),
    ({"regex_rewrite": {"pattern": {"regex": "a"}, "substitution": "\\1"}}, "regex_rewrite.substitution"),
    ({"host_rewrite_literal": "a\rb"}, "host_rewrite_literal"),
    ({"timeout": "-1s"}, "timeout"),
    ({"timeout": "99999999999s"}, "timeout"),
    ({"idle_timeout": "-1s"}, "idle_timeout"),
    (
        {"max_stream_duration": {"grpc_timeout_header_max": "-1s"}},
        "max_stream_duration.grpc_timeout_header_max",
    ),
    ({"priority": 5}, "priority"),
    ({"retry_policy": {"per_try_timeout": "-1s"}}, "retry_policy.per_try_timeout"),
    ({"retry_policy": {"retry_back_off": {}}}, "retry_policy.retry_back_off.base_interval"),
    (
        {"retry_policy": {"retry_back_off": {"base_interval": "1s", "max_interval": "0.5s"}}},
        "retry_policy.retry_back_off.max_interval",
    ),
    (
        {"retry_policy": {"rate_limited_retry_back_off": {}}},
        "retry_policy.rate_limited_retry_back_off.reset_headers",
    ),
    ({"retry_policy": {"retriable_headers": [{"name": ""}]}}, "retry_policy.retriable_headers[0].name"),
    ({"cluster": None, "cluster_specifier_plugin": "p"}, "cluster_specifier_plugin"),
]


@pytest.mark.parametrize(("fields", "path"), ACTION_ERRORS)
def test_errors_in_a_route_action(fields: dict[str, Any], path: str) -> None:
    route = {key: value for key, value in {"cluster": "c", **fields}.items() if value is not None}
    error = refused(proto.ROUTE, route_config(route=route))
    assert error.path == f"{ROUTE}.route" + (f".{path}" if path else "")


ROUTE_ERRORS: list[tuple[dict[str, Any], str]] = [
    ({"match": None}, "match"),
    ({"route": None}, ""),
    ({"route": None, "filter_action": {}}, "filter_action"),
    ({"route": None, "redirect": {"response_code": 9}}, "redirect.response_code"),
    ({"route": None, "redirect": {"host_redirect": "a\nb"}}, "redirect.host_redirect"),
    ({"route": None, "redirect": {"path_redirect": "a\0b"}}, "redirect.path_redirect"),
    ({"route": None, "direct_response": {"status": 199}}, "direct_response.status"),
    ({"route": None, "direct_response": {"status": 600}}, "direct_response.status"),
    ({"route": None, "direct_response": {"status": 200, "body": {}}}, "direct_response.body"),
    (
        {"route": None, "direct_response": {"status": 200, "body": {"filename": "/no/such/file"}}},
        "direct_response.body.filename",
    ),
    (
        {
            "route": None,
            "direct_response": {"status": 200, "body": {"environment_variable": "MESHLIB_NOT_SET"}},
        },
        "direct_response.body.environment_variable",
    ),
    ({"request_headers_to_add": [{}]}, "request_headers_to_add[0].header"),
    ({"request_headers_to_add": [{"header": {"key": ""}}]}, "request_headers_to_add[0].header.key"),
    (
        {"request_headers_to_add": [{"header": {"key": "Host", "value": "x"}}]},
        "request_headers_to_add[0].header.key",
    ),
    ({"response_headers_to_add": [{"header": {"key": ":status"}}]}, "response_headers_to_add[0].header.key"),
    (
        {"request_headers_to_add": [{"header": {"key": "a", "value": "%FOO%"}}]},
        "request_headers_to_add[0].header.value",
    ),
    (
        {"request_headers_to_add": [{"header": {"key": "a", "value": "x\ny"}}]},
        "request_headers_to_add[0].header.value",
    ),
    (
        {
            "request_headers_to_add": [
                {"header": {"key": "a"}, "append": True, "append_action": "ADD_IF_ABSENT"}
            ]
        },
        "request_headers_to_add[0].append",
    ),
    (
        {"request_headers_to_add": [{"header": {"key": "a"}, "append_action": 9}]},
        "request_headers_to_add[0].append_action",
    ),
    ({"request_headers_to_add": [{"header": {"key": "a"}}] * 1001}, "request_headers_to_add"),
    ({"request_headers_to_remove": ["a", ":path"]}, "request_headers_to_remove[1]"),
    ({"response_headers_to_remove": [""]}, "response_headers_to_remove[0]"),
    (
        {"typed_per_filter_config": {"x": {"@type": TYPES + "google.protobuf.Empty"}}},
        'typed_per_filter_config["x"]',
    ),
    (
        {"typed_per_filter_config": {"r": {"@type": EXTENSIONS + "filters.http.router.v3.Router"}}},
        'typed_per_filter_config["r"]',
    ),
    (
        {"typed_per_filter_config": {"x": {"@type": TYPES + "envoy.config.route.v3.FilterConfig"}}},
        'typed_per_filter_config["x"]',
    ),
]


@pytest.mark.parametrize(("fields", "path"), ROUTE_ERRORS)
def test_errors_in_a_route(fields: dict[str, Any], path: str) -> None:
    assert refused(proto.ROUTE, route_config(**fields)).path == ROUTE + (f".{path}" if path else "")


def hosts(*domains: list[str], **fields: Any) -> dict[str, Any]:
    return {"virtual_hosts": [{"name": "v", "domains": each, **fields} for each in domains]}


@pytest.mark.parametrize(
    ("config", "path"),
    [
        ({"virtual_hosts": [{"name": "", "domains": ["a"]}]}, "virtual_hosts[0].name"),
        (hosts([]), "virtual_hosts[0].domains"),
        (hosts(["a", "b", "a"]), "virtual_hosts[0].domains[2]"),
        (hosts(["a"], ["x", "A"]), "virtual_hosts[1].domains[1]"),
        (hosts(["*"], ["*"]), "virtual_hosts[1].domains[0]"),
        (hosts(["*.a"], ["*.A"]), "virtual_hosts[1].domains[0]"),
        (hosts(["a\nb"]), "virtual_hosts[0].domains[0]"),
        (hosts(["a"], require_tls=7), "virtual_hosts[0].require_tls"),
        (hosts(["a"], matcher={}), "virtual_hosts[0].matcher"),
        (hosts(["a"], virtual_clusters=[{"name": ""}]), "virtual_hosts[0].virtual_clusters[0].name"),
        ({"vhds": {"config_source": {"ads": {}}}}, "vhds"),
    ],
)
def test_errors_in_virtual_hosts(config: dict[str, Any], path: str) -> None:
    assert refused(proto.ROUTE, config).path == path


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, None),
        ({}, HedgePolicy()),
        ({"hedge_on_per_try_timeout": True}, HedgePolicy(hedge_on_per_try_timeout=True)),
        (
            {"initial_requests": 1, "additional_request_chance": {"denominator": "MILLION"}},
            HedgePolicy(),
        ),
    ],
)
def test_hedge_policy(given: dict[str, Any] | None, expected: HedgePolicy | None) -> None:
    fields = {} if given is None else {"hedge_policy": given}
    route = {"match": {"prefix": "/"}, "route": {"cluster": "c", **fields}}
    host = {"name": "v", "domains": ["*"], "routes": [route], **fields}
    found = decoded(proto.ROUTE, {"name": "rc", "virtual_hosts": [host]})
    assert found.unsupported == ()
    config: Any = found.resource
    assert config.virtual_hosts[0].hedge_policy == expected
    assert config.virtual_hosts[0].routes[0].action.hedge_policy == expected


def test_what_is_not_applied_is_reported() -> None:
    found = decoded(
        proto.ROUTE,
        {
            "name": "rc",
            "internal_only_headers": ["a"],
            "virtual_hosts": [
                {
                    "name": "v",
                    "domains": ["*"],
                    "hedge_policy": {"initial_requests": 2, "additional_request_chance": {"numerator": 1}},
                    "routes": [
                        {
                            "match": {
                                "prefix": "/",
                                "runtime_fraction": {"default_value": {"numerator": 1}, "runtime_key": "k"},
                            },
                            "route": {
                                "cluster": "c",
                                "request_mirror_policies": [{"cluster": "m"}],
                                "internal_redirect_policy": {},
                                "retry_policy": {"retry_on": "5xx,bogus", "per_try_idle_timeout": "1s"},
                            },
                            "request_headers_to_add": [{"header": {"key": "a", "value": "%TRACE_ID%"}}],
                            "metadata": {},
                            "decorator": {"operation": "o"},
                            "tracing": {},
                            "typed_per_filter_config": {
                                "envoy.filters.http.cors": {
                                    "@type": EXTENSIONS + "filters.http.cors.v3.CorsPolicy"
                                }
                            },
                        }
                    ],
                }
            ],
        },
    )
    route = "virtual_hosts[0].routes[0]"
    assert set(found.unsupported) == {
        "internal_only_headers",
        "virtual_hosts[0].hedge_policy.initial_requests",
        "virtual_hosts[0].hedge_policy.additional_request_chance",
        f"{route}.match.runtime_fraction.runtime_key",
        f"{route}.route.request_mirror_policies",
        f"{route}.route.internal_redirect_policy",
        f"{route}.route.retry_policy.per_try_idle_timeout",
        f"{route}.request_headers_to_add[0].header.value<%TRACE_ID%>",
        f'{route}.typed_per_filter_config["envoy.filters.http.cors"]',
    }
    assert len(found.warnings) == 1
    assert "'bogus'" in found.warnings[0]


def test_a_field_of_a_newer_api_is_reported() -> None:
    data = proto.from_dict("envoy.config.route.v3.RouteConfiguration", {"name": "rc"}).SerializeToString()
    unknown = data + bytes((0xFA, 0x7E, 1, 0x78))  # field 2031, one byte
    message = proto.parse("envoy.config.route.v3.RouteConfiguration", unknown)
    assert decode(proto.ROUTE, message).unsupported == ("<field 2031>",)


def test_a_matcher_of_a_newer_api_is_refused() -> None:
    match = proto.from_dict("envoy.config.route.v3.RouteMatch", {"prefix": "/"})
    match.MergeFromString(bytes((0xFA, 0x7E, 1, 0x78)))
    config = proto.from_dict("envoy.config.route.v3.RouteConfiguration", route_config())
    config.virtual_hosts[0].routes[0].match.CopyFrom(match)
    with pytest.raises(ResourceError, match="field 2031") as caught:
        decode(proto.ROUTE, config)
    assert caught.value.path == f"{ROUTE}.match"

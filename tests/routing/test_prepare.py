"""What goes upstream, and what comes back: header edits and rewrites. Expectations were seen on Envoy 1.40.0."""

from __future__ import annotations

from math import inf
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshlib.errors import LocalReply
from meshlib.resources.headers import AppendAction, HeaderEdits, HeaderValueOption
from meshlib.resources.route import (
    HostRewrite,
    HostRewriteKind,
    PathKind,
    PathMatch,
    RouteAction,
    RouteConfiguration,
    WeightedCluster,
    WeightedClusters,
)
from meshlib.routing.compiled import ForwardPlan, Prepared
from meshlib.routing.format import FormatContext
from meshlib.routing.headers import JOINED_IN_REQUEST, LevelEdits
from meshlib.routing.request import RequestView, ResponseView
from meshlib.routing.table import RouteTable
from tests.routing.build import (
    cluster,
    config,
    edits,
    header,
    host,
    path_match,
    request,
    rewrite,
    route,
)

Pairs = list[tuple[str, str]]
LENGTH = ("content-length", "4")
TEXT = ("content-type", "text/plain")


def plan_of(resource: RouteConfiguration, asked: RequestView | None = None) -> ForwardPlan:
    asked = asked or request()
    found = RouteTable(resource).find(asked, Random(1))
    assert found is not None
    plan = found.forward(asked, Random(1))
    assert plan is not None
    return plan


def prepared(resource: RouteConfiguration, asked: RequestView, **options: Any) -> Prepared:
    return plan_of(resource, asked).prepare(asked, FormatContext(asked, **options))


def weighted(action: dict[str, Any] | None = None, **entry: Any) -> RouteAction:
    clusters = WeightedClusters(clusters=(WeightedCluster(name="a", weight=1, **entry),))
    return cluster("", **{"cluster": None, "weighted_clusters": clusters, **(action or {})})


def test_order_inside_one_level() -> None:
    changes = edits(
        header("user-agent", "added"),
        header("x-app", "2"),
        header("x-ow", "2", "OVERWRITE_IF_EXISTS_OR_ADD"),
        header("x-ab", "2", "ADD_IF_ABSENT"),
        header("x-new", "1", "ADD_IF_ABSENT"),
        header("x-oie", "2", "OVERWRITE_IF_EXISTS"),
        header("x-gone", "2", "OVERWRITE_IF_EXISTS"),
        header("x-copy", "%REQ(x-app)%|%REQ(x-rm)%|%REQ(:path)%|%REQ(host)%"),
        header("x-none", "%REQ(zz)%"),
        header("x-kept", "%REQ(zz)%", keep_empty_value=True),
        header("cookie", "b=2"),
        header("te", "b"),
        remove=["x-rm"],
    )
    asked = request(
        "/e?x=1",
        [
            ("user-agent", "ua"),
            ("x-rm", "r"),
            ("x-app", "1"),
            ("x-ow", "1"),
            ("x-ow", "1b"),
            ("x-ab", "1"),
            ("x-oie", "1"),
            ("cookie", "a=1"),
        ],
    )
    result = prepared(config(host(route(cluster(), request_headers=changes))), asked)
    assert result.headers == [
        ("user-agent", "ua,added"),
        ("x-app", "1"),
        ("x-ab", "1"),
        ("cookie", "a=1"),
        ("x-ow", "2"),
        ("x-oie", "2"),
        ("x-app", "2"),
        ("x-new", "1"),
        ("x-copy", "1||/e?x=1|svc"),
        ("x-kept", ""),
        ("cookie", "b=2"),
        ("te", "b"),
    ]
    assert asked.headers[1] == ("x-rm", "r")


def level(name: str) -> HeaderEdits:
    return edits(header("x-o", name, "OVERWRITE_IF_EXISTS_OR_ADD"), header("x-a", name))


@pytest.mark.parametrize(
    ("specific_wins", "expected"),
    [
        (False, [("x-a", "w"), ("x-a", "r"), ("x-a", "v"), ("x-o", "g"), ("x-a", "g")]),
        (True, [("x-a", "w"), ("x-a", "g"), ("x-a", "v"), ("x-o", "r"), ("x-a", "r")]),
    ],
)
def test_order_of_levels(specific_wins: bool, expected: Pairs) -> None:
    resource = config(
        host(
            route(
                weighted(request_headers=level("w"), response_headers=level("w")),
                request_headers=level("r"),
                response_headers=level("r"),
            ),
            request_headers=level("v"),
            response_headers=level("v"),
        ),
        request_headers=level("g"),
        response_headers=level("g"),
        most_specific_header_mutations_wins=specific_wins,
    )
    asked = request()
    plan = plan_of(resource)
    context = FormatContext(asked, response=ResponseView(200, []))
    assert plan.prepare(asked, context).headers == expected
    assert plan.edit_response([], context) == expected
    assert not plan.plain
    assert not plan.response_plain


def test_a_later_level_sees_what_an_earlier_one_did() -> None:
    resource = config(
        host(
            route(cluster(), request_headers=edits(header("x", "1"), remove=["y"])),
            request_headers=edits(header("seen", "%REQ(x)%/%REQ(y)%")),
        )
    )
    assert ("seen", "1/") in prepared(resource, request(headers=[("y", "2")])).headers


def test_response_edits_see_request_and_response() -> None:
    resource = config(
        host(
            route(
                cluster(),
                response_headers=edits(
                    header("x", "%REQ(a)%/%RESP(b)%/%RESPONSE_CODE%/%RESP(:status)%/%RESP(c)%"),
                    header("vary", "origin"),
                    header("set-cookie", "b=1"),
                    remove=["c"],
                ),
            )
        )
    )
    asked = request(headers=[("a", "1")])
    came: Pairs = [("b", "2"), ("c", "3"), ("vary", "accept"), ("set-cookie", "a=1")]
    context = FormatContext(asked, response=ResponseView(404, came))
    assert plan_of(resource).edit_response(came, context) == [
        ("b", "2"),
        ("vary", "accept,origin"),
        ("set-cookie", "a=1"),
        ("x", "1/2/404/404/"),
        ("set-cookie", "b=1"),
    ]
    assert came[1] == ("c", "3")
    assert context.response is not None
    assert context.response.values("c") == ["3"]


def test_the_request_is_edited_before_an_endpoint_is_known() -> None:
    resource = config(host(route(cluster(), request_headers=edits(header("x", "[%UPSTREAM_HOST%]")))))
    asked = request()
    context = FormatContext(asked, endpoint="10.0.0.1:80")
    assert plan_of(resource).prepare(asked, context).headers == [("x", "[]")]
    assert context.endpoint == "10.0.0.1:80"


def test_response_edits_see_the_request_that_went_upstream() -> None:
    shown = edits(header("x", "%REQ(:path)% %REQ(:authority)% %REQ(a)% %REQ(x-envoy-original-path)%"))
    action = cluster(host_rewrite=AUTO, prefix_rewrite="/n/")
    resource = config(host(route(action, request_headers=edits(header("a", "1")), response_headers=shown)))
    asked = request("/p")
    plan, context = plan_of(resource), FormatContext(asked, response=ResponseView(200, []))
    plan.for_endpoint(plan.prepare(asked, context), "one.host", context)
    assert plan.edit_response([], context) == [("x", "/n/p one.host 1 /p")]


@pytest.mark.parametrize(
    ("added", "expected"),
    [
        ([("x", "%RESPONSE_CODE% %RESP(:status)% %RESPONSE_FLAGS%")], [("x", "0 503 UH"), LENGTH, TEXT]),
        ([("content-type", "text/html"), ("content-length", "7")], [("content-type", "text/html"), LENGTH]),
        ([], [LENGTH, TEXT]),
    ],
)
def test_local_replies_are_edited_before_they_get_length_and_type(added: Pairs, expected: Pairs) -> None:
    changes = edits(*(header(name, value) for name, value in added))
    plan, asked = plan_of(config(host(route(cluster(), response_headers=changes)))), request()
    reply = LocalReply(503, (LENGTH, TEXT, ("x-envoy-overloaded", "true")), b"four")
    edited = plan.edit_local_reply(reply, FormatContext(asked, flags="UH"))
    assert edited == LocalReply(503, (("x-envoy-overloaded", "true"), *expected), b"four")


def test_the_grpc_form_of_a_local_reply_keeps_its_type() -> None:
    changes = edits(header("x", "%RESP(grpc-status)%"))
    plan, asked = plan_of(config(host(route(cluster(), response_headers=changes)))), request()
    form = (("content-type", "application/grpc"), ("grpc-status", "14"))
    edited = plan.edit_local_reply(LocalReply(200, form), FormatContext(asked))
    assert edited == LocalReply(200, (*form, ("x", "14")))


def test_a_plan_that_changes_nothing_is_plain() -> None:
    resource = config(host(route(cluster())))
    plan = plan_of(resource)
    assert plan.plain
    assert plan.response_plain
    asked = request("/p?q", [("a", "b")])
    assert plan.prepare(asked, FormatContext(asked)) == Prepared("svc", "/p?q", [("a", "b")])
    came: Pairs = [("c", "d")]
    assert plan.edit_response(came, FormatContext(asked)) is came


def test_nothing_is_joined_to_a_header_for_an_empty_value() -> None:
    changes = edits(
        header("via", "%REQ(zz)%", keep_empty_value=True), header("te", "%REQ(zz)%", keep_empty_value=True)
    )
    resource = config(host(route(cluster(), request_headers=changes)))
    assert prepared(resource, request(headers=[("via", "a")])).headers == [("via", "a"), ("te", "")]


def test_router_headers_go_before_the_configured_edits() -> None:
    resource = config(
        host(route(cluster(), request_headers=edits(header("x", "%REQ(x-envoy-attempt-count)%"))))
    )
    asked = request(headers=[("a", "b")])
    headers = (
        plan_of(resource).prepare(asked, FormatContext(asked), (("x-envoy-attempt-count", "1"),)).headers
    )
    assert headers == [("a", "b"), ("x-envoy-attempt-count", "1"), ("x", "1")]


PREFIX = path_match(PathKind.PREFIX, "/old")
ANY = path_match(PathKind.PREFIX, "/")


@pytest.mark.parametrize(
    ("match", "action", "path", "expected"),
    [
        (PREFIX, {"prefix_rewrite": "/new"}, "/oldish?x=/old", "/newish?x=/old"),
        (PREFIX, {"prefix_rewrite": "/new"}, "/old", "/new"),
        (
            path_match(PathKind.PREFIX, "/OLD", case_sensitive=False),
            {"prefix_rewrite": "/n"},
            "/Old/x",
            "/n/x",
        ),
        (path_match(PathKind.PATH_SEPARATED_PREFIX, "/old"), {"prefix_rewrite": "/n"}, "/old/x?q", "/n/x?q"),
        (path_match(PathKind.PATH, "/old"), {"prefix_rewrite": "/n"}, "/old?q", "/n?q"),
        (path_match(PathKind.SAFE_REGEX, "/s/.*"), {"prefix_rewrite": "/all"}, "/s/o?o=o", "/all?o=o"),
        (ANY, {"regex_rewrite": rewrite("o", "0")}, "/foo?o=o", "/f00?o=o"),
        (ANY, {"regex_rewrite": rewrite("^/([^/]+)/(.*)$", "/\\2/\\1")}, "/a/b?c", "/b/a?c"),
    ],
)
def test_path_rewrites(match: PathMatch, action: dict[str, Any], path: str, expected: str) -> None:
    resource = config(host(route(cluster(**action), match)))
    result = prepared(resource, request(path, [("x-envoy-original-path", "mine")]))
    assert result.path == expected
    assert result.headers == [("x-envoy-original-path", path)]
    quiet = prepared(resource, request(path), suppress_envoy_headers=True)
    assert (quiet.path, quiet.headers) == (expected, [])


QUERIES = st.one_of(st.just(""), st.text("?a=&/", max_size=6).map(lambda text: "?" + text))


@given(path=st.text("abo/", max_size=8), query=QUERIES)
def test_a_rewrite_keeps_the_query(path: str, query: str) -> None:
    for action in ({"prefix_rewrite": "/n"}, {"regex_rewrite": rewrite("o", "0")}):
        result = prepared(config(host(route(cluster(**action)))), request("/" + path + query))
        assert result.path.partition("?")[1:] == ("?" if query else "", query[1:])


LITERAL = HostRewrite(kind=HostRewriteKind.LITERAL, value="r.host")
AUTO = HostRewrite(kind=HostRewriteKind.AUTO)
BEFORE = ("x-forwarded-host", "before")


def test_a_rewritten_host_leaves_the_old_one_behind() -> None:
    resource = config(host(route(cluster(host_rewrite=LITERAL, append_x_forwarded_host=True))))
    result = prepared(resource, request(headers=[BEFORE]))
    assert result.authority == "r.host"
    assert result.headers == [("x-forwarded-host", "before,svc"), ("x-envoy-original-host", "svc")]
    quiet = prepared(resource, request(), suppress_envoy_headers=True)
    assert quiet.headers == [("x-forwarded-host", "svc")]


@pytest.mark.parametrize(
    ("before", "after"),
    [("x,svc", "x,svc"), ("x, svc", "x, svc,svc"), ("svc,,", "svc,,"), ("svc,x", "svc,x,svc")],
)
def test_forwarded_host_is_not_repeated(before: str, after: str) -> None:
    resource = config(host(route(cluster(host_rewrite=LITERAL, append_x_forwarded_host=True))))
    assert prepared(resource, request(headers=[("x-forwarded-host", before)])).headers[0][1] == after


@pytest.mark.parametrize(
    ("host_rewrite", "path", "headers", "expected"),
    [
        (
            HostRewrite(kind=HostRewriteKind.HEADER, value="x-h"),
            "/",
            [("x-h", "new"), ("x-h", "second")],
            "new",
        ),
        (HostRewrite(kind=HostRewriteKind.HEADER, value="x-h"), "/", [], "svc"),
        (
            HostRewrite(kind=HostRewriteKind.PATH_REGEX, regex=rewrite("^/(.+)/.+$", "\\1")),
            "/my.host/rest?q=1",
            [],
            "my.host",
        ),
        (
            HostRewrite(kind=HostRewriteKind.PATH_REGEX, regex=rewrite("^/(.+)/.+$", "\\1")),
            "/x?/a/b",
            [],
            "/x",
        ),
    ],
)
def test_sources_of_the_host(host_rewrite: HostRewrite, path: str, headers: Pairs, expected: str) -> None:
    action = cluster(host_rewrite=host_rewrite, prefix_rewrite="/new/")
    result = prepared(config(host(route(action))), request(path, headers))
    assert result.authority == expected
    assert (("x-envoy-original-host", "svc") in result.headers) is (expected != "svc")


def test_forwarded_host_needs_a_rewrite() -> None:
    resource = config(host(route(cluster(append_x_forwarded_host=True))))
    assert prepared(resource, request(headers=[BEFORE])) == Prepared("svc", "/", [BEFORE])


def test_a_weighted_cluster_replaces_the_host_without_a_trace() -> None:
    action = weighted({"append_x_forwarded_host": True}, host_rewrite_literal="w.host")
    seen = edits(header("seen", "%REQ(:authority)%"))
    result = prepared(config(host(route(action, request_headers=seen))), request(headers=[BEFORE]))
    assert result == Prepared("w.host", "/", [BEFORE, ("seen", "w.host")])


def test_the_route_rewrites_the_host_of_its_weighted_cluster() -> None:
    action = weighted(
        {"append_x_forwarded_host": True, "host_rewrite": LITERAL}, host_rewrite_literal="w.host"
    )
    result = prepared(config(host(route(action))), request(headers=[BEFORE]))
    assert result == Prepared(
        "r.host", "/", [("x-forwarded-host", "before,w.host"), ("x-envoy-original-host", "w.host")]
    )


def test_each_attempt_takes_its_endpoint_as_host() -> None:
    resource = config(host(route(cluster(host_rewrite=AUTO, append_x_forwarded_host=True))))
    plan, asked = plan_of(resource), request()
    context = FormatContext(asked)
    assert plan.auto_host_rewrite
    assert not plan.plain
    start = plan.prepare(asked, context)
    assert start == Prepared("svc", "/", [])
    assert plan.for_endpoint(start, "", context) is start
    first = plan.for_endpoint(start, "one.host", context)
    assert first == Prepared("one.host", "/", [("x-forwarded-host", "svc"), ("x-envoy-original-host", "svc")])
    second = plan.for_endpoint(first, "two.host", context)
    assert second == Prepared(
        "two.host", "/", [("x-forwarded-host", "svc,one.host"), ("x-envoy-original-host", "one.host")]
    )
    assert start.headers == []


def test_what_the_plan_says_about_policies() -> None:
    from meshlib.resources.route import MaxStreamDuration, Priority, RetryPolicy

    mine = RetryPolicy(retry_on=frozenset({"5xx"}), per_try_timeout=2.0)
    theirs = RetryPolicy(num_retries=7, per_try_timeout=20.0)
    plan = plan_of(config(host(route(cluster(retry_policy=mine, timeout=3.0)), retry_policy=theirs)))
    assert plan.retry is mine
    assert plan.timeouts == (3.0, 2.0, None)
    plan = plan_of(
        config(
            host(
                route(cluster(priority=Priority.HIGH, cluster_not_found_response_code=404)),
                retry_policy=theirs,
            )
        )
    )
    assert plan.retry is theirs
    assert (plan.priority, plan.not_found_code) == (Priority.HIGH, 404)
    assert plan.timeouts == (15.0, None, None)
    plan = plan_of(config(host(route(cluster(timeout=0.0)), retry_policy=theirs)))
    assert plan.timeouts == (None, 20.0, None)
    stream = MaxStreamDuration(max_stream_duration=0.0)
    plan = plan_of(config(host(route(cluster(max_stream_duration=stream)))))
    assert (plan.timeout, plan.timeouts) == (0.0, (None, None, inf))
    assert plan_of(config(host(route(cluster())))).retry is None


NAMES = st.sampled_from(["x-a", "x-b", "x-c", "cookie", "via"])
VALUES = st.sampled_from(["", "1", "2"])
OPTIONS = st.builds(
    lambda name, value, action, keep: header(name, value, action.name, keep_empty_value=keep),
    NAMES,
    VALUES,
    st.sampled_from(AppendAction),
    st.booleans(),
)


@given(
    before=st.lists(st.tuples(NAMES, VALUES), max_size=6),
    add=st.lists(OPTIONS, max_size=5),
    remove=st.lists(NAMES, max_size=2),
)
def test_edits_leave_other_headers_alone(
    before: Pairs, add: list[HeaderValueOption], remove: list[str]
) -> None:
    headers = list(before)
    LevelEdits(edits(*add, remove=remove), JOINED_IN_REQUEST).apply(
        headers, FormatContext(request()), lambda context, headers: None
    )
    touched = {option.name for option in add} | set(remove)
    assert [pair for pair in headers if pair[0] not in touched] == [
        pair for pair in before if pair[0] not in touched
    ]
    for name in ("x-a", "x-b", "x-c", "cookie", "via"):
        there = [value for key, value in before if key == name and name not in remove]
        used = [
            option for option in add if option.name == name and (option.value.text or option.keep_empty_value)
        ]
        given_values = [(option.value.text, option.action) for option in used]
        overwrites = [
            value
            for value, action in given_values
            if action is AppendAction.OVERWRITE_IF_EXISTS_OR_ADD
            or (action is AppendAction.OVERWRITE_IF_EXISTS and there)
        ]
        additions = [
            value
            for value, action in given_values
            if action is AppendAction.APPEND_IF_EXISTS_OR_ADD
            or (action is AppendAction.ADD_IF_ABSENT and not there)
        ]
        expected = ([overwrites[-1]] if overwrites else there) + additions
        after = [value for key, value in headers if key == name]
        if name == "via" and after:
            assert sorted(filter(None, ",".join(after).split(","))) == sorted(filter(None, expected))
        else:
            assert after == expected

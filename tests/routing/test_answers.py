"""Redirects and direct responses. Expectations were seen on Envoy 1.40.0."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from meshlib.errors import LocalReply
from meshlib.resources import format as formats
from meshlib.resources.route import DirectResponse, PathKind, Redirect, Route
from meshlib.routing.format import FormatContext
from meshlib.routing.table import RouteTable
from tests.routing.build import config, edits, header, host, path_match, request, rewrite, route


def reply_to(resource: Route, path: str = "/", authority: str = "rd", **options: Any) -> LocalReply:
    asked = request(path, authority=authority, **options)
    found = RouteTable(config(host(resource))).find(asked, Random(1))
    assert found is not None
    assert found.forward(asked, Random(1)) is None
    reply = found.reply(asked, FormatContext(asked))
    assert reply is not None
    assert found.reply(asked) == reply
    return reply


@pytest.mark.parametrize(
    ("redirect", "match", "authority", "path", "status", "location"),
    [
        ({"host": "h2", "path": "/np"}, "/h", "rd", "/h?x=1", 301, "http://h2/np?x=1"),
        ({"path": "/np?z=1", "strip_query": True}, "/q", "rd", "/q?a=1", 301, "http://rd/np?z=1"),
        ({"scheme": "https", "strip_query": True}, "/", "rd", "/s/x?y=1", 301, "https://rd/s/x"),
        ({"prefix_rewrite": "/n", "host": "h"}, "/p", "rd", "/p/r?x=1", 301, "http://h/n/r?x=1"),
        (
            {"regex_rewrite": rewrite("o", "0"), "response_code": 303},
            "/x",
            "rd",
            "/xoo?o=1",
            303,
            "http://rd/x00?o=1",
        ),
        ({"port": 8443, "scheme": "https"}, "/8", "rd", "/8?a", 301, "https://rd:8443/8?a"),
        ({"scheme": "ftp"}, "/u", "rd", "/u?a", 301, "ftp://rd/u?a"),
        ({"path": "nolead"}, "/n", "rd", "/n?b", 301, "http://rd/nolead?b"),
        ({}, "/", "rd", "/other?x", 301, "http://rd/other?x"),
        ({"scheme": "https"}, "/", "rd:80", "/x", 301, "https://rd/x"),
        ({"path": "/n"}, "/", "rd:80", "/x", 301, "http://rd:80/n"),
        ({"scheme": "https"}, "/", "rd:443", "/x", 301, "https://rd:443/x"),
        ({"port": 8443}, "/", "rd:81", "/x", 301, "http://rd:8443/x"),
        ({"scheme": "https"}, "/", "[::1]:80", "/x", 301, "https://[::1]/x"),
        ({"response_code": 308, "host": "h"}, "/", "rd", "/", 308, "http://h/"),
    ],
)
def test_redirects(
    redirect: dict[str, Any], match: str, authority: str, path: str, status: int, location: str
) -> None:
    reply = reply_to(route(Redirect(**redirect), match), path, authority)
    assert reply == LocalReply(status, (("location", location), ("content-length", "0")))


def test_a_redirect_rewrites_what_the_route_matched() -> None:
    whole = path_match(PathKind.SAFE_REGEX, "/a/[0-9]+")
    assert reply_to(route(Redirect(prefix_rewrite="/b"), whole), "/a/1?q").headers[0][1] == "http://rd/b?q"


def test_response_edits_see_the_location() -> None:
    resource = route(
        Redirect(path="/n"),
        response_headers=edits(
            header("x-l", "%RESP(location)%"), header("location", "over", "OVERWRITE_IF_EXISTS_OR_ADD")
        ),
    )
    assert reply_to(resource).headers == (
        ("location", "over"),
        ("x-l", "http://rd/n"),
        ("content-length", "0"),
    )


def test_response_edits_see_the_rewritten_request() -> None:
    shown = edits(header("x", "%REQ(:path)% %REQ(x-envoy-original-path)% %RESPONSE_CODE%"))
    reply = reply_to(route(Redirect(prefix_rewrite="/n/"), response_headers=shown), "/p")
    assert reply.headers[:2] == (("location", "http://rd/n/p"), ("x", "/n/p /p 0"))


@pytest.mark.parametrize(
    ("status", "body", "added", "headers", "sent"),
    [
        (200, b"x", [], [("content-length", "1"), ("content-type", "text/plain")], b"x"),
        (200, b"", [], [("content-length", "0")], b""),
        (
            201,
            b"x",
            [],
            [("location", "http://rd/p?q=1"), ("content-length", "1"), ("content-type", "text/plain")],
            b"x",
        ),
        (302, b"", [], [("location", "http://rd/p?q=1"), ("content-length", "0")], b""),
        (
            200,
            b"x",
            [("content-type", "application/json"), ("x-a", "1")],
            [("content-type", "application/json"), ("x-a", "1"), ("content-length", "1")],
            b"x",
        ),
        (
            200,
            b"x",
            [("content-length", "77")],
            [("content-length", "1"), ("content-type", "text/plain")],
            b"x",
        ),
        (204, b"", [("content-type", "application/json")], [], b""),
        (204, b"x", [], [("content-length", "1"), ("content-type", "text/plain")], b""),
    ],
)
def test_direct_responses(
    status: int, body: bytes, added: list[tuple[str, str]], headers: list[tuple[str, str]], sent: bytes
) -> None:
    changes = edits(*(header(name, value) for name, value in added))
    resource = route(DirectResponse(status=status, body=body), response_headers=changes)
    assert reply_to(resource, "/p?q=1") == LocalReply(status, tuple(headers), sent)


def test_a_body_format_is_evaluated() -> None:
    fmt = formats.parse("%REQ(zz)% %REQ(x)% %RESPONSE_CODE% %LOCAL_REPLY_BODY%")
    resource = route(DirectResponse(status=200, body=b"plain", body_format=fmt))
    assert reply_to(resource, headers=[("x", "1")]).body == b"- 1 0 plain"

"""Path normalization in the life of a call: what routes and upstreams see, and what ends the call before that."""

from __future__ import annotations

from typing import Any

import pytest

from meshlib.errors import NoRoute
from meshlib.resources.listener import PathWithEscapedSlashesAction
from tests.engine.builders import cluster, forward, listener, route_config
from tests.engine.wire import FakeCall, FakeMesh, request

REDIRECT = PathWithEscapedSlashesAction.UNESCAPE_AND_REDIRECT
REJECT = PathWithEscapedSlashesAction.REJECT_REQUEST
GRPC = (("content-type", "application/grpc"),)


def call(path: str, headers: Any = (), method: str = "GET", **manager: Any) -> FakeCall:
    mesh = FakeMesh(cluster("a"), listen=listener(route_config(forward()), **manager))
    return mesh.call(request(path, method, headers))


@pytest.mark.parametrize(
    ("manager", "path", "sent"),
    [
        ({}, "/x/..//y", "/x/..//y"),
        ({"normalize_path": True}, "/x/..//y?%2e", "//y?%2e"),
        ({"merge_slashes": True}, "/x/..//y", "/x/../y"),
    ],
)
def test_the_upstream_gets_the_normal_path(manager: dict[str, Any], path: str, sent: str) -> None:
    made = call(path, **manager)
    assert made.core.request.path == sent
    assert [start.path for start in made.starts] == [sent]
    made.answer(200)
    assert made.status == 200


def test_a_redirect_is_an_answer() -> None:
    made = call("/a%2Fb?c", path_with_escaped_slashes_action=REDIRECT)
    assert made.reply is not None
    assert made.reply.status == 307
    assert made.reply.headers == (("location", "/a/b?c"), ("content-length", "0"))
    assert (made.core.info.details, made.core.info.flags) == ("path_normalization_failed", "-")
    assert (made.core.info.attempts, made.core.info.route) == ((), None)


@pytest.mark.parametrize(
    ("manager", "headers"),
    [
        ({"path_with_escaped_slashes_action": REJECT}, ()),
        ({"path_with_escaped_slashes_action": REDIRECT}, GRPC),
    ],
)
def test_a_refusal_is_an_error(manager: dict[str, Any], headers: Any) -> None:
    made = call("/a%2Fb", headers, "POST", **manager)
    assert isinstance(made.error, NoRoute)
    assert (made.error.details, made.error.flags) == ("path_normalization_failed", "-")
    assert made.error.local_reply is not None
    status, header = (200, ("grpc-status", "13")) if headers else (400, ("content-length", "0"))
    assert made.error.local_reply.status == status
    assert header in made.error.local_reply.headers

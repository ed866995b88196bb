"""Path normalization: the answers in the tables are those of a real Envoy 1.40."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshlib.errors import LocalReply
from meshlib.resources.listener import (
    HttpConnectionManager,
    HttpFilter,
    PathWithEscapedSlashesAction,
    RouterConfig,
)
from meshlib.routing.path import NormalPath, PathAction, canonical_path, compile_path, redirect_to

KEEP = PathWithEscapedSlashesAction.KEEP_UNCHANGED
REJECT = PathWithEscapedSlashesAction.REJECT_REQUEST
REDIRECT = PathWithEscapedSlashesAction.UNESCAPE_AND_REDIRECT
FORWARD = PathWithEscapedSlashesAction.UNESCAPE_AND_FORWARD


def manager(
    escaped: PathWithEscapedSlashesAction = PathWithEscapedSlashesAction.IMPLEMENTATION_SPECIFIC_DEFAULT,
    *,
    normalize: bool = False,
    merge: bool = False,
) -> HttpConnectionManager:
    return HttpConnectionManager(
        route_config_name="rc",
        http_filters=(HttpFilter(name="router", type_url="", config=RouterConfig()),),
        path_with_escaped_slashes_action=escaped,
        normalize_path=normalize,
        merge_slashes=merge,
    )


def normal(path: str, *fields: Any, encoding: str = "utf-8", **more: Any) -> NormalPath:
    normalise = compile_path(manager(*fields, **more), encoding)
    assert normalise is not None
    return normalise(path)


@pytest.mark.parametrize("escaped", [PathWithEscapedSlashesAction.IMPLEMENTATION_SPECIFIC_DEFAULT, KEEP])
def test_nothing_is_done_by_default(escaped: PathWithEscapedSlashesAction) -> None:
    assert compile_path(manager(escaped)) is None


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/", "/"),
        ("//", "//"),
        ("/a/b.c/d", "/a/b.c/d"),
        ("/a/.", "/a/"),
        ("/a/..", "/"),
        ("/.", "/"),
        ("/..", "/"),
        ("/a/./b", "/a/b"),
        ("/a/b/../../../c", "/c"),
        ("/a//../b", "/a/b"),
        ("//../..//a", "//a"),
        ("/a/..//", "//"),
        ("/a/...", "/a/..."),
        ("/a/.b/..c/d./e..", "/a/.b/..c/d./e.."),
        ("/a/%2e%2E/b", "/b"),
        ("/a/.%2e/b", "/b"),
        ("/a/%2e./b", "/b"),
        ("/a/%2e", "/a/"),
        ("/a%2e%2e/b", "/a../b"),
        ("/a\\b", "/a/b"),
        ("/a\\..\\b", "/b"),
        ("/a%5c..%5Cb", "/a%5c..%5Cb"),
        ("/a%2f..%2Fb", "/a%2f..%2Fb"),
        ("/..%2f..%2fetc/passwd", "/..%2f..%2fetc/passwd"),
        ("/%61%41%30%7e%2d%5f", "/aA0~-_"),
        ("/%3a%40%21%24%26", "/%3a%40%21%24%26"),
        ("/[]@:!$&'()*+,;=~-_", "/[]@:!$&'()*+,;=~-_"),
        ('/<>^`{|}"', "/%3C%3E%5E%60%7B%7C%7D%22"),
        ("/%20%22%3c%3f%23", "/%20%22%3c%3f%23"),
        ("/%C3%a9", "/%C3%a9"),
        ("/%25", "/%25"),
        ("/%252e%252e/a", "/%252e%252e/a"),
        ("/%", "/%"),
        ("/%2", "/%2"),
        ("/%zz", "/%zz"),
        ("/%%2e", "/%."),
        ("/%%300", "/%2500"),
        ("/%%30%30", "/%2500"),
        ("/%3%30", "/%2530"),
        ("/%%32e%2e/", "/%252e./"),
        ("/%/../%41%42%43", "/ABC"),
        ("/a/..;/b", "/b"),
        ("/a/.;x/b", "/a/b"),
        ("/a/..;x=%2f.;/b", "/b"),
        ("/a/..;x\\b/c", "/c"),
        ("/a/..;%00/b", "/b"),
        ("/a\\..;/b", "/a/..;/b"),
        ("/a/%2e%2e;/b", "/a/..;/b"),
        ("/a/..%3b/b", "/a/..%3b/b"),
        ("/a/b;x/..;y/c", "/a/c"),
        ("/a?b/../%2e//", "/a?b/../%2e//"),
        ("/a/../?../x", "/?../x"),
    ],
)
def test_normalize_path(path: str, expected: str) -> None:
    assert normal(path, normalize=True) == (expected, PathAction.CONTINUE)


@pytest.mark.parametrize("path", ["/%00", "/a/%00/../b", "/a/..%00", "/xyz/AAAAA%%0000/abc"])
def test_an_escaped_nul_is_refused(path: str) -> None:
    assert normal(path, normalize=True) == (path, PathAction.REJECT)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/", "/"),
        ("//", "//"),
        ("////", "//"),
        ("//?//", "//?//"),
        ("/a//b///c//", "/a/b/c/"),
        ("//a?x=//", "/a?x=//"),
        ("/a/../%2f/b", "/a/../%2f/b"),
    ],
)
def test_merge_slashes(path: str, expected: str) -> None:
    assert normal(path, merge=True) == (expected, PathAction.CONTINUE)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/a%2fb%2F", "/a/b/"),
        ("/a%5cb%5C", "/a\\b\\"),
        ("/%%2f%2%5c", "/%/%2\\"),
        ("/a%2fb?c%2fd", "/a/b?c%2fd"),
        ("/a%2e%2fb", "/a%2e/b"),
    ],
)
def test_escaped_slashes(path: str, expected: str) -> None:
    assert normal(path, FORWARD) == (expected, PathAction.CONTINUE)
    assert normal(path, REDIRECT) == (expected, PathAction.REDIRECT)
    assert normal(path, REJECT) == (path, PathAction.REJECT)


@pytest.mark.parametrize("escaped", [FORWARD, REDIRECT, REJECT])
@pytest.mark.parametrize("path", ["/", "/a/b?c%2f", "/%2e%252f%", "/a\\b"])
def test_paths_without_escaped_slashes(path: str, escaped: PathWithEscapedSlashesAction) -> None:
    assert normal(path, escaped) == (path, PathAction.CONTINUE)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/a%5c..%5Cb", "/b"),
        ("/a%2f%2Fb", "/a/b"),
        ("/%2F%2F", "//"),
        ("/..%2f..%2fetc/passwd", "/etc/passwd"),
        ("/%2e%2e%5cx?y", "/x?y"),
        ("/.%5c", "/"),
        ("/a%2f..;x%2fb/c", "/b/c"),
        ("/a%5c..;x/b", "/a/..;x/b"),
    ],
)
def test_all_together(path: str, expected: str) -> None:
    assert normal(path, FORWARD, normalize=True, merge=True) == (expected, PathAction.CONTINUE)
    assert normal(path, REDIRECT, normalize=True, merge=True) == (expected, PathAction.REDIRECT)


def test_a_redirect_is_refused_like_everything_else() -> None:
    assert normal("/%2f%00", REDIRECT, normalize=True) == ("/%2f%00", PathAction.REJECT)


@pytest.mark.parametrize("target", ["*", "", "?/..", "http://a/../b"])
def test_a_target_that_is_no_path_is_left_alone(target: str) -> None:
    assert normal(target, FORWARD, normalize=True, merge=True) == (target, PathAction.CONTINUE)


@pytest.mark.parametrize(
    ("path", "encoding", "expected"),
    [
        ("/\u00e9", "utf-8", "/%C3%A9"),
        ("/\u00e9", "latin-1", "/%E9"),
        ("/\udce9", "utf-8", "/%E9"),
        ("/\u20ac", "latin-1", "/%E2%82%AC"),
        ("/\x01 \x7f", "utf-8", "/%01%20%7F"),
        ("/\x00", "utf-8", None),
    ],
)
def test_octets_that_are_not_of_a_path(path: str, encoding: str, expected: str | None) -> None:
    assert canonical_path(path, encoding) == expected


def test_what_is_normal_stays_the_same_object() -> None:
    path = "".join(("/a/b", "?c"))
    assert normal(path, FORWARD, normalize=True, merge=True).path is path


def test_the_redirect() -> None:
    assert redirect_to("/a?b") == LocalReply(307, (("location", "/a?b"), ("content-length", "0")))


PIECES = st.one_of(
    st.sampled_from(
        ("/", "//", ".", "..", "\\", "%", "%%", "%0", "0", "2", "e", "A", "~", "<", "\u00e9", "\udc80")
    ),
    st.sampled_from(("%2e", "%2E", "%2f", "%5C", "%30", "%32", "%65", "%25", "%7e", "%3a", "%c3")),
)
PATHS = st.lists(PIECES, max_size=16).map(lambda pieces: "/" + "".join(pieces))
WITH_PARAMETERS = st.lists(st.one_of(PIECES, st.just(";"), st.just("..;")), max_size=16).map(
    lambda pieces: "/" + "".join(pieces)
)
UP = re.compile(r"\.|%2e", re.IGNORECASE)


@given(path=PATHS, merge=st.booleans())
def test_what_is_normal_stays(path: str, merge: bool) -> None:
    once = normal(path, FORWARD, normalize=True, merge=merge).path
    assert normal(once, KEEP, normalize=True, merge=merge).path is once


@given(path=WITH_PARAMETERS, merge=st.booleans())
def test_nothing_leads_out_of_the_root(path: str, merge: bool) -> None:
    found, action = normal(path, FORWARD, normalize=True, merge=merge)
    assert action is PathAction.CONTINUE
    assert found.isascii()
    assert found.startswith("/")
    assert "\\" not in found
    assert not {UP.sub(".", segment) for segment in found.split("/")} & {".", ".."}
    slashes = path.count("/") + path.count("\\") + len(re.findall("%2f|%5c", path, re.IGNORECASE))
    assert found.count("/") <= slashes
    if merge and found.strip("/"):
        assert "//" not in found


@given(path=WITH_PARAMETERS, query=st.text(alphabet="?/.%2ef;"))
def test_the_query_stays(path: str, query: str) -> None:
    alone = normal(path, FORWARD, normalize=True, merge=True)
    found = normal(f"{path}?{query}", FORWARD, normalize=True, merge=True)
    assert found == (f"{alone.path}?{query}", alone.action)

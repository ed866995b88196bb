"""Rewriting of path and host (RouteAction), and what Envoy leaves behind of the old ones."""

from __future__ import annotations

from collections.abc import Callable

from meshlib.resources.matching import RegexRewrite
from meshlib.resources.route import HostRewrite, HostRewriteKind, PathKind, PathMatch
from meshlib.routing.headers import JOINED_IN_REQUEST, append_header, set_header
from meshlib.routing.request import Headers, RequestView

__all__ = ["compile_host", "compile_path_rewrite", "forward_host", "split_path"]

PathRewrite = Callable[[str], str]
HostSource = Callable[[RequestView], str]


def split_path(path: str) -> tuple[str, str]:
    """The path without its query, and the query with its `?` (empty when there is none)."""
    start = path.find("?")
    return (path, "") if start < 0 else (path[:start], path[start:])


def compile_path_rewrite(
    prefix_rewrite: str | None, regex_rewrite: RegexRewrite | None, match: PathMatch
) -> PathRewrite | None:
    """A function of the path with its query; None when nothing is rewritten. The query stays as it is.

    prefix_rewrite replaces what the route matched: the prefix, or the whole path of a path or regex match. regex_rewrite
    replaces every match of the pattern in the path.
    """
    if prefix_rewrite:
        if match.kind in (PathKind.PREFIX, PathKind.PATH_SEPARATED_PREFIX):
            size = len(match.value)
            return lambda path: prefix_rewrite + path[size:]
        return lambda path: prefix_rewrite + split_path(path)[1]
    if regex_rewrite is not None:
        pattern, substitution = regex_rewrite.pattern, regex_rewrite.substitution

        def rewrite(path: str) -> str:
            bare, query = split_path(path)
            return pattern.sub(substitution, bare) + query

        return rewrite
    return None


def compile_host(rewrite: HostRewrite | None) -> HostSource | None:
    """Where the new authority comes from, None when it stays or depends on the endpoint. An empty result changes nothing."""
    if rewrite is None or rewrite.kind is HostRewriteKind.AUTO:
        return None
    if rewrite.kind is HostRewriteKind.LITERAL:
        literal = rewrite.value
        return lambda request: literal
    if rewrite.kind is HostRewriteKind.HEADER:
        name = rewrite.value
        return lambda request: request.first(name) or ""
    regex = rewrite.regex
    assert regex is not None
    return lambda request: regex.pattern.sub(regex.substitution, split_path(request.path)[0])


def forward_host(headers: Headers, authority: str, *, append: bool, keep: bool) -> None:
    """Leave the old authority in the headers before it is replaced.

    append: add it to x-forwarded-host, unless it is the last one there. keep: put it into x-envoy-original-host.
    """
    if append and authority:
        listed = [
            entry
            for name, value in headers
            if name == "x-forwarded-host"
            for entry in value.split(",")
            if entry
        ]
        if not listed or listed[-1] != authority:
            append_header(headers, "x-forwarded-host", authority, JOINED_IN_REQUEST)
    if keep:
        set_header(headers, "x-envoy-original-host", authority)

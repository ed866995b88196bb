"""Short ways to write the resources that the tests of this folder need."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from meshlib.resources import format as formats
from meshlib.resources.headers import AppendAction, HeaderEdits, HeaderValueOption
from meshlib.resources.matching import RegexRewrite, StringKind, StringMatch
from meshlib.resources.route import (
    Action,
    DirectResponse,
    PathKind,
    PathMatch,
    Route,
    RouteAction,
    RouteConfiguration,
    RouteMatch,
    VirtualHost,
)
from meshlib.routing.request import RequestView
from meshlib.runtime import regex

Pairs = Sequence[tuple[str, str]]


def request(
    path: str = "/",
    headers: Pairs = (),
    *,
    authority: str = "svc",
    method: str = "GET",
    scheme: str = "http",
) -> RequestView:
    return RequestView(method=method, scheme=scheme, authority=authority, path=path, headers=list(headers))


def text(value: str, kind: StringKind = StringKind.EXACT, *, ignore_case: bool = False) -> StringMatch:
    compiled = regex.compile(value) if kind is StringKind.REGEX else None
    return StringMatch(kind=kind, value=value, ignore_case=ignore_case, regex=compiled)


def path_match(kind: PathKind, value: str, *, case_sensitive: bool = True) -> PathMatch:
    compiled = text(value, StringKind.REGEX) if kind is PathKind.SAFE_REGEX else None
    return PathMatch(kind=kind, value=value, case_sensitive=case_sensitive, regex=compiled)


def match(path: str | PathMatch = "/", **rest: Any) -> RouteMatch:
    return RouteMatch(path=path_match(PathKind.PREFIX, path) if isinstance(path, str) else path, **rest)


def answer(body: str) -> DirectResponse:
    return DirectResponse(status=200, body=body.encode())


def route(action: Action | str, path: str | PathMatch | RouteMatch = "/", **rest: Any) -> Route:
    """A route whose action is a direct response with that body when it is given as text."""
    return Route(
        match=path if isinstance(path, RouteMatch) else match(path),
        action=answer(action) if isinstance(action, str) else action,
        **rest,
    )


def host(*routes: Route, domains: Sequence[str] = ("*",), name: str = "vhost", **rest: Any) -> VirtualHost:
    return VirtualHost(name=name, domains=tuple(domains), routes=routes, **rest)


def config(*hosts: VirtualHost, **rest: Any) -> RouteConfiguration:
    return RouteConfiguration(name="rc", virtual_hosts=hosts, **rest)


def cluster(name: str = "a", **rest: Any) -> RouteAction:
    return RouteAction(**{"cluster": name, **rest})


def rewrite(pattern: str, substitution: str) -> RegexRewrite:
    return RegexRewrite(pattern=regex.compile(pattern, unanchored=True), substitution=substitution)


def header(name: str, value: str, action: str = "APPEND_IF_EXISTS_OR_ADD", **rest: Any) -> HeaderValueOption:
    return HeaderValueOption(name=name, value=formats.parse(value), action=AppendAction[action], **rest)


def edits(*add: HeaderValueOption, remove: Sequence[str] = ()) -> HeaderEdits:
    return HeaderEdits(add=add, remove=tuple(remove))

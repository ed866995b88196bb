"""Permissions and principals (config.rbac.v3), compiled into predicates on a request: one function for each kind of node."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from meshlib.policy.rbac_request import InboundRequest
from meshlib.resources.matching import StringMatch
from meshlib.resources.rbac import (
    AllOf,
    AnyOf,
    Authenticated,
    DestinationIp,
    DestinationPort,
    DirectRemoteIp,
    FixedRule,
    HeaderRule,
    MtlsAuthenticated,
    Not,
    RemoteIp,
    RequestedServerName,
    Rule,
    SourceIp,
    UriTemplate,
    UrlPath,
)
from meshlib.routing.matchers.header import compile_header
from meshlib.routing.matchers.string import compile_string

__all__ = ["Predicate", "any_of", "compile_rule"]

Predicate = Callable[[InboundRequest], bool]


def compile_rule(rule: Rule) -> Predicate:
    """A predicate for one node and what is below it."""
    return _COMPILERS[type(rule)](rule)


def any_of(rules: tuple[Rule, ...]) -> Predicate:
    """Whether one of them matches."""
    predicates = tuple(compile_rule(rule) for rule in rules)
    if len(predicates) == 1:
        return predicates[0]
    return lambda request: any(predicate(request) for predicate in predicates)


def _any_of(rule: AnyOf) -> Predicate:
    return any_of(rule.rules)


def _all_of(rule: AllOf) -> Predicate:
    predicates = tuple(compile_rule(each) for each in rule.rules)
    return lambda request: all(predicate(request) for predicate in predicates)


def _not(rule: Not) -> Predicate:
    inner = compile_rule(rule.rule)
    return lambda request: not inner(request)


def _fixed(rule: FixedRule) -> Predicate:
    answer = rule.matches
    return lambda request: answer


def _header(rule: HeaderRule) -> Predicate:
    return compile_header(rule.match)


def _url_path(rule: UrlPath) -> Predicate:
    test = compile_string(rule.match)
    return lambda request: bool(request.path) and test(_path_only(request.path))


def _uri_template(rule: UriTemplate) -> Predicate:
    test = rule.regex.fullmatch
    return lambda request: test(_path_only(request.path))


def _path_only(path: str) -> str:
    """Without query and fragment."""
    return path.partition("?")[0].partition("#")[0]


def _destination_ip(rule: DestinationIp) -> Predicate:
    contains = rule.range.contains
    return lambda request: contains(request.caller.local)


def _destination_port(rule: DestinationPort) -> Predicate:
    start, end = rule.start, rule.end
    return lambda request: request.caller.local is not None and start <= request.caller.local_port < end


def _server_name(rule: RequestedServerName) -> Predicate:
    test = compile_string(rule.match)
    return lambda request: test(request.caller.server_name.lower())


def _authenticated(rule: Authenticated) -> Predicate:
    if rule.match is None:
        return lambda request: request.caller.tls
    return _principal_name(rule.match)


def _principal_name(match: StringMatch) -> Predicate:
    test = compile_string(match)

    def matches(request: InboundRequest) -> bool:
        caller = request.caller
        if not caller.tls:
            return False
        return any(map(test, caller.uri_sans)) or any(map(test, caller.dns_sans)) or test(caller.subject)

    return matches


def _mtls_authenticated(rule: MtlsAuthenticated) -> Predicate:
    san = rule.san
    if san is None:
        return lambda request: request.caller.certified
    return lambda request: request.caller.certified and request.caller.san_matches(san)


def _direct_ip(rule: SourceIp | DirectRemoteIp) -> Predicate:
    contains = rule.range.contains
    return lambda request: contains(request.caller.direct)


def _remote_ip(rule: RemoteIp) -> Predicate:
    contains = rule.range.contains
    return lambda request: contains(request.remote)


_COMPILERS: dict[type, Callable[[Any], Predicate]] = {
    AllOf: _all_of,
    AnyOf: _any_of,
    Authenticated: _authenticated,
    DestinationIp: _destination_ip,
    DestinationPort: _destination_port,
    DirectRemoteIp: _direct_ip,
    FixedRule: _fixed,
    HeaderRule: _header,
    MtlsAuthenticated: _mtls_authenticated,
    Not: _not,
    RemoteIp: _remote_ip,
    RequestedServerName: _server_name,
    SourceIp: _direct_ip,
    UriTemplate: _uri_template,
    UrlPath: _url_path,
}

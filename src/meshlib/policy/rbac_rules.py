"""Permissions and principals (config.rbac.v3), compiled into predicates on a request: one function for each kind of node.

A predicate answers True, False, or None: it depends on something that is unknown. None goes through `not`, `and` and `or` as in
Kleene's logic: it stays unless the rest decides alone. So what is True or False here is so whatever the unknown really is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from meshlib.policy.rbac_request import (
    CERTIFICATE,
    DESTINATION_IP,
    DESTINATION_PORT,
    DIRECT_IP,
    NOTHING,
    REMOTE_IP,
    SERVER_NAME,
    TLS,
    InboundRequest,
    header_property,
)
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

__all__ = ["Predicate", "all_of", "any_of", "compile_rule", "properties_of"]

Predicate = Callable[[InboundRequest], "bool | None"]


def compile_rule(rule: Rule) -> Predicate:
    """A predicate for one node and what is below it."""
    predicate = _COMPILERS[type(rule)](rule)
    needed = _property_of(rule)
    if needed is None:
        return predicate
    return lambda request: None if needed in request.unknown else predicate(request)


def properties_of(rules: tuple[Rule, ...]) -> frozenset[str]:
    """What the answers of these rules may depend on, of all that may be unknown."""
    found = NOTHING
    for rule in rules:
        needed = _property_of(rule)
        if needed is not None:
            found |= {needed}
        elif isinstance(rule, Not):
            found |= properties_of((rule.rule,))
        elif isinstance(rule, (AllOf, AnyOf)):
            found |= properties_of(rule.rules)
    return found


def _property_of(rule: Rule) -> str | None:
    if isinstance(rule, HeaderRule):
        return header_property(rule.match.name)
    if isinstance(rule, Authenticated):
        return TLS if rule.match is None else CERTIFICATE
    return _PROPERTIES.get(type(rule))


def any_of(rules: tuple[Rule, ...]) -> Predicate:
    """Whether one of them matches."""
    predicates = tuple(compile_rule(rule) for rule in rules)
    if len(predicates) == 1:
        return predicates[0]

    def matches(request: InboundRequest) -> bool | None:
        otherwise: bool | None = False
        for predicate in predicates:
            answer = predicate(request)
            if answer:
                return True
            if answer is None:
                otherwise = None
        return otherwise

    return matches


def all_of(predicates: tuple[Predicate, ...]) -> Predicate:
    """Whether all of them match."""

    def matches(request: InboundRequest) -> bool | None:
        otherwise: bool | None = True
        for predicate in predicates:
            answer = predicate(request)
            if answer is None:
                otherwise = None
            elif not answer:
                return False
        return otherwise

    return matches


def _any_of(rule: AnyOf) -> Predicate:
    return any_of(rule.rules)


def _all_of(rule: AllOf) -> Predicate:
    return all_of(tuple(compile_rule(each) for each in rule.rules))


def _not(rule: Not) -> Predicate:
    inner = compile_rule(rule.rule)

    def matches(request: InboundRequest) -> bool | None:
        answer = inner(request)
        return None if answer is None else not answer

    return matches


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


_PROPERTIES: dict[type, str] = {
    DestinationIp: DESTINATION_IP,
    DestinationPort: DESTINATION_PORT,
    DirectRemoteIp: DIRECT_IP,
    MtlsAuthenticated: CERTIFICATE,
    RemoteIp: REMOTE_IP,
    RequestedServerName: SERVER_NAME,
    SourceIp: DIRECT_IP,
}
"""What these look at. Every server tells method and path."""

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

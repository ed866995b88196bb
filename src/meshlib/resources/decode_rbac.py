"""RBAC: extensions.filters.http.rbac.v3 and its network twin, from protobuf to dataclasses.

What can't be evaluated is refused, since a rule that is read in part lets the wrong requests pass: CEL conditions, the matcher
API, metadata of routes. What asks for things that no request has here (dynamic metadata, filter state, which only filters
that are refused could set) has the answer that Envoy gives without them, and is reported. Of shadow rules nothing is refused
that can be left out: they enforce nothing.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable

from meshlib.errors import ResourceError
from meshlib.resources.address import CidrRange
from meshlib.resources.decode_matching import header_match, string_match
from meshlib.resources.decode_san import san_match
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
    Rbac,
    RbacAction,
    RbacPolicy,
    RbacRules,
    RemoteIp,
    RequestedServerName,
    Rule,
    SourceIp,
    UriTemplate,
    UrlPath,
)
from meshlib.resources.reader import Reader
from meshlib.resources.uri_template import TemplateError, compile_template

__all__ = ["cidr_range", "decode_network_rbac", "decode_rbac", "decode_rbac_per_route"]

_ACTIONS = {0: RbacAction.ALLOW, 1: RbacAction.DENY, 2: RbacAction.LOG}
_URI_TEMPLATE = "envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig"
_MTLS_AUTHENTICATED = "envoy.extensions.rbac.principals.mtls_authenticated.v3.Config"
_DEEPEST = 32


def decode_rbac(reader: Reader) -> Rbac:
    """The HTTP filter. Raises ResourceError."""
    return Rbac(
        rules=_rules(reader),
        shadow_rules=_shadow_rules(reader),
        rules_stat_prefix=reader.text("rules_stat_prefix"),
        shadow_rules_stat_prefix=reader.text("shadow_rules_stat_prefix"),
        track_per_rule_stats=reader.flag("track_per_rule_stats"),
    )


def decode_rbac_per_route(reader: Reader) -> Rbac:
    """RBACPerRoute: the filter's configuration for a route; none switches it off there."""
    config = reader.child("rbac")
    return Rbac() if config is None else decode_rbac(config)


def decode_network_rbac(reader: Reader) -> Rbac:
    """The network filter: connections instead of requests. As in Envoy no rule may look at a header."""
    reader.leave("delay_deny")
    made = Rbac(
        rules=_rules(reader),
        shadow_rules=_shadow_rules(reader),
        shadow_rules_stat_prefix=reader.text("shadow_rules_stat_prefix"),
        stat_prefix=reader.text("stat_prefix"),
    )
    for field, rules in (("rules", made.rules), ("shadow_rules", made.shadow_rules)):
        for policy in () if rules is None else rules.policies:
            name = _header_in(policy.permissions + policy.principals)
            if name is not None:
                raise reader.fail(field, f"a connection has no headers: {name!r} can't be looked at")
    return made


def _header_in(rules: tuple[Rule, ...]) -> str | None:
    for rule in rules:
        name = None
        if isinstance(rule, HeaderRule):
            return rule.match.name
        if isinstance(rule, Not):
            name = _header_in((rule.rule,))
        elif isinstance(rule, (AllOf, AnyOf)):
            name = _header_in(rule.rules)
        if name is not None:
            return name
    return None


def _rules(reader: Reader) -> RbacRules | None:
    if reader.has("matcher"):
        raise reader.fail("matcher", "the matcher API is not implemented; use rules")
    rules = reader.child("rules")
    return None if rules is None else _rule_set(rules)


def _shadow_rules(reader: Reader) -> RbacRules | None:
    if reader.has("shadow_matcher"):
        reader.unsupported("shadow_matcher")
        reader.leave("shadow_rules")  # Envoy does not look at them then
        return None
    rules = reader.child("shadow_rules")
    return None if rules is None else _rule_set(rules)


def _rule_set(reader: Reader) -> RbacRules:
    return RbacRules(
        action=reader.enum("action", _ACTIONS),
        policies=tuple(_policy(name, entry) for name, entry in reader.entries("policies")),
    )


def _policy(name: str, reader: Reader) -> RbacPolicy:
    reader.reading.pause()
    for field in ("condition", "checked_condition"):
        if reader.has(field):
            raise reader.fail(field, "CEL expressions are not implemented, and without it more would match")
    reader.leave("cel_config")
    return RbacPolicy(
        name=name,
        permissions=tuple(_permission(each, 0) for each in reader.items("permissions")),
        principals=tuple(_principal(each, 0) for each in reader.items("principals")),
    )


_Tree = Callable[[Reader, int], Rule]


def _permission(reader: Reader, depth: int) -> Rule:
    kind = _kind(reader, "rule", depth)
    if kind in ("and_rules", "or_rules"):
        return _set(reader, kind, "rules", _permission, depth)
    if kind == "not_rule":
        return Not(_permission(reader.required(kind), depth + 1))
    if kind == "destination_ip":
        return DestinationIp(cidr_range(reader.required(kind)))
    if kind == "destination_port":
        port = reader.number(kind)
        return DestinationPort(port, port + 1)
    if kind == "destination_port_range":
        return _port_range(reader.required(kind))
    if kind == "requested_server_name":
        return RequestedServerName(string_match(reader.required(kind)))
    if kind == "uri_template":
        return _uri_template(reader.required(kind))
    if kind == "matcher":
        extension = reader.message.matcher.typed_config.type_url.rpartition("/")[2]
        raise reader.fail(kind, f"the matcher {extension or 'without a type'} is not implemented")
    return _common(reader, kind)


def _principal(reader: Reader, depth: int) -> Rule:
    kind = _kind(reader, "identifier", depth)
    if kind in ("and_ids", "or_ids"):
        return _set(reader, kind, "ids", _principal, depth)
    if kind == "not_id":
        return Not(_principal(reader.required(kind), depth + 1))
    if kind == "authenticated":
        name = reader.required(kind).child("principal_name")
        return Authenticated(None if name is None else string_match(name))
    if kind == "source_ip":
        return SourceIp(cidr_range(reader.required(kind)))
    if kind == "direct_remote_ip":
        return DirectRemoteIp(cidr_range(reader.required(kind)))
    if kind == "remote_ip":
        return RemoteIp(cidr_range(reader.required(kind)))
    if kind == "filter_state":
        reader.unsupported(kind)
        return FixedRule(False, kind)
    if kind == "custom":
        return _custom(reader.required(kind))
    return _common(reader, kind)


def _kind(reader: Reader, oneof: str, depth: int) -> str:
    if depth > _DEEPEST:
        raise reader.fail("", f"rules are nested more than {_DEEPEST} deep")
    kind = reader.which(oneof)
    if kind is None:
        raise reader.fail("", "must say what to match")
    return kind


def _set(reader: Reader, kind: str, field: str, tree: _Tree, depth: int) -> Rule:
    rules = tuple(tree(each, depth + 1) for each in reader.required(kind).items(field))
    return AllOf(rules) if kind.startswith("and") else AnyOf(rules)


def _common(reader: Reader, kind: str) -> Rule:
    """What stands in permissions and in principals."""
    if kind == "any":
        reader.flag(kind)
        return FixedRule(True)
    if kind == "header":
        return HeaderRule(header_match(reader.required(kind)))
    if kind == "url_path":
        return UrlPath(string_match(reader.required(kind).required("path")))
    if kind == "metadata":
        return _metadata(reader, kind, reader.message.metadata)
    if kind == "sourced_metadata":
        if reader.message.sourced_metadata.metadata_source:
            raise reader.fail(f"{kind}.metadata_source", "only DYNAMIC is implemented")
        return _metadata(reader, kind, reader.message.sourced_metadata.metadata_matcher)
    raise reader.fail(kind, "is not implemented")


def _metadata(reader: Reader, kind: str, matcher: object) -> Rule:
    """No value matcher of Envoy matches a value that is not there; `invert` turns that round."""
    reader.unsupported(kind)
    return FixedRule(bool(getattr(matcher, "invert", False)), kind)


def _port_range(reader: Reader) -> DestinationPort:
    start, end = reader.number("start"), reader.number("end")
    for field, value in (("start", start), ("end", end)):
        if not 0 <= value <= 65536:
            raise reader.fail(field, f"{value} is not a port")
    if start >= end:
        raise reader.fail("", f"start ({start}) must be less than end ({end})")
    return DestinationPort(start, end)


def _uri_template(reader: Reader) -> UriTemplate:
    content = _extension(reader, _URI_TEMPLATE)
    template = content.text("path_template")
    try:
        return UriTemplate(template, compile_template(template))
    except TemplateError as error:
        raise content.fail("path_template", error.reason) from None


def _custom(reader: Reader) -> MtlsAuthenticated:
    content = _extension(reader, _MTLS_AUTHENTICATED)
    san = content.child("san_matcher")
    if not content.flag("any_validated_client_certificate") and san is None:
        raise content.fail("", "san_matcher or any_validated_client_certificate must be given")
    return MtlsAuthenticated(None if san is None else san_match(san))


def _extension(reader: Reader, expected: str) -> Reader:
    """The content of a TypedExtensionConfig."""
    reader.leave("name")
    content = reader.required("typed_config").unpacked()
    if content.type_name != expected:
        raise reader.fail("typed_config", f"the extension {content.type_name} is not implemented")
    return content


def cidr_range(reader: Reader) -> CidrRange:
    """core.v3.CidrRange; a prefix longer than the address is the whole address, as in Envoy."""
    text = reader.text("address_prefix")
    length = reader.boxed("prefix_len") or 0
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise ResourceError(reader.at("address_prefix"), f"{text!r} is not an IP address") from None
    return CidrRange(ipaddress.ip_network((address, min(length, address.max_prefixlen)), strict=False))

"""RBAC: every permission and principal, and what is refused."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest

from meshlib import proto
from meshlib.resources.address import CidrRange, ip_address
from meshlib.resources.inbound import InboundListener
from meshlib.resources.listener import Listener
from meshlib.resources.matching import HeaderMatch, StringKind, StringMatch
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
    RemoteIp,
    RequestedServerName,
    Rule,
    SourceIp,
    UriTemplate,
    UrlPath,
)
from meshlib.resources.tls import SanMatch, SanType
from meshlib.resources.uri_template import TemplateError, compile_template
from tests.resources.building import (
    EXTENSIONS,
    ROUTER,
    decode_routes,
    decoded,
    manager,
    refused,
    route_config,
    socket_listener,
)
from tests.resources.tls_samples import san

RBAC = EXTENSIONS + "filters.http.rbac.v3.RBAC"
PER_ROUTE = EXTENSIONS + "filters.http.rbac.v3.RBACPerRoute"
RULES = "filter_chains[0].filters[0].typed_config.http_filters[0].typed_config.rules"
POLICY = f'{RULES}.policies["p"]'
ANY = {"any": True}
URI_TEMPLATE = EXTENSIONS + "path.match.uri_template.v3.UriTemplateMatchConfig"


def rules(permission: dict[str, Any] = ANY, principal: dict[str, Any] = ANY, **fields: Any) -> dict[str, Any]:
    policy = {"permissions": [permission], "principals": [principal]}
    return {"action": "ALLOW", "policies": {"p": policy}, **fields}


def rbac(permission: dict[str, Any] = ANY, principal: dict[str, Any] = ANY, **fields: Any) -> dict[str, Any]:
    return {"@type": RBAC, "rules": rules(permission, principal), **fields}


def listener(config: dict[str, Any]) -> dict[str, Any]:
    return socket_listener(http_filters=[{"name": "rbac", "typed_config": config}, ROUTER])


def decode_rbac(config: dict[str, Any]) -> Rbac:
    found = decoded(proto.LISTENER, listener(config)).resource
    assert isinstance(found, InboundListener)
    result = found.chains[0].http.http_filters[0].config
    assert isinstance(result, Rbac)
    return result


def permission_of(permission: dict[str, Any]) -> Rule:
    found = decode_rbac(rbac(permission)).rules
    assert found is not None
    return found.policies[0].permissions[0]


def principal_of(principal: dict[str, Any]) -> Rule:
    found = decode_rbac(rbac(principal=principal)).rules
    assert found is not None
    return found.policies[0].principals[0]


def exact(text: str) -> StringMatch:
    return StringMatch(kind=StringKind.EXACT, value=text)


def cidr(text: str) -> CidrRange:
    return CidrRange(ipaddress.ip_network(text))


def prefix(address: str, length: int) -> dict[str, Any]:
    return {"address_prefix": address, "prefix_len": length}


HEADER = {"name": "X-A", "string_match": {"exact": "1"}}
HEADER_RULE = HeaderRule(HeaderMatch(name="x-a", string=exact("1")))
METADATA = {"filter": "f", "path": [{"key": "k"}], "value": {"string_match": {"exact": "v"}}}
PATH = {"path": {"exact": "/a"}}


def template(text: str) -> dict[str, Any]:
    return {"uri_template": {"name": "t", "typed_config": {"@type": URI_TEMPLATE, "path_template": text}}}


def custom(**fields: Any) -> dict[str, Any]:
    kind = EXTENSIONS + "rbac.principals.mtls_authenticated.v3.Config"
    name = "envoy.rbac.principals.mtls_authenticated"
    return {"custom": {"name": name, "typed_config": {"@type": kind, **fields}}}


PERMISSIONS: list[tuple[dict[str, Any], Rule]] = [
    (ANY, FixedRule(True)),
    ({"and_rules": {"rules": [ANY, {"header": HEADER}]}}, AllOf((FixedRule(True), HEADER_RULE))),
    ({"or_rules": {"rules": [{"header": HEADER}]}}, AnyOf((HEADER_RULE,))),
    ({"not_rule": ANY}, Not(FixedRule(True))),
    ({"url_path": PATH}, UrlPath(exact("/a"))),
    ({"destination_ip": prefix("10.1.2.3", 8)}, DestinationIp(cidr("10.0.0.0/8"))),
    ({"destination_ip": prefix("::1", 128)}, DestinationIp(cidr("::1/128"))),
    ({"destination_ip": {"address_prefix": "10.1.2.3"}}, DestinationIp(cidr("0.0.0.0/0"))),
    ({"destination_ip": prefix("10.1.2.3", 99)}, DestinationIp(cidr("10.1.2.3/32"))),
    ({"destination_port": 80}, DestinationPort(80, 81)),
    ({"destination_port_range": {"start": 80, "end": 90}}, DestinationPort(80, 90)),
    ({"metadata": METADATA}, FixedRule(False, "metadata")),
    ({"metadata": {**METADATA, "invert": True}}, FixedRule(True, "metadata")),
    ({"sourced_metadata": {"metadata_matcher": METADATA}}, FixedRule(False, "sourced_metadata")),
    (
        {"requested_server_name": {"suffix": ".x"}},
        RequestedServerName(StringMatch(kind=StringKind.SUFFIX, value=".x")),
    ),
    (template("/a/{x}"), UriTemplate("/a/{x}", compile_template("/a/{x}"))),
]
PRINCIPALS: list[tuple[dict[str, Any], Rule]] = [
    (ANY, FixedRule(True)),
    ({"and_ids": {"ids": [ANY]}}, AllOf((FixedRule(True),))),
    ({"or_ids": {"ids": [ANY, {"header": HEADER}]}}, AnyOf((FixedRule(True), HEADER_RULE))),
    ({"not_id": {"not_id": ANY}}, Not(Not(FixedRule(True)))),
    ({"authenticated": {}}, Authenticated(None)),
    ({"authenticated": {"principal_name": {"exact": "spiffe://a/b"}}}, Authenticated(exact("spiffe://a/b"))),
    ({"source_ip": prefix("10.0.0.0", 8)}, SourceIp(cidr("10.0.0.0/8"))),
    ({"direct_remote_ip": prefix("10.0.0.0", 8)}, DirectRemoteIp(cidr("10.0.0.0/8"))),
    ({"remote_ip": prefix("fe80::", 10)}, RemoteIp(cidr("fe80::/10"))),
    ({"header": HEADER}, HEADER_RULE),
    ({"url_path": PATH}, UrlPath(exact("/a"))),
    ({"metadata": METADATA}, FixedRule(False, "metadata")),
    ({"filter_state": {"key": "k", "string_match": {"exact": "v"}}}, FixedRule(False, "filter_state")),
    (custom(any_validated_client_certificate=True), MtlsAuthenticated(None)),
    (
        custom(san_matcher=san("DNS", exact="a")),
        MtlsAuthenticated(SanMatch(san_type=SanType.DNS, match=exact("a"))),
    ),
]
DEEP: dict[str, Any] = ANY
for _ in range(33):
    DEEP = {"not_rule": DEEP}

ACCEPTED: list[dict[str, Any]] = [
    *(rbac(each) for each, _ in PERMISSIONS),
    *(rbac(principal=each) for each, _ in PRINCIPALS),
    {"@type": RBAC},
    {"@type": RBAC, "rules": {"action": "LOG"}},
    {"@type": RBAC, "rules": rules(action="DENY"), "shadow_rules": rules(), "rules_stat_prefix": "a"},
]
BAD_PERMISSIONS: list[dict[str, Any]] = [
    {},
    {"any": False},
    {"and_rules": {}},
    {"or_rules": {"rules": []}},
    {"not_rule": {}},
    {"destination_ip": prefix("nonsense", 8)},
    {"destination_ip": prefix("10.0.0.0", 129)},
    {"destination_port": 65536},
    {"destination_port_range": {"start": 5, "end": 5}},
    {"destination_port_range": {"start": -1, "end": 5}},
    {"destination_port_range": {"start": 1, "end": 65537}},
    {"header": {"name": ""}},
    {"requested_server_name": {}},
    {"url_path": {}},
    template("no slash"),
    template("/**/*"),
    template("/{a}/{a}"),
]
BAD_PRINCIPALS: list[dict[str, Any]] = [
    {},
    {"and_ids": {}},
    {"remote_ip": prefix("x", 1)},
    custom(),
]
REFUSED: list[dict[str, Any]] = [
    *map(rbac, BAD_PERMISSIONS),
    *(rbac(principal=each) for each in BAD_PRINCIPALS),
    {"@type": RBAC, "rules": {"policies": {"p": {"permissions": [ANY]}}}},
    {"@type": RBAC, "rules": {"policies": {"p": {"principals": [ANY]}}}},
    {"@type": RBAC, "rules": {"action": 7}},
]
ONLY_HERE: list[tuple[dict[str, Any], str]] = [
    (rbac(DEEP), ""),
    (
        rbac({"sourced_metadata": {"metadata_matcher": METADATA, "metadata_source": "ROUTE"}}),
        "metadata_source",
    ),
    (
        {
            "@type": RBAC,
            "rules": {"policies": {"p": {"permissions": [ANY], "principals": [ANY], "condition": {}}}},
        },
        "condition",
    ),
    ({"@type": RBAC, "matcher": {}}, "matcher"),
    (
        rbac({"matcher": {"name": "x", "typed_config": ROUTER["typed_config"]}}),
        "matcher",
    ),
    (rbac({"header": {"name": "a", "string_match": {"safe_regex": {"regex": "("}}}}), "regex"),
]


@pytest.mark.parametrize(("permission", "expected"), PERMISSIONS)
def test_permissions(permission: dict[str, Any], expected: Rule) -> None:
    assert permission_of(permission) == expected


@pytest.mark.parametrize(("principal", "expected"), PRINCIPALS)
def test_principals(principal: dict[str, Any], expected: Rule) -> None:
    assert principal_of(principal) == expected


def test_policies_are_sorted_by_name() -> None:
    policy = {"permissions": [ANY], "principals": [ANY]}
    config = {"@type": RBAC, "rules": {"action": "DENY", "policies": {"b": policy, "a": policy, "c": policy}}}
    found = decode_rbac(config).rules
    assert found is not None
    assert found.action is RbacAction.DENY
    assert [each.name for each in found.policies] == ["a", "b", "c"]


def test_the_filter() -> None:
    found = decode_rbac(
        {
            "@type": RBAC,
            "shadow_rules": rules(action="LOG"),
            "rules_stat_prefix": "r",
            "shadow_rules_stat_prefix": "s",
            "track_per_rule_stats": True,
        }
    )
    assert found.rules is None
    assert found.shadow_rules is not None
    assert found.shadow_rules.action is RbacAction.LOG
    assert (found.rules_stat_prefix, found.shadow_rules_stat_prefix) == ("r", "s")
    assert found.track_per_rule_stats


@pytest.mark.parametrize("config", REFUSED)
def test_refused(config: dict[str, Any]) -> None:
    assert refused(proto.LISTENER, listener(config)).path.startswith(RULES)


@pytest.mark.parametrize(("config", "end"), ONLY_HERE)
def test_not_implemented(config: dict[str, Any], end: str) -> None:
    assert refused(proto.LISTENER, listener(config)).path.endswith(end)


def test_what_no_request_has_is_reported() -> None:
    config = rbac({"metadata": METADATA}, {"filter_state": {"key": "k", "string_match": {"exact": "v"}}})
    assert decoded(proto.LISTENER, listener(config)).unsupported == (
        f"{POLICY}.permissions[0].metadata",
        f"{POLICY}.principals[0].filter_state",
    )


def test_shadow_matchers_are_reported() -> None:
    config = {**rbac(), "shadow_matcher": {}, "shadow_rules": rules()}
    found = decoded(proto.LISTENER, listener(config))
    assert [path.rpartition(".")[2] for path in found.unsupported] == ["shadow_matcher"]
    assert decode_rbac(config).shadow_rules is None


def test_routes() -> None:
    overrides: dict[str, Any] = {
        "off": {"@type": PER_ROUTE},
        "other": {"@type": PER_ROUTE, "rbac": rbac() | {"@type": None}},
    }
    overrides["other"]["rbac"].pop("@type")
    found = decode_routes(route_config(typed_per_filter_config=overrides))
    configs = found.virtual_hosts[0].routes[0].typed_per_filter_config
    assert configs["off"] == Rbac()
    assert configs["other"] == decode_rbac(rbac())
    wrong = {"off": {"@type": RBAC}}
    assert refused(proto.ROUTE, route_config(typed_per_filter_config=wrong))


def test_clients_have_no_rbac() -> None:
    http = manager(http_filters=[{"name": "rbac", "typed_config": rbac()}, ROUTER])
    error = refused(proto.LISTENER, {"name": "l", "api_listener": {"api_listener": http}})
    assert error.path == "api_listener.api_listener.http_filters[0].typed_config"


def test_addresses() -> None:
    network = cidr("10.0.0.0/8")
    assert network.contains(ip_address("10.255.0.1"))
    assert not network.contains(ip_address("11.0.0.1"))
    assert not network.contains(ip_address("::ffff:10.0.0.1"))
    assert not network.contains(ip_address("/run/socket"))
    assert cidr("fe80::/10").contains(ip_address("fe80::1%eth0"))
    assert network.length == 8


@pytest.mark.parametrize(
    ("text", "matching", "others"),
    [
        ("/", ["/"], ["", "/a"]),
        ("/a/*/c", ["/a/b/c"], ["/a/c", "/a//c", "/a/b/b/c"]),
        ("/a/**", ["/a/", "/a/b/c"], ["/a", "/b/"]),
        ("/{x}/{y=b/*}", ["/1/b/2"], ["/1/c/2"]),
        ("/{x=**}.m3u8", ["/a/b.m3u8"], ["/a/b.m3u"]),
        ("/a.b", ["/a.b"], ["/axb"]),
        ("/a/", ["/a/"], ["/a"]),
        ("/ab*", ["/abbb", "/a"], ["/abc"]),  # Envoy leaves a star in a literal to the expression
    ],
)
def test_templates(text: str, matching: list[str], others: list[str]) -> None:
    regex = compile_template(text)
    for path in matching:
        assert regex.fullmatch(path), path
    for path in others:
        assert not regex.fullmatch(path), path


@pytest.mark.parametrize(
    "text",
    [
        *("", "a", "/ä", "/a b", "//", "/a//b", "/**/*", "/**/{x}", "/{x", "/{}", "/{1}", "/{x=}", "/{x=/a}"),
        *("/{x}{y}", "/*a/b", "/{a}/{a}", "/{a}/{b}/{c}/{d}/{e}/{f}", "/{abcdefghijklmnopq}", "/a**", "/[a]"),
    ],
)
def test_wrong_templates(text: str) -> None:
    with pytest.raises(TemplateError):
        compile_template(text)


def test_rules_on_routes_alone_leave_a_listener_to_clients() -> None:
    routes = route_config(typed_per_filter_config={"rbac": {"@type": PER_ROUTE}})
    assert isinstance(decoded(proto.LISTENER, socket_listener(route_config=routes)).resource, Listener)


def test_rules_in_a_typed_struct() -> None:
    struct = {"type_url": RBAC, "value": {"rules": rules()}}
    config = {"@type": "type.googleapis.com/xds.type.v3.TypedStruct", **struct}
    assert decode_rbac(config) == decode_rbac(rbac())

"""RBAC as a pure function: every kind of rule, every action, the order of policies, and what is counted."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshlib.policy.rbac import RbacFilter, RbacStats, Rules, Verdict
from meshlib.policy.rbac_request import Caller, InboundRequest, forwarded_address
from meshlib.policy.rbac_rules import compile_rule
from meshlib.resources.address import CidrRange, ip_address
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
    RbacPolicy,
    RbacRules,
    RemoteIp,
    RequestedServerName,
    Rule,
    SourceIp,
    UriTemplate,
    UrlPath,
)
from meshlib.resources.tls import SanMatch, SanType
from meshlib.runtime.regex import compile as compile_regex
from meshlib.stats import Registry

ID = "spiffe://td.example/ns/a/sa/cli"
ANY, NONE = FixedRule(True), FixedRule(False, "metadata")


def exact(value: str) -> StringMatch:
    return StringMatch(kind=StringKind.EXACT, value=value)


def prefix(value: str) -> StringMatch:
    return StringMatch(kind=StringKind.PREFIX, value=value)


def cidr(text: str) -> CidrRange:
    return CidrRange(ipaddress.ip_network(text))


CALLER = Caller(
    tls=True,
    certified=True,
    uri_sans=(ID,),
    dns_sans=("cli.example",),
    subject="CN=cli,O=lab",
    server_name="srv.example",
    local=ip_address("10.0.0.9"),
    local_port=8443,
    direct=ip_address("10.0.0.1"),
    san_matches=lambda match: match.match.value == ID,
)
PLAIN = Caller(local=ip_address("10.0.0.9"), local_port=8443, direct=ip_address("10.0.0.1"), server_name="")


def request(path: str = "/a/b?q=1", *, caller: Caller = CALLER, remote: str | None = None) -> InboundRequest:
    headers = [("x-team", "red"), ("x-team", "blue"), ("empty", "")]
    return InboundRequest(
        "GET", "https", "svc.example", path, headers, caller, None if remote is None else ip_address(remote)
    )


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (ANY, True),
        (NONE, False),
        (Not(NONE), True),
        (AllOf((ANY, ANY)), True),
        (AllOf((ANY, NONE)), False),
        (AnyOf((NONE, ANY)), True),
        (AnyOf((NONE, NONE)), False),
        (HeaderRule(HeaderMatch(name="x-team", string=exact("blue"))), True),
        (HeaderRule(HeaderMatch(name="x-team", string=exact("red,blue"))), False),
        (HeaderRule(HeaderMatch(name=":method", string=exact("GET"))), True),
        (HeaderRule(HeaderMatch(name=":path", string=exact("/a/b?q=1"))), True),
        (HeaderRule(HeaderMatch(name=":authority", string=exact("svc.example"))), True),
        (HeaderRule(HeaderMatch(name="host", string=exact("svc.example"))), True),
        (HeaderRule(HeaderMatch(name="absent", string=exact(""), invert=True)), False),
        (HeaderRule(HeaderMatch(name="empty", present=True)), True),
        (UrlPath(exact("/a/b")), True),
        (UrlPath(exact("/a/b?q=1")), False),
        (UrlPath(prefix("/a")), True),
        (UriTemplate("/{x}/b", compile_regex("/[^/]+/b")), True),
        (UriTemplate("/{x}", compile_regex("/[^/]+")), False),
        (DestinationIp(cidr("10.0.0.8/30")), True),
        (DestinationIp(cidr("10.0.0.0/30")), False),
        (DestinationIp(cidr("::/0")), False),
        (DestinationPort(8443, 8444), True),
        (DestinationPort(8000, 8443), False),
        (RequestedServerName(exact("srv.example")), True),
        (RequestedServerName(exact("")), False),
        (Authenticated(None), True),
        (Authenticated(exact(ID)), True),
        (Authenticated(exact("cli.example")), True),
        (Authenticated(exact("CN=cli,O=lab")), True),
        (Authenticated(prefix("spiffe://other/")), False),
        (MtlsAuthenticated(None), True),
        (MtlsAuthenticated(SanMatch(san_type=SanType.URI, match=exact(ID))), True),
        (MtlsAuthenticated(SanMatch(san_type=SanType.URI, match=exact("other"))), False),
        (SourceIp(cidr("10.0.0.1/32")), True),
        (DirectRemoteIp(cidr("10.0.0.0/31")), True),
        (DirectRemoteIp(cidr("10.0.0.2/31")), False),
        (RemoteIp(cidr("10.0.0.1/32")), True),
    ],
)
def test_rules(rule: Rule, expected: bool) -> None:
    assert compile_rule(rule)(request()) is expected


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (Authenticated(None), False),
        (Authenticated(exact("")), False),
        (MtlsAuthenticated(None), False),
        (MtlsAuthenticated(SanMatch(san_type=SanType.URI, match=prefix(""))), False),
        (RequestedServerName(exact("")), True),
    ],
)
def test_a_plaintext_caller_has_no_name(rule: Rule, expected: bool) -> None:
    assert compile_rule(rule)(request(caller=PLAIN)) is expected


def test_tls_without_a_certificate_is_authenticated_as_nobody() -> None:
    """Envoy's rule: `authenticated: {}` asks for TLS only; the subject is then the empty text."""
    anonymous = Caller(tls=True)
    assert compile_rule(Authenticated(None))(request(caller=anonymous))
    assert compile_rule(Authenticated(exact("")))(request(caller=anonymous))
    assert not compile_rule(Authenticated(prefix("spiffe:")))(request(caller=anonymous))
    assert not compile_rule(MtlsAuthenticated(None))(request(caller=anonymous))


def test_a_unix_socket_has_no_address() -> None:
    here = Caller()
    for rule in (DestinationIp(cidr("0.0.0.0/0")), DestinationPort(0, 65536), SourceIp(cidr("0.0.0.0/0"))):
        assert not compile_rule(rule)(request(caller=here))


def test_the_address_that_a_proxy_told_of() -> None:
    told = request(remote="192.0.2.7")
    assert compile_rule(RemoteIp(cidr("192.0.2.0/24")))(told)
    assert not compile_rule(DirectRemoteIp(cidr("192.0.2.0/24")))(told)


@pytest.mark.parametrize(
    ("path", "expected"), [("/a#b", True), ("/a?#", True), ("/a%3F", False), ("", False), ("/A", False)]
)
def test_the_path_is_compared_as_it_was_sent(path: str, expected: bool) -> None:
    assert compile_rule(UrlPath(exact("/a")))(request(path)) is expected


@pytest.mark.parametrize(
    ("values", "skip", "expected"),
    [
        ([], 0, None),
        (["192.0.2.1"], 0, "192.0.2.1"),
        (["192.0.2.1, 192.0.2.2"], 0, "192.0.2.2"),
        (["192.0.2.1, 192.0.2.2"], 1, "192.0.2.1"),
        (["192.0.2.1, 192.0.2.2"], 2, None),
        (["192.0.2.1", "192.0.2.2"], 1, "192.0.2.1"),
        (["192.0.2.1, unknown"], 0, None),
        (["2001:db8::1"], 0, "2001:db8::1"),
    ],
)
def test_x_forwarded_for(values: list[str], skip: int, expected: str | None) -> None:
    assert forwarded_address(values, skip) == (None if expected is None else ip_address(expected))


# --- policies --------------------------------------------------------------------------------------------------------


def rules(action: RbacAction, **policies: Rule) -> RbacRules:
    made = (
        RbacPolicy(name=name, permissions=(rule,), principals=(ANY,))
        for name, rule in sorted(policies.items())
    )
    return RbacRules(action=action, policies=tuple(made))


@pytest.mark.parametrize(
    ("action", "policies", "expected"),
    [
        (RbacAction.ALLOW, {}, Verdict(False)),
        (RbacAction.ALLOW, {"p": ANY}, Verdict(True, "p")),
        (RbacAction.ALLOW, {"p": NONE}, Verdict(False)),
        (RbacAction.ALLOW, {"b": ANY, "a": ANY}, Verdict(True, "a")),
        (RbacAction.DENY, {}, Verdict(True)),
        (RbacAction.DENY, {"p": ANY}, Verdict(False, "p")),
        (RbacAction.DENY, {"a": NONE, "b": ANY, "c": ANY}, Verdict(False, "b")),
        (RbacAction.DENY, {"p": NONE}, Verdict(True)),
        (RbacAction.LOG, {"p": ANY}, Verdict(True, "p", True)),
        (RbacAction.LOG, {"p": NONE}, Verdict(True)),
        (RbacAction.LOG, {}, Verdict(True)),
    ],
)
def test_actions(action: RbacAction, policies: Mapping[str, Rule], expected: Verdict) -> None:
    assert Rules(rules(action, **policies)).check(request()) == expected


@pytest.mark.parametrize("permitted", [ANY, NONE])
@pytest.mark.parametrize("principal", [ANY, NONE])
def test_a_policy_needs_both(permitted: FixedRule, principal: FixedRule) -> None:
    policy = RbacPolicy(name="p", permissions=(NONE, permitted), principals=(principal, NONE))
    checked = Rules(RbacRules(action=RbacAction.ALLOW, policies=(policy,))).check(request())
    assert checked.allowed is (permitted.matches and principal.matches)


trees: Any = st.recursive(
    st.sampled_from([ANY, NONE]),
    lambda inner: (
        st.builds(Not, inner)
        | st.builds(AllOf, st.lists(inner, min_size=1, max_size=3).map(tuple))
        | st.builds(AnyOf, st.lists(inner, min_size=1, max_size=3).map(tuple))
    ),
    max_leaves=20,
)


def truth(rule: Rule) -> bool:
    if isinstance(rule, Not):
        return not truth(rule.rule)
    if isinstance(rule, AllOf):
        return min(map(truth, rule.rules))
    if isinstance(rule, AnyOf):
        return max(map(truth, rule.rules))
    assert isinstance(rule, FixedRule)
    return rule.matches


@given(trees)
def test_trees(rule: Rule) -> None:
    assert compile_rule(rule)(request()) is truth(rule)


@given(trees)
def test_deny_and_allow_are_opposites(rule: Rule) -> None:
    allowed = Rules(rules(RbacAction.ALLOW, p=rule)).check(request()).allowed
    assert Rules(rules(RbacAction.DENY, p=rule)).check(request()).allowed is not allowed


def test_details() -> None:
    assert Verdict(False).details == "rbac_access_denied_matched_policy[none]"
    assert Verdict(False, "my policy\t1").details == "rbac_access_denied_matched_policy[my_policy_1]"


# --- the filter ------------------------------------------------------------------------------------------------------


def counted(registry: Registry) -> dict[str, float]:
    return {
        metric.name: metric.value for metric in registry if not hasattr(metric, "buckets") and metric.value
    }


def checked(config: Rbac, times: int = 1) -> tuple[Verdict | None, dict[str, float]]:
    registry = Registry()
    made = RbacFilter(config, RbacStats(registry, "http.in", config))
    verdict = None
    for _ in range(times):
        verdict = made.check(request())
    return verdict, counted(registry)


def test_nothing_configured_lets_everything_pass_uncounted() -> None:
    assert checked(Rbac()) == (None, {})


def test_what_is_refused_is_counted() -> None:
    verdict, stats = checked(Rbac(rules=rules(RbacAction.DENY, p=ANY)), times=2)
    assert verdict == Verdict(False, "p")
    assert stats == {"http.in.rbac.denied": 2}


def test_what_passes_is_counted() -> None:
    verdict, stats = checked(Rbac(rules=rules(RbacAction.ALLOW, p=ANY), rules_stat_prefix="mine."))
    assert verdict is None
    assert stats == {"http.in.rbac.mine.allowed": 1}


def test_shadow_rules_refuse_nothing() -> None:
    config = Rbac(
        rules=rules(RbacAction.ALLOW, p=ANY),
        shadow_rules=rules(RbacAction.DENY, s=ANY),
        shadow_rules_stat_prefix="dry",
        track_per_rule_stats=True,
    )
    verdict, stats = checked(config)
    assert verdict is None
    assert stats == {
        "http.in.rbac.allowed": 1,
        "http.in.rbac.policy.p.allowed": 1,
        "http.in.rbac.dry.shadow_denied": 1,
        "http.in.rbac.dry.policy.s.shadow_denied": 1,
    }


def test_families_and_labels_are_those_of_envoys_tag_extraction() -> None:
    """As a real Envoy 1.40 shows them at /stats/prometheus."""
    registry = Registry()
    config = Rbac(rules=rules(RbacAction.ALLOW, p=ANY), rules_stat_prefix="mine", track_per_rule_stats=True)
    for prefix in ("http.in", "net."):
        RbacFilter(config, RbacStats(registry, prefix, config)).check(request())
    found = {metric.name: (metric.family, dict(metric.labels)) for metric in registry}
    http = {"envoy_rbac_http_prefix": "mine", "envoy_http_conn_manager_prefix": "in"}
    assert found["http.in.rbac.mine.allowed"] == ("http.rbac.allowed", http)
    assert found["http.in.rbac.mine.policy.p.allowed"] == (
        "http.rbac.policy.allowed",
        {"envoy_rbac_policy_name": "p", **http},
    )
    assert found["http.in.rbac.shadow_denied"][1] == {"envoy_http_conn_manager_prefix": "in"}
    assert found["net.rbac.mine.allowed"] == ("rbac.mine.allowed", {"envoy_rbac_prefix": "net"})
    assert found["net.rbac.mine.policy.p.allowed"][0] == "rbac.mine.policy.p.allowed"

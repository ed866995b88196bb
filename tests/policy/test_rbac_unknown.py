"""What a server does not tell never opens a door: rules on properties that are unknown."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshlib.policy.rbac import RbacFilter, RbacStats, Rules, Verdict
from meshlib.policy.rbac_request import (
    AUTHORITY,
    CERTIFICATE,
    DESTINATION_IP,
    DESTINATION_PORT,
    DIRECT_IP,
    REMOTE_IP,
    SERVER_NAME,
    TLS,
    Caller,
    InboundRequest,
    header_property,
)
from meshlib.policy.rbac_rules import compile_rule, properties_of
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
    UrlPath,
)
from meshlib.resources.tls import SanMatch, SanType
from meshlib.stats import Registry

ANY, NONE = FixedRule(True), FixedRule(False)
TEAM = header_property("x-team")
KNOWN_BY_ALL = "/a"


def exact(value: str) -> StringMatch:
    return StringMatch(kind=StringKind.EXACT, value=value)


def within(text: str) -> CidrRange:
    return CidrRange(ipaddress.ip_network(text))


LEAVES: list[tuple[Rule, str | None]] = [
    (ANY, None),
    (NONE, None),
    (UrlPath(exact(KNOWN_BY_ALL)), None),
    (HeaderRule(HeaderMatch(name=":authority", string=exact("a"))), AUTHORITY),
    (HeaderRule(HeaderMatch(name="host", string=exact("a"), invert=True)), AUTHORITY),
    (HeaderRule(HeaderMatch(name="x-team", string=exact("a"))), TEAM),
    (HeaderRule(HeaderMatch(name="x-team", present=False)), TEAM),
    (DestinationIp(within("10.0.0.1/32")), DESTINATION_IP),
    (DestinationPort(1, 2), DESTINATION_PORT),
    (RequestedServerName(exact("a")), SERVER_NAME),
    (Authenticated(None), TLS),
    (Authenticated(exact("a")), CERTIFICATE),
    (MtlsAuthenticated(None), CERTIFICATE),
    (MtlsAuthenticated(SanMatch(san_type=SanType.URI, match=exact("a"))), CERTIFICATE),
    (SourceIp(within("10.0.0.1/32")), DIRECT_IP),
    (DirectRemoteIp(within("10.0.0.1/32")), DIRECT_IP),
    (RemoteIp(within("10.0.0.1/32")), REMOTE_IP),
]
"""Each kind of rule, and what it looks at that may be unknown."""

PROPERTIES = sorted({name for _, name in LEAVES if name is not None})


def request(values: dict[str, bool], path: str = KNOWN_BY_ALL, unknown: frozenset[str] = frozenset()) -> Any:
    """values: by property, whether a rule above finds there what it looks for."""
    here, there = ip_address("10.0.0.1"), ip_address("10.0.0.2")
    text = {name: "a" if fits else "b" for name, fits in values.items()}
    certified = values[CERTIFICATE]
    caller = Caller(
        tls=values[TLS] or certified,
        certified=certified,
        uri_sans=("a",) if certified else (),
        server_name=text[SERVER_NAME],
        local=here if values[DESTINATION_IP] else there,
        local_port=1 if values[DESTINATION_PORT] else 2,
        direct=here if values[DIRECT_IP] else there,
        san_matches=lambda match: certified,
    )
    return InboundRequest(
        "GET",
        "https",
        text[AUTHORITY],
        path,
        [("x-team", text[TEAM])],
        caller,
        here if values[REMOTE_IP] else there,
        unknown,
    )


trees: Any = st.recursive(
    st.sampled_from([rule for rule, _ in LEAVES]),
    lambda inner: (
        st.builds(Not, inner)
        | st.builds(AllOf, st.lists(inner, min_size=1, max_size=3).map(tuple))
        | st.builds(AnyOf, st.lists(inner, min_size=1, max_size=3).map(tuple))
    ),
    max_leaves=12,
)
policies: Any = st.lists(
    st.builds(
        lambda name, permissions, principals: RbacPolicy(
            name=name, permissions=tuple(permissions), principals=tuple(principals)
        ),
        st.sampled_from("abc"),
        st.lists(trees, min_size=1, max_size=2),
        st.lists(trees, min_size=1, max_size=2),
    ),
    max_size=3,
).map(lambda each: tuple(sorted(each, key=lambda policy: str(policy.name))))
configurations: Any = st.builds(
    lambda action, each: RbacRules(action=action, policies=each),
    st.sampled_from([RbacAction.ALLOW, RbacAction.DENY]),
    policies,
)
requests: Any = st.fixed_dictionaries({name: st.booleans() for name in PROPERTIES})
unknowns: Any = st.frozensets(st.sampled_from(PROPERTIES))
paths: Any = st.sampled_from([KNOWN_BY_ALL, "/b"])


@given(configurations, requests, paths, unknowns)
def test_what_is_unknown_never_turns_a_refusal_into_an_admission(
    rules: RbacRules, values: dict[str, bool], path: str, unknown: frozenset[str]
) -> None:
    checked = Rules(rules)
    if not checked.check(request(values, path)).allowed:
        assert not checked.check(request(values, path, unknown)).allowed


@given(configurations, requests, paths, unknowns, st.data())
def test_a_verdict_without_doubt_is_that_of_every_request_it_may_be(
    rules: RbacRules, values: dict[str, bool], path: str, unknown: frozenset[str], data: Any
) -> None:
    verdict = Rules(rules).check(request(values, path, unknown))
    assert set(verdict.unknown) <= unknown
    really = {**values, **{name: data.draw(st.booleans()) for name in sorted(unknown)}}
    if not verdict.unknown:
        assert Rules(rules).check(request(really, path)).allowed is verdict.allowed


@given(trees, requests, paths)
def test_what_is_known_is_never_in_doubt(rule: Rule, values: dict[str, bool], path: str) -> None:
    others = frozenset(PROPERTIES) - properties_of((rule,))
    answer = compile_rule(rule)(request(values, path))
    assert answer is not None
    assert compile_rule(rule)(request(values, path, others)) is answer


@pytest.mark.parametrize(("rule", "needed"), LEAVES)
def test_every_rule_says_what_it_looks_at(rule: Rule, needed: str | None) -> None:
    values = dict.fromkeys(PROPERTIES, True)
    for name in PROPERTIES:
        answer = compile_rule(rule)(request(values, unknown=frozenset((name,))))
        assert (answer is None) is (name == needed)
    assert properties_of((rule,)) == ({needed} - {None})


X: Rule = RequestedServerName(exact("a"))


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (X, None),
        (Not(X), None),
        (Not(Not(X)), None),
        (AnyOf((X, ANY)), True),
        (AnyOf((NONE, X)), None),
        (AllOf((X, NONE)), False),
        (AllOf((ANY, X)), None),
        (Not(AllOf((X, NONE))), True),
        (AnyOf((X, Not(X))), None),
    ],
)
def test_doubt_in_trees(rule: Rule, expected: bool | None) -> None:
    values = dict.fromkeys(PROPERTIES, True)
    assert compile_rule(rule)(request(values, unknown=frozenset((SERVER_NAME,)))) is expected


def rules_of(action: RbacAction, **named: Rule) -> RbacRules:
    made = (RbacPolicy(name=name, permissions=(rule,), principals=(ANY,)) for name, rule in named.items())
    return RbacRules(action=action, policies=tuple(made))


@pytest.mark.parametrize(
    ("action", "named", "expected"),
    [
        (RbacAction.ALLOW, {"p": X}, Verdict(False, "", unknown=(SERVER_NAME,))),
        (RbacAction.ALLOW, {"p": X, "q": ANY}, Verdict(True, "q")),
        (RbacAction.ALLOW, {"p": NONE}, Verdict(False)),
        (RbacAction.DENY, {"p": NONE, "q": X}, Verdict(False, "q", unknown=(SERVER_NAME,))),
        (RbacAction.DENY, {"p": Not(X)}, Verdict(False, "p", unknown=(SERVER_NAME,))),
        (RbacAction.DENY, {"p": X, "q": ANY}, Verdict(False, "q")),
        (RbacAction.DENY, {"p": AllOf((X, NONE))}, Verdict(True)),
        (RbacAction.LOG, {"p": X}, Verdict(True, "p", True, (SERVER_NAME,))),
        (
            RbacAction.DENY,
            {"p": X, "q": MtlsAuthenticated(None)},
            Verdict(False, "p", unknown=(CERTIFICATE, SERVER_NAME)),
        ),
    ],
)
def test_verdicts(action: RbacAction, named: dict[str, Rule], expected: Verdict) -> None:
    unknown = frozenset((SERVER_NAME, CERTIFICATE, TLS))
    checked = Rules(rules_of(action, **named))
    assert checked.check(request(dict.fromkeys(PROPERTIES, True), unknown=unknown)) == expected


def test_refusals_for_want_of_knowledge_are_counted_apart() -> None:
    registry = Registry()
    config = Rbac(
        rules=rules_of(RbacAction.DENY, p=X),
        shadow_rules=rules_of(RbacAction.ALLOW, s=X),
        shadow_rules_stat_prefix="dry",
    )
    made = RbacFilter(config, RbacStats(registry, "http.in", config))
    values = dict.fromkeys(PROPERTIES, True)
    assert made.check(request(values)) is not None
    assert made.check(request(values, unknown=frozenset((SERVER_NAME,)))) is not None
    values_of = ((metric.name, getattr(metric, "value", 0)) for metric in registry)
    counted = {name: value for name, value in values_of if value}
    assert counted == {
        "http.in.rbac.denied": 2,
        "http.in.rbac.denied_unknown": 1,
        "http.in.rbac.dry.shadow_allowed": 1,
        "http.in.rbac.dry.shadow_denied": 1,
        "http.in.rbac.dry.shadow_denied_unknown": 1,
    }

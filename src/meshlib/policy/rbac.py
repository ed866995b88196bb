"""Envoy's RBAC filter as a pure function of a request (extensions.filters.http.rbac.v3): who may do what.

Policies are tried in the order of their names; the first one that matches decides. ALLOW lets pass what a policy matches and
nothing else, DENY refuses it, LOG lets everything pass and says what is to be logged. Shadow rules are evaluated first, only
counted, and change nothing.

What nobody here knows of a request (`rbac_request`) never lets it pass: a policy of ALLOW that depends on it does not match, one
of DENY does.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from meshlib.policy.rbac_request import InboundRequest
from meshlib.policy.rbac_rules import all_of, any_of, properties_of
from meshlib.resources.rbac import Rbac, RbacAction, RbacPolicy, RbacRules
from meshlib.stats import Counter, Registry, Scope

__all__ = ["BODY", "RbacFilter", "RbacStats", "Rules", "Verdict"]

BODY = "RBAC: access denied"
"""Envoy's answer: status 403 with this body; PERMISSION_DENIED with this message for gRPC."""

_BLANK = re.compile(r"[ \t\n\v\f\r]")


@dataclass(frozen=True, slots=True)
class Verdict:
    """policy: the name of the policy that matched, empty for none. log: a LOG rule matched.

    unknown: what would have to be known to tell whether a policy matches, sorted; empty when the rest decided.
    """

    allowed: bool
    policy: str = ""
    log: bool = False
    unknown: tuple[str, ...] = ()

    @property
    def details(self) -> str:
        """Envoy's response code details of a refusal; blanks in the policy's name become `_`."""
        return f"rbac_access_denied_matched_policy[{_BLANK.sub('_', self.policy or 'none')}]"


class Rules:
    """One set of rules: config.rbac.v3.RBAC."""

    __slots__ = ("_action", "_policies")

    def __init__(self, rules: RbacRules) -> None:
        self._action = rules.action
        self._policies = tuple(_Policy(policy) for policy in rules.policies)

    def check(self, request: InboundRequest) -> Verdict:
        doubtful: list[_Policy] = []
        for policy in self._policies:
            answer = policy.matches(request)
            if answer:
                return self._verdict(True, policy.name)
            if answer is None:
                doubtful.append(policy)
        return self._doubt(doubtful, request) if doubtful else self._verdict(False, "")

    def _verdict(self, matched: bool, policy: str, unknown: tuple[str, ...] = ()) -> Verdict:
        if self._action is RbacAction.LOG:
            return Verdict(True, policy, matched, unknown)
        return Verdict(matched is (self._action is RbacAction.ALLOW), policy, unknown=unknown)

    def _doubt(self, policies: list[_Policy], request: InboundRequest) -> Verdict:
        """None of the policies surely matches, these may."""
        unknown = tuple(sorted(set().union(*(each.depends_on for each in policies)) & request.unknown))
        if self._action is RbacAction.ALLOW:
            return self._verdict(False, "", unknown)
        return self._verdict(True, policies[0].name, unknown)


class _Policy:
    __slots__ = ("depends_on", "matches", "name")

    def __init__(self, policy: RbacPolicy) -> None:
        self.name = policy.name
        self.matches = all_of((any_of(policy.permissions), any_of(policy.principals)))
        self.depends_on = properties_of(policy.permissions + policy.principals)


class RbacStats:
    """Envoy's counters of one filter: `PREFIX.rbac.[RULES_PREFIX.]allowed`, `denied`, `shadow_allowed`, `shadow_denied`, and
    with track_per_rule_stats the same below `policy.NAME.`.

    `denied_unknown`, `shadow_denied_unknown`: how many of the refusals are for want of something that the server does not tell.
    """

    __slots__ = (
        "_http",
        "_policies",
        "_rules",
        "_shadow",
        "allowed",
        "denied",
        "denied_unknown",
        "shadow_allowed",
        "shadow_denied",
        "shadow_denied_unknown",
    )

    def __init__(self, registry: Registry, prefix: str, config: Rbac) -> None:
        kind, _, name = prefix.partition(".")
        self._http = kind == "http"
        if self._http:
            whole = registry.scope("http", ("envoy_http_conn_manager_prefix", name)).scope("rbac")
        else:
            whole = registry.scope("", ("envoy_rbac_prefix", prefix)).scope("rbac")
        self._rules = self._part(whole, config.rules_stat_prefix)
        self._shadow = self._part(whole, config.shadow_rules_stat_prefix)
        self._policies: dict[tuple[str, str], Counter] = {}
        self.allowed = self._rules.counter("allowed")
        self.denied = self._rules.counter("denied")
        self.shadow_allowed = self._shadow.counter("shadow_allowed")
        self.shadow_denied = self._shadow.counter("shadow_denied")
        self.denied_unknown = self._rules.counter("denied_unknown")
        self.shadow_denied_unknown = self._shadow.counter("shadow_denied_unknown")

    def count(self, verdict: Verdict, *, shadow: bool, policies: bool) -> None:
        outcome = "allowed" if verdict.allowed else "denied"
        name = f"shadow_{outcome}" if shadow else outcome
        counter: Counter = getattr(self, name)
        counter.value += 1
        if verdict.unknown and not verdict.allowed:
            (self.shadow_denied_unknown if shadow else self.denied_unknown).value += 1
        if policies and verdict.policy:
            self._of_policy(verdict.policy, name, self._shadow if shadow else self._rules).value += 1

    def _of_policy(self, policy: str, name: str, rules: Scope) -> Counter:
        found = self._policies.get((policy, name))
        if found is None:
            if self._http:
                scope = rules.scope("policy", ("envoy_rbac_policy_name", policy))
            else:
                scope = rules.scope("policy").scope(policy)
            found = self._policies[policy, name] = scope.counter(name)
        return found

    def _part(self, whole: Scope, prefix: str) -> Scope:
        """Envoy makes a label of the rules' prefix in HTTP filters only."""
        prefix = prefix.rstrip(".")
        if not prefix:
            return whole
        return whole.scope("", ("envoy_rbac_http_prefix", prefix)) if self._http else whole.scope(prefix)


class RbacFilter:
    """One configuration of the filter, of the chain or of a route. Those of a route count into the filter's stats."""

    __slots__ = ("_per_policy", "_rules", "_shadow", "_stats", "config")

    def __init__(self, config: Rbac, stats: RbacStats) -> None:
        self.config = config
        self._stats = stats
        self._rules = None if config.rules is None else Rules(config.rules)
        self._shadow = None if config.shadow_rules is None else Rules(config.shadow_rules)
        self._per_policy = config.track_per_rule_stats

    def judge(self, request: InboundRequest) -> Verdict | None:
        """What the rules say, without counting it; None when there are none."""
        return None if self._rules is None else self._rules.check(request)

    def certain(self, request: InboundRequest) -> bool:
        """Nothing that is unknown matters to the rules, the shadow rules neither."""
        both = (self._rules, self._shadow)
        return not any(each.check(request).unknown for each in both if each is not None)

    def check(self, request: InboundRequest) -> Verdict | None:
        """The refusal; None when the request may pass."""
        if self._shadow is not None:
            self._stats.count(self._shadow.check(request), shadow=True, policies=self._per_policy)
        verdict = self.judge(request)
        if verdict is None:
            return None
        self._stats.count(verdict, shadow=False, policies=self._per_policy)
        return None if verdict.allowed else verdict

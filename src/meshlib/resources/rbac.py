"""Who may do what: extensions.filters.http.rbac.v3.RBAC and config.rbac.v3.

Permissions and principals are trees of the same few kinds of nodes; `Rule` names them all. A kind that stands only in one of
the two trees says so. What each node compares with comes from the request and from its connection.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

from meshlib.resources.address import CidrRange
from meshlib.resources.matching import HeaderMatch, StringMatch
from meshlib.resources.tls import SanMatch
from meshlib.runtime.regex import Regex

__all__ = [
    "AllOf",
    "AnyOf",
    "Authenticated",
    "DestinationIp",
    "DestinationPort",
    "DirectRemoteIp",
    "FixedRule",
    "HeaderRule",
    "MtlsAuthenticated",
    "Not",
    "Rbac",
    "RbacAction",
    "RbacPolicy",
    "RbacRules",
    "RemoteIp",
    "RequestedServerName",
    "Rule",
    "SourceIp",
    "UriTemplate",
    "UrlPath",
]


class RbacAction(Enum):
    """config.rbac.v3.RBAC.Action. LOG never refuses; it only says whether the request is to be logged."""

    ALLOW = 0
    DENY = 1
    LOG = 2


@dataclass(frozen=True, slots=True)
class AllOf:
    """and_rules, and_ids: every one matches. Never empty."""

    rules: tuple[Rule, ...]


@dataclass(frozen=True, slots=True)
class AnyOf:
    """or_rules, or_ids: at least one matches. Never empty."""

    rules: tuple[Rule, ...]


@dataclass(frozen=True, slots=True)
class Not:
    """not_rule, not_id."""

    rule: Rule


@dataclass(frozen=True, slots=True)
class FixedRule:
    """Always the same answer.

    field: `any`, which matches always; or a matcher on something that no request here has (`metadata`, `sourced_metadata`,
    `filter_state`), with the answer that Envoy gives when it is not there.
    """

    matches: bool
    field: str = "any"


@dataclass(frozen=True, slots=True)
class HeaderRule:
    """header: of the request, `:method`, `:path` and `:authority` among them."""

    match: HeaderMatch


@dataclass(frozen=True, slots=True)
class UrlPath:
    """url_path: the path without query and fragment."""

    match: StringMatch


@dataclass(frozen=True, slots=True)
class UriTemplate:
    """uri_template, permissions only. regex: matches the whole path without query and fragment. template: as written."""

    template: str
    regex: Regex


@dataclass(frozen=True, slots=True)
class DestinationIp:
    """destination_ip, permissions only: the address that the connection came to."""

    range: CidrRange


@dataclass(frozen=True, slots=True)
class DestinationPort:
    """destination_port (end is start + 1) and destination_port_range, [start, end); permissions only."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class RequestedServerName:
    """requested_server_name, permissions only: the SNI of the connection, lower case; the empty string without one."""

    match: StringMatch


@dataclass(frozen=True, slots=True)
class Authenticated:
    """authenticated, principals only: the connection is TLS, and with a match, that matches the peer.

    The URI SANs are tried, then the DNS SANs, then the subject (RFC 2253), which is empty without a certificate. None: any
    TLS connection, with or without a certificate of the client (Envoy's rule; `MtlsAuthenticated` asks for one).
    """

    match: StringMatch | None


@dataclass(frozen=True, slots=True)
class MtlsAuthenticated:
    """custom principal mtls_authenticated: the client has shown a certificate that was verified.

    san: one of its names of that type must match; None: any verified certificate.
    """

    san: SanMatch | None


@dataclass(frozen=True, slots=True)
class SourceIp:
    """source_ip (deprecated), principals only: the address of the connection's peer, which a PROXY header may have changed."""

    range: CidrRange


@dataclass(frozen=True, slots=True)
class DirectRemoteIp:
    """direct_remote_ip, principals only: the address that the connection physically comes from."""

    range: CidrRange


@dataclass(frozen=True, slots=True)
class RemoteIp:
    """remote_ip, principals only: the caller's address as x-forwarded-for or a PROXY header gives it, where they are trusted."""

    range: CidrRange


Rule: TypeAlias = (
    AllOf
    | AnyOf
    | Not
    | FixedRule
    | HeaderRule
    | UrlPath
    | UriTemplate
    | DestinationIp
    | DestinationPort
    | RequestedServerName
    | Authenticated
    | MtlsAuthenticated
    | SourceIp
    | DirectRemoteIp
    | RemoteIp
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RbacPolicy:
    """config.rbac.v3.Policy: matches when one of permissions and one of principals match. Neither is empty."""

    name: str
    permissions: tuple[Rule, ...]
    principals: tuple[Rule, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RbacRules:
    """config.rbac.v3.RBAC. policies: sorted by name; the first that matches is the one that decided.

    ALLOW lets pass what a policy matches (nothing, when there are none), DENY what none matches.
    """

    action: RbacAction
    policies: tuple[RbacPolicy, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Rbac:
    """The HTTP filter; on a route (RBACPerRoute) it takes the place of the filter's own.

    rules None: everything passes. shadow_rules: evaluated and counted, never enforced. per_route: this came from a route; with
    neither rules nor shadow_rules it switches the filter off there. stat_prefix: of the network filter, never empty there.
    """

    rules: RbacRules | None = None
    shadow_rules: RbacRules | None = None
    rules_stat_prefix: str = ""
    shadow_rules_stat_prefix: str = ""
    track_per_rule_stats: bool = False
    stat_prefix: str = ""

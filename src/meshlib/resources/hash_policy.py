"""What a request is hashed by (config.route.v3.RouteAction.HashPolicy), for the policies that balance by hash."""

from __future__ import annotations

from dataclasses import dataclass

from meshlib.resources.matching import RegexRewrite

__all__ = [
    "CHANNEL_ID",
    "ChannelIdHash",
    "CookieHash",
    "HashPolicy",
    "HeaderHash",
    "QueryParameterHash",
]

CHANNEL_ID = "io.grpc.channel_id"
"""The only filter state that can be hashed here: the random number of a gRPC channel (gRFC A42)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeaderHash:
    """All values of a header, sorted. name is lower case. regex_rewrite: changes each value before."""

    name: str
    regex_rewrite: RegexRewrite | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CookieHash:
    """The value of a cookie. ttl: whole seconds, 0 for a session cookie; None: a cookie that is missing is not made.

    path: empty for none. attributes: name and value of what else the new cookie says; an empty value is left out.
    """

    name: str
    ttl: int | None = None
    path: str = ""
    attributes: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryParameterHash:
    """The first value of a query parameter, not percent-decoded."""

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelIdHash:
    """`filter_state` with the key CHANNEL_ID: all calls of one gRPC channel have the same hash."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HashPolicy:
    """One entry of hash_policy. terminal: when there is a hash after this entry, those that follow are left out.

    by: None is an entry that never gives a hash (connection_properties, other filter state); its `terminal` still counts.
    """

    by: HeaderHash | CookieHash | QueryParameterHash | ChannelIdHash | None
    terminal: bool = False

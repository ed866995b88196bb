"""Hash policies: from protobuf to dataclasses. They stand in routes and in the policies that balance by hash."""

from __future__ import annotations

from meshlib.resources.decode_matching import regex_rewrite
from meshlib.resources.hash_policy import (
    CHANNEL_ID,
    ChannelIdHash,
    CookieHash,
    HashPolicy,
    HeaderHash,
    QueryParameterHash,
)
from meshlib.resources.reader import Reader

__all__ = ["hash_policies"]


def hash_policies(reader: Reader) -> tuple[HashPolicy, ...]:
    """The `hash_policy` of a RouteAction or ConsistentHashingLbConfig. Raises ResourceError."""
    found = (_hash_policy(entry) for entry in reader.each("hash_policy"))
    return tuple(policy for policy in found if policy is not None)


def _hash_policy(reader: Reader) -> HashPolicy | None:
    """None: an entry that says nothing, which Envoy leaves out with its `terminal`."""
    kind = reader.which("policy_specifier")
    terminal = reader.flag("terminal")
    if kind == "header":
        header = reader.required(kind)
        rewrite = header.child("regex_rewrite")
        return HashPolicy(
            by=HeaderHash(
                name=header.text("header_name").lower(),
                regex_rewrite=None if rewrite is None else regex_rewrite(rewrite),
            ),
            terminal=terminal,
        )
    if kind == "cookie":
        return HashPolicy(by=_cookie(reader.required(kind)), terminal=terminal)
    if kind == "query_parameter":
        name = reader.required(kind).text("name")
        return HashPolicy(by=QueryParameterHash(name=name), terminal=terminal)
    if kind == "filter_state":
        state = reader.required(kind)
        if state.text("key") == CHANNEL_ID:
            return HashPolicy(by=ChannelIdHash(), terminal=terminal)
        state.unsupported("key")
        return HashPolicy(by=None, terminal=terminal)
    connection = reader.required("connection_properties")
    if not connection.flag("source_ip"):
        return None
    connection.unsupported(
        "source_ip"
    )  # the caller is this process: there is no connection that it comes over
    return HashPolicy(by=None, terminal=terminal)


def _cookie(reader: Reader) -> CookieHash:
    ttl = reader.duration("ttl")
    return CookieHash(
        name=reader.text("name"),
        ttl=None if ttl is None else int(ttl),
        path=reader.text("path"),
        attributes=tuple((entry.text("name"), entry.text("value")) for entry in reader.each("attributes")),
    )

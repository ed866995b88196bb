"""The hash of a request (RouteAction.hash_policy), as Envoy computes it: 64 bits, xxHash64 throughout.

Each entry gives a hash or none. Hashes are combined in order, `hash = rotate_left(hash, 1) ^ next`, which keeps two equal
entries from cancelling each other out; an entry that is terminal ends the list once there is a hash. A request without
any hash goes to a random host.

The values are those of the request as it goes upstream, after the route's edits and rewrites. Text is hashed as the bytes
that it has on the wire.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from xxhash import xxh64_intdigest

from meshlib.resources.hash_policy import (
    ChannelIdHash,
    CookieHash,
    HashPolicy,
    HeaderHash,
    QueryParameterHash,
)
from meshlib.routing.matchers.query import parse_query
from meshlib.routing.request import RequestView

__all__ = ["HashOf", "NewCookie", "compile_hash_policy", "cookie_value", "set_cookie"]

NewCookie = Callable[[CookieHash], str]
"""Makes the value of a cookie that the request does not have, and sees to it that the response sets it."""

HashOf = Callable[[RequestView, NewCookie | None], int | None]
"""The hash of a request, None when it has none. Without a NewCookie no cookie is made."""

_ALL = 2**64 - 1


def compile_hash_policy(policies: Sequence[HashPolicy]) -> HashOf | None:
    """One function for the whole list; None when there is nothing to hash by."""
    parts = [(_part(policy), policy.terminal) for policy in policies]
    if not parts:
        return None
    if len(parts) == 1:
        return parts[0][0]

    def combined(request: RequestView, new_cookie: NewCookie | None) -> int | None:
        found: int | None = None
        for part, terminal in parts:
            value = part(request, new_cookie)
            if value is not None:
                found = value if found is None else (found << 1 & _ALL | found >> 63) ^ value
            if terminal and found is not None:
                break
        return found

    return combined


def set_cookie(cookie: CookieHash, value: str) -> str:
    """The `set-cookie` of a new cookie, in Envoy's order and spelling."""
    pieces = [f'{cookie.name}="{value}"']
    if cookie.ttl:
        pieces.append(f"Max-Age={cookie.ttl}")
    if cookie.path:
        pieces.append(f"Path={cookie.path}")
    pieces += [f"{name}={text}" if text else name for name, text in cookie.attributes]
    return "; ".join([*pieces, "HttpOnly"])


def cookie_value(request: RequestView, name: str) -> str:
    """The value of the first cookie with this name, without its quotes; empty when there is none."""
    for header in request.values("cookie"):
        for pair in header.split(";"):
            key, equals, value = pair.lstrip(" ").partition("=")
            if equals and key == name:
                return value[1:-1] if len(value) >= 2 and value[0] == value[-1] == '"' else value
    return ""


def _part(policy: HashPolicy) -> HashOf:
    by = policy.by
    if isinstance(by, HeaderHash):
        return _by_header(by)
    if isinstance(by, CookieHash):
        return _by_cookie(by)
    if isinstance(by, QueryParameterHash):
        return _by_query(by.name)
    if isinstance(by, ChannelIdHash):
        return lambda request, _: request.channel_id
    return lambda _request, _: None


def _by_header(by: HeaderHash) -> HashOf:
    name, rewrite = by.name, by.regex_rewrite

    def of_header(request: RequestView, _: NewCookie | None) -> int | None:
        values = request.values(name)
        if not values:
            return None
        if rewrite is not None:
            values = [rewrite.pattern.sub(rewrite.substitution, value) for value in values]
        if len(values) == 1:
            return xxh64_intdigest(_wire(values[0]))
        found = 0
        for value in sorted(map(_wire, values)):
            found = xxh64_intdigest(value, found)
        return found

    return of_header


def _by_cookie(by: CookieHash) -> HashOf:
    def of_cookie(request: RequestView, new_cookie: NewCookie | None) -> int | None:
        value = cookie_value(request, by.name)
        if not value and by.ttl is not None and new_cookie is not None:
            value = new_cookie(by)
        return xxh64_intdigest(_wire(value)) if value else None

    return of_cookie


def _by_query(name: str) -> HashOf:
    def of_query(request: RequestView, _: NewCookie | None) -> int | None:
        value = parse_query(request.path).get(name)
        return None if value is None else xxh64_intdigest(_wire(value))

    return of_query


def _wire(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")

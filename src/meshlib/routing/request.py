"""A request as routing sees it, whatever the transport."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from typing import Protocol

__all__ = ["Headers", "KnownHeaders", "RequestView", "ResponseView", "values_by_name"]

Headers = list[tuple[str, str]]

BELOW = float(2**53)
"""Random numbers of requests are below: as many as `random()` gives. They are small enough for quick arithmetic."""


class KnownHeaders(Protocol):
    """Request headers in the forms that routing needs, made when it asks for them."""

    def listed(self) -> Headers:
        """Lower-case names without pseudo headers, in order. The caller's own list."""

    def by_name(self) -> Mapping[str, list[str]]:
        """The values of each name, in order. Read only: other requests may share it."""


class RequestView:
    """Method, authority, path and headers of one request.

    target: `host:port`, what the Listener is looked up by. authority: the Host (`:authority`). path: with the query, as on
    the wire. headers: lower-case names without pseudo headers, in order; or what makes them, so that a request whose route
    looks at no header never pays for them. channel_id: a random 64-bit number of the gRPC channel that the call is made on,
    None for HTTP. likeness: requests with the same one are the same to any route (`CompiledRoute.steady`); None: nobody says so.
    """

    channel_id: int | None = None
    likeness: str | None = None
    _headers: Headers | None = None
    _known: KnownHeaders | None
    _by_name: Mapping[str, list[str]] | None = None
    _random: int | None = None

    def __init__(
        self,
        method: str,
        scheme: str,
        authority: str,
        path: str,
        headers: Headers | KnownHeaders,
        target: str = "",
        channel_id: int | None = None,
    ) -> None:
        self.method = method
        self.scheme = scheme
        self.authority = authority
        self.path = path
        self.target = target or authority
        if channel_id is not None:
            self.channel_id = channel_id
        if isinstance(headers, list):
            self._headers = headers
            self._known = None
        else:
            self._known = headers

    @property
    def headers(self) -> Headers:
        if self._headers is None:
            assert self._known is not None
            self._headers = self._known.listed()
        return self._headers

    def draw(self, random: Random) -> int:
        """The request's random number, 53 bits. Envoy has one for each stream: runtime fractions and weights share it."""
        value = self._random
        if value is None:
            value = self._random = int(random.random() * BELOW)
        return value

    def values(self, name: str) -> list[str]:
        """Every value of the header, in order. Empty when it is not there.

        Pseudo headers have one; `host` is `:authority`.
        """
        if name[0] == ":":
            return self._pseudo(name)
        if name == "host":
            return [self.authority]
        by_name = self._by_name
        if by_name is None:
            known = self._known
            by_name = self._by_name = values_by_name(self.headers) if known is None else known.by_name()
        return by_name.get(name, [])

    def has(self, name: str) -> bool:
        """Whether there is such a header; no pseudo header, and not `host`."""
        by_name = self._by_name
        if by_name is None:
            known = self._known
            if known is None:
                return name in dict(self.headers)
            by_name = self._by_name = known.by_name()
        return name in by_name

    def first(self, name: str) -> str | None:
        values = self.values(name)
        return values[0] if values else None

    def add(self, name: str, value: str) -> None:
        """Add a header at the end; the list that was given stays as it is."""
        self._headers = [*self.headers, (name, value)]
        self._known = self._by_name = self.likeness = None

    def replace(self, name: str, value: str) -> None:
        """Give the header one value, where its first one stands; the list that was given stays as it is."""
        rest = [pair for pair in self.headers if pair[0] != name]
        place = next((index for index, pair in enumerate(self.headers) if pair[0] == name), len(rest))
        self._headers = [*rest[:place], (name, value), *rest[place:]]
        self._known = self._by_name = self.likeness = None

    def _pseudo(self, name: str) -> list[str]:
        if name == ":path":
            return [self.path]
        if name == ":method":
            return [self.method]
        if name == ":authority":
            return [self.authority]
        return [self.scheme] if name == ":scheme" else []


def values_by_name(headers: Headers) -> dict[str, list[str]]:
    """The values of each name, in order."""
    by_name: dict[str, list[str]] = {}
    for name, value in headers:
        by_name.setdefault(name, []).append(value)
    return by_name


class ResponseView:
    """Status and headers (lower-case names, in order) of one response."""

    __slots__ = ("headers", "status")

    def __init__(self, status: int, headers: Sequence[tuple[str, str]]) -> None:
        self.status = status
        self.headers = headers

    def values(self, name: str) -> list[str]:
        """Every value of the header, in order. Empty when it is not there. `:status` is a header."""
        if name == ":status":
            return [str(self.status)]
        return [value for key, value in self.headers if key == name]

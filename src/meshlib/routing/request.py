"""A request as routing sees it, whatever the transport."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

__all__ = ["Headers", "RequestView", "ResponseView"]

Headers = list[tuple[str, str]]


class RequestView:
    """Method, authority, path and headers of one request.

    target: `host:port`, what the Listener is looked up by. authority: the Host (`:authority`). path: with the query, as on
    the wire. headers: lower-case names without pseudo headers, in order; may be given as a function that makes them, so
    that a request whose route looks at no header never pays for them.
    """

    __slots__ = (
        "_by_name",
        "_headers",
        "_make_headers",
        "_random",
        "authority",
        "method",
        "path",
        "scheme",
        "target",
    )

    def __init__(
        self,
        *,
        method: str,
        scheme: str,
        authority: str,
        path: str,
        headers: Headers | Callable[[], Headers],
        target: str = "",
    ) -> None:
        self.method = method
        self.scheme = scheme
        self.authority = authority
        self.path = path
        self.target = target or authority
        self._make_headers: Callable[[], Headers] | None = None
        self._headers: Headers | None = None
        if callable(headers):
            self._make_headers = headers
        else:
            self._headers = headers
        self._by_name: dict[str, list[str]] | None = None
        self._random: int | None = None

    @property
    def headers(self) -> Headers:
        if self._headers is None:
            assert self._make_headers is not None
            self._headers = self._make_headers()
        return self._headers

    def draw(self, random: Random) -> int:
        """The request's random number, 64 bits. Envoy has one for each stream: runtime fractions and weights share it."""
        value = self._random
        if value is None:
            value = self._random = random.getrandbits(64)
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
            by_name = self._by_name = {}
            for key, value in self.headers:
                by_name.setdefault(key, []).append(value)
        return by_name.get(name, [])

    def first(self, name: str) -> str | None:
        values = self.values(name)
        return values[0] if values else None

    def _pseudo(self, name: str) -> list[str]:
        if name == ":path":
            return [self.path]
        if name == ":method":
            return [self.method]
        if name == ":authority":
            return [self.authority]
        return [self.scheme] if name == ":scheme" else []


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

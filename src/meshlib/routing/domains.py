"""The domain search: which virtual host an authority belongs to.

Envoy's order (config.route.v3.VirtualHost.domains): the exact domain, then the longest suffix wildcard (`*.example.com`),
then the longest prefix wildcard (`example.*`), then `*`. A wildcard covers at least one character. Letter case does not
matter. The search costs one dictionary look-up for an exact domain, and one for each distinct wildcard length otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Generic, TypeVar

from meshlib.routing.authority import ascii_lower, without_port

__all__ = ["DomainIndex"]

T = TypeVar("T")


class DomainIndex(Generic[T]):
    """Domains of all virtual hosts to what belongs to them. No domain may stand twice."""

    __slots__ = (
        "_default",
        "_exact",
        "_ignore_port",
        "_prefix",
        "_prefix_lengths",
        "_suffix",
        "_suffix_lengths",
    )

    def __init__(self, entries: Iterable[tuple[str, T]], *, ignore_port: bool = False) -> None:
        """entries: (domain, value). ignore_port: cut the port from the authority, never from the domain."""
        self._exact: dict[str, T] = {}
        self._suffix: dict[str, T] = {}
        self._prefix: dict[str, T] = {}
        self._default: T | None = None
        self._ignore_port = ignore_port
        for domain, value in entries:
            domain = ascii_lower(domain)
            if domain == "*":
                self._default = value
            elif domain.startswith("*"):
                self._suffix[domain[1:]] = value
            elif domain.endswith("*"):
                self._prefix[domain[:-1]] = value
            else:
                self._exact[domain] = value
        self._suffix_lengths = sorted({len(text) for text in self._suffix}, reverse=True)
        self._prefix_lengths = sorted({len(text) for text in self._prefix}, reverse=True)

    def find(self, authority: str) -> T | None:
        """The value for this authority (any letter case), None when no domain matches."""
        if self._ignore_port:
            authority = without_port(authority)
        found = self._exact.get(authority)
        if found is not None:
            return found
        host = ascii_lower(authority)
        found = self._exact.get(host)
        if found is not None:
            return found
        size = len(host)
        for length in self._suffix_lengths:
            if length < size and (found := self._suffix.get(host[size - length :])) is not None:
                return found
        for length in self._prefix_lengths:
            if length < size and (found := self._prefix.get(host[:length])) is not None:
                return found
        return self._default

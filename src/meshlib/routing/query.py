"""The query of a path as %QUERY_PARAM% and %QUERY_PARAMS% show it (seen on Envoy 1.40)."""

from __future__ import annotations

import re

__all__ = ["decoded_query", "parameter", "query_of"]

_ESCAPE = re.compile(b"%([0-9A-Fa-f]{2})")
_ANY_ESCAPE = re.compile("%([0-9A-Fa-f]{2})?(?=(..)?)", re.DOTALL)
_KEPT = frozenset(range(0x21)) | frozenset(b'"<>\\^{|}') | frozenset(range(0x7F, 0x100))
"""Bytes that stay percent-encoded in a decoded query."""


def query_of(path: str) -> str | None:
    """What comes after the `?`; None when there is none."""
    _, mark, query = path.partition("?")
    return query if mark else None


def parameter(path: str, name: str) -> str | None:
    """The first value of the parameter, percent-decoded as its name is; `+` stays. None when it is not there."""
    query = query_of(path)
    if not query:
        return None
    for pair in query.split("&"):
        key, _, value = pair.partition("=")
        if _decode(key) == name:
            return _decode(value)
    return None


def _decode(text: str) -> str:
    if "%" not in text:
        return text
    data = text.encode("utf-8", "surrogateescape")
    return _ESCAPE.sub(lambda match: bytes.fromhex(match[1].decode()), data).decode(
        "utf-8", "surrogateescape"
    )


def decoded_query(query: str) -> str:
    """The query with what is harmless in it decoded. A `%` with two characters after it that are no digits is dropped."""

    def shown(match: re.Match[str]) -> str:
        digits = match[1]
        if digits is None:
            return "" if match[2] else "%"
        byte = int(digits, 16)
        return match[0] if byte in _KEPT else chr(byte)

    return _ANY_ESCAPE.sub(shown, query)

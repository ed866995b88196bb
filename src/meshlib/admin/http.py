"""What an admin is asked and what it answers, whichever way the bytes come."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import parse_qsl

__all__ = ["SECURITY_HEADERS", "Live", "Reply", "Request", "json_reply", "text_reply"]

_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)

SECURITY_HEADERS = (
    ("content-security-policy", _POLICY),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-resource-policy", "same-origin"),
    ("cross-origin-opener-policy", "same-origin"),
)
"""On every answer. There is no CORS: no other site may read one."""

_MOST_PARAMETERS = 64


class Live(Protocol):
    """A body that goes on and on."""

    def take(self) -> bytes | None:
        """What there is by now, maybe nothing; None: it is over. Never blocks."""

    def wait(self, seconds: float) -> None:
        """Until there is something, at most so long. Blocks."""

    def close(self) -> None:
        """Nobody reads it any longer. Idempotent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """path: decoded, without the query. query: the last value of each name. headers: lower-case names.

    local: the other end is this machine, or this user by a Unix socket. trusted: it came by the Unix socket, which only this
    user can open.
    """

    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    local: bool = True
    trusted: bool = False

    @staticmethod
    def parameters(query: str) -> dict[str, str]:
        """Of a query string; a name without a value has the empty one. Raises ValueError when there are too many."""
        return dict(parse_qsl(query, keep_blank_values=True, max_num_fields=_MOST_PARAMETERS))

    def flag(self, name: str) -> bool:
        """Given, and not as a no: `?usedonly`, `?include_eds=1`."""
        value = self.query.get(name)
        return value is not None and value.lower() not in ("0", "false", "off", "no")

    def number(self, name: str, default: int, *, most: int) -> int:
        """Raises ValueError: it is not a number from 0 to `most`."""
        text = self.query.get(name)
        if text is None:
            return default
        if not (text.isascii() and text.isdigit()) or int(text[:12]) > most:
            raise ValueError(f"{name} must be a number from 0 to {most}")
        return int(text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """headers: beyond content-type, content-length and the security headers; lower-case names."""

    status: int = 200
    content_type: str = "text/plain; charset=utf-8"
    body: bytes | Live = b""
    headers: tuple[tuple[str, str], ...] = ()

    def all_headers(self) -> list[tuple[str, str]]:
        """In the order in which they go out."""
        found = [("content-type", self.content_type)]
        if isinstance(self.body, bytes):
            found.append(("content-length", str(len(self.body))))
        if not any(name == "cache-control" for name, _ in self.headers):
            found.append(("cache-control", "no-store"))
        return [*found, *self.headers, *SECURITY_HEADERS]


def text_reply(text: str, status: int = 200, *headers: tuple[str, str]) -> Reply:
    return Reply(status=status, body=text.encode("utf-8", "replace"), headers=headers)


def json_reply(
    value: Any,
    request: Request | None = None,
    *,
    indent: int | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Reply:
    """value as JSON. With the request: 304 when the client has it already (If-None-Match).

    extra: put at the beginning of the object, and no part of what is compared: the time of the answer, for example.
    """
    separators = (",", ":") if indent is None else None
    body = json.dumps(value, indent=indent, separators=separators, default=str).encode()
    headers: tuple[tuple[str, str], ...] = ()
    if request is not None:
        tag = f'"{hashlib.blake2b(body, digest_size=12).hexdigest()}"'
        headers = (("etag", tag), ("cache-control", "no-cache"))
        if tag in request.headers.get("if-none-match", ""):
            return Reply(status=304, content_type="application/json", headers=headers)
    if extra:
        first = json.dumps(extra, separators=separators, default=str).encode()
        body = first[:-1] + b"," + body[1:] if body != b"{}" else first
    return Reply(content_type="application/json", body=body, headers=headers)

"""The last step of every answer that no upstream gave: its length and its type."""

from __future__ import annotations

from meshlib.errors import LocalReply
from meshlib.routing.request import Headers

__all__ = ["BODILESS", "finish_reply"]

BODILESS = frozenset({204, 304})
"""Statuses whose response has no body, whatever was configured."""


def finish_reply(status: int, headers: Headers, body: bytes) -> LocalReply:
    """Add content-length, and content-type where the edits gave none. A length that the edits gave is replaced.

    Envoy announces the length and type of a body that the status forbids; it is not sent all the same.
    """
    headers = [
        pair for pair in headers if pair[0] != "content-length" and (body or pair[0] != "content-type")
    ]
    if body or status not in BODILESS:
        headers.append(("content-length", str(len(body))))
    if body and not any(name == "content-type" for name, _ in headers):
        headers.append(("content-type", "text/plain"))
    return LocalReply(status, tuple(headers), b"" if status in BODILESS else body)

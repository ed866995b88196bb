"""One request and one response, as codecs and connections pass them on."""

from __future__ import annotations

from collections.abc import Sequence

from meshlib.transport.http.interned import HeaderBlock, blocks

__all__ = [
    "MAX_HEADERS",
    "MAX_HEADER_BYTES",
    "OutgoingRequest",
    "RawHeaders",
    "Response",
    "content_length",
    "pairs",
]

RawHeaders = Sequence[tuple[bytes, bytes]]

MAX_HEADERS = 100
"""config.core.v3.HttpProtocolOptions.max_headers_count: its default."""

MAX_HEADER_BYTES = 80 * 1024
"""The size of all response headers together that Envoy takes from an upstream by default (seen: 76 KiB pass, 86 KiB do not)."""


def content_length(headers: RawHeaders) -> int | None:
    """The declared length, None when there is none or when it is not a number."""
    for name, value in headers:
        if len(name) == 14 and name.lower() == b"content-length" and value.isdigit():
            return int(value)
    return None


class OutgoingRequest:
    """A request of one attempt.

    headers: as the application gave them or as the engine made them; a Host among them is replaced by authority. block: the
    same in the forms that are kept for the next request. extra: headers that no other request has, which are not kept. body:
    complete bytes; None when it is streamed, then its framing is chunked unless the headers have a Content-Length.
    """

    __slots__ = ("authority", "block", "body", "extra", "method", "path")

    def __init__(
        self,
        method: bytes,
        path: bytes,
        authority: bytes,
        headers: RawHeaders | HeaderBlock,
        body: bytes | None = b"",
        extra: RawHeaders = (),
    ) -> None:
        self.method = method
        self.path = path
        self.authority = authority
        self.block = headers if isinstance(headers, HeaderBlock) else blocks[tuple(headers)]
        self.body = body
        self.extra = extra

    @property
    def headers(self) -> RawHeaders:
        return self.block.raw


class Response:
    """A response while it arrives.

    status: 0 until the headers are there. fields: the headers, name, value, name, value, ...; trailing: the trailers likewise
    (a tuple for each would be so many more objects for the garbage collector, of every response that has arrived and waits for
    its task). chunks: the part of the body that nobody has taken. complete: nothing follows. version, reason: as in the
    status line, b"HTTP/2" and empty for HTTP/2. failed: why no more will come.
    """

    __slots__ = ("chunks", "complete", "failed", "fields", "reason", "status", "trailing", "version")

    def __init__(self) -> None:
        self.status = 0
        self.reason = b""
        self.version = b"HTTP/1.1"
        self.fields: list[bytes] = []
        self.trailing: Sequence[bytes] = ()
        self.chunks: list[bytes] = []
        self.complete = False
        self.failed: Exception | None = None

    @property
    def headers(self) -> RawHeaders:
        """In order, as they came."""
        return pairs(self.fields)

    @property
    def trailers(self) -> RawHeaders:
        return pairs(self.trailing)

    def take(self) -> bytes:
        """The body that arrived since the last time; empty when there is none."""
        chunks = self.chunks
        if not chunks:
            return b""
        body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        chunks.clear()
        return body


def pairs(fields: Sequence[bytes]) -> RawHeaders:
    """From name, value, name, value, ... to headers."""
    return list(zip(fields[::2], fields[1::2], strict=True))

"""Metadata of grpcio to headers of the engine, and back.

Values of `-bin` keys are bytes to the application and unpadded base64 to the engine, as on the wire.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import overload
from urllib.parse import quote, unquote

from meshlib.routing.request import Headers

__all__ = [
    "LazyHeaders",
    "Metadata",
    "decode_message",
    "encode_message",
    "to_headers",
    "to_metadata",
    "trailers_of",
]

Metadata = Sequence[tuple[str, str | bytes]]

RESERVED = frozenset(
    (
        "connection",
        "content-length",
        "content-type",
        "grpc-accept-encoding",
        "grpc-encoding",
        "grpc-message",
        "grpc-status",
        "grpc-timeout",
        "host",
        "keep-alive",
        "proxy-connection",
        "te",
        "transfer-encoding",
        "user-agent",
    )
)
"""Headers that grpcio writes and reads itself: they are no metadata."""


def to_headers(metadata: Iterable[tuple[str, str | bytes]] | None) -> Headers:
    """As the engine sees it: lower-case names, text values."""
    if not metadata:
        return []
    return [(key.lower(), value if isinstance(value, str) else _text(key, value)) for key, value in metadata]


def _text(key: str, value: bytes) -> str:
    if key.endswith("-bin"):
        return base64.b64encode(value).rstrip(b"=").decode("ascii")
    return value.decode("utf-8", "surrogateescape")


def to_metadata(headers: Iterable[tuple[str, str]]) -> tuple[tuple[str, str | bytes], ...]:
    """What of these headers is metadata, in the form that grpcio takes and gives."""
    return tuple(
        (name, _bytes(value) if name.endswith("-bin") else value)
        for name, value in headers
        if name not in RESERVED and name[0] != ":"
    )


def _bytes(text: str) -> bytes:
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        return text.encode("utf-8", "surrogateescape")


def encode_message(text: str) -> str:
    """As it stands in grpc-message: percent-encoded."""
    return quote(text, safe=" !\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~") if text else ""


def decode_message(text: str) -> str:
    return unquote(text, errors="replace") if "%" in text else text


class LazyHeaders(Sequence[tuple[str, str]]):
    """The headers of a response, converted when the engine looks at them, which it seldom does.

    source: gives the metadata (`call.initial_metadata`).
    """

    __slots__ = ("_headers", "_source")

    def __init__(self, source: Callable[[], Iterable[tuple[str, str | bytes]] | None]) -> None:
        self._source = source
        self._headers: Headers | None = None

    def _all(self) -> Headers:
        if self._headers is None:
            self._headers = to_headers(self._source())
        return self._headers

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    @overload
    def __getitem__(self, index: int) -> tuple[str, str]: ...
    @overload
    def __getitem__(self, index: slice) -> Headers: ...
    def __getitem__(self, index: int | slice) -> tuple[str, str] | Headers:
        return self._all()[index]


def trailers_of(metadata: Callable[[], Iterable[tuple[str, str | bytes]] | None]) -> Headers:
    """The trailers of a call that went well, with the status that grpcio keeps apart. metadata: `call.trailing_metadata`."""
    return [("grpc-status", "0"), *to_headers(metadata())]

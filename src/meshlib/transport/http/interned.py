"""Request headers in the forms that are needed again and again.

A client sends nearly the same headers with each of its requests. What it costs to check and to convert one is paid when it
is first met; afterwards it costs one look-up, and one look-up for all of them when they come together again. Forms of
values that are long, or that are secrets, are not kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from meshlib.routing.request import Headers, values_by_name
from meshlib.transport.http.failure import InvalidRequest

__all__ = ["CODING", "HOST", "LENGTH", "HeaderBlock", "HeaderForm", "blocks", "forms", "once"]

LENGTH, CODING, HOST = 1, 2, 4
"""The headers that frame a message, and the one that the authority replaces."""

_SPECIAL = {b"content-length": LENGTH, b"transfer-encoding": CODING, b"host": HOST}
_SECRET = frozenset({b"authorization", b"proxy-authorization", b"cookie"})
_LONGEST_VALUE = 256
_KEPT = 2048
_BLOCKS_KEPT = 256

_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+").fullmatch
_BREAK = re.compile(rb"[\r\n\0]").search


class HeaderForm(NamedTuple):
    """line: as it goes over HTTP/1.1, with its line end; None when it cannot, `error` says why. kind: LENGTH, CODING, HOST, or 0.

    decoded: as the engine sees it, with a lower-case name; bytes that are not UTF-8 survive the way back.
    """

    line: bytes | None
    kind: int
    decoded: tuple[str, str]
    error: str


def _form(name: bytes, value: bytes) -> HeaderForm:
    value = value.strip(b" \t")  # blanks around a value are none of it (RFC 9112, 5.1)
    decoded = (name.decode("ascii", "replace").lower(), value.decode("utf-8", "surrogateescape"))
    error = ""
    if not _TOKEN(name):
        error = f"not a header name: {name!r}"
    elif _BREAK(value):
        error = f"the value of {decoded[0]} contains a line break or a NUL"
    line = None if error else b"%b: %b\r\n" % (name, value)
    return HeaderForm(line, _SPECIAL.get(name.lower(), 0), decoded, error)


def _may_be_kept(name: bytes, value: bytes) -> bool:
    return len(value) <= _LONGEST_VALUE and name.lower() not in _SECRET


class _Forms(dict[tuple[bytes, bytes], HeaderForm]):
    """`forms[name, value]`: always there."""

    def __missing__(self, header: tuple[bytes, bytes]) -> HeaderForm:
        name, value = header
        form = _form(name, value)
        if _may_be_kept(name, value):
            if len(self) >= _KEPT:
                self.clear()
            self[header] = form
        return form


forms = _Forms()
"""Of all requests of the process; made anew when it is full."""


def once(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The lines of headers that no other request has. Raises InvalidRequest for one that cannot be sent."""
    lines = b""
    for name, value in headers:
        if not _TOKEN(name) or _BREAK(value):
            raise InvalidRequest(_form(name, value).error)
        lines += b"%b: %b\r\n" % (name, value)
    return lines


class HeaderBlock:
    """All headers of a request.

    raw: as the application gave them. lines: as they go over HTTP/1.1, without Host. kinds: of all of them, or-ed. error: why
    they cannot be sent, empty when they can. To the engine it is what its RequestView asks for headers.
    """

    __slots__ = ("_by_name", "_decoded", "error", "kinds", "lines", "raw")

    def __init__(self, headers: tuple[tuple[bytes, bytes], ...]) -> None:
        self.raw = headers
        known = [form for form in [forms[header] for header in headers] if form.kind != HOST]
        self.error = next((form.error for form in known if form.error), "")
        self.lines = b"".join([form.line or b"" for form in known])
        self.kinds = 0
        for form in known:
            self.kinds |= form.kind
        self._decoded = [form.decoded for form in known]
        self._by_name: dict[str, list[str]] | None = None

    def listed(self) -> Headers:
        return self._decoded.copy()

    def by_name(self) -> dict[str, list[str]]:
        by_name = self._by_name
        if by_name is None:
            by_name = self._by_name = values_by_name(self._decoded)
        return by_name


class _Blocks(dict[tuple[tuple[bytes, bytes], ...], HeaderBlock]):
    """`blocks[tuple(headers)]`: always there."""

    def __missing__(self, headers: tuple[tuple[bytes, bytes], ...]) -> HeaderBlock:
        block = HeaderBlock(headers)
        if all(_may_be_kept(name, value) for name, value in headers):
            if len(self) >= _BLOCKS_KEPT:
                self.clear()
            self[headers] = block
        return block


blocks = _Blocks()
"""Of all requests of the process; made anew when it is full."""

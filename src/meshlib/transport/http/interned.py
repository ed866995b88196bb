"""Request headers in the forms that are needed again and again.

A client sends nearly the same headers with each of its requests. What it costs to check and to convert one is paid when it
is first met; afterwards it costs one look-up. Forms of values that are long, or that are secrets, are not kept.
"""

from __future__ import annotations

import re
from typing import NamedTuple

__all__ = ["CODING", "HOST", "LENGTH", "HeaderForm", "forms"]

LENGTH, CODING, HOST = 1, 2, 4
"""The headers that frame a message, and the one that the authority replaces."""

_SPECIAL = {b"content-length": LENGTH, b"transfer-encoding": CODING, b"host": HOST}
_SECRET = frozenset({b"authorization", b"proxy-authorization", b"cookie"})
_LONGEST_VALUE = 256
_KEPT = 2048

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
    decoded = (name.decode("ascii", "replace").lower(), value.decode("utf-8", "surrogateescape"))
    error = ""
    if not _TOKEN(name):
        error = f"not a header name: {name!r}"
    elif _BREAK(value):
        error = f"the value of {decoded[0]} contains a line break or a NUL"
    line = None if error else b"%b: %b\r\n" % (name, value)
    return HeaderForm(line, _SPECIAL.get(name.lower(), 0), decoded, error)


class _Forms(dict[tuple[bytes, bytes], HeaderForm]):
    """`forms[name, value]`: always there."""

    def __missing__(self, header: tuple[bytes, bytes]) -> HeaderForm:
        name, value = header
        form = _form(name, value)
        if len(value) <= _LONGEST_VALUE and name.lower() not in _SECRET:
            if len(self) >= _KEPT:
                self.clear()
            self[header] = form
        return form


forms = _Forms()
"""Of all requests of the process; made anew when it is full."""

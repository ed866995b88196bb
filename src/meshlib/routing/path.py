"""What is done to the path before routes are searched: the HttpConnectionManager's path_with_escaped_slashes_action,
normalize_path and merge_slashes, in this order. The query stays as it is.

normalize_path first takes parameters away from segments `.` and `..` (`/a/..;x=1/b`), where they are written out between
slashes (of `/%2e%2e;/` they stay); those of other segments stay. Then comes the canonical form that Chromium gives the path of a
URL, byte by byte and in one pass: `.` and `..` are resolved, written out or as `%2e`; a backslash is a slash; letters, digits,
`-`, `_` and `~` are unescaped; what must not stand in a path is escaped. Every other escape stays as it was sent, in its own
case, and so does a `%` that begins none. So that unescaping makes no escape that was not there (`%%300` must not become `%00`),
such a `%` is then written `%25`. An escaped NUL makes the path invalid. All of it as seen on Envoy 1.40, byte for byte.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import Enum
from typing import NamedTuple

from meshlib.errors import LocalReply
from meshlib.resources.listener import HttpConnectionManager, PathWithEscapedSlashesAction

__all__ = [
    "NormalPath",
    "PathAction",
    "canonical_path",
    "compile_path",
    "merged_slashes",
    "redirect_to",
    "unescaped_slashes",
]

_SETTLED = re.compile(r"/(?:[A-Za-z0-9_~!$&'()*+,;:=@/\[\]-]|(?<!/)\.)*")
"""A path that is its own canonical form: no escapes, no segment that begins with a dot."""

_ESCAPED_SLASH = re.compile("%(?:2[Ff]|5[Cc])")
_SLASHES = re.compile("//+")
_DOT = re.compile(rb"\.|%2[Ee]")
_RELATIVE = re.compile(rb"(\.|%2[Ee])?(?:[/\\]|\Z)")
"""What follows a dot in a segment `.` or `..`; the group is the second dot."""

_DOTS_WITH_PARAMETERS = re.compile(r"(?<=/)(\.\.?);[^/]*")
_ESCAPE = re.compile(rb"%[0-9A-Fa-f]{2}")
_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_~")
_KEPT = _UNRESERVED | frozenset(b"!$&'()*+,/:;=@[]")
_PERCENT, _BACKSLASH = b"%\\"
_NONE = -4


class PathAction(Enum):
    """What becomes of the request: it goes on with the new path, is sent there (307), or is refused (400)."""

    CONTINUE = "continue"
    REDIRECT = "redirect"
    REJECT = "reject"


class NormalPath(NamedTuple):
    """path: with the query; the very object that was given when nothing has changed, or when it is rejected."""

    path: str
    action: PathAction


def compile_path(http: HttpConnectionManager, encoding: str = "utf-8") -> Callable[[str], NormalPath] | None:
    """What the HttpConnectionManager does to the path before routing and upstream; None when it leaves it alone.

    encoding: by which the bytes of the request's target became text, with `surrogateescape`. A target that is no path (`*`)
    is left alone.
    """
    escaped = http.path_with_escaped_slashes_action
    keeps_escaped = escaped in (
        PathWithEscapedSlashesAction.IMPLEMENTATION_SPECIFIC_DEFAULT,
        PathWithEscapedSlashesAction.KEEP_UNCHANGED,
    )
    normalize, merge = http.normalize_path, http.merge_slashes
    if keeps_escaped and not normalize and not merge:
        return None

    def normalise(given: str) -> NormalPath:
        if given[:1] != "/":
            return NormalPath(given, PathAction.CONTINUE)
        action = PathAction.CONTINUE
        before, mark, query = given.partition("?")
        path = before
        if not keeps_escaped:
            path = unescaped_slashes(before)
            if path != before:
                if escaped is PathWithEscapedSlashesAction.REJECT_REQUEST:
                    return NormalPath(given, PathAction.REJECT)
                if escaped is PathWithEscapedSlashesAction.UNESCAPE_AND_REDIRECT:
                    action = PathAction.REDIRECT
        if normalize:
            canonical = canonical_path(path, encoding)
            if canonical is None:
                return NormalPath(given, PathAction.REJECT)
            path = canonical
        if merge:
            path = merged_slashes(path)
        return NormalPath(given if path == before else path + mark + query, action)

    return normalise


def redirect_to(path: str) -> LocalReply:
    """The answer of PathAction.REDIRECT."""
    return LocalReply(307, (("location", path), ("content-length", "0")))


def unescaped_slashes(path: str) -> str:
    """The path with `%2F` as a slash and `%5C` as a backslash."""
    return _ESCAPED_SLASH.sub(lambda found: "/" if found[0][1] == "2" else "\\", path)


def merged_slashes(path: str) -> str:
    """The path with one slash for several in a row; of nothing but slashes two are left, as in Envoy."""
    if "//" not in path:
        return path
    return _SLASHES.sub("/", path) if path.strip("/") else "//"


def canonical_path(path: str, encoding: str = "utf-8") -> str | None:
    """The canonical form of a path without a query, see the module's text; None: it is invalid."""
    if _SETTLED.fullmatch(path):
        return path
    given = _octets(_DOTS_WITH_PARAMETERS.sub(r"\1", path), encoding)
    out = bytearray() if given[:1] in (b"/", b"\\") else bytearray(b"/")
    stray = _NONE  # where in `out` the last % stands that begins no escape
    index, end, valid = 0, len(given), True
    while index < end:
        dot = _DOT.match(given, index)
        if dot is not None:
            index = dot.end()
            relative = _RELATIVE.match(given, index) if out[-1:] == b"/" else None
            if relative is None:
                out += b"."
                continue
            index = relative.end()
            if relative[1] is not None:
                del out[max(out.rfind(b"/", 0, len(out) - 1), 0) + 1 :]
                stray = _NONE
            continue
        octet = given[index]
        index += 1
        if octet in _KEPT:
            out.append(octet)
        elif octet == _BACKSLASH:
            out += b"/"
        elif octet != _PERCENT:
            valid = valid and octet != 0
            out += b"%%%02X" % octet
        elif _ESCAPE.match(given, index - 1) is None:
            stray = len(out)
            out += b"%"
        else:
            index += 2
            value = int(given[index - 2 : index], 16)
            if value not in _UNRESERVED:
                valid = valid and value != 0
                out += given[index - 3 : index]
                continue
            out.append(value)
            if stray >= len(out) - 3:
                _escape_stray(out, stray, given[index : index + 1])
    return out.decode("ascii") if valid else None


def _escape_stray(out: bytearray, stray: int, following: bytes) -> None:
    """Write the stray % as `%25` when it has become, with what was just unescaped, the beginning of an escape.

    following: the next octet that was given, which may complete it; empty at the end.
    """
    if stray == len(out) - 2:
        if _is_escape(out[stray:] + following):
            out[stray + 1 :] = b"25" + out[stray + 1 :]
    elif _is_escape(out[stray:]):
        out[stray + 1 :] = b"25" + out[stray + 1 :]


def _is_escape(octets: bytearray) -> bool:
    """Whether two hexadecimal digits follow the first octet, whatever that is."""
    return _ESCAPE.fullmatch(b"%" + octets[1:]) is not None


def _octets(path: str, encoding: str) -> bytes:
    try:
        return path.encode(encoding, "surrogateescape")
    except UnicodeEncodeError:
        return path.encode("utf-8", "surrogatepass")

"""SubjectAltNameMatcher (extensions.transport_sockets.tls.v3)."""

from __future__ import annotations

import re

from meshlib.resources.decode_matching import string_match
from meshlib.resources.reader import Reader
from meshlib.resources.tls import SanMatch, SanType

__all__ = ["san_match"]

_TYPES = {kind.value: kind for kind in SanType}
_OID = re.compile(r"[0-2](?:\.(?:0|[1-9][0-9]{0,38})){1,32}", re.ASCII)


def san_match(reader: Reader) -> SanMatch:
    """Raises ResourceError."""
    kind = reader.enum("san_type", _TYPES)
    oid = reader.text("oid")
    if kind is SanType.OTHER_NAME:
        if not _OID.fullmatch(oid):
            raise reader.fail(
                "oid",
                "an OTHER_NAME needs the dotted number of its type" if not oid else f"{oid!r} is no OID",
            )
    elif oid:
        reader.leave("oid")  # Envoy looks at it for OTHER_NAME only
    return SanMatch(
        san_type=kind,
        match=string_match(reader.required("matcher")),
        oid=oid if kind is SanType.OTHER_NAME else "",
    )

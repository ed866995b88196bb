"""SPIFFE ids: the text `spiffe://trust-domain/path` of an X.509-SVID's URI SAN (SPIFFE-ID specification, sections 2.1 to 2.4)."""

from __future__ import annotations

import re

from meshlib.errors import IdentityError

__all__ = ["MAX_ID", "MAX_TRUST_DOMAIN", "SCHEME", "SpiffeId", "check_trust_domain"]

MAX_ID = 2048
"""Bytes of a whole id (section 2.3)."""

MAX_TRUST_DOMAIN = 255
"""Bytes of a trust domain's name (section 2.1)."""

SCHEME = "spiffe://"
SHOWN = 80

# \Z, not $: that would let a newline at the end through.
_TRUST_DOMAIN = re.compile(r"[a-z0-9._-]+\Z")
_SEGMENT = re.compile(r"[A-Za-z0-9._-]+\Z")


def check_trust_domain(name: str) -> str:
    """The name itself when it is one of a trust domain: lower-case letters, digits, `.`, `-`, `_`; 1 to 255 of them.

    Raises:
        IdentityError: it is not; the text says why.
    """
    if not name:
        raise IdentityError("a trust domain's name is missing")
    if len(name) > MAX_TRUST_DOMAIN:
        raise IdentityError(
            f"a trust domain's name has more than {MAX_TRUST_DOMAIN} characters", got=_short(name)
        )
    if _TRUST_DOMAIN.match(name) is None:
        raise IdentityError(
            f"{_short(name)!r} is not a trust domain: only a-z, 0-9, '.', '-' and '_' are allowed",
            got=_short(name),
        )
    return name


class SpiffeId:
    """A valid SPIFFE id. Immutable, hashable, equal to an id of the same text; `str` gives that text.

    trust_domain: its name, lower case. path: empty, or `/` and segments; never ends with `/`. Nothing is ever normalised: a
    text that another reader could take for a different id is refused.
    """

    __slots__ = ("_text", "path", "trust_domain")

    trust_domain: str
    path: str
    _text: str

    def __init__(self, trust_domain: str, path: str = "") -> None:
        """Raises: IdentityError, as `parse`."""
        text = f"{SCHEME}{trust_domain}{path}"
        if len(text) > MAX_ID:
            raise IdentityError(f"a SPIFFE id has more than {MAX_ID} characters", got=_short(text))
        check_trust_domain(trust_domain)
        _check_path(path, text)
        object.__setattr__(self, "trust_domain", trust_domain)
        object.__setattr__(self, "path", path)
        object.__setattr__(self, "_text", text)

    @classmethod
    def parse(cls, text: str) -> SpiffeId:
        """Read `spiffe://trust-domain/path`.

        Raises:
            IdentityError: upper case in scheme or trust domain, user, port, query, fragment, percent-encoding, an empty or dot
                segment, a slash at the end, more than 2048 bytes, or anything else that is not ASCII letters, digits and `.-_`.
        """
        if len(text) > MAX_ID:
            raise IdentityError(f"a SPIFFE id has more than {MAX_ID} characters", got=_short(text))
        if not text.startswith(SCHEME):
            raise IdentityError(
                f"{_short(text)!r} is not a SPIFFE id: it does not begin with {SCHEME}", got=_short(text)
            )
        trust_domain, slash, rest = text[len(SCHEME) :].partition("/")
        return cls(trust_domain, slash + rest)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("a SpiffeId does not change")

    def __delattr__(self, name: str) -> None:
        raise AttributeError("a SpiffeId does not change")

    def __str__(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return f"SpiffeId.parse({self._text!r})"

    def __eq__(self, other: object) -> bool:
        return self._text == other._text if isinstance(other, SpiffeId) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._text)

    def __reduce__(self) -> tuple[object, ...]:
        return SpiffeId, (self.trust_domain, self.path)


def _check_path(path: str, text: str) -> None:
    if not path:
        return
    if not path.startswith("/"):
        raise IdentityError(
            f"the path of the SPIFFE id {_short(text)!r} does not begin with '/'", got=_short(text)
        )
    for segment in path[1:].split("/"):
        if not segment:
            raise IdentityError(f"the SPIFFE id {_short(text)!r} has an empty path segment", got=_short(text))
        if segment in (".", ".."):
            raise IdentityError(f"the SPIFFE id {_short(text)!r} has a dot segment", got=_short(text))
        if _SEGMENT.match(segment) is None:
            raise IdentityError(
                f"the path of the SPIFFE id {_short(text)!r} has characters other than letters, digits, '.', '-' and '_'",
                got=_short(text),
            )


def _short(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."

"""x-forwarded-client-cert: who called the proxies before this server, as Envoy writes and reads it.

The value is a list of elements, one for each hop, the first hop first. An element is a list of `key=value` pairs, separated by
semicolons; elements are separated by commas. A value in double quotes may contain both, and `\\"` for a quote.

    By=spiffe://td/ns/a/sa/web;Hash=468e...;Subject="CN=cli,O=lab";URI=spiffe://td/ns/a/sa/cli,By=...

Nothing here decides whom to believe: `trust` does (`TrustedPeers`), and the middleware of each framework asks it first.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Literal, Protocol
from urllib.parse import quote, unquote

__all__ = [
    "DETAILS",
    "HEADER",
    "MAX_BYTES",
    "Certified",
    "Detail",
    "Mode",
    "TrustedPeers",
    "XfccElement",
    "XfccError",
    "describe",
    "forwarded",
    "parse",
    "render",
]

HEADER = "x-forwarded-client-cert"

MAX_BYTES = 60 * 1024
"""A longer value is refused: Envoy allows 60 KiB for all headers of a request."""

Mode = Literal["SANITIZE", "FORWARD_ONLY", "APPEND_FORWARD", "SANITIZE_SET", "ALWAYS_FORWARD_ONLY"]
"""HttpConnectionManager.forward_client_cert_details."""

Detail = Literal["cert", "chain", "subject", "uri", "dns"]
"""HttpConnectionManager.set_current_client_cert_details; they are written in this order."""

DETAILS: tuple[Detail, ...] = ("cert", "chain", "subject", "uri", "dns")
_KEYS = {
    "by": "by",
    "hash": "hash",
    "cert": "cert",
    "chain": "chain",
    "subject": "subject",
    "uri": "uri",
    "dns": "dns",
}
_REPEATED = ("by", "uri", "dns")
_QUOTED = frozenset(',;="')
_PEM_SAFE = "-_.~"
_WELL_FORMED = re.compile(r'(?:[^"\\]|\\.)*', re.DOTALL)
"""RFC 2253 text, which has its own escapes: it stands in the quotes as it is."""
_ESCAPED = re.compile(r'"|\\(?=["\\]|\Z)')
"""A quote, and a backslash that would otherwise be read together with what follows. `CN=a\\,b` stays as Envoy writes it."""


class XfccError(ValueError):
    """The header does not have the form that Envoy gives it. Nothing of it may be believed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class XfccElement:
    """What one hop says about its own caller.

    by: URI SANs of the hop's own certificate. hash: SHA-256 of the caller's certificate, hexadecimal. cert, chain: PEM.
    subject: RFC 2253 text, escapes included; None when it is not given, which differs from an empty one. uri, dns: the caller's
    SANs; uri is one empty text where the hop says that there is none.
    """

    by: tuple[str, ...] = ()
    hash: str = ""
    cert: str = ""
    chain: str = ""
    subject: str | None = None
    uri: tuple[str, ...] = ()
    dns: tuple[str, ...] = ()


class Certified(Protocol):
    """Who is at the other end of a TLS connection, as far as this header says it."""

    @property
    def sha256(self) -> str: ...
    @property
    def subject(self) -> str: ...
    @property
    def uri_sans(self) -> Sequence[str]: ...
    @property
    def dns_sans(self) -> Sequence[str]: ...


# --- reading ---------------------------------------------------------------------------------------------------------


def parse(value: str) -> tuple[XfccElement, ...]:
    """The elements, that of the first hop first. An empty value has none.

    Unknown keys are left out, as a later version may add some. By, URI and DNS may stand several times.

    Raises:
        XfccError: a quote that does not end, something after it, a pair without `=`, a key that stands twice, a value that is
            too long.
    """
    if len(value) > MAX_BYTES:
        raise XfccError(f"longer than {MAX_BYTES} bytes")
    if not value.strip():
        return ()
    return tuple(_element(text) for text in _split(value, ","))


def _split(text: str, separator: str) -> list[str]:
    """The parts between separators that stand outside quotes."""
    parts: list[str] = []
    start, quoted, escaped = 0, False, False
    for index, char in enumerate(text):
        if escaped:
            escaped = False
        elif char == "\\":
            escaped = quoted
        elif char == '"':
            quoted = not quoted
        elif char == separator and not quoted:
            parts.append(text[start:index])
            start = index + 1
    if quoted:
        raise XfccError("a quote does not end")
    parts.append(text[start:])
    return parts


def _element(text: str) -> XfccElement:
    repeated: dict[str, list[str]] = {key: [] for key in _REPEATED}
    single: dict[str, str] = {}
    for pair in _split(text, ";"):
        if not pair.strip():
            continue
        key, equals, raw = pair.partition("=")
        if not equals:
            raise XfccError(f"{pair.strip()[:40]!r} is no key=value pair")
        name = _KEYS.get(key.strip().lower())
        if name is None:
            continue
        value = _unquoted(raw.strip())
        if name == "subject" and raw.strip().startswith('"'):
            value = raw.strip()[1:-1]
        if name in repeated:
            repeated[name].append(value)
        elif name in single:
            raise XfccError(f"the key {key.strip()} stands twice in one element")
        else:
            single[name] = unquote(value) if name in ("cert", "chain") else value
    return XfccElement(
        by=tuple(filter(None, repeated["by"])),
        uri=tuple(filter(None, repeated["uri"])) or tuple(repeated["uri"][:1]),
        dns=tuple(filter(None, repeated["dns"])),
        hash=single.get("hash", ""),
        cert=single.get("cert", ""),
        chain=single.get("chain", ""),
        subject=single.get("subject"),
    )


def _unquoted(raw: str) -> str:
    if not raw.startswith('"'):
        if '"' in raw:
            raise XfccError("a quote in the middle of a value")
        return raw
    out: list[str] = []
    index, end = 1, len(raw)
    while index < end:
        char = raw[index]
        if char == '"':
            if index != end - 1:
                raise XfccError("something stands after a quoted value")
            return "".join(out)
        if char == "\\" and index + 1 < end and raw[index + 1] in '"\\':
            index += 1
            char = raw[index]
        out.append(char)
        index += 1
    raise XfccError("a quote does not end")


# --- writing ---------------------------------------------------------------------------------------------------------


def render(elements: Iterable[XfccElement]) -> str:
    """The header's value; `parse` gives the same elements back.

    Raises:
        XfccError: a value has a line break or another control character, which no header may have.
    """
    return ",".join(_rendered(element) for element in elements)


def _rendered(element: XfccElement) -> str:
    pairs = [f"By={_value(uri)}" for uri in element.by]
    if element.hash:
        pairs.append(f"Hash={_value(element.hash)}")
    if element.cert:
        pairs.append(f'Cert="{quote(element.cert, safe=_PEM_SAFE)}"')
    if element.chain:
        pairs.append(f'Chain="{quote(element.chain, safe=_PEM_SAFE)}"')
    if element.subject is not None:
        whole = _WELL_FORMED.fullmatch(element.subject) is not None
        pairs.append(
            f'Subject="{_checked(element.subject)}"' if whole else f"Subject={_quoted(element.subject)}"
        )
    pairs.extend(f"URI={_value(uri)}" for uri in element.uri)
    pairs.extend(f"DNS={_value(name)}" for name in element.dns)
    return ";".join(pairs)


def _value(text: str) -> str:
    if _QUOTED.isdisjoint(text) and text == text.strip() and "\\" not in text:
        return _checked(text)
    return _quoted(text)


def _quoted(text: str) -> str:
    return '"' + _ESCAPED.sub(r"\\\g<0>", _checked(text)) + '"'


def _checked(text: str) -> str:
    if any(char < " " or char == "\x7f" for char in text):
        raise XfccError("a control character in a value")
    return text


def describe(
    peer: Certified,
    *,
    own_uris: Sequence[str] = (),
    details: Iterable[Detail] = ("subject", "uri"),
    cert: str = "",
    chain: str = "",
) -> XfccElement:
    """The element that says who called this server.

    own_uris: URI SANs of the server's certificate. details: what to say beside By and Hash. cert, chain: PEM, for the details of
    that name.
    """
    wanted = frozenset(details)
    if unknown := wanted.difference(DETAILS):
        raise XfccError(f"no detail is named {', '.join(sorted(unknown))}")
    return XfccElement(
        by=tuple(own_uris),
        hash=peer.sha256,
        cert=cert if "cert" in wanted else "",
        chain=chain if "chain" in wanted else "",
        subject=peer.subject if "subject" in wanted else None,
        uri=(tuple(peer.uri_sans) or ("",)) if "uri" in wanted else (),
        dns=tuple(peer.dns_sans) if "dns" in wanted else (),
    )


def forwarded(mode: Mode, inbound: str | None, element: XfccElement | None) -> str | None:
    """The header that goes on with the request; None for none.

    inbound: what the caller sent. element: about the caller, None when it showed no certificate: then Envoy drops the header in
    every mode but ALWAYS_FORWARD_ONLY.
    """
    if mode == "ALWAYS_FORWARD_ONLY":
        return inbound
    if mode == "SANITIZE" or element is None:
        return None
    if mode == "FORWARD_ONLY":
        return inbound
    own = render([element])
    return f"{inbound},{own}" if mode == "APPEND_FORWARD" and inbound else own


# --- trusting --------------------------------------------------------------------------------------------------------


class TrustedPeers:
    """Whose x-forwarded-client-cert is believed: nobody's, unless it is named here.

    spiffe_ids: exact ids, or a prefix that ends in `/*`. addresses: IP addresses or networks of direct callers (`10.0.0.0/8`);
    an address is no proof of anything where callers can choose theirs.

    Raises:
        ValueError: an address that is none, or an id that does not start with `spiffe://`.
    """

    __slots__ = ("_exact", "_networks", "_prefixes")

    def __init__(self, spiffe_ids: Iterable[str] = (), addresses: Iterable[str] = ()) -> None:
        ids = tuple(spiffe_ids)
        for each in ids:
            if not each.startswith("spiffe://") or len(each) <= len("spiffe://"):
                raise ValueError(f"{each!r} is no SPIFFE id")
        self._exact = frozenset(each for each in ids if not each.endswith("/*"))
        self._prefixes = tuple(each[:-1] for each in ids if each.endswith("/*"))
        self._networks = tuple(ip_network(each, strict=False) for each in addresses)

    def __bool__(self) -> bool:
        return bool(self._exact or self._prefixes or self._networks)

    def trusts(self, spiffe_id: str | None, address: str | None) -> bool:
        """Whether a direct caller with this id and this IP address may say who called it."""
        if spiffe_id is not None and (spiffe_id in self._exact or spiffe_id.startswith(self._prefixes)):
            return True
        if address is None or not self._networks:
            return False
        try:
            ip = ip_address(address)
        except ValueError:
            return False
        mapped = getattr(ip, "ipv4_mapped", None)
        return any((mapped or ip) in network for network in self._networks)

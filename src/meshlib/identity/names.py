"""The names in a certificate, as Envoy writes them, and the matchers over them (SubjectAltNameMatcher)."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from cryptography import x509

from meshlib.errors import IdentityError
from meshlib.resources.matching import StringKind
from meshlib.resources.tls import SanMatch, SanType
from meshlib.routing.authority import ascii_lower
from meshlib.routing.matchers.string import compile_string

__all__ = ["Name", "NameMatcher", "compile_match", "dns_match", "names_of", "values"]


@dataclass(frozen=True, slots=True)
class Name:
    """One subject alternative name. text: as Envoy shows it. oid: of an OTHER_NAME, empty otherwise."""

    kind: SanType
    text: str
    oid: str = ""


NameMatcher = Callable[[Name], bool]


def names_of(certificate: x509.Certificate) -> tuple[Name, ...]:
    """All names of types that Envoy looks at, in the certificate's order.

    Raises:
        IdentityError: the extension can't be read, or a name is not ASCII.
    """
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    except (ValueError, x509.DuplicateExtension):
        raise IdentityError("the subject alternative names of the certificate can't be read") from None
    return tuple(name for item in found if (name := _name(item)) is not None)


def values(names: Iterable[Name], kind: SanType) -> tuple[str, ...]:
    return tuple(name.text for name in names if name.kind is kind)


def compile_match(match: SanMatch) -> NameMatcher:
    """A predicate on one name. An exact DNS match honours wildcards of the certificate; any other compares the text."""
    if match.san_type is None:
        return _any_type(match)
    text = compile_string(match.match)
    if match.san_type is SanType.DNS and match.match.kind is StringKind.EXACT:
        expected = match.match.value
        return lambda name: name.kind is SanType.DNS and dns_match(expected, name.text)
    if match.san_type is SanType.OTHER_NAME:
        oid = match.oid
        return lambda name: name.kind is SanType.OTHER_NAME and name.oid == oid and text(name.text)
    kind = match.san_type
    return lambda name: name.kind is kind and text(name.text)


def _any_type(match: SanMatch) -> NameMatcher:
    """The deprecated match_subject_alt_names: DNS, URI, mail and address, each with its own rule."""
    kinds = (SanType.DNS, SanType.URI, SanType.EMAIL, SanType.IP_ADDRESS)
    each = tuple(compile_match(SanMatch(san_type=kind, match=match.match)) for kind in kinds)
    return lambda name: any(matches(name) for matches in each)


def dns_match(name: str, pattern: str) -> bool:
    """Whether a DNS name of a certificate, which may begin with a wildcard label, stands for this name.

    A `*` counts in the left-most label only, once, for at least one character of that label; not in an A-label (`xn--`),
    and not where either side has one label only. Letters A to Z are folded.
    """
    name, pattern = ascii_lower(name), ascii_lower(pattern)
    if name == pattern:
        return True
    label, dot, rest = pattern.partition(".")
    own, own_dot, own_rest = name.partition(".")
    if not dot or not own_dot or rest != own_rest:
        return False
    if "*" not in label or "*" in rest or label.startswith("xn--"):
        return False
    if label == "*":
        return True
    if label.count("*") != 1:
        return False
    before, _, after = label.partition("*")
    return len(label) <= len(own) + 1 and own.startswith(before) and own.endswith(after)


def _name(item: x509.GeneralName) -> Name | None:
    if isinstance(item, x509.UniformResourceIdentifier):
        return Name(SanType.URI, item.value)
    if isinstance(item, x509.DNSName):
        return Name(SanType.DNS, item.value)
    if isinstance(item, x509.RFC822Name):
        return Name(SanType.EMAIL, item.value)
    if isinstance(item, x509.IPAddress):
        return Name(SanType.IP_ADDRESS, _address(item))
    if isinstance(item, x509.OtherName):
        return Name(SanType.OTHER_NAME, _other(item.value), item.type_id.dotted_string)
    return None


def _address(item: x509.IPAddress) -> str:
    value = item.value
    if isinstance(value, ipaddress.IPv6Address) and value.ipv4_mapped is not None:
        return f"::ffff:{value.ipv4_mapped}"
    return str(value)


_BOOLEAN, _INTEGER, _BITS, _OID, _ENUMERATED = 0x01, 0x02, 0x03, 0x06, 0x0A
_OCTETS, _WHOLE, _UCS4, _UTF16 = 0x04, (0x30, 0x31), 0x1C, 0x1E
_TEXTS = frozenset((_OCTETS, 0x0C, *range(0x12, 0x1C)))
"""UTF8String, and NumericString to GeneralString with the two forms of time."""


def _other(der: bytes) -> str:
    """The value of an otherName as text; empty for what has none."""
    tag, content = _content(der)
    if tag == _BOOLEAN:
        return "true" if any(content) else "false"
    if tag in (_INTEGER, _ENUMERATED):
        return str(int.from_bytes(content, "big", signed=True))
    if tag == _OID:
        return _dotted(content)
    if tag == _BITS:
        return content[1:].decode("utf-8", "surrogateescape")
    if tag == _UTF16:
        return content.decode("utf-16-be", "replace")
    if tag == _UCS4:
        return content.decode("utf-32-be", "replace")
    if tag in _WHOLE:
        return der.decode("utf-8", "surrogateescape")
    return content.decode("utf-8", "surrogateescape") if tag in _TEXTS else ""


def _content(der: bytes) -> tuple[int, bytes]:
    if len(der) < 2:
        return 0, b""
    size, start = der[1], 2
    if size >= 0x80:
        start = 2 + (size & 0x7F)
        size = int.from_bytes(der[2:start], "big")
    content = der[start : start + size]
    return der[0], content if len(content) == size else b""


def _dotted(content: bytes) -> str:
    numbers: list[int] = []
    value = 0
    for byte in content:
        value = value << 7 | byte & 0x7F
        if not byte & 0x80:
            numbers.append(value)
            value = 0
    if not numbers:
        return ""
    first = min(numbers[0] // 40, 2)
    return ".".join(map(str, (first, numbers[0] - 40 * first, *numbers[1:])))

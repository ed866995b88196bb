"""Names of certificates as one line, as Envoy shows and compares them: RFC 2253 in the form that BoringSSL and OpenSSL write.

The last part comes first. Attributes that have a short name there carry it; of others the value is its DER, in hexadecimal. What
is not printable ASCII is written as `\\XX`, byte by byte of its UTF-8 form.
"""

from __future__ import annotations

import re

from cryptography import x509
from cryptography.x509.oid import NameOID as N

__all__ = ["one_line"]

_SHORT = {
    N.COMMON_NAME: "CN",
    N.SURNAME: "SN",
    N.SERIAL_NUMBER: "serialNumber",
    N.COUNTRY_NAME: "C",
    N.LOCALITY_NAME: "L",
    N.STATE_OR_PROVINCE_NAME: "ST",
    N.STREET_ADDRESS: "street",
    N.ORGANIZATION_NAME: "O",
    N.ORGANIZATIONAL_UNIT_NAME: "OU",
    N.TITLE: "title",
    N.GIVEN_NAME: "GN",
    N.INITIALS: "initials",
    N.GENERATION_QUALIFIER: "generationQualifier",
    N.DN_QUALIFIER: "dnQualifier",
    N.PSEUDONYM: "pseudonym",
    N.BUSINESS_CATEGORY: "businessCategory",
    N.POSTAL_CODE: "postalCode",
    N.EMAIL_ADDRESS: "emailAddress",
    N.UNSTRUCTURED_NAME: "unstructuredName",
    N.DOMAIN_COMPONENT: "DC",
    N.USER_ID: "UID",
}
_SPECIAL = re.compile(r'[,+"\\<>;]')
_NOT_PRINTABLE = re.compile(r"[^ -~]")
_LONGEST_SHORT_FORM = 0x7F


def one_line(name: x509.Name) -> str:
    """`CN=cli,O=lab`; empty for an empty name."""
    return ",".join("+".join(_attribute(each) for each in part) for part in reversed(name.rdns))


def _attribute(attribute: x509.NameAttribute[str | bytes]) -> str:
    short, value = _SHORT.get(attribute.oid), attribute.value
    if short is None or isinstance(value, bytes):
        return f"{short or attribute.oid.dotted_string}=#{_der(attribute).hex().upper()}"
    return f"{short}={_escaped(value)}"


def _escaped(value: str) -> str:
    text = _SPECIAL.sub(r"\\\g<0>", value)
    if text[:1] in ("#", " "):
        text = f"\\{text}"
    if len(value) > 1 and text.endswith(" "):
        text = f"{text[:-1]}\\ "
    return _NOT_PRINTABLE.sub(_bytes, text)


def _bytes(found: re.Match[str]) -> str:
    return "".join(f"\\{byte:02X}" for byte in found[0].encode("utf-8", "surrogatepass"))


def _der(attribute: x509.NameAttribute[str | bytes]) -> bytes:
    """The value as it stands in the certificate, tag and length included."""
    whole = x509.Name([attribute]).public_bytes()
    # SEQUENCE { SET { SEQUENCE { OID, value } } }: each with a tag and a length before it.
    for _ in range(3):
        whole = whole[_start(whole) :]
    return whole[_start(whole) + _length(whole) :]


def _start(der: bytes) -> int:
    return 2 if der[1] <= _LONGEST_SHORT_FORM else 2 + (der[1] & 0x7F)


def _length(der: bytes) -> int:
    return der[1] if der[1] <= _LONGEST_SHORT_FORM else int.from_bytes(der[2 : _start(der)], "big")

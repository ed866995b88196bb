"""The one-line form of names; the expectations were read from a real Envoy's x-forwarded-client-cert (1.40.0)."""

from __future__ import annotations

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID, ObjectIdentifier

from meshlib.identity.subject import one_line


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("plain", "plain"),
        ('Ö "quoted", and\\more; a=b+c', r"\C3\96 \"quoted\"\, and\\more\; a=b\+c"),
        ("#first", r"\#first"),
        (" blanks ", r"\ blanks\ "),
        (" ", r"\ "),
        ("a<b>c/d", r"a\<b\>c/d"),
        ("a\tb\x7fc\n", r"a\09b\7Fc\0A"),
        ("日本", r"\E6\97\A5\E6\9C\AC"),
    ],
)
def test_values(value: str, expected: str) -> None:
    assert one_line(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, value)])) == f"CN={expected}"


def test_the_last_part_comes_first_with_its_short_name() -> None:
    known = (
        NameOID.COUNTRY_NAME,
        NameOID.STREET_ADDRESS,
        NameOID.EMAIL_ADDRESS,
        NameOID.SURNAME,
        NameOID.USER_ID,
    )
    name = x509.Name(
        [x509.NameAttribute(oid, "DE" if index == 0 else f"v{index}") for index, oid in enumerate(known)]
    )
    assert one_line(name) == "UID=v4,SN=v3,emailAddress=v2,street=v1,C=DE"


def test_other_attributes_are_shown_as_der() -> None:
    name = x509.Name([x509.NameAttribute(ObjectIdentifier("1.2.3.4"), "odd")])
    assert one_line(name) == "1.2.3.4=#0C036F6464"
    long = x509.Name([x509.NameAttribute(ObjectIdentifier("1.2.3.4"), "o" * 300)])
    assert one_line(long) == f"1.2.3.4=#0C82012C{'6F' * 300}"


def test_several_in_one_part_and_none_at_all() -> None:
    part = x509.RelativeDistinguishedName(
        [x509.NameAttribute(NameOID.COMMON_NAME, "a"), x509.NameAttribute(NameOID.USER_ID, "b")]
    )
    assert one_line(x509.Name([part])) in ("CN=a+UID=b", "UID=b+CN=a")
    assert one_line(x509.Name([])) == ""

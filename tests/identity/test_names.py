"""Names in certificates, as Envoy reads and matches them."""

from __future__ import annotations

import string

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from meshlib.errors import IdentityError
from meshlib.identity.names import Name, compile_match, dns_match, names_of
from meshlib.resources.matching import StringKind, StringMatch
from meshlib.resources.tls import SanMatch, SanType
from tests.identity.ca import TestCA
from tests.identity.configs import match


@pytest.fixture(scope="module")
def ca() -> TestCA:
    return TestCA()


def test_every_type_in_the_order_of_the_matcher_types(ca: TestCA) -> None:
    issued = ca.issue(
        "spiffe://td.example/a",
        dns=["a.example", "*.b.example"],
        ips=["10.1.2.3", "2001:db8::1", "::ffff:10.0.0.1"],
        emails=["me@a.example"],
        others=[("1.2.3.4", b"\x0c\x05hello")],
    )
    assert names_of(issued.certificate) == (
        Name(SanType.URI, "spiffe://td.example/a"),
        Name(SanType.DNS, "a.example"),
        Name(SanType.DNS, "*.b.example"),
        Name(SanType.IP_ADDRESS, "10.1.2.3"),
        Name(SanType.IP_ADDRESS, "2001:db8::1"),
        Name(SanType.IP_ADDRESS, "::ffff:10.0.0.1"),
        Name(SanType.EMAIL, "me@a.example"),
        Name(SanType.OTHER_NAME, "hello", "1.2.3.4"),
    )
    assert names_of(ca.issue().certificate) == ()


@pytest.mark.parametrize(
    ("der", "text"),
    [
        (b"\x0c\x02ab", "ab"),
        (b"\x13\x02ab", "ab"),
        (b"\x16\x02ab", "ab"),
        (b"\x04\x02ab", "ab"),
        (b"\x01\x01\xff", "true"),
        (b"\x01\x01\x00", "false"),
        (b"\x02\x01\x05", "5"),
        (b"\x02\x02\xff\x00", "-256"),
        (b"\x0a\x01\x07", "7"),
        (b"\x06\x03\x2a\x03\x04", "1.2.3.4"),
        (b"\x06\x03\x88\x37\x03", "2.999.3"),
        (b"\x03\x03\x00ab", "ab"),
        (b"\x1e\x04\x00a\x00b", "ab"),
        (b"\x1c\x04\x00\x00\x00a", "a"),
        (b"\x05\x00", ""),
        (b"\x18\x0f20260101000000Z", "20260101000000Z"),
        (b"\x0c\x81\x80" + b"a" * 128, "a" * 128),
    ],
)
def test_values_of_other_names(ca: TestCA, der: bytes, text: str) -> None:
    issued = ca.issue(others=[("1.2.3.4", der)])
    assert names_of(issued.certificate) == (Name(SanType.OTHER_NAME, text, "1.2.3.4"),)


@given(st.binary(max_size=40))
def test_any_value_of_an_other_name_is_read(der: bytes) -> None:
    item = x509.OtherName(x509.ObjectIdentifier("1.2.3"), der)
    from meshlib.identity import names

    found = names._name(item)
    assert found is not None
    assert isinstance(found.text, str)


def test_names_that_can_not_be_read(ca: TestCA) -> None:
    broken = x509.UnrecognizedExtension(x509.ObjectIdentifier("2.5.29.17"), b"\x30\x05\x86\x09ab")
    issued = ca.issue(extensions=[(broken, False)])
    with pytest.raises(IdentityError):
        names_of(issued.certificate)


@pytest.mark.parametrize(
    ("name", "pattern", "expected"),
    [
        ("a.example", "a.example", True),
        ("A.Example", "a.eXAMPLE", True),
        ("a.example", "*.example", True),
        ("a.b.example", "*.example", False),
        ("a.b.example", "*.b.example", True),
        ("b.example", "*.b.example", False),
        ("example", "*", False),
        ("example", "*.example", False),
        (".example", "*.example", True),
        ("abc.example", "a*.example", True),
        ("abc.example", "*c.example", True),
        ("abc.example", "a*c.example", True),
        ("ac.example", "a*c.example", True),
        ("a.example", "a*a.example", False),
        ("abc.example", "*b*.example", False),
        ("abc.example", "**.example", False),
        ("a.b.example", "a.*.example", False),
        ("xn--abc.example", "xn--*.example", False),
        ("xn--abc.example", "*.example", True),
        ("*.example", "*.example", True),
        ("a.example", "b.example", False),
        ("", "", True),
    ],
)
def test_dns_names(name: str, pattern: str, expected: bool) -> None:
    """Envoy's Utility::dnsNameMatch."""
    assert dns_match(name, pattern) is expected


labels = st.text(string.ascii_lowercase + string.digits + "-", min_size=1, max_size=8)


@given(labels, st.lists(labels, min_size=1, max_size=3))
def test_a_wildcard_stands_for_exactly_one_label(label: str, rest: list[str]) -> None:
    domain = ".".join(rest)
    assert dns_match(f"{label}.{domain}", f"*.{domain}")
    assert not dns_match(domain, f"*.{domain}") or domain.startswith(("*.", "."))
    assert not dns_match(f"{label}.{label}.{domain}", f"*.{domain}")


@pytest.mark.parametrize(
    ("kind", "value", "matching", "other"),
    [
        (StringKind.EXACT, "spiffe://td/a", "spiffe://td/a", "spiffe://td/A"),
        (StringKind.PREFIX, "spiffe://td/", "spiffe://td/a", "spiffe://td"),
        (StringKind.SUFFIX, "/sa/a", "spiffe://td/sa/a", "spiffe://td/sa/ab"),
        (StringKind.CONTAINS, "/ns/x/", "spiffe://td/ns/x/sa/a", "spiffe://td/ns/xy/sa/a"),
    ],
)
def test_uri_matchers(kind: StringKind, value: str, matching: str, other: str) -> None:
    matches = compile_match(match(value, SanType.URI, kind))
    assert matches(Name(SanType.URI, matching))
    assert not matches(Name(SanType.URI, other))
    assert not matches(Name(SanType.DNS, matching))


def test_a_wildcard_counts_for_an_exact_dns_match_only() -> None:
    name = Name(SanType.DNS, "*.b.example")
    assert compile_match(match("a.b.example", SanType.DNS))(name)
    assert not compile_match(match("a.b.exampl", SanType.DNS, StringKind.PREFIX))(name)
    assert compile_match(match("*.b.exam", SanType.DNS, StringKind.PREFIX))(name)
    assert not compile_match(match("a.b.example", SanType.URI))(Name(SanType.URI, "*.b.example"))


def test_addresses_mail_and_other_names() -> None:
    assert compile_match(match("10.0.0.1", SanType.IP_ADDRESS))(Name(SanType.IP_ADDRESS, "10.0.0.1"))
    assert not compile_match(match("10.0.0.1", SanType.IP_ADDRESS))(Name(SanType.DNS, "10.0.0.1"))
    assert compile_match(match("a@b", SanType.EMAIL))(Name(SanType.EMAIL, "a@b"))
    other = compile_match(match("x", SanType.OTHER_NAME, oid="1.2.3"))
    assert other(Name(SanType.OTHER_NAME, "x", "1.2.3"))
    assert not other(Name(SanType.OTHER_NAME, "x", "1.2.4"))
    assert not other(Name(SanType.OTHER_NAME, "y", "1.2.3"))


def test_any_type() -> None:
    matches = compile_match(
        SanMatch(san_type=None, match=StringMatch(kind=StringKind.EXACT, value="a.example"))
    )
    assert matches(Name(SanType.DNS, "*.example"))
    assert matches(Name(SanType.URI, "a.example"))
    assert not matches(Name(SanType.URI, "*.example"))
    assert not matches(Name(SanType.OTHER_NAME, "a.example", "1.2.3"))


def test_ignoring_case() -> None:
    folded = SanMatch(
        san_type=SanType.URI, match=StringMatch(kind=StringKind.EXACT, value="ABC", ignore_case=True)
    )
    assert compile_match(folded)(Name(SanType.URI, "abc"))

"""x-forwarded-client-cert: reading, writing, and whom to believe."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshlib.server.xfcc import (
    MAX_BYTES,
    Mode,
    TrustedPeers,
    XfccElement,
    XfccError,
    describe,
    forwarded,
    parse,
    render,
)

HASH = "9ba61d6425303443c0748a02dd8de688468ed33be74eee6556d90c0149c1309e"

characters = st.characters(min_codepoint=0x20, max_codepoint=0x7E)
printable = st.text(characters, max_size=30)
filled = printable.filter(bool)
subjects = st.lists(st.from_regex(r'[^"\\]|\\.', fullmatch=True, alphabet=characters), max_size=20).map(
    "".join
)
pem = st.text(st.characters(codec="ascii"), max_size=40)
elements = st.builds(
    XfccElement,
    by=st.lists(filled, max_size=2).map(tuple),
    hash=st.just("") | st.text("0123456789abcdef", min_size=64, max_size=64),
    cert=pem,
    chain=pem,
    subject=st.none() | subjects,
    uri=st.lists(filled, max_size=3).map(tuple),
    dns=st.lists(filled, max_size=3).map(tuple),
)
said = elements.filter(lambda element: element != XfccElement())


@given(st.lists(said, min_size=1, max_size=3).map(tuple))
def test_what_is_written_is_read_back(written: tuple[XfccElement, ...]) -> None:
    assert parse(render(written)) == written


@given(st.text(max_size=80))
def test_any_text_is_read_or_refused_as_a_whole(text: str) -> None:
    try:
        read = parse(text)
    except XfccError:
        return
    assert len(read) <= text.count(",") + 1


@given(said, filled)
def test_a_callers_name_never_makes_an_element_of_its_own(element: XfccElement, name: str) -> None:
    """Whatever stands in a certificate, there is one element, and only its own keys."""
    read = parse(render([XfccElement(subject=f"CN={name}", hash=HASH, uri=(name, *element.uri))]))
    assert len(read) == 1
    assert read[0].hash == HASH
    assert read[0].by == ()
    assert read[0].uri == (name, *element.uri)


def test_the_form_of_envoy() -> None:
    """The order of the keys, what is quoted and what is percent-encoded."""
    value = (
        f"By=spiffe://td.example/ns/a/sa/srv;Hash={HASH};"
        'Cert="-----BEGIN%20CERTIFICATE-----%0AMIIB%2FzCC%3D%3D%0A-----END%20CERTIFICATE-----%0A";'
        'Subject="CN=cli,O=lab";URI=spiffe://td.example/ns/a/sa/cli;DNS=cli.example;DNS=two.example'
    )
    (element,) = parse(value)
    assert element == XfccElement(
        by=("spiffe://td.example/ns/a/sa/srv",),
        hash=HASH,
        cert="-----BEGIN CERTIFICATE-----\nMIIB/zCC==\n-----END CERTIFICATE-----\n",
        subject="CN=cli,O=lab",
        uri=("spiffe://td.example/ns/a/sa/cli",),
        dns=("cli.example", "two.example"),
    )
    assert render([element]) == value


@pytest.mark.parametrize(
    ("text", "elements"),
    [
        ("", ()),
        ("  ", ()),
        ("by=x", (XfccElement(by=("x",)),)),
        ("BY=x ; hAsH=1", (XfccElement(by=("x",), hash="1"),)),
        ("URI=a;URI=b", (XfccElement(uri=("a", "b")),)),
        ("URI=", (XfccElement(uri=("",)),)),
        ("URI=;URI=a;URI=", (XfccElement(uri=("a",)),)),
        ('Subject=""', (XfccElement(subject=""),)),
        ('Subject="a,b;c=d"', (XfccElement(subject="a,b;c=d"),)),
        (r'Subject="a\"b\\"', (XfccElement(subject=r"a\"b\\"),)),
        (r'URI="a\"b\\"', (XfccElement(uri=('a"b\\',)),)),
        (r'Subject="CN=a\,b"', (XfccElement(subject=r"CN=a\,b"),)),
        ("URI=a,URI=b", (XfccElement(uri=("a",)), XfccElement(uri=("b",)))),
        ("URI=x=y", (XfccElement(uri=("x=y",)),)),
        ("Later=z;URI=a", (XfccElement(uri=("a",)),)),
        ("By=a;", (XfccElement(by=("a",)),)),
    ],
)
def test_forms(text: str, elements: tuple[XfccElement, ...]) -> None:
    assert parse(text) == elements


@pytest.mark.parametrize(
    "text",
    [
        'Subject="a',
        'Subject="a"b',
        'Subject=a"b"',
        "URI",
        "URI=a;nothing",
        "Hash=1;Hash=2",
        'Subject="a";subject="b"',
        'Subject="a\\"',
        'Subject="a";URI="',
        "By=" + "a" * MAX_BYTES,
    ],
)
def test_another_form_is_refused(text: str) -> None:
    with pytest.raises(XfccError):
        parse(text)


@pytest.mark.parametrize("char", ["\r", "\n", "\0", "\x7f"])
def test_no_line_break_gets_into_a_header(char: str) -> None:
    with pytest.raises(XfccError, match="control character"):
        render([XfccElement(subject=f"CN=a{char}x-admin: 1")])


class Caller:
    sha256 = HASH
    subject = "CN=cli"
    uri_sans = ("spiffe://td/cli",)
    dns_sans = ("cli.example",)


def test_what_is_said_about_a_caller() -> None:
    own = ("spiffe://td/srv",)
    assert render([describe(Caller(), own_uris=own, details=())]) == f"By=spiffe://td/srv;Hash={HASH}"
    assert render([describe(Caller(), own_uris=own, details=("uri", "dns", "subject"))]) == (
        f'By=spiffe://td/srv;Hash={HASH};Subject="CN=cli";URI=spiffe://td/cli;DNS=cli.example'
    )
    assert describe(Caller(), details=("cert", "chain"), cert="c", chain="d").chain == "d"
    wrong: Any = "serial"
    with pytest.raises(XfccError, match="serial"):
        describe(Caller(), details=(wrong,))


@pytest.mark.parametrize(
    ("mode", "plaintext", "certified"),
    [
        ("SANITIZE", None, None),
        ("FORWARD_ONLY", None, "By=x"),
        ("APPEND_FORWARD", None, f"By=x,Hash={HASH}"),
        ("SANITIZE_SET", None, f"Hash={HASH}"),
        ("ALWAYS_FORWARD_ONLY", "By=x", "By=x"),
    ],
)
def test_modes(mode: Mode, plaintext: str | None, certified: str | None) -> None:
    assert forwarded(mode, "By=x", None) == plaintext
    assert forwarded(mode, "By=x", XfccElement(hash=HASH)) == certified


def test_nothing_is_appended_to_nothing() -> None:
    assert forwarded("APPEND_FORWARD", None, XfccElement(hash=HASH)) == f"Hash={HASH}"
    assert forwarded("FORWARD_ONLY", None, XfccElement(hash=HASH)) is None


def test_nobody_is_trusted_by_default() -> None:
    nobody = TrustedPeers()
    assert not nobody
    assert not nobody.trusts("spiffe://td/a", "127.0.0.1")
    assert not nobody.trusts(None, None)


def test_trusted_ids() -> None:
    trusted = TrustedPeers(["spiffe://td/ingress", "spiffe://edge/ns/*"])
    assert trusted
    assert trusted.trusts("spiffe://td/ingress", None)
    assert trusted.trusts("spiffe://edge/ns/a", None)
    assert not trusted.trusts("spiffe://edge/ns", None)
    assert not trusted.trusts("spiffe://td/ingress/more", None)
    assert not trusted.trusts("spiffe://edge/nsx", None)
    assert not trusted.trusts(None, "10.0.0.1")


def test_trusted_addresses() -> None:
    trusted = TrustedPeers(addresses=["10.0.0.0/8", "::1"])
    assert trusted.trusts(None, "10.1.2.3")
    assert trusted.trusts("spiffe://td/other", "::ffff:10.1.2.3")
    assert trusted.trusts(None, "::1")
    assert not trusted.trusts(None, "11.0.0.1")
    assert not trusted.trusts(None, "unix:")
    assert not trusted.trusts(None, None)


@pytest.mark.parametrize("wrong", ["td/a", "spiffe://", "https://td/a"])
def test_an_id_that_is_none(wrong: str) -> None:
    with pytest.raises(ValueError, match="no SPIFFE id"):
        TrustedPeers([wrong])


def test_an_address_that_is_none() -> None:
    with pytest.raises(ValueError, match="IPv4"):
        TrustedPeers(addresses=["everywhere"])

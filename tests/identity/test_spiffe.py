"""SPIFFE ids: what is one, and that nothing is ever normalised into one."""

from __future__ import annotations

import pickle
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshlib.errors import ConnectFailed, IdentityError
from meshlib.identity.spiffe import MAX_ID, MAX_TRUST_DOMAIN, SpiffeId, check_trust_domain

DOMAIN = string.ascii_lowercase + string.digits + "._-"
SEGMENT = string.ascii_letters + string.digits + "._-"

domains = st.text(DOMAIN, min_size=1, max_size=40)
segments = st.text(SEGMENT, min_size=1, max_size=20).filter(lambda text: text not in (".", ".."))
paths = st.lists(segments, max_size=5).map(lambda found: "".join(f"/{segment}" for segment in found))


@given(domains, paths)
def test_a_valid_id_keeps_its_text(domain: str, path: str) -> None:
    text = f"spiffe://{domain}{path}"
    found = SpiffeId.parse(text)
    assert (str(found), found.trust_domain, found.path) == (text, domain, path)
    assert found == SpiffeId(domain, path)
    assert hash(found) == hash(SpiffeId(domain, path))
    assert pickle.loads(pickle.dumps(found)) == found
    assert eval(repr(found), {"SpiffeId": SpiffeId}) == found


@pytest.mark.parametrize(
    "text",
    [
        "",
        "spiffe",
        "spiffe:",
        "spiffe:/td/a",
        "spiffe://",
        "spiffe:///a",
        "https://td/a",
        "SPIFFE://td/a",
        "Spiffe://td/a",
        " spiffe://td/a",
        "spiffe://td/a ",
        "spiffe://td/a\n",
        "spiffe://td\n",
        "spiffe://TD/a",
        "spiffe://td.Example/a",
        "spiffe://td:443/a",
        "spiffe://user@td/a",
        "spiffe://td/a?b",
        "spiffe://td?b",
        "spiffe://td/a#b",
        "spiffe://td#b",
        "spiffe://td/",
        "spiffe://td/a/",
        "spiffe://td//a",
        "spiffe://td/a//b",
        "spiffe://td/.",
        "spiffe://td/..",
        "spiffe://td/a/../b",
        "spiffe://td/a/./b",
        "spiffe://td/a/..",
        "spiffe://td/%61",
        "spiffe://td/a%2fb",
        "spiffe://td/%2e%2e/b",
        "spiffe://t%64/a",
        "spiffe://td/a\\b",
        "spiffe://td/a\x00b",
        "spiffe://td\x00/a",
        "spiffe://td/a;b",
        "spiffe://td/a+b",
        "spiffe://td/a*",
        "spiffe://td/ä",
        "spiffe://täd/a",
        "spiffe://td/\uff41",
        "spiffe://td/a\u200b",
        "spiffe://[::1]/a",
        "spiffe://td\\a",
    ],
)
def test_what_is_not_an_id(text: str) -> None:
    with pytest.raises(IdentityError):
        SpiffeId.parse(text)


def test_lengths() -> None:
    longest = "spiffe://td/" + "a" * (MAX_ID - len("spiffe://td/"))
    assert str(SpiffeId.parse(longest)) == longest
    with pytest.raises(IdentityError, match="more than 2048"):
        SpiffeId.parse(longest + "a")
    with pytest.raises(IdentityError, match="more than 2048"):
        SpiffeId("td", "/" + "a" * MAX_ID)
    domain = "d" * MAX_TRUST_DOMAIN
    assert SpiffeId.parse(f"spiffe://{domain}/a").trust_domain == domain
    with pytest.raises(IdentityError, match="more than 255"):
        SpiffeId.parse(f"spiffe://{domain}d/a")


@given(st.text(max_size=60))
def test_any_text_is_read_as_it_stands_or_refused(rest: str) -> None:
    text = f"spiffe://{rest}"
    try:
        found = SpiffeId.parse(text)
    except IdentityError:
        pass
    else:
        assert str(found) == text
        assert text == text.encode("ascii").decode()
        assert found.trust_domain == found.trust_domain.lower()
        assert not {"", ".", ".."} & set(found.path.split("/")[1:])
        assert set(found.path) <= set(SEGMENT + "/")


@given(domains, paths, st.data())
def test_an_id_with_one_hostile_character_more_is_refused(
    domain: str, path: str, data: st.DataObject
) -> None:
    text = f"spiffe://{domain}{path}"
    place = data.draw(st.integers(len("spiffe://"), len(text)))
    hostile = data.draw(st.characters(exclude_characters=SEGMENT + "/"))
    with pytest.raises(IdentityError):
        SpiffeId.parse(text[:place] + hostile + text[place:])


@given(domains, st.data())
def test_upper_case_in_the_trust_domain_is_refused(domain: str, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(domain)))
    with pytest.raises(IdentityError):
        SpiffeId(domain[:place] + data.draw(st.sampled_from(string.ascii_uppercase)) + domain[place:])


def test_an_id_does_not_change() -> None:
    found = SpiffeId("td", "/a")
    with pytest.raises(AttributeError):
        found.path = "/b"
    with pytest.raises(AttributeError):
        del found.path
    assert found != SpiffeId("td", "/A")
    assert found != "spiffe://td/a"


def test_an_error_shows_no_more_than_is_needed() -> None:
    with pytest.raises(IdentityError) as caught:
        SpiffeId.parse("spiffe://td/" + "%" * 1000)
    assert len(str(caught.value)) < 300


def test_trust_domain_names() -> None:
    assert check_trust_domain("td.example_1-2") == "td.example_1-2"
    for name in ("", "A", "a b", "a\n", "a/", "spiffe://a"):
        with pytest.raises(IdentityError):
            check_trust_domain(name)


def test_the_error_keeps_its_fields_through_pickle() -> None:
    assert issubclass(IdentityError, ConnectFailed)
    error = IdentityError("no", expected="a", got="b", trust_domain="td", not_after=1.5)
    again = pickle.loads(pickle.dumps(error))
    assert (again.expected, again.got, again.trust_domain, again.not_after) == ("a", "b", "td", 1.5)
    assert (again.flags, str(again)) == ("UF", "no")

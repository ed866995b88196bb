"""SVIDs, private keys and bundles: what is accepted, and that no key is ever shown."""

from __future__ import annotations

import copy
import pickle
import traceback

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from meshlib.errors import IdentityError
from meshlib.identity.material import (
    BundleSet,
    PrivateKey,
    Svid,
    TrustBundle,
    certificates_from_pem,
    split_der,
)
from meshlib.identity.source import IdentityUpdate
from tests.identity.ca import TestCA

ID = "spiffe://td.example/ns/a/sa/srv"


@pytest.fixture(scope="module")
def ca() -> TestCA:
    return TestCA()


@pytest.mark.parametrize("kind", ["p256", "p384", "p521", "rsa2048", "ed25519"])
def test_key_types(ca: TestCA, kind: str) -> None:
    issued = ca.issue(ID, kind=kind)
    svid = Svid.from_pem(issued.chain, issued.key)
    assert str(svid.spiffe_id) == ID
    assert svid.leaf == issued.der
    assert svid.not_after == issued.not_after
    assert svid.chain_pem() == issued.chain


@pytest.mark.parametrize(("kind", "words"), [("rsa1024", "too short"), ("k1", "curve")])
def test_keys_that_are_not_accepted(ca: TestCA, kind: str, words: str) -> None:
    issued = ca.issue(ID, kind=kind)
    with pytest.raises(IdentityError, match=words):
        Svid.from_pem(issued.chain, issued.key)


@pytest.mark.parametrize("form", [PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL])
@pytest.mark.parametrize("password", [None, b"secret"])
def test_forms_of_keys(ca: TestCA, form: PrivateFormat, password: bytes | None) -> None:
    issued = ca.issue(ID)
    svid = Svid.from_pem(issued.chain, issued.key_as(form, password), password)
    assert svid.private_key.reveal() == issued.key


def test_der_as_the_workload_api_gives_it(ca: TestCA) -> None:
    issued = ca.intermediate().issue(ID)
    key = issued.private.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    svid = Svid.from_der(b"".join(issued.chain_der), key, hint="internal")
    assert svid.chain == issued.chain_der
    assert len(svid.chain) == 2
    assert svid.hint == "internal"
    assert svid == Svid.from_pem(issued.chain, issued.key)


@pytest.mark.parametrize("cut", [1, 3, 100])
def test_der_that_is_cut_short(ca: TestCA, cut: int) -> None:
    der = ca.issue(ID).der
    with pytest.raises(IdentityError):
        split_der(der[:-cut])
    with pytest.raises(IdentityError):
        split_der(der + der[:cut])


def test_a_key_of_another_certificate_is_refused(ca: TestCA) -> None:
    with pytest.raises(IdentityError, match="does not belong"):
        Svid.from_pem(ca.issue(ID).chain, ca.issue(ID).key)


@pytest.mark.parametrize(
    "wrong", [b"", b"x", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"]
)
def test_what_can_not_be_read(ca: TestCA, wrong: bytes) -> None:
    issued = ca.issue(ID)
    with pytest.raises(IdentityError):
        Svid.from_pem(wrong, issued.key)
    with pytest.raises(IdentityError):
        Svid.from_pem(issued.chain, wrong)
    with pytest.raises(IdentityError):
        certificates_from_pem(wrong)


def test_the_id_of_a_certificate_that_has_not_exactly_one(ca: TestCA) -> None:
    for uris in (
        (),
        (ID, "spiffe://td.example/other"),
        ("spiffe://TD.example/a",),
        ("https://td.example/a",),
    ):
        issued = ca.issue(*uris)
        svid = Svid.from_pem(issued.chain, issued.key)
        assert svid.spiffe_id is None
        assert svid.uri_sans == uris


def secrets_of(svid: Svid) -> list[str]:
    lines = svid.private_key.reveal().decode().splitlines()
    return [line for line in lines if not line.startswith("-----")]


def test_a_key_is_never_shown(ca: TestCA) -> None:
    issued = ca.issue(ID)
    svid = Svid.from_pem(issued.chain, issued.key)
    update = IdentityUpdate(svids=(svid,))
    for item in (svid, svid.private_key, update, [svid], {"svid": svid}, (svid.private_key,)):
        shown = f"{item!r} {item!s} {item}"
        assert not any(line in shown for line in secrets_of(svid))
        with pytest.raises(TypeError):
            pickle.dumps(item)
        with pytest.raises(TypeError):
            pickle.dumps(item, protocol=0)
    assert not hasattr(svid, "__dict__")
    assert copy.deepcopy(svid) is svid
    assert copy.copy(svid) is svid
    assert copy.deepcopy(svid.private_key) is svid.private_key
    assert copy.copy(svid.private_key) is svid.private_key


def test_an_error_about_a_key_does_not_quote_it(ca: TestCA) -> None:
    issued = ca.issue(ID)
    broken = issued.key.replace(b"A", b"!")
    for arguments in ((issued.chain, broken), (ca.issue(ID).chain, issued.key), (issued.key, issued.key)):
        with pytest.raises(IdentityError) as caught:
            Svid.from_pem(*arguments)
        text = "".join(traceback.format_exception(caught.value))
        body = [line for line in issued.key.decode().splitlines() if not line.startswith("-----")]
        assert not any(line in text for line in body)


def test_equality(ca: TestCA) -> None:
    issued = ca.issue(ID)
    assert Svid.from_pem(issued.chain, issued.key) == Svid.from_pem(issued.chain, issued.key)
    other = ca.issue(ID)
    assert Svid.from_pem(issued.chain, issued.key) != Svid.from_pem(other.chain, other.key)
    assert PrivateKey(b"a") == PrivateKey(b"a")
    assert len({PrivateKey(b"a"), PrivateKey(b"a"), PrivateKey(b"b")}) == 2
    assert PrivateKey(b"a") != b"a"


def test_bundles(ca: TestCA) -> None:
    other = TestCA("other.example")
    own = TrustBundle.from_pem("td.example", ca.pem + ca.pem)
    assert own.authorities == (ca.der,)
    bundles = BundleSet([own, TrustBundle("other.example", [other.der], 7)])
    assert set(bundles) == {"td.example", "other.example"}
    assert bundles.authorities() == (ca.der, other.der)
    assert bundles == BundleSet(reversed(list(bundles.values())))
    assert hash(bundles) == hash(BundleSet(reversed(list(bundles.values()))))
    assert bundles["other.example"].version == 7
    assert bundles != BundleSet([own])
    with pytest.raises(IdentityError):
        TrustBundle("TD", [ca.der])
    with pytest.raises(IdentityError):
        TrustBundle("td", [b"junk"])

"""Paths to trusted certificates."""

from __future__ import annotations

import contextlib
import datetime as dt
import time

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given, settings
from hypothesis import strategies as st

from meshlib.errors import IdentityError
from meshlib.identity.chain import find_path, load
from tests.identity.ca import Issued, TestCA, make_key, usage

ID = "spiffe://td.example/a"


PRESENT = -1.0
"""The moment of the call: certificates are good from five minutes before they were made, and a long run is longer than that."""


def path(
    issued: Issued, *anchors: TestCA, partial: bool = True, now: float | None = PRESENT
) -> tuple[x509.Certificate, ...]:
    return find_path(
        (issued.certificate, *issued.intermediates),
        [ca.certificate for ca in anchors],
        now=time.time() if now == PRESENT else now,
        purpose=ExtendedKeyUsageOID.SERVER_AUTH,
        partial=partial,
    )


def test_straight() -> None:
    root = TestCA()
    middle = root.intermediate()
    low = middle.intermediate()
    issued = low.issue(ID)
    found = path(issued, root)
    assert found == (issued.certificate, low.certificate, middle.certificate, root.certificate)


def test_the_order_of_intermediates_and_strangers_among_them_do_not_matter() -> None:
    root = TestCA()
    middle = root.intermediate()
    low = middle.intermediate()
    issued = low.issue(ID)
    others = (
        TestCA().certificate,
        middle.certificate,
        TestCA("x").intermediate().certificate,
        low.certificate,
    )
    mixed = Issued(certificate=issued.certificate, private=issued.private, intermediates=others)
    assert len(path(mixed, TestCA(), root)) == 4


def test_an_intermediate_as_an_anchor() -> None:
    middle = TestCA().intermediate()
    issued = middle.issue(ID)
    assert path(issued, middle)[-1] == middle.certificate
    with pytest.raises(IdentityError):
        path(issued, middle, partial=False)


def test_two_cas_of_one_name_without_key_identifiers() -> None:
    """An old and a new root of a rotation: signatures tell them apart, where OpenSSL goes by the name."""
    old = TestCA(subject="root", ski=False)
    new = TestCA(subject="root", ski=False)
    assert path(old.issue(ID), new, old)[-1] == old.certificate
    assert path(new.issue(ID), old, new)[-1] == new.certificate
    with pytest.raises(IdentityError, match="local issuer"):
        path(new.issue(ID), old)


def test_cross_signatures_in_a_circle_end() -> None:
    keys = make_key(), make_key()
    a, b = TestCA(subject="a", key=keys[0]), TestCA(subject="b", key=keys[1])
    a_by_b = b.intermediate(subject="a", key=keys[0])
    b_by_a = a.intermediate(subject="b", key=keys[1])
    issued = a.issue(ID)
    circle = Issued(
        certificate=issued.certificate,
        private=issued.private,
        intermediates=(a_by_b.certificate, b_by_a.certificate),
    )
    with pytest.raises(IdentityError, match="local issuer"):
        path(circle, TestCA())
    assert path(circle, b)[-1] == b.certificate


def test_a_chain_that_is_made_to_cost_time() -> None:
    """Many CAs of one name and key, each of which could have issued each other."""
    key = make_key()
    root = TestCA(subject="same", key=key)
    crowd = tuple(root.intermediate(subject="same", key=key).certificate for _ in range(60))
    issued = root.issue(ID)
    hostile = Issued(certificate=issued.certificate, private=issued.private, intermediates=crowd)
    with pytest.raises(IdentityError):
        path(hostile, TestCA())


def test_too_long() -> None:
    ca = TestCA()
    root = ca
    for _ in range(25):
        ca = ca.intermediate()
    with pytest.raises(IdentityError):
        path(ca.issue(ID), root)


def test_validity_can_be_left_out() -> None:
    root = TestCA()
    old = root.issue(ID, starts=-7200, lifetime=-3600)
    with pytest.raises(IdentityError, match="expired") as caught:
        path(old, root)
    assert caught.value.not_after == old.not_after
    assert path(old, root, now=None)


@settings(max_examples=60)
@given(
    starts=st.integers(-10, 10),
    lifetime=st.integers(1, 10),
    at=st.integers(-12, 25),
)
def test_validity(starts: int, lifetime: int, at: int) -> None:
    moment = dt.datetime.now(dt.UTC).replace(microsecond=0).timestamp()
    issued = SHARED.issue(ID, starts=starts * 100, lifetime=(starts + lifetime) * 100)
    fine = starts * 100 <= at * 100 + 50 <= (starts + lifetime) * 100
    try:
        path(issued, SHARED, now=moment + at * 100 + 50)
    except IdentityError:
        assert not fine
    else:
        assert fine


SHARED = TestCA(starts=-86_400 * 2, lifetime=86_400 * 2)


@pytest.mark.parametrize(
    ("length", "levels", "allowed"),
    [(None, 3, True), (0, 0, True), (0, 1, False), (1, 1, True), (1, 2, False), (2, 2, True)],
)
def test_path_length(length: int | None, levels: int, allowed: bool) -> None:
    root = TestCA(path_length=length)
    ca = root
    for _ in range(levels):
        ca = ca.intermediate()
    if allowed:
        assert len(path(ca.issue(ID), root)) == levels + 2
    else:
        with pytest.raises(IdentityError, match="path length"):
            path(ca.issue(ID), root)


@pytest.mark.parametrize("kind", ["rsa1024", "k1"])
def test_weak_keys(kind: str) -> None:
    root = TestCA()
    with pytest.raises(IdentityError, match="too weak"):
        path(root.issue(ID, kind=kind), root)
    middle = root.intermediate(kind=kind)
    with pytest.raises(IdentityError, match="too weak"):
        path(middle.issue(ID), root)


def test_key_usage_of_a_leaf() -> None:
    root = TestCA()
    with pytest.raises(IdentityError, match="purpose"):
        path(root.issue(ID, key_usage=usage("key_agreement")), root)
    assert path(root.issue(ID, key_usage=None, eku=None), root)


@given(st.binary(max_size=64))
def test_what_is_no_certificate(data: bytes) -> None:
    with pytest.raises(IdentityError):
        load([data])


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
def test_what_is_signed_cannot_be_changed_by_a_bit() -> None:
    """Each bit of a certificate is turned. What passes (a count of unused bits after the signature) says the same."""
    for place in range(len(GOOD.der) * 8):
        der = bytearray(GOOD.der)
        der[place // 8] ^= 1 << place % 8
        with contextlib.suppress(IdentityError):
            (leaf, _) = find_path(
                load([bytes(der)]),
                [SHARED.certificate],
                now=time.time(),
                purpose=ExtendedKeyUsageOID.SERVER_AUTH,
            )
            assert leaf.tbs_certificate_bytes == GOOD.certificate.tbs_certificate_bytes
            assert leaf.signature == GOOD.certificate.signature


GOOD = SHARED.issue(ID)

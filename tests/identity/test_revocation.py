"""Revocation lists, judged as OpenSSL's CRL_CHECK and CRL_CHECK_ALL judge them."""

from __future__ import annotations

import time

import pytest
from cryptography import x509

from meshlib.errors import IdentityError
from meshlib.identity.revocation import check_revocation, crls_from_pem
from tests.identity.ca import Issued, TestCA, make_key

ID = "spiffe://td.example/a"
ROOT = TestCA()
MIDDLE = ROOT.intermediate()
BELOW, DIRECT = MIDDLE.issue(ID), ROOT.issue(ID)


def path(issued: Issued) -> tuple[x509.Certificate, ...]:
    return (issued.certificate, *issued.intermediates, ROOT.certificate)


def check(issued: Issued, *crls: bytes, leaf_only: bool = False) -> None:
    check_revocation(path(issued), crls_from_pem(b"".join(crls)), time.time(), leaf_only=leaf_only)


def test_not_revoked() -> None:
    check(DIRECT, ROOT.crl())
    check(DIRECT, ROOT.crl(ROOT.issue(ID)))
    check(BELOW, ROOT.crl(), MIDDLE.crl())
    check(BELOW, MIDDLE.crl(), leaf_only=True)


@pytest.mark.parametrize(
    ("issued", "crls", "words"),
    [
        (DIRECT, [ROOT.crl(DIRECT)], "depth 0: .*certificate revoked"),
        (BELOW, [ROOT.crl(), MIDDLE.crl(BELOW)], "depth 0: .*certificate revoked"),
        (BELOW, [ROOT.crl(MIDDLE), MIDDLE.crl()], "depth 1: .*certificate revoked"),
        (BELOW, [ROOT.crl()], "depth 0: .*unable to get certificate CRL"),
        (BELOW, [MIDDLE.crl()], "depth 1: .*unable to get certificate CRL"),
        (DIRECT, [TestCA("other").crl()], "unable to get certificate CRL"),
        (DIRECT, [ROOT.crl(starts=-7200, lifetime=-3600)], "CRL has expired"),
        (DIRECT, [ROOT.crl(starts=3600, lifetime=7200)], "CRL is not yet valid"),
        (DIRECT, [ROOT.crl(signer=make_key())], "CRL signature failure"),
    ],
)
def test_refused(issued: Issued, crls: list[bytes], words: str) -> None:
    with pytest.raises(IdentityError) as caught:
        check(issued, *crls)
    reason = caught.value.reason
    assert "certificate revocation check against provided CRLs failed: " in reason
    import re

    assert re.search(words, reason)


def test_of_several_lists_of_one_issuer_a_valid_one_counts() -> None:
    check(DIRECT, ROOT.crl(starts=-7200, lifetime=-3600), ROOT.crl())
    with pytest.raises(IdentityError, match="revoked"):
        check(DIRECT, ROOT.crl(DIRECT), ROOT.crl(starts=-7200, lifetime=-3600))


def test_a_list_of_another_key_with_the_same_name_is_not_believed() -> None:
    twin = TestCA(subject=ROOT.subject)
    check(DIRECT, twin.crl(DIRECT), ROOT.crl())
    with pytest.raises(IdentityError, match="signature"):
        check(DIRECT, twin.crl())


def test_reading() -> None:
    assert crls_from_pem(ROOT.pem) == ()
    assert len(crls_from_pem(ROOT.pem + ROOT.crl() + MIDDLE.pem + MIDDLE.crl())) == 2
    assert crls_from_pem(ROOT.crl()) != crls_from_pem(MIDDLE.crl())
    for broken in (b"-----BEGIN X509 CRL-----", b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n"):
        with pytest.raises(IdentityError):
            crls_from_pem(broken)

"""Envoy's words for what went wrong."""

from __future__ import annotations

import ssl

import pytest

from meshlib.errors import IdentityError
from meshlib.identity.failure import _ALERTS, envoys_alert, refusal_alert, transport_failure
from meshlib.resources.tls import CertificateValidation, TlsVersion
from tests.identity.ca import Issued, TestCA
from tests.identity.configs import bare_server, client, match, roots, server, spiffe
from tests.identity.tls import join

SRV = "spiffe://td.example/ns/a/sa/srv"
VERIFY = "TLS_error:|268435581:SSL_routines:OPENSSL_internal:CERTIFICATE_VERIFY_FAILED:verify_cert_failed:_"
X509 = "X509_verify_cert:_certificate_verification_error_at_depth_"


@pytest.fixture(scope="module")
def ca() -> TestCA:
    return TestCA()


def said(issued: Issued, validation: CertificateValidation) -> str:
    handshake = client(validation).handshake()
    ends = join(handshake.context, bare_server(issued, TlsVersion.TLSv1_2))
    error: Exception | None = ends.errors.get("client")
    if error is None:
        with pytest.raises(IdentityError) as caught:
            handshake.verify(ends.client)
        error = caught.value
    return handshake.text(error, ends.client)


def test_san_mismatch(ca: TestCA) -> None:
    issued = ca.issue(SRV, dns=["srv.example"])
    assert said(issued, roots(ca, sans=(match("spiffe://td.example/other"),))) == (
        f"{VERIFY}SAN_matcher,_certificate_SANs_are_[{SRV},_srv.example]:TLS_error_end"
    )


def test_unknown_ca(ca: TestCA) -> None:
    issued = ca.issue(SRV)
    expected = f"{VERIFY}{X509}0:_unable_to_get_local_issuer_certificate:TLS_error_end"
    assert said(issued, roots(TestCA())) == expected
    below = ca.intermediate().issue(SRV)
    assert said(below, roots(TestCA())) == expected.replace("depth_0", "depth_1")


def test_validity(ca: TestCA) -> None:
    old = ca.issue(SRV, starts=-7200, lifetime=-3600)
    assert said(old, roots(ca)) == f"{VERIFY}{X509}0:_certificate_has_expired:TLS_error_end"
    young = ca.issue(SRV, starts=3600, lifetime=7200)
    assert said(young, roots(ca)) == f"{VERIFY}{X509}0:_certificate_is_not_yet_valid:TLS_error_end"
    above = ca.intermediate(starts=-7200, lifetime=-3600).issue(SRV)
    assert said(above, roots(ca)) == f"{VERIFY}{X509}1:_certificate_has_expired:TLS_error_end"


def test_self_signed() -> None:
    alone = TestCA(ca=False, key_usage=None)
    issued = Issued(certificate=alone.certificate, private=alone.key)
    assert said(issued, roots(TestCA())) == f"{VERIFY}{X509}0:_self_signed_certificate:TLS_error_end"


def test_spiffe(ca: TestCA) -> None:
    assert (
        said(ca.issue("spiffe://other.example/a"), spiffe(ca))
        == f"{VERIFY}no_trust_bundle_store:TLS_error_end"
    )
    assert said(ca.issue(dns=["a.example"]), spiffe(ca)) == f"{VERIFY}no_trust_bundle_store:TLS_error_end"
    assert said(ca.issue(SRV, ca=True), spiffe(ca)) == f"{VERIFY}cert_precheck:TLS_error_end"
    wrong = spiffe(ca, sans=(match("spiffe://td.example/other"),))
    assert said(ca.issue(SRV), wrong) == f"{VERIFY}SAN_match:TLS_error_end"


def test_pins(ca: TestCA) -> None:
    pinned = roots(ca, certificate_hashes=("00" * 32,))
    assert said(ca.issue(SRV), pinned) == f"{VERIFY}cert_hash_and_spki:TLS_error_end"


@pytest.mark.parametrize(
    ("number", "name"),
    [
        (268436496, "SSLV3_ALERT_HANDSHAKE_FAILURE"),
        (268436504, "TLSV1_ALERT_UNKNOWN_CA"),
        (268436501, "SSLV3_ALERT_CERTIFICATE_EXPIRED"),
        (268436502, "SSLV3_ALERT_CERTIFICATE_UNKNOWN"),
    ],
)
def test_alerts(number: int, name: str) -> None:
    error = ssl.SSLError(1, "no matter")
    error.reason = name
    assert transport_failure(error) == (
        f"TLS_error:|{number}:SSL_routines:OPENSSL_internal:{name}:TLS_error_end"
    )
    assert name in _ALERTS.values()


def test_a_certificate_of_another_ca_is_refused_by_the_server(ca: TestCA) -> None:
    handshake = client(roots(ca), TestCA().issue("spiffe://td.example/cli")).handshake()
    ends = join(handshake.context, server(roots(ca), ca.issue(SRV)).context)
    error = ends.errors["client"]
    assert handshake.text(error) == (
        "TLS_error:|268436504:SSL_routines:OPENSSL_internal:TLSV1_ALERT_UNKNOWN_CA:TLS_error_end"
    )


def test_no_certificate_where_one_is_required(ca: TestCA) -> None:
    handshake = client(roots(ca)).handshake()
    ends = join(handshake.context, server(roots(ca), ca.issue(SRV)).context)
    assert handshake.text(ends.errors["client"]) == (
        "TLS_error:|268436496:SSL_routines:OPENSSL_internal:SSLV3_ALERT_HANDSHAKE_FAILURE:TLS_error_end"
    )


@pytest.mark.parametrize(
    "error", [ssl.SSLEOFError(8, "EOF"), ssl.SSLZeroReturnError(6, "end"), ConnectionResetError(104, "reset")]
)
def test_an_end_has_no_text(error: OSError) -> None:
    assert transport_failure(error) == ""


def test_what_has_no_name() -> None:
    assert transport_failure(ssl.SSLError(1, "odd")) == "TLS_error:_unknown"
    assert transport_failure(IdentityError("no way", reason="own certificate has expired")) == (
        "TLS_error:_own_certificate_has_expired"
    )
    assert transport_failure(IdentityError("no way")) == "TLS_error:_no_way"


@pytest.mark.parametrize(
    ("reason", "number"),
    [
        ("verify cert failed: SAN matcher, certificate SANs are []", 46),
        ("verify cert failed: no trust bundle store", 46),
        ("verify cert failed: cert hash and spki", 114),
        ("verify cert failed: X509_verify_cert: ...: certificate revoked", 44),
        ("", 46),
    ],
)
def test_the_alert_for_a_refusal(reason: str, number: int) -> None:
    assert refusal_alert(IdentityError("no", reason=reason)) == bytes((21, 3, 3, 0, 2, 2, number))


def test_openssls_alert_gives_way_to_envoys() -> None:
    unknown_ca = bytes((21, 3, 3, 0, 2, 2, 48))
    refused, early, other = (ssl.SSLCertVerificationError(1, "no") for _ in range(3))
    refused.verify_code, early.verify_code, other.verify_code = 20, 9, 10
    assert envoys_alert(unknown_ca, refused, spiffe=True) == bytes((21, 3, 3, 0, 2, 2, 46))
    assert envoys_alert(unknown_ca, refused, spiffe=False) == unknown_ca
    assert envoys_alert(unknown_ca, early, spiffe=False) == bytes((21, 3, 3, 0, 2, 2, 45))
    assert envoys_alert(unknown_ca, other, spiffe=False) == unknown_ca
    for record in (b"", bytes((23, 3, 3, 0, 19)) + b"x" * 19, bytes((22, 3, 3, 0, 2, 2, 48))):
        assert envoys_alert(record, refused, spiffe=True) == record
    assert envoys_alert(unknown_ca, ssl.SSLError(1, "no"), spiffe=True) == unknown_ca

"""A validation context that comes in a secret and checks less than it seems to is not used, as Envoy refuses it.

Names without authorities to verify the chain with are names that anybody can write.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from meshlib.errors import IdentityError
from meshlib.identity.store import IdentityStore
from meshlib.resources.secret import Secret
from meshlib.resources.tls import AdsSource, CertificateValidation, CommonTls, SecretRef, UpstreamTls
from meshlib.snapshot import Snapshot
from tests.identity.ca import TestCA
from tests.identity.configs import match, roots, spiffe

ID = "spiffe://td.example/srv"
NAMES = (match(ID),)


@pytest.fixture(scope="module")
def ca() -> TestCA:
    return TestCA()


def by_secret(default: CertificateValidation | None) -> UpstreamTls:
    trust = SecretRef(name="trust", source=AdsSource())
    return UpstreamTls(common=CommonTls(validation=default, validation_secret=trust))


def applied(store: IdentityStore, validation: CertificateValidation) -> None:
    store.apply(Snapshot(secrets={"trust": Secret(name="trust", validation=validation)}))


@pytest.mark.parametrize(
    ("default", "dynamic"),
    [
        (CertificateValidation(match_sans=NAMES), CertificateValidation()),
        (None, CertificateValidation(match_sans=NAMES)),
        (CertificateValidation(allow_expired=True), CertificateValidation(certificate_hashes=("ab" * 32,))),
        (CertificateValidation(), CertificateValidation(crl=b"x")),
    ],
)
def test_no_connection(
    default: CertificateValidation | None, dynamic: CertificateValidation, ca: TestCA
) -> None:
    store = IdentityStore()
    held = store.client(by_secret(default))
    applied(store, dynamic)
    assert held.epoch == 0
    with pytest.raises(IdentityError, match="trusted CA") as caught:
        held.handshake()
    assert caught.value.reason == "Secret is not supplied by SDS"
    applied(store, replace(dynamic, trusted_ca=ca.pem, crl=None))
    assert held.epoch == 1


def test_the_last_good_one_stays_in_force(ca: TestCA) -> None:
    store = IdentityStore()
    held = store.client(by_secret(CertificateValidation(match_sans=NAMES)))
    applied(store, roots(ca))
    context = held.handshake().context
    applied(store, CertificateValidation())
    assert held.epoch == 1
    assert held.handshake().context is context


def test_the_spiffe_validator_brings_its_authorities(ca: TestCA) -> None:
    store = IdentityStore()
    held = store.client(by_secret(CertificateValidation(match_sans=NAMES)))
    applied(store, spiffe(ca))
    assert held.epoch == 1


def test_the_name_of_the_server_alone_proves_nothing(ca: TestCA) -> None:
    store = IdentityStore()
    held = store.client(replace(by_secret(None), sni="a.example", auto_sni_san_validation=True))
    applied(store, CertificateValidation(certificate_hashes=("ab" * 32,)))
    with pytest.raises(IdentityError, match="auto_sni_san_validation"):
        held.handshake()
    applied(store, roots(ca))
    assert held.epoch == 1

"""What the relay passes on to C-core, and what it refuses."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from meshlib import proto
from meshlib.errors import IdentityError
from meshlib.identity.material import BundleSet, TrustBundle
from meshlib.identity.resolve import Resolved
from meshlib.identity.revocation import crls_from_pem
from meshlib.identity.trust import Trust
from meshlib.resources.matching import StringKind, StringMatch
from meshlib.resources.tls import CommonTls, SanMatch, SanType, TlsVersion, UpstreamTls
from meshlib.transport.grpc.relay_resources import Peer, peer_of, resources
from tests.identity.ca import TestCA
from tests.transport.grpc.secure.world import SERVER

CA, FRIEND = TestCA("td.example"), TestCA("friend.example")
TRUST = Trust(roots=(CA.der,))


def match(
    value: str, kind: SanType | None = SanType.URI, how: StringKind = StringKind.EXACT, *, fold: bool = False
) -> SanMatch:
    return SanMatch(san_type=kind, match=StringMatch(kind=how, value=value, ignore_case=fold))


def bundles(*authorities: TestCA, **fields: Any) -> Trust:
    found = BundleSet(TrustBundle(each.trust_domain, (each.der,), 1) for each in authorities)
    return Trust(bundles=found, partial_chain=False, **fields)


def peer(trust: Trust, tls: UpstreamTls | None = None) -> Peer:
    return peer_of(tls or UpstreamTls(), Resolved(svids=(), trust=trust))


@pytest.mark.parametrize(
    ("matches", "names"),
    [
        ((), []),
        ((match(SERVER),), [{"exact": SERVER}]),
        ((match(SERVER), match("urn://x")), [{"exact": SERVER}, {"exact": "urn://x"}]),
        ((match("spiffe://td.example/ns/", how=StringKind.PREFIX),), [{"prefix": "spiffe://td.example/ns/"}]),
        ((match("srv.example", SanType.DNS),), [{"exact": "srv.example"}]),
        ((match("srv.example", None),), [{"exact": "srv.example"}]),
    ],
)
def test_names(matches: tuple[SanMatch, ...], names: list[dict[str, str]]) -> None:
    found = peer(dataclasses.replace(TRUST, match_sans=matches))
    assert list(found.names) == names
    assert found.roots == (CA.der,)


@pytest.mark.parametrize(
    "other",
    [
        match("urn:x"),  # a DNS name could hold it
        match(SERVER, fold=True),
        match("spiffe://td.ex", how=StringKind.PREFIX),
        match("s", how=StringKind.PREFIX),
        match("srv", how=StringKind.SUFFIX),
        match("srv", how=StringKind.CONTAINS),
        match("srv", None, StringKind.PREFIX),
        match("srv.example", SanType.DNS, fold=True),
        match("10.0.0.1", SanType.DNS),
        match("10.0.0.1", SanType.IP_ADDRESS),
        match("a@b.example", SanType.EMAIL),
    ],
)
def test_names_that_c_core_would_take_for_others(other: SanMatch) -> None:
    with pytest.raises(IdentityError, match=r'match_typed_subject_alt_names.*use tls="tunnel"'):
        peer(dataclasses.replace(TRUST, match_sans=(match(SERVER), other)))


REVOKED = crls_from_pem(CA.crl())

BEYOND: dict[str, tuple[UpstreamTls, Trust]] = {
    "auto_sni_san_validation": (UpstreamTls(auto_sni_san_validation=True), TRUST),
    "auto_san_validation": (UpstreamTls(auto_san_validation=True), TRUST),
    "override_auto_sni_header": (UpstreamTls(override_auto_sni_header="x-name"), TRUST),
    "cipher_suites": (UpstreamTls(common=CommonTls(cipher_suites=("ECDHE-RSA-AES128-GCM-SHA256",))), TRUST),
    "ecdh_curves": (UpstreamTls(common=CommonTls(curves=("X25519",))), TRUST),
    "tls_minimum_protocol_version": (UpstreamTls(common=CommonTls(minimum=TlsVersion.TLSv1_3)), TRUST),
    "tls_maximum_protocol_version": (UpstreamTls(common=CommonTls(maximum=TlsVersion.TLSv1_2)), TRUST),
    "alpn_protocols": (UpstreamTls(common=CommonTls(alpn=("h2", "http/1.1"))), TRUST),
    "without a trusted CA": (UpstreamTls(), Trust()),
    "system_root_certs": (UpstreamTls(), dataclasses.replace(TRUST, system_roots=True)),
    "crl": (UpstreamTls(), dataclasses.replace(TRUST, crls=REVOKED)),
    "verify_certificate_hash": (
        UpstreamTls(),
        dataclasses.replace(TRUST, certificate_hashes=frozenset([b"x"])),
    ),
    "verify_certificate_spki": (
        UpstreamTls(),
        dataclasses.replace(TRUST, certificate_spkis=frozenset([b"x"])),
    ),
    "allow_expired_certificate": (UpstreamTls(), dataclasses.replace(TRUST, allow_expired=True)),
    "trust_chain_verification": (UpstreamTls(), dataclasses.replace(TRUST, accept_untrusted=True)),
    "max_verify_depth": (UpstreamTls(), dataclasses.replace(TRUST, max_verify_depth=1)),
    "trust bundles of several trust domains": (UpstreamTls(), bundles(CA, FRIEND)),
    "match_typed_subject_alt_names of several trust domains": (
        UpstreamTls(),
        bundles(CA, FRIEND, match_sans=(match(SERVER), match("spiffe://friend.example/x"))),
    ),
    "of a type other than URI": (UpstreamTls(), bundles(CA, match_sans=(match("srv.example", SanType.DNS),))),
    "beside trust domains": (UpstreamTls(), bundles(CA, match_sans=(match("urn://x"),))),
    "that is not self-signed": (UpstreamTls(), bundles(CA.intermediate())),
}


@pytest.mark.parametrize("field", BEYOND)
def test_what_c_core_does_not_know(field: str) -> None:
    tls, trust = BEYOND[field]
    with pytest.raises(IdentityError, match=rf'{field}.*: use tls="tunnel"'):
        peer(trust, tls)


def test_every_field_is_known_here() -> None:
    """Whoever adds a field to what TLS may be asked for must say what the relay makes of it."""
    assert {field.name for field in dataclasses.fields(UpstreamTls)} == {
        "auto_host_sni",
        "auto_san_validation",
        "auto_sni",
        "auto_sni_san_validation",
        "common",
        "enforce_rsa_key_usage",
        "override_auto_sni_header",
        "sni",
    }
    assert {field.name for field in dataclasses.fields(Trust)} == {
        "accept_untrusted",
        "allow_expired",
        "bundles",
        "certificate_hashes",
        "certificate_spkis",
        "crls",
        "leaf_crl_only",
        "match_sans",
        "max_verify_depth",
        "partial_chain",
        "roots",
        "system_roots",
    }


def test_a_bundle_of_one_trust_domain() -> None:
    """Only its own names are taken, whatever the chain says."""
    found = peer(bundles(CA))
    assert list(found.names) == [{"prefix": "spiffe://td.example/"}]
    assert found.roots == (CA.der,)


def test_the_bundle_of_the_trust_domain_that_all_names_are_of() -> None:
    found = peer(bundles(CA, FRIEND, match_sans=(match("spiffe://friend.example/x"),)))
    assert list(found.names) == [{"exact": "spiffe://friend.example/x"}]
    assert found.roots == (FRIEND.der,)


def test_a_trust_domain_without_a_bundle() -> None:
    with pytest.raises(IdentityError, match=r"'friend\.example' is not trusted"):
        peer(bundles(CA, match_sans=(match("spiffe://friend.example/x"),)))


@pytest.mark.parametrize("shows", [True, False])
def test_the_resources(shows: bool) -> None:
    made = resources(
        "name", ("::1", 443), Peer((CA.der,), ({"exact": SERVER},)), "own-1", shows=shows, sni="srv.example"
    )
    assert list(made) == [proto.LISTENER, proto.CLUSTER, proto.ENDPOINT]
    found = {url: proto.unpack(proto.parse("google.protobuf.Any", data)) for url, data in made.items()}
    assert (
        found[proto.LISTENER].name
        == found[proto.CLUSTER].name
        == found[proto.ENDPOINT].cluster_name
        == "name"
    )
    cluster = proto.to_dict(found[proto.CLUSTER])
    tls = cluster["transport_socket"]["typed_config"]
    assert tls["sni"] == "srv.example"
    own = {"tls_certificate_provider_instance": {"instance_name": "own-1"}} if shows else {}
    assert tls["common_tls_context"] == {
        "validation_context": {
            "ca_certificate_provider_instance": {"instance_name": "own-1"},
            "match_subject_alt_names": [{"exact": SERVER}],
        },
        **own,
    }
    assert cluster["circuit_breakers"]["thresholds"] == [{"max_requests": 2**32 - 1}]
    (locality,) = proto.to_dict(found[proto.ENDPOINT])["endpoints"]
    (endpoint,) = locality["lb_endpoints"]
    assert endpoint["endpoint"]["address"]["socket_address"] == {"address": "::1", "port_value": 443}

"""ClientSecurity: what is shown, what is asked for, and what changes with the material."""

from __future__ import annotations

import dataclasses
import math
import ssl

import pytest

from meshlib.errors import IdentityError
from meshlib.identity.store import IdentityStore
from meshlib.resources.matching import StringKind, StringMatch
from meshlib.resources.tls import (
    CertificateValidation,
    CommonTls,
    DownstreamTls,
    SanMatch,
    SanType,
    TlsCertificate,
    TlsVersion,
    UpstreamTls,
)
from tests.identity.ca import Issued, TestCA
from tests.identity.tls import join

SERVER = "spiffe://td.example/ns/a/sa/srv"
CLIENT = "spiffe://td.example/ns/a/sa/cli"


@pytest.fixture(scope="module")
def ca() -> TestCA:
    return TestCA()


def certificate(issued: Issued) -> TlsCertificate:
    return TlsCertificate(chain=issued.chain, private_key=issued.key)


def uri(text: str) -> SanMatch:
    return SanMatch(san_type=SanType.URI, match=StringMatch(kind=StringKind.EXACT, value=text))


def upstream(
    ca: TestCA, issued: Issued | None = None, *, match: str = SERVER, **options: object
) -> UpstreamTls:
    common = CommonTls(
        certificates=() if issued is None else (certificate(issued),),
        validation=CertificateValidation(trusted_ca=ca.pem, match_sans=(uri(match),) if match else ()),
    )
    return UpstreamTls(common=common, **options)  # type: ignore[arg-type]


def downstream(ca: TestCA, issued: Issued, *, required: bool = True) -> DownstreamTls:
    common = CommonTls(
        certificates=(certificate(issued),), validation=CertificateValidation(trusted_ca=ca.pem)
    )
    return DownstreamTls(common=common, require_client_certificate=required)


def test_a_whole_handshake(ca: TestCA) -> None:
    store = IdentityStore()
    client = store.client(upstream(ca, ca.issue(CLIENT), sni="srv.example"))
    server = store.server(downstream(ca, ca.issue(SERVER)))
    handshake = client.handshake(authority="a", hostname="b", alpn=("h2",))
    ends = join(handshake.context, server.context, handshake.server_hostname)
    assert ends.done
    peer = handshake.verify(ends.client)
    assert str(peer.spiffe_id) == SERVER
    caller = server.verify(ends.server)
    assert caller is not None
    assert str(caller.spiffe_id) == CLIENT
    assert ends.client.version() == "TLSv1.2", "Envoy's default for upstreams"
    assert handshake.server_hostname == "srv.example"
    assert handshake.epoch == client.epoch == 1
    assert client.principals == (CLIENT, SERVER)
    assert store.client(upstream(ca, match="")).principals == ("", "")
    assert ends.send_from_client(b"hello") == b"hello"


def test_the_same_object_for_an_equal_configuration(ca: TestCA) -> None:
    store = IdentityStore()
    issued = ca.issue(CLIENT)
    first = store.client(upstream(ca, issued))
    assert store.client(upstream(ca, issued)) is first
    assert store.client(upstream(ca, issued, sni="other")) is not first
    own = store.server(downstream(ca, issued))
    assert store.server(downstream(ca, issued)) is own
    assert store.server(downstream(ca, issued), alpn=("h2",)) is not own


def test_contexts_are_shared_where_nothing_in_them_differs(ca: TestCA) -> None:
    store = IdentityStore()
    issued = ca.issue(CLIENT)
    one = store.client(upstream(ca, issued, match="spiffe://td.example/one"))
    two = store.client(upstream(ca, issued, match="spiffe://td.example/two"))
    assert one.handshake(alpn=("h2",)).context is two.handshake(alpn=("h2",)).context
    assert one.handshake(alpn=("h2",)).context is not one.handshake(alpn=("http/1.1",)).context
    assert one.handshake(alpn=("h2",)).context is one.handshake(alpn=("h2",)).context


def test_a_client_without_a_certificate(ca: TestCA) -> None:
    store = IdentityStore()
    client = store.client(upstream(ca))
    handshake = client.handshake()
    assert math.isinf(handshake.not_after)
    server = store.server(downstream(ca, ca.issue(SERVER), required=False))
    ends = join(handshake.context, server.context)
    assert ends.done
    assert handshake.verify(ends.client).uri_sans == (SERVER,)
    assert server.verify(ends.server) is None


def test_without_validation_anybody_is_accepted_as_in_envoy(ca: TestCA) -> None:
    store = IdentityStore()
    client = store.client(UpstreamTls())
    handshake = client.handshake()
    ends = join(
        handshake.context, store.server(downstream(ca, TestCA().issue(SERVER), required=False)).context
    )
    assert ends.done
    assert handshake.verify(ends.client).uri_sans == (SERVER,)


@pytest.mark.parametrize("kind", ["p256", "p384", "p521", "rsa2048", "rsa3072", "ed25519"])
@pytest.mark.parametrize("version", [TlsVersion.TLSv1_2, TlsVersion.TLSv1_3])
def test_key_types_on_both_sides(kind: str, version: TlsVersion) -> None:
    ca = TestCA(kind=kind)
    store = IdentityStore()
    both = upstream(ca, ca.issue(CLIENT, kind=kind))
    common = CommonTls(
        certificates=both.common.certificates,
        validation=both.common.validation,
        minimum=version,
        maximum=version,
    )
    client = store.client(UpstreamTls(common=common))
    server = store.server(downstream(ca, ca.issue(SERVER, kind=kind)))
    handshake = client.handshake()
    ends = join(handshake.context, server.context)
    assert ends.done
    assert ends.client.version() == version.name.replace("_", ".")
    assert str(handshake.verify(ends.client).spiffe_id) == SERVER
    caller = server.verify(ends.server)
    assert caller is not None
    assert str(caller.spiffe_id) == CLIENT


@pytest.mark.parametrize(
    ("options", "authority", "hostname", "expected"),
    [
        ({}, "a.example:80", "host.example", None),
        ({"sni": "fixed.example"}, "a.example", "host.example", "fixed.example"),
        ({"auto_host_sni": True}, "a.example", "host.example", "host.example"),
        ({"auto_host_sni": True, "sni": "fixed.example"}, "a.example", "", "fixed.example"),
        ({"auto_sni": True, "auto_host_sni": True}, "a.example:80", "host.example", "a.example"),
        ({"auto_sni": True, "sni": "fixed.example"}, "10.0.0.1:80", "", "fixed.example"),
        ({"auto_sni": True}, "[::1]:80", "", None),
        ({"sni": "outbound_.80_._.reviews.default.svc"}, "", "", "outbound_.80_._.reviews.default.svc"),
    ],
)
def test_sni(
    ca: TestCA, options: dict[str, object], authority: str, hostname: str, expected: str | None
) -> None:
    client = IdentityStore().client(dataclasses.replace(upstream(ca), **options))  # type: ignore[arg-type]
    assert client.handshake(authority=authority, hostname=hostname).server_hostname == expected


@pytest.mark.parametrize("name", [".a.example", "a..b", "a" * 64 + ".example"])
def test_sni_that_can_not_be_sent(ca: TestCA, name: str) -> None:
    client = IdentityStore().client(upstream(ca, sni=name))
    with pytest.raises(IdentityError, match="SNI"):
        client.handshake()


def test_alpn_of_the_configuration_comes_first(ca: TestCA) -> None:
    store = IdentityStore()
    issued = ca.issue(SERVER)
    plain = upstream(ca)
    tls = UpstreamTls(common=CommonTls(validation=plain.common.validation, alpn=("istio", "h2")))
    server = store.server(downstream(ca, issued, required=False), alpn=("h2", "http/1.1"))
    ends = join(store.client(tls).handshake(alpn=("http/1.1",)).context, server.context)
    assert ends.client.selected_alpn_protocol() == "h2"
    ends = join(store.client(plain).handshake(alpn=("http/1.1",)).context, server.context)
    assert ends.client.selected_alpn_protocol() == "http/1.1"
    ends = join(store.client(plain).handshake().context, server.context)
    assert ends.client.selected_alpn_protocol() is None


def test_material_that_can_not_be_used_is_an_error_of_the_call(ca: TestCA) -> None:
    issued = ca.issue(CLIENT)
    broken = UpstreamTls(
        common=CommonTls(certificates=(TlsCertificate(chain=issued.chain, private_key=b"no"),))
    )
    client = IdentityStore().client(broken)
    assert client.epoch == 0
    errors = []
    for _ in range(2):
        with pytest.raises(IdentityError, match="private key") as caught:
            client.handshake()
        errors.append(caught.value)
    assert errors[0] is not errors[1]


def test_versions_that_are_not_secure_are_never_offered(ca: TestCA) -> None:
    store = IdentityStore()
    tls = UpstreamTls(common=CommonTls(minimum=TlsVersion.TLSv1_0))
    assert store.client(tls).handshake().context.minimum_version is ssl.TLSVersion.TLSv1_2
    tls = UpstreamTls(common=CommonTls(maximum=TlsVersion.TLSv1_1))
    with pytest.raises(IdentityError, match="secure"):
        store.client(tls).handshake()


def test_ciphers_and_curves(ca: TestCA) -> None:
    store = IdentityStore()
    names = ("[ECDHE-ECDSA-AES128-GCM-SHA256|ECDHE-ECDSA-CHACHA20-POLY1305]", "ECDHE-RSA-AES256-GCM-SHA384")
    context = store.client(UpstreamTls(common=CommonTls(cipher_suites=names))).handshake().context
    below = {item["name"] for item in context.get_ciphers() if item["protocol"] != "TLSv1.3"}
    assert below == {
        "ECDHE-ECDSA-AES128-GCM-SHA256",
        "ECDHE-ECDSA-CHACHA20-POLY1305",
        "ECDHE-RSA-AES256-GCM-SHA384",
    }
    with pytest.raises(IdentityError, match="cipher"):
        store.client(UpstreamTls(common=CommonTls(cipher_suites=("NONSENSE",)))).handshake()
    server = store.server(downstream(ca, ca.issue(SERVER, kind="rsa2048"), required=False))
    for curves in (("P-256",), ("P-384",), ("X25519", "P-256"), ("P-521",)):
        tls = UpstreamTls(common=CommonTls(curves=curves))
        assert join(store.client(tls).handshake().context, server.context).done
    with pytest.raises(IdentityError, match="curve"):
        store.client(UpstreamTls(common=CommonTls(curves=("sect163k1",)))).handshake()

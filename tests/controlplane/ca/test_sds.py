"""Names of secrets and the two SDS protocols, without a network."""

from __future__ import annotations

import pytest
from cryptography import x509

from meshlib import proto
from meshlib.controlplane.ca import Authority, Entry, Identities, sds
from meshlib.proto import Message

WEB, API = "spiffe://example.org/web", "spiffe://example.org/api"
DISCOVERY = "envoy.service.discovery.v3."


@pytest.fixture
def authority() -> Authority:
    made = Authority("example.org")
    made.federate("other.org", Authority("other.org").bundle)
    return made


@pytest.fixture
def identities(authority: Authority) -> Identities:
    return Identities(authority, [Entry(spiffe_id=WEB), Entry(spiffe_id=API)])


def secret(identities: Identities, name: str, *, plain: bool = False) -> Message:
    found = sds.secret(identities.view(None), name, plain=plain)
    assert found is not None
    assert found.name == name
    return found


def domains(message: Message) -> dict[str, bytes]:
    custom = message.validation_context.custom_validator_config
    assert custom.name == "envoy.tls.cert_validator.spiffe"
    return {
        domain.name: domain.trust_bundle.inline_bytes
        for domain in proto.unpack(custom.typed_config).trust_domains
    }


@pytest.mark.parametrize(("name", "spiffe_id"), [("default", WEB), (WEB, WEB), (API, API)])
def test_certificates(identities: Identities, name: str, spiffe_id: str) -> None:
    svid = next(svid for svid in identities.view(None).svids if svid.spiffe_id == spiffe_id)
    certificate = secret(identities, name).tls_certificate
    assert certificate.certificate_chain.inline_bytes == svid.chain_pem()
    assert certificate.private_key.inline_bytes == svid.key_pem()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ROOTCA", ["example.org"]),
        ("spiffe://example.org", ["example.org"]),
        ("spiffe://other.org", ["other.org"]),
        ("ALL", ["example.org", "other.org"]),
    ],
)
def test_roots(authority: Authority, identities: Identities, name: str, expected: list[str]) -> None:
    found = domains(secret(identities, name))
    assert list(found) == expected
    for domain, pem in found.items():
        assert x509.load_pem_x509_certificates(pem) == list(authority.bundles[domain])


def test_plain_roots_carry_the_revocation_lists(authority: Authority, identities: Identities) -> None:
    context = secret(identities, "ROOTCA", plain=True).validation_context
    assert not context.HasField("custom_validator_config")
    assert not context.HasField("crl")
    authority.revoke(identities.view(None).svids[0])
    context = secret(identities, "ROOTCA", plain=True).validation_context
    assert x509.load_pem_x509_crl(context.crl.inline_bytes).get_revoked_certificate_by_serial_number(
        identities.view(None).svids[0].serial
    )
    assert not secret(identities, "spiffe://other.org", plain=True).validation_context.HasField("crl")
    assert sds.secret(identities.view(None), "ALL", plain=True) is None


@pytest.mark.parametrize(
    "name", ["", "example.org", "spiffe://unknown.org", "spiffe://example.org/admin", "all"]
)
def test_what_there_is_not(identities: Identities, name: str) -> None:
    assert sds.secret(identities.view(None), name) is None


def test_nobody_gets_another_ones_certificate(authority: Authority) -> None:
    identities = Identities(authority, [Entry(spiffe_id=WEB, uid=1)])
    view = identities.view(None)
    assert sds.secret(view, WEB) is None
    assert sds.secret(view, "default") is None
    assert sds.secret(view, "ROOTCA") is not None


@pytest.mark.parametrize(
    ("value", "plain"),
    [(True, True), (False, False), ("true", True), ("1", True), ("no", False), (1.0, False)],
)
def test_the_node_chooses_plain_roots(value: object, plain: bool) -> None:
    node = proto.message("envoy.config.core.v3.Node")()
    assert not sds.plain_roots(node)
    node.metadata["disable_spiffe_cert_validation"] = value
    assert sds.plain_roots(node) is plain


def sent(response: Message | None) -> Message:
    assert response is not None
    return response


def names_of(response: Message | None) -> list[str]:
    assert response is not None
    assert response.type_url == sds.TYPE_URL
    return [proto.unpack(getattr(resource, "resource", resource)).name for resource in response.resources]


def test_a_state_of_the_world_stream(authority: Authority, identities: Identities) -> None:
    stream = sds.SotwStream()
    request = proto.message(f"{DISCOVERY}DiscoveryRequest")
    assert stream.due(identities.view(None)) is None, "nothing was asked for"
    assert stream.receive(request(resource_names=["default"])) is None
    first = sent(stream.due(identities.view(None)))
    assert names_of(first) == ["default"]
    assert stream.due(identities.view(None)) is None

    ack = stream.receive(
        request(resource_names=["default"], response_nonce=first.nonce, version_info=first.version_info)
    )
    assert ack == sds.SecretAnswer(names=("default",), version=first.version_info, error="")
    assert stream.due(identities.view(None)) is None

    authority.rotate()
    assert stream.due(identities.view(None)) is None, "another root is trusted, the certificate is the same"
    authority.rotate()
    second = sent(stream.due(identities.view(None)))
    assert names_of(second) == ["default"]
    assert second.nonce != first.nonce

    assert stream.receive(request(resource_names=["ALL"], response_nonce=first.nonce)) is None, "an old nonce"
    assert stream.due(identities.view(None)) is None
    nack = request(resource_names=["default", "ALL"], response_nonce=second.nonce)
    nack.error_detail.message = "no"
    answer = stream.receive(nack)
    assert answer is not None
    assert (answer.version, answer.error) == (second.version_info, "no")
    assert names_of(stream.due(identities.view(None))) == ["default", "ALL"]


def test_no_names_are_all_names(identities: Identities) -> None:
    found = sds.fetch(identities.view(None), [])
    assert [proto.unpack(each).name for each in found] == [
        "spiffe://example.org",
        "spiffe://other.org",
        WEB,
        API,
    ]


def test_an_unknown_name_ends_a_state_of_the_world_stream(identities: Identities) -> None:
    stream = sds.SotwStream()
    stream.receive(proto.message(f"{DISCOVERY}DiscoveryRequest")(resource_names=["default", "b", "a"]))
    with pytest.raises(
        sds.UnknownSecret, match=r"workload is not authorized for the requested identities \[\"a\" \"b\"\]"
    ):
        stream.due(identities.view(None))


def test_a_delta_stream(authority: Authority, identities: Identities) -> None:
    stream = sds.DeltaStream()
    request = proto.message(f"{DISCOVERY}DeltaDiscoveryRequest")
    assert stream.due(identities.view(None)) is None
    assert stream.receive(request(resource_names_subscribe=["default", "ROOTCA", "nobody"])) is None
    first = stream.due(identities.view(None))
    assert first is not None
    assert names_of(first) == ["ROOTCA", "default"]
    assert list(first.removed_resources) == ["nobody"]
    assert stream.due(identities.view(None)) is None

    answer = stream.receive(request(response_nonce=first.nonce))
    assert answer == sds.SecretAnswer(names=("ROOTCA", "default", "nobody"), version="", error="")
    authority.rotate()
    assert names_of(stream.due(identities.view(None))) == ["ROOTCA"], "only what has changed"

    stream.receive(request(resource_names_unsubscribe=["ROOTCA"], resource_names_subscribe=["default"]))
    assert names_of(stream.due(identities.view(None))) == ["default"], "asked for again"
    authority.rotate()
    assert names_of(stream.due(identities.view(None))) == ["default"], "ROOTCA is not wanted any longer"

    identities.replace([])
    gone = stream.due(identities.view(None))
    assert gone is not None
    assert (list(gone.resources), list(gone.removed_resources)) == ([], ["default"])
    assert stream.due(identities.view(None)) is None


def test_a_delta_stream_goes_on_where_another_ended(identities: Identities) -> None:
    request = proto.message(f"{DISCOVERY}DeltaDiscoveryRequest")
    before = sds.DeltaStream()
    before.receive(request(resource_names_subscribe=["default", "ROOTCA"]))
    sent = before.due(identities.view(None))
    assert sent is not None
    versions = {resource.name: resource.version for resource in sent.resources}

    after = sds.DeltaStream()
    after.receive(request(resource_names_subscribe=["default", "ROOTCA"], initial_resource_versions=versions))
    assert after.due(identities.view(None)) is None
    after = sds.DeltaStream()
    after.receive(
        request(
            resource_names_subscribe=["default", "ROOTCA"],
            initial_resource_versions={**versions, "ROOTCA": "0"},
        )
    )
    assert names_of(after.due(identities.view(None))) == ["ROOTCA"]


def test_a_delta_stream_of_everything(identities: Identities) -> None:
    stream = sds.DeltaStream()
    request = proto.message(f"{DISCOVERY}DeltaDiscoveryRequest")
    stream.receive(request())
    assert names_of(stream.due(identities.view(None))) == [
        "spiffe://example.org",
        "spiffe://other.org",
        WEB,
        API,
    ]
    identities.replace([Entry(spiffe_id=API)])
    gone = stream.due(identities.view(None))
    assert gone is not None
    assert list(gone.removed_resources) == [WEB]
    stream.receive(request(resource_names_unsubscribe=["*"]))
    identities.replace([Entry(spiffe_id=WEB)])
    assert stream.due(identities.view(None)) is None

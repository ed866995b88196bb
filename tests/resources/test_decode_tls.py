"""Transport sockets of clusters, and what their certificates must be."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import pytest

from meshlib import proto
from meshlib.resources.matching import StringKind, StringMatch
from meshlib.resources.metadata import NO_METADATA, SocketMetadata
from meshlib.resources.tls import (
    AdsSource,
    CertificateValidation,
    CommonTls,
    FilePath,
    PathSource,
    ProviderInstance,
    SanMatch,
    SanType,
    SecretRef,
    ServerSource,
    TlsCertificate,
    TlsVersion,
    TrustDomainBundle,
    UpstreamTls,
    merge_validation,
    select_tls,
    validation_problem,
)
from tests.resources.building import decode_cluster, decoded, refused
from tests.resources.test_decode_cluster import HTTP_OPTIONS, http_options
from tests.resources.tls_samples import (
    RAW,
    TLS,
    bundle_map,
    ca,
    certificate,
    common,
    fingerprint,
    from_sds,
    from_server,
    inline,
    issued,
    san,
    spiffe,
    trusted,
    upstream,
)

SOCKET = "transport_socket.typed_config"
COMMON = f"{SOCKET}.common_tls_context"
VALIDATION = f"{COMMON}.validation_context"


def tls_of(context: dict[str, Any] | None = None, **fields: Any) -> UpstreamTls:
    found = decode_cluster(transport_socket=upstream(context, **fields)).tls
    assert found is not None
    return found


def validation_of(**fields: Any) -> CertificateValidation:
    found = tls_of(common(fields)).common.validation
    assert found is not None
    return found


def exact(text: str) -> StringMatch:
    return StringMatch(kind=StringKind.EXACT, value=text)


def test_an_empty_context() -> None:
    assert tls_of() == UpstreamTls()
    assert tls_of({}) == UpstreamTls(common=CommonTls())


def test_names() -> None:
    found = tls_of(common(trusted()), sni="a.example", auto_host_sni=True, auto_sni_san_validation=True)
    assert (found.sni, found.auto_host_sni, found.auto_sni_san_validation) == ("a.example", True, True)
    assert found.enforce_rsa_key_usage
    assert not tls_of(enforce_rsa_key_usage=False).enforce_rsa_key_usage


def test_parameters() -> None:
    found = tls_of(
        common(
            tls_params={
                "tls_minimum_protocol_version": "TLSv1_2",
                "tls_maximum_protocol_version": "TLSv1_3",
                "cipher_suites": ["ECDHE-RSA-AES128-GCM-SHA256"],
                "ecdh_curves": ["P-256", "X25519"],
            },
            alpn_protocols=["h2", "http/1.1"],
        )
    ).common
    assert (found.minimum, found.maximum) == (TlsVersion.TLSv1_2, TlsVersion.TLSv1_3)
    assert found.cipher_suites == ("ECDHE-RSA-AES128-GCM-SHA256",)
    assert found.curves == ("P-256", "X25519")
    assert found.alpn == ("h2", "http/1.1")


@pytest.mark.parametrize("kind", ["p256", "p384", "p521", "rsa2048", "ed25519"])
def test_certificates_of_each_kind(kind: str) -> None:
    found = tls_of(common(tls_certificates=[certificate(kind)])).common
    assert found.certificates == (TlsCertificate(chain=issued(kind).chain, private_key=issued(kind).key),)


def test_an_empty_certificate_is_passed_over() -> None:
    assert tls_of(common(tls_certificates=[{}])).common.certificates == ()


def test_a_password(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives.serialization import PrivateFormat

    key = issued().key_as(PrivateFormat.PKCS8, b"secret words")
    fields = certificate(private_key=inline(key), password=inline(b"secret words"))
    assert tls_of(common(tls_certificates=[fields])).common.certificates[0].password == b"secret words"
    fields["password"] = inline(b"wrong words")
    error = refused(
        proto.CLUSTER, {"name": "c", "transport_socket": upstream(common(tls_certificates=[fields]))}
    )
    assert error.path == f"{COMMON}.tls_certificates[0]"
    assert "wrong words" not in str(error)


def test_private_keys_are_not_shown() -> None:
    found = tls_of(common(tls_certificates=[certificate(password=inline(b"hunter2"))]))
    assert "PRIVATE KEY" not in repr(found)
    assert "hunter2" not in repr(found)


def test_files_stay_files(tmp_path: Path) -> None:
    (tmp_path / "cert.pem").write_bytes(issued().chain)
    (tmp_path / "key.pem").write_bytes(issued().key)
    (tmp_path / "ca.pem").write_bytes(ca().pem)
    fields = {
        "certificate_chain": {"filename": f"{tmp_path}/cert.pem"},
        "private_key": {"filename": f"{tmp_path}/key.pem"},
        "watched_directory": {"path": str(tmp_path)},
    }
    trust = {"filename": f"{tmp_path}/ca.pem", "watched_directory": {"path": str(tmp_path)}}
    found = tls_of(common({"trusted_ca": trust}, tls_certificates=[fields])).common
    assert found.certificates == (
        TlsCertificate(
            chain=FilePath(path=f"{tmp_path}/cert.pem"),
            private_key=FilePath(path=f"{tmp_path}/key.pem"),
            watched_directory=str(tmp_path),
        ),
    )
    assert found.validation is not None
    assert found.validation.trusted_ca == FilePath(path=f"{tmp_path}/ca.pem", watched_directory=str(tmp_path))


def test_material_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROOTS", ca().pem.decode())
    assert validation_of(trusted_ca={"environment_variable": "ROOTS"}).trusted_ca == ca().pem


def test_names_of_the_certificate() -> None:
    typed = [
        san(),
        san("DNS", suffix=".example", ignore_case=True),
        san("IP_ADDRESS", exact="10.0.0.1"),
        san("EMAIL", prefix="a@"),
        san("OTHER_NAME", oid="1.3.6.1.4.1.311.20.2.3", contains="x"),
    ]
    found = validation_of(**trusted(match_typed_subject_alt_names=typed)).match_sans
    assert [each.san_type for each in found] == [
        SanType.URI,
        SanType.DNS,
        SanType.IP_ADDRESS,
        SanType.EMAIL,
        SanType.OTHER_NAME,
    ]
    assert found[0] == SanMatch(san_type=SanType.URI, match=exact("spiffe://td.example/web"))
    assert found[1].match == StringMatch(kind=StringKind.SUFFIX, value=".example", ignore_case=True)
    assert found[4].oid == "1.3.6.1.4.1.311.20.2.3"


def test_names_of_any_type() -> None:
    old = [{"exact": "a"}]
    assert validation_of(**trusted(match_subject_alt_names=old)).match_sans == (
        SanMatch(san_type=None, match=exact("a")),
    )
    both = validation_of(**trusted(match_subject_alt_names=old, match_typed_subject_alt_names=[san()]))
    assert [each.san_type for each in both.match_sans] == [SanType.URI]


def test_pinned_certificates() -> None:
    colons = ":".join(fingerprint()[i : i + 2] for i in range(0, 64, 2)).upper()
    spki = base64.b64encode(hashlib.sha256(b"key").digest()).decode()
    found = validation_of(verify_certificate_hash=[fingerprint(), colons], verify_certificate_spki=[spki])
    assert found.certificate_hashes == (fingerprint(), fingerprint())
    assert found.certificate_spkis == (spki,)


def test_revocation() -> None:
    crl = ca().crl(issued())
    found = validation_of(**trusted(crl=inline(crl), only_verify_leaf_cert_crl=True))
    assert (found.crl, found.leaf_crl_only) == (crl, True)
    both = ca().pem + crl
    among = validation_of(trusted_ca=inline(both))
    assert among.crl == among.trusted_ca == both
    apart = validation_of(trusted_ca=inline(both), crl=inline(crl))
    assert apart.crl == crl + b"\n" + both


def test_loosened_validation() -> None:
    found = validation_of(
        **trusted(
            allow_expired_certificate=True, trust_chain_verification="ACCEPT_UNTRUSTED", max_verify_depth=3
        )
    )
    assert (found.allow_expired, found.accept_untrusted, found.max_verify_depth) == (True, True, 3)


def test_the_spiffe_validator(tmp_path: Path) -> None:
    found = validation_of(**spiffe("td.example", "other.example"), match_typed_subject_alt_names=[san()])
    assert found.spiffe == (
        TrustDomainBundle(name="td.example", bundle=ca().pem),
        TrustDomainBundle(name="other.example", bundle=ca().pem),
    )
    assert validation_of(**spiffe()).spiffe == ()
    inline_map = validation_of(**spiffe(trust_bundles={"inline_string": bundle_map()}))
    assert inline_map.spiffe == ()
    assert inline_map.spiffe_bundle_map == bundle_map().encode()
    (tmp_path / "map.json").write_text(bundle_map())
    file_map = validation_of(**spiffe(trust_bundles={"filename": f"{tmp_path}/map.json"}))
    assert file_map.spiffe_bundle_map == FilePath(path=f"{tmp_path}/map.json")


def test_providers() -> None:
    instance = {"instance_name": "default", "certificate_name": "n"}
    expected = ProviderInstance(instance_name="default", certificate_name="n")
    found = tls_of(
        common({"ca_certificate_provider_instance": instance}, tls_certificate_provider_instance=instance)
    ).common
    assert found.certificate_provider == expected
    assert found.validation == CertificateValidation(ca_provider=expected)
    old = tls_of(
        common(
            tls_certificate_certificate_provider_instance=instance,
            validation_context_certificate_provider_instance=instance,
        )
    ).common
    assert old.certificate_provider == expected
    assert old.validation == CertificateValidation(ca_provider=expected)
    combined = {
        "default_validation_context": {"match_typed_subject_alt_names": [san()]},
        "validation_context_sds_secret_config": from_sds("roots"),
        "validation_context_certificate_provider_instance": instance,
    }
    mixed = tls_of(common(combined_validation_context=combined)).common
    assert mixed.validation is not None
    assert mixed.validation.ca_provider == expected
    assert validation_of(system_root_certs={}, match_typed_subject_alt_names=[san()]).system_roots


def test_a_provider_comes_before_what_envoy_takes() -> None:
    found = tls_of(
        common(
            tls_certificate_provider_instance={"instance_name": "i"},
            tls_certificate_sds_secret_configs=[from_sds("cert")],
        )
    ).common
    assert found.certificate_provider == ProviderInstance(instance_name="i")
    assert found.certificate_secrets == ()


def test_secrets() -> None:
    found = tls_of(
        common(
            tls_certificate_sds_secret_configs=[from_sds("cert")],
            validation_context_sds_secret_config=from_sds("roots", ads={}, initial_fetch_timeout="3s"),
        )
    ).common
    assert found.certificate_secrets == (SecretRef(name="cert", source=AdsSource()),)
    assert found.validation_secret == SecretRef(name="roots", source=AdsSource(), initial_fetch_timeout=3.0)
    assert found.validation is None
    assert found.secrets == (*found.certificate_secrets, found.validation_secret)
    bare = tls_of(common(tls_certificate_sds_secret_configs=[{"name": "static"}])).common
    assert bare.secrets == (SecretRef(name="static", source=AdsSource()),)


def test_a_combined_context() -> None:
    combined = {
        "default_validation_context": {"match_typed_subject_alt_names": [san()]},
        "validation_context_sds_secret_config": from_sds("roots"),
    }
    found = tls_of(common(combined_validation_context=combined)).common
    assert found.validation_secret == SecretRef(name="roots", source=AdsSource())
    assert found.validation is not None
    assert len(found.validation.match_sans) == 1


def source_of(**source: Any) -> object:
    context = common(tls_certificate_sds_secret_configs=[from_sds("s", **source)])
    return tls_of(context).common.secrets[0].source


def test_sources_of_secrets(tmp_path: Path) -> None:
    path = str(tmp_path / "secret.yaml")
    Path(path).touch()
    assert source_of(path_config_source={"path": path}) == PathSource(path=path)
    watched = {"path": path, "watched_directory": {"path": str(tmp_path)}}
    assert source_of(path_config_source=watched) == PathSource(path=path, watched_directory=str(tmp_path))
    assert source_of(path=path) == PathSource(path=path)
    assert source_of(**from_server()) == ServerSource(target="unix:/run/x.sock")
    assert source_of(**from_server(envoy_grpc={"cluster_name": "sds"})) == ServerSource(cluster="sds")
    credentials = {
        "ssl_credentials": {
            "root_certs": inline(ca().pem),
            "private_key": inline(issued().key),
            "cert_chain": inline(issued().chain),
        }
    }
    found = source_of(
        **from_server(
            google_grpc={"target_uri": "sds:1", "stat_prefix": "s", "channel_credentials": credentials},
            initial_metadata=[{"key": "workload.spiffe.io", "value": "true"}],
        )
    )
    assert found == ServerSource(
        target="sds:1",
        tls=True,
        root_certificates=ca().pem,
        certificate_chain=issued().chain,
        private_key=issued().key,
        metadata=(("workload.spiffe.io", "true"),),
    )
    assert "PRIVATE" not in repr(found)
    local = {"target_uri": "unix:/s", "stat_prefix": "s", "channel_credentials": {"local_credentials": {}}}
    assert source_of(**from_server(google_grpc=local)) == ServerSource(target="unix:/s")


BAD_KEY = certificate(private_key=inline(issued("p384").key))
REFUSED: list[tuple[dict[str, Any], str]] = [
    (common(tls_certificates=[BAD_KEY]), f"{COMMON}.tls_certificates[0]"),
    (
        common(tls_certificates=[{"certificate_chain": inline(issued().chain)}]),
        f"{COMMON}.tls_certificates[0].private_key",
    ),
    (
        common(tls_certificates=[{"private_key": inline(issued().key)}]),
        f"{COMMON}.tls_certificates[0].certificate_chain",
    ),
    (
        common(tls_certificates=[certificate(certificate_chain=inline(b"nonsense"))]),
        f"{COMMON}.tls_certificates[0]",
    ),
    (
        common(tls_certificates=[certificate(private_key=inline(b"nonsense"))]),
        f"{COMMON}.tls_certificates[0]",
    ),
    (common(tls_certificates=[certificate("rsa1024")]), f"{COMMON}.tls_certificates[0]"),
    (common(tls_certificates=[certificate("k1")]), f"{COMMON}.tls_certificates[0]"),
    (common(tls_certificates=[certificate(), certificate("p384")]), COMMON),
    (
        common(tls_certificates=[certificate(certificate_chain={"filename": "/does/not/exist"})]),
        f"{COMMON}.tls_certificates[0].certificate_chain.filename",
    ),
    (common({"trusted_ca": inline(b"nonsense")}), f"{VALIDATION}.trusted_ca"),
    (common({"match_typed_subject_alt_names": [san()]}), VALIDATION),
    (common({"crl": inline(ca().crl())}), VALIDATION),
    (common({"allow_expired_certificate": True}), VALIDATION),
    (common(trusted(verify_certificate_hash=["ab" * 32 + "0"])), f"{VALIDATION}.verify_certificate_hash[0]"),
    (common(trusted(verify_certificate_spki=["x" * 44])), f"{VALIDATION}.verify_certificate_spki[0]"),
    (
        common(trusted(match_typed_subject_alt_names=[san("OTHER_NAME")])),
        f"{VALIDATION}.match_typed_subject_alt_names[0].oid",
    ),
    (
        common(trusted(match_typed_subject_alt_names=[san("SAN_TYPE_UNSPECIFIED")])),
        f"{VALIDATION}.match_typed_subject_alt_names[0].san_type",
    ),
    (
        common(spiffe("a", "a")),
        f"{VALIDATION}.custom_validator_config.typed_config.trust_domains[1].name",
    ),
    (
        common(spiffe(trust_domains=[{"name": "a", "trust_bundle": inline(b"nonsense")}])),
        f"{VALIDATION}.custom_validator_config.typed_config.trust_domains[0].trust_bundle",
    ),
    *(
        (
            common(spiffe(trust_bundles={"inline_string": text})),
            f"{VALIDATION}.custom_validator_config.typed_config.trust_bundles",
        )
        for text in (
            "{",
            "{}",
            bundle_map(a={}),
            bundle_map(a={"keys": []}),
            bundle_map(a={"keys": [{"use": "jwt-svid", "x5c": ["AAAA"]}]}),
            bundle_map(a={"keys": [{"use": "x509-svid", "x5c": []}]}),
            bundle_map(a={"keys": [{"use": "x509-svid", "x5c": ["AAAA"]}]}),
        )
    ),
    (
        common(tls_certificate_sds_secret_configs=[from_sds("a"), from_sds("b")]),
        COMMON,
    ),
    (
        common(tls_certificate_sds_secret_configs=[from_sds("a", path_config_source={"path": "/none"})]),
        f"{COMMON}.tls_certificate_sds_secret_configs[0].sds_config.path_config_source.path",
    ),
]
"""What Envoy refuses too."""

ONLY_HERE: list[tuple[dict[str, Any], str]] = [
    (common(trusted(crl=inline(b"nonsense"))), f"{VALIDATION}.crl"),  # in Envoy, every connection fails
    (common(tls_params={"signature_algorithms": ["ed25519"]}), f"{COMMON}.tls_params.signature_algorithms"),
    (
        common(tls_params={"compliance_policies": ["FIPS_202205"]}),
        f"{COMMON}.tls_params.compliance_policies",
    ),
    (
        common(
            tls_params={
                "tls_minimum_protocol_version": "TLSv1_3",
                "tls_maximum_protocol_version": "TLSv1_2",
            }
        ),
        f"{COMMON}.tls_params.tls_minimum_protocol_version",
    ),
    (
        common(custom_handshaker={"name": "x", "typed_config": RAW["typed_config"]}),
        f"{COMMON}.custom_handshaker",
    ),
    (common(tls_certificates=[{"pkcs12": inline(b"x")}]), f"{COMMON}.tls_certificates[0].pkcs12"),
    (
        common(tls_certificates=[certificate(private_key_provider={"provider_name": "x"})]),
        f"{COMMON}.tls_certificates[0].private_key_provider",
    ),
    (
        common(trusted(require_signed_certificate_timestamp=True)),
        f"{VALIDATION}.require_signed_certificate_timestamp",
    ),
    (
        common(validation_context_certificate_provider={"name": "x", "typed_config": RAW}),
        f"{COMMON}.validation_context_certificate_provider",
    ),
]
"""What is not implemented, and must not be left out."""


@pytest.mark.parametrize(("context", "path"), REFUSED + ONLY_HERE)
def test_refused_contexts(context: dict[str, Any], path: str) -> None:
    assert refused(proto.CLUSTER, {"name": "c", "transport_socket": upstream(context)}).path == path


@pytest.mark.parametrize(
    ("socket", "path"),
    [
        (upstream(auto_sni_san_validation=True), f"{SOCKET}.auto_sni_san_validation"),
        (upstream(common({}), auto_sni_san_validation=True), f"{SOCKET}.auto_sni_san_validation"),
        (upstream(sni="a\0b"), f"{SOCKET}.sni"),
        (upstream(sni="a" * 256), f"{SOCKET}.sni"),
        ({"name": "x", "typed_config": {"@type": TLS + "DownstreamTlsContext"}}, "transport_socket"),
        (
            {
                "name": "x",
                "typed_config": {
                    "@type": TLS.replace("tls.v3.", "proxy_protocol.v3.ProxyProtocolUpstreamTransport"),
                    "transport_socket": RAW,
                },
            },
            "transport_socket",
        ),
    ],
)
def test_refused_sockets(socket: dict[str, Any], path: str) -> None:
    assert refused(proto.CLUSTER, {"name": "c", "transport_socket": socket}).path == path


def test_errors_name_no_material() -> None:
    for context, _ in REFUSED:
        error = refused(proto.CLUSTER, {"name": "c", "transport_socket": upstream(context)})
        assert "-----BEGIN" not in str(error)


def test_unknown_fields_of_a_context_are_refused() -> None:
    cluster: Any = proto.from_dict(
        "envoy.config.cluster.v3.Cluster", {"name": "c", "transport_socket": upstream(common(trusted()))}
    )
    packed = cluster.transport_socket.typed_config
    packed.value += b"\x98\x3f\x01"  # field 1011
    with pytest.raises(Exception, match="must not be read in part"):
        decoded_message(cluster)


def decoded_message(message: Any) -> object:
    from meshlib.resources import decode

    return decode(proto.CLUSTER, message)


def test_what_has_no_effect_is_reported() -> None:
    found = decoded(
        proto.CLUSTER,
        {
            "name": "c",
            "transport_socket": upstream(common(key_log={"path": "/tmp/keys"}), allow_renegotiation=True),
        },
    )
    assert found.unsupported == (f"{SOCKET}.allow_renegotiation", f"{COMMON}.key_log")


def test_names_from_the_protocol_options() -> None:
    names = {"auto_sni": True, "auto_san_validation": True, "override_auto_sni_header": "X-Name"}
    matches = [{"name": "m", "match": {"a": "b"}, "transport_socket": upstream(sni="m")}]
    found = decode_cluster(
        transport_socket=upstream(sni="s"),
        transport_socket_matches=matches,
        typed_extension_protocol_options=http_options(
            upstream_http_protocol_options=names, explicit_http_config={"http_protocol_options": {}}
        ),
    )
    expected = {**names, "override_auto_sni_header": "x-name"}
    assert found.tls == UpstreamTls(sni="s", **expected)  # type: ignore[arg-type]
    assert found.transport_socket_matches[0].tls == UpstreamTls(sni="m", **expected)  # type: ignore[arg-type]
    old = decode_cluster(transport_socket=upstream(), upstream_http_protocol_options={"auto_sni": True})
    assert old.tls == UpstreamTls(auto_sni=True)
    assert decode_cluster(upstream_http_protocol_options={"auto_sni": True}).tls is None
    assert HTTP_OPTIONS


def test_matches_by_metadata() -> None:
    cluster = decode_cluster(
        transport_socket=upstream(sni="default"),
        transport_socket_matches=[
            {"name": "tls", "match": {"tlsMode": "istio"}, "transport_socket": upstream(sni="istio")},
            {"name": "n", "match": {"n": 1, "flag": True}, "transport_socket": upstream(sni="numbers")},
            {"name": "list", "match": {"l": ["a", {"b": None}]}, "transport_socket": upstream(sni="list")},
            {"name": "raw", "match": {"plain": "yes"}, "transport_socket": RAW},
        ],
    )

    def sni(metadata: dict[str, Any], locality: dict[str, Any] | None = None) -> str | None:
        found = select_tls(cluster, SocketMetadata(metadata, locality or NO_METADATA))
        return None if found is None else found.sni

    assert sni({}) == "default"
    assert sni({"tlsMode": "istio", "other": "x"}) == "istio"
    assert sni({"tlsMode": "disabled"}) == "default"
    assert sni({"n": 1.0, "flag": True}) == "numbers"
    assert sni({"n": True, "flag": 1.0}) == "default"
    assert sni({"plain": "yes"}) is None
    assert sni({"tlsMode": "istio", "plain": "yes"}) == "istio"
    assert sni({"plain": "yes"}, {"tlsMode": "istio"}) is None
    assert sni({}, {"tlsMode": "istio"}) == "istio"
    assert sni({"n": 1.0}, {"flag": True}) == "default"
    listed = cluster.transport_socket_matches[2].match
    assert sni(dict(listed)) == "list"
    assert sni({"l": str(listed["l"])}) == "default"
    assert select_tls(cluster) is cluster.tls


def test_a_match_without_a_socket_is_plaintext() -> None:
    cluster = decode_cluster(transport_socket=upstream(), transport_socket_matches=[{"name": "any"}])
    assert select_tls(cluster, {"a": "b"}) is None
    assert select_tls(cluster) is None


def test_merging_as_envoy_merges() -> None:
    default = CertificateValidation(
        match_sans=(SanMatch(san_type=SanType.DNS, match=exact("a")),),
        certificate_hashes=("1",),
        allow_expired=True,
        trusted_ca=b"old",
        crl=b"crl",
        max_verify_depth=1,
    )
    dynamic = CertificateValidation(
        match_sans=(SanMatch(san_type=SanType.DNS, match=exact("b")),),
        certificate_hashes=("2",),
        trusted_ca=b"new",
        leaf_crl_only=True,
    )
    merged = merge_validation(default, dynamic)
    assert [each.match.value for each in merged.match_sans] == ["a", "b"]
    assert merged.certificate_hashes == ("1", "2")
    assert (merged.trusted_ca, merged.crl, merged.max_verify_depth) == (b"new", b"crl", 1)
    assert merged.allow_expired
    assert merged.leaf_crl_only
    assert validation_problem(dataclasses.replace(merged, trusted_ca=None)) is not None
    assert merge_validation(default, CertificateValidation()) == default
    assert merge_validation(CertificateValidation(), dynamic) == dynamic
    bundles = CertificateValidation(spiffe=(TrustDomainBundle(name="a", bundle=b""),))
    assert merge_validation(default, bundles).spiffe == bundles.spiffe
    assert merge_validation(bundles, default).spiffe == bundles.spiffe


def test_an_rsa_key_whose_parts_do_not_fit() -> None:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    private = issued("rsa2048").private
    der = private.private_bytes(Encoding.DER, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    numbers: Any = private.private_numbers()  # type: ignore[union-attr]
    for part in (numbers.p, numbers.q, numbers.d, numbers.dmp1, numbers.dmq1, numbers.iqmp):
        octets = part.to_bytes((part.bit_length() + 7) // 8, "big")
        place = der.index(octets) + len(octets) - 1
        damaged = der[:place] + bytes((der[place] ^ 2,)) + der[place + 1 :]
        text = base64.encodebytes(damaged).decode()
        key = f"-----BEGIN RSA PRIVATE KEY-----\n{text}-----END RSA PRIVATE KEY-----\n".encode()
        context = common(tls_certificates=[certificate("rsa2048", private_key=inline(key))])
        error = refused(proto.CLUSTER, {"name": "c", "transport_socket": upstream(context)})
        assert error.path == f"{COMMON}.tls_certificates[0]"

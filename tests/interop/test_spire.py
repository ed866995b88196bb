"""Against a real SPIRE: meshlib as its client, and `meshlib ca` beside it, which must say the same."""

from __future__ import annotations

import os
import queue
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import httpx
import pytest

import meshlib
from conformance.resources import CLUSTER, HCM, LISTENER, ROUTER, TYPE
from conformance.tls.envoy import TlsEnvoy
from meshlib.controlplane.ca import Authority, CaServer, Entry, Identities
from meshlib.httpx import MeshTransport
from meshlib.identity.source import IdentityUpdate
from meshlib.identity.workload import WorkloadApi
from meshlib.proto import Message, workload
from tests.controlplane.ca.clients import Client
from tests.interop.conftest import LIMIT, Spire

WEB = "spiffe://example.org/web"

pytestmark = pytest.mark.shared_workers


@pytest.fixture(scope="module", params=["spire", "meshlib ca"])
def agent(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, spire: Spire
) -> Iterator[str]:
    """The address of an agent that gives this user WEB: once SPIRE's, once ours."""
    if request.param == "spire":
        wait_for_identity(spire.socket)
        yield f"unix:{spire.socket}"
        return
    path = tmp_path_factory.mktemp("ca") / "agent.sock"
    entry = Entry(spiffe_id=WEB, uid=os.getuid(), dns_names=("web.local",))
    with CaServer(Identities(Authority("example.org", ttl=12), [entry]), [f"unix:{path}"]) as server:
        yield server.addresses[0]


def wait_for_identity(path: str) -> None:
    limit = time.monotonic() + LIMIT
    while True:
        try:
            with (
                Client(f"unix:{path}") as client,
                client.stream("FetchX509SVID", "X509SVIDResponse") as responses,
            ):
                next(responses)
                return
        except grpc.RpcError:
            assert time.monotonic() < limit
            time.sleep(0.2)


def refused(call: Callable[[], object]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as error:
        call()
    return error.value.code(), error.value.details()


def shape(message: Message) -> object:
    """What a Secret is, without its keys and certificates."""
    context = message.validation_context
    return (
        message.name,
        message.WhichOneof("type"),
        message.tls_certificate.certificate_chain.WhichOneof("specifier"),
        message.tls_certificate.private_key.WhichOneof("specifier"),
        context.custom_validator_config.name,
        context.custom_validator_config.typed_config.type_url,
    )


def test_secrets_have_the_same_names_and_forms(agent: str) -> None:
    validator = (
        "envoy.tls.cert_validator.spiffe",
        "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig",
    )
    with Client(agent) as client:
        for name in ("default", WEB):
            (secret,) = client.fetch(name)
            assert shape(secret) == (name, "tls_certificate", "inline_bytes", "inline_bytes", "", "")
        for name in ("ROOTCA", "ALL", "spiffe://example.org"):
            (secret,) = client.fetch(name)
            assert shape(secret) == (name, "validation_context", None, None, *validator)
        assert sorted(secret.name for secret in client.fetch()) == ["spiffe://example.org", WEB]


def test_svids_have_the_same_form(agent: str) -> None:
    with Client(agent) as client, client.stream("FetchX509SVID", "X509SVIDResponse") as responses:
        response = next(responses)
    (svid,) = response.svids
    assert (svid.spiffe_id, svid.hint, list(response.federated_bundles)) == (WEB, "", [])
    with Client(agent) as client, client.stream("FetchX509Bundles", "X509BundlesResponse") as responses:
        assert dict(next(responses).bundles) == {"spiffe://example.org": svid.bundle}


def test_refusals_are_the_same(agent: str) -> None:
    header = (grpc.StatusCode.INVALID_ARGUMENT, "security header missing from request")
    audience = (grpc.StatusCode.INVALID_ARGUMENT, "audience must be specified")
    denied = (grpc.StatusCode.PERMISSION_DENIED, "no identity issued")
    jwt = workload.message("JWTSVIDRequest")
    with Client(agent) as client:
        with client.stream("FetchX509SVID", "X509SVIDResponse", ()) as responses:
            assert refused(lambda: next(responses)) == header
        assert refused(lambda: client.unary("FetchJWTSVID", jwt(), "JWTSVIDResponse")) == audience
        other = jwt(audience=["a"], spiffe_id="spiffe://example.org/other")
        assert refused(lambda: client.unary("FetchJWTSVID", other, "JWTSVIDResponse")) == denied
        code, text = refused(lambda: client.fetch("spiffe://example.org/other"))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert (
            text == 'workload is not authorized for the requested identities ["spiffe://example.org/other"]'
        )


def test_a_token_is_taken(agent: str) -> None:
    request, check = workload.message("JWTSVIDRequest"), workload.message("ValidateJWTSVIDRequest")
    with Client(agent) as client:
        (svid,) = client.unary("FetchJWTSVID", request(audience=["a"]), "JWTSVIDResponse").svids
        answer = client.unary(
            "ValidateJWTSVID", check(audience="a", svid=svid.svid), "ValidateJWTSVIDResponse"
        )
    assert (answer.spiffe_id, list(answer.claims["aud"])) == (WEB, ["a"])


def test_the_identity_source_follows_renewal(agent: str) -> None:
    updates: queue.SimpleQueue[IdentityUpdate] = queue.SimpleQueue()
    source = WorkloadApi(agent.replace("unix:", "unix://", 1))
    source.start(updates.put)
    try:
        first = updates.get(timeout=LIMIT)
        assert first.error is None
        assert [str(svid.spiffe_id) for svid in first.svids] == [WEB]
        assert list(first.bundles) == ["example.org"]
        second = updates.get(timeout=LIMIT)
        while second.error is None and second.svids == first.svids:
            second = updates.get(timeout=LIMIT)
        assert second.error is None
        assert second.svids[0].not_after > first.svids[0].not_after
    finally:
        source.close()


def contexts(agent: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The transport sockets of a client and a server that both take everything from the agent's SDS and expect WEB."""
    source = {
        "resource_api_version": "V3",
        "api_config_source": {
            "api_type": "GRPC",
            "transport_api_version": "V3",
            "grpc_services": [{"google_grpc": {"target_uri": agent, "stat_prefix": "agent"}}],
        },
    }
    common = {
        "tls_certificate_sds_secret_configs": [{"name": "default", "sds_config": source}],
        "combined_validation_context": {
            "default_validation_context": {
                "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"exact": WEB}}]
            },
            "validation_context_sds_secret_config": {"name": "ROOTCA", "sds_config": source},
        },
    }
    tls = TYPE + "envoy.extensions.transport_sockets.tls.v3."
    upstream = {"@type": tls + "UpstreamTlsContext", "common_tls_context": common}
    downstream = {
        "@type": tls + "DownstreamTlsContext",
        "common_tls_context": common,
        "require_client_certificate": True,
    }
    name = "envoy.transport_sockets.tls"
    return {"name": name, "typed_config": upstream}, {"name": name, "typed_config": downstream}


def manager(action: dict[str, Any]) -> dict[str, Any]:
    routes = [{"match": {"prefix": "/"}, **action}]
    return {
        "@type": HCM,
        "stat_prefix": "web",
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {"@type": ROUTER}}],
        "route_config": {
            "name": "web",
            "virtual_hosts": [{"name": "web", "domains": ["*"], "routes": routes}],
        },
    }


@pytest.mark.envoy
def test_a_mesh_and_an_envoy_talk_across_a_renewal(agent: str) -> None:
    """Both have their identity from the agent; no call fails while both certificates are replaced."""
    upstream, downstream = contexts(agent)
    answer = manager(
        {"direct_response": {"status": 200, "body": {"inline_string": "%DOWNSTREAM_PEER_URI_SAN%"}}}
    )
    listener = {
        "name": "server",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
        "filter_chains": [
            {"filters": [{"name": "http", "typed_config": answer}], "transport_socket": downstream}
        ],
    }
    with TlsEnvoy([listener]) as envoy:
        address = {"socket_address": {"address": "127.0.0.1", "port_value": envoy.ports["server"]}}
        cluster = {
            "@type": CLUSTER,
            "name": "web",
            "connect_timeout": "5s",
            "transport_socket": upstream,
            "load_assignment": {
                "cluster_name": "web",
                "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
            },
        }
        front = {
            "@type": LISTENER,
            "name": "web:80",
            "api_listener": {"api_listener": manager({"route": {"cluster": "web"}})},
        }
        with (
            meshlib.Mesh(config=[{"resources": [front, cluster]}]) as mesh,
            httpx.Client(transport=MeshTransport(mesh)) as client,
        ):
            seen: set[bytes] = set()
            limit = time.monotonic() + LIMIT
            while len(seen) < 3:
                assert client.get("http://web/").status_code == 200
                with Client(agent) as plain:
                    (secret,) = plain.fetch("default")
                seen.add(secret.tls_certificate.certificate_chain.inline_bytes)
                assert time.monotonic() < limit
                time.sleep(0.02)

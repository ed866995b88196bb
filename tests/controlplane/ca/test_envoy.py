"""A real Envoy as SDS client of the CA: the agent's Unix socket, both protocols, renewal and root rotation, all under traffic."""

from __future__ import annotations

import http.client
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from conformance.resources import HCM, HTTP_OPTIONS, ROUTER, TYPE
from conformance.tls.envoy import TlsEnvoy
from meshlib.controlplane.ca import Authority, CaServer, Entry, Identities, IssuedSvid
from meshlib.controlplane.ca.certificates import to_pem
from meshlib.controlplane.ca.keys import KEY_TYPES

pytestmark = pytest.mark.envoy

SRV, CLI = "spiffe://example.org/srv", "spiffe://example.org/cli"
API = "spiffe://example.org/api"
LIMIT = 45.0
TLS = TYPE + "envoy.extensions.transport_sockets.tls.v3."


def agent(path: str) -> dict[str, Any]:
    http2 = {"@type": TYPE + HTTP_OPTIONS, "explicit_http_config": {"http2_protocol_options": {}}}
    return {
        "name": "agent",
        "connect_timeout": "1s",
        "typed_extension_protocol_options": {HTTP_OPTIONS: http2},
        "load_assignment": {
            "cluster_name": "agent",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": {"pipe": {"path": path}}}}]}],
        },
    }


def listener(certificate: str, roots: str, api: str, patience: str = "15s") -> dict[str, Any]:
    """Answers to the client CLI only. patience: how long Envoy waits for secrets before it says that it is live."""
    source = {
        "resource_api_version": "V3",
        "initial_fetch_timeout": patience,
        "api_config_source": {
            "api_type": api,
            "transport_api_version": "V3",
            "grpc_services": [{"envoy_grpc": {"cluster_name": "agent"}}],
        },
    }
    context = {
        "@type": TLS + "DownstreamTlsContext",
        "require_client_certificate": True,
        "common_tls_context": {
            "tls_certificate_sds_secret_configs": [{"name": certificate, "sds_config": source}],
            "combined_validation_context": {
                "default_validation_context": {
                    "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"exact": CLI}}]
                },
                "validation_context_sds_secret_config": {"name": roots, "sds_config": source},
            },
        },
    }
    answer = {"status": 200, "body": {"inline_string": "served"}}
    manager = {
        "@type": HCM,
        "stat_prefix": "server",
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {"@type": ROUTER}}],
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "direct_response": answer}],
                }
            ]
        },
    }
    return {
        "name": "server",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
        "filter_chains": [
            {
                "filters": [{"name": "http", "typed_config": manager}],
                "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": context},
            }
        ],
    }


class Peer:
    """A client with an SVID of its own; it trusts these roots."""

    def __init__(self, authority: Authority, folder: Path) -> None:
        self._authority = authority
        self._folder = folder

    def get(self, port: int, *, roots: tuple[x509.Certificate, ...] | None = None) -> x509.Certificate:
        """One request on a connection of its own; the server's certificate. Raises OSError when TLS fails."""
        svid = self._authority.issue(CLI)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        (self._folder / "crt").write_bytes(svid.chain_pem())
        (self._folder / "key").write_bytes(svid.key_pem())
        context.load_cert_chain(self._folder / "crt", self._folder / "key")
        context.load_verify_locations(cadata=to_pem(roots or self._authority.bundle).decode())
        connection = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=5)
        try:
            connection.request("GET", "/")
            assert connection.sock is not None
            leaf = connection.sock.getpeercert(True)
            assert isinstance(leaf, bytes)
            assert connection.getresponse().status == 200
            return x509.load_der_x509_certificate(leaf)
        finally:
            connection.close()


def eventually(check: Callable[[], bool]) -> None:
    limit = time.monotonic() + LIMIT
    while not check():
        assert time.monotonic() < limit
        time.sleep(0.02)


@pytest.fixture
def authority() -> Authority:
    return Authority("example.org")


@pytest.fixture
def server(authority: Authority, tmp_path: Path) -> Iterator[CaServer]:
    with CaServer(Identities(authority, [Entry(spiffe_id=SRV)]), [f"unix:{tmp_path}/agent.sock"]) as running:
        yield running


@pytest.fixture
def peer(authority: Authority, tmp_path: Path) -> Peer:
    return Peer(authority, tmp_path)


@pytest.mark.parametrize(
    ("certificate", "roots", "api"),
    [
        ("default", "ROOTCA", "GRPC"),
        (SRV, "spiffe://example.org", "GRPC"),
        (SRV, "ALL", "GRPC"),
        ("default", "ALL", "DELTA_GRPC"),
    ],
)
def test_envoy_takes_secrets_and_follows_a_root_rotation(
    authority: Authority, server: CaServer, peer: Peer, tmp_path: Path, certificate: str, roots: str, api: str
) -> None:
    with TlsEnvoy([listener(certificate, roots, api)], [agent(str(tmp_path / "agent.sock"))]) as envoy:
        port = envoy.ports["server"]

        def served() -> x509.Certificate:
            return server.identities.view(None).svids[0].leaf

        assert peer.get(port) == served()
        old_roots = authority.bundle

        authority.rotate()  # both roots are trusted, the old one signs
        acknowledged = len(server.answers)
        eventually(lambda: len(server.answers) > acknowledged)
        assert peer.get(port, roots=old_roots) == served()

        authority.rotate()  # the new one signs; the peer shows a certificate of the new root from now on
        eventually(lambda: peer.get(port) == served())
        assert served().issuer == authority.bundle[1].subject
        stranger = Peer(Authority("example.org"), tmp_path)
        with pytest.raises(OSError, match=r"certificate|alert"):
            stranger.get(port, roots=authority.bundle)

        authority.rotate()  # the old root is gone
        assert peer.get(port) == served()
        assert [answer for answer in server.answers if answer.error] == []


def test_envoy_trusts_a_federated_domain_for_its_own_ids_only(
    authority: Authority, server: CaServer, peer: Peer, tmp_path: Path
) -> None:
    other = Authority("other.org")
    authority.federate("other.org", other.bundle)
    forger = other.issue_from(authority.template(CLI))
    with TlsEnvoy([listener(SRV, "ALL", "GRPC")], [agent(str(tmp_path / "agent.sock"))]) as envoy:
        assert peer.get(envoy.ports["server"])
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.load_verify_locations(cadata=authority.bundle[0].public_bytes(Encoding.PEM).decode())
        (tmp_path / "forged").write_bytes(forger.chain_pem() + forger.key_pem())
        context.load_cert_chain(tmp_path / "forged")
        connection = http.client.HTTPSConnection(
            "127.0.0.1", envoy.ports["server"], context=context, timeout=5
        )
        with pytest.raises(ssl.SSLError, match=r"(?i)certificate"):
            connection.request("GET", "/")
        connection.close()


class NoSignatures(Identities):
    """Issues a certificate whose key may not sign: Envoy does not load it."""

    def _issue(self, entry: Entry) -> IssuedSvid:
        template = self.authority.template(entry.spiffe_id)
        if entry.spiffe_id == SRV:
            template = replace(template, key_usage=frozenset({"key_agreement"}))
        return self.authority.issue_from(template)


def test_envoy_says_no_to_what_it_cannot_use(authority: Authority, peer: Peer, tmp_path: Path) -> None:
    """Its complaint is kept, and a good certificate repairs it."""
    identities = NoSignatures(authority, [Entry(spiffe_id=SRV)])
    with (
        CaServer(identities, [f"unix:{tmp_path}/agent.sock"]) as server,
        TlsEnvoy(
            [listener("default", "ROOTCA", "GRPC", "1s")], [agent(str(tmp_path / "agent.sock"))]
        ) as envoy,
    ):
        eventually(lambda: any(answer.error for answer in server.answers))
        complaint = next(answer for answer in server.answers if answer.error)
        assert complaint.names in (("default",), ("ROOTCA",)), (
            "whichever of the two comes last makes the context"
        )
        assert "Failed to load certificate chain" in complaint.error
        with pytest.raises(OSError, match=r"EOF|reset"):
            peer.get(envoy.ports["server"])
        identities.replace([Entry(spiffe_id=API)])
        eventually(lambda: server.answers[-1].error == "")
        assert peer.get(envoy.ports["server"]) == identities.view(None).svids[0].leaf


@pytest.mark.parametrize("key_type", KEY_TYPES)
def test_envoy_takes_keys_of_every_type(
    authority: Authority, peer: Peer, tmp_path: Path, key_type: str
) -> None:
    identities = Identities(authority, [Entry(spiffe_id=SRV, key_type=key_type)])
    with (
        CaServer(identities, [f"unix:{tmp_path}/agent.sock"]),
        TlsEnvoy([listener("default", "ROOTCA", "GRPC")], [agent(str(tmp_path / "agent.sock"))]) as envoy,
    ):
        assert peer.get(envoy.ports["server"]) == identities.view(None).svids[0].leaf

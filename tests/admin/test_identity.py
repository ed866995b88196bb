"""Certificates and mutual TLS as the admin shows them, over every path: and never a key."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

import meshlib
from meshlib.admin.http import Request
from meshlib.httpx import MeshTransport
from meshlib.testing import serve, service
from tests.admin.conftest import parsed, text
from tests.identity.ca import Issued
from tests.transport.http.secure import CLIENT, SERVER, World

TLS = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3"
ADS = {"ads": {}, "resource_api_version": "V3"}

PATHS = (
    "/",
    "/help",
    "/certs",
    "/clusters",
    "/config_dump",
    "/listeners",
    "/server_info",
    "/stats",
    "/stats/prometheus",
    "/mesh.json",
    "/mesh/processes.json",
    "/mesh/graph.json",
)


def secured(port: int, world: World, own: Issued) -> dict[str, Any]:
    config = service("reviews", f"127.0.0.1:{port}")
    common = {
        "tls_certificate_sds_secret_configs": [{"name": "default", "sds_config": ADS}],
        "combined_validation_context": {
            "default_validation_context": {
                "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"exact": SERVER}}]
            },
            "validation_context_sds_secret_config": {"name": "ROOTCA", "sds_config": ADS},
        },
    }
    config["resources"][2]["transport_socket"] = {
        "name": "tls",
        "typed_config": {"@type": f"{TLS}.UpstreamTlsContext", "common_tls_context": common},
    }
    config["resources"] += [
        {
            "@type": f"{TLS}.Secret",
            "name": "default",
            "tls_certificate": {
                "certificate_chain": {"inline_string": own.chain.decode()},
                "private_key": {"inline_string": own.key.decode()},
            },
        },
        {
            "@type": f"{TLS}.Secret",
            "name": "ROOTCA",
            "validation_context": {"trusted_ca": {"inline_string": world.ca.pem.decode()}},
        },
    ]
    return config


@pytest.mark.parametrize("from_files", [False, True])
def test_mutual_tls(from_files: bool) -> None:
    world = World()
    own = world.client
    with world.serve() as server:
        config = secured(server.port, world, own)
        with serve(config) as plane:
            chosen: dict[str, Any] = {"config": [config]} if from_files else {"bootstrap": plane.bootstrap()}
            with meshlib.Mesh(**chosen) as mesh, httpx.Client(transport=MeshTransport(mesh)) as client:
                decision = client.get("http://reviews/").extensions["meshlib"].decision
                handler = mesh.admin().handler

                def ask(path: str, **query: str) -> Any:
                    return handler.handle(Request(method="GET", path=path, query=query))

                assert decision.secure is True
                found = parsed(ask("/mesh.json"))
                (shown,) = found["services"]
                assert (shown["tls"], shown["mtls"]) == (True, True)
                assert shown["principals"] == {"own": CLIENT, "peer": SERVER}
                (edge,) = found["graph"]["edges"]
                assert (edge["mtls"], edge["principal"]) == (True, SERVER)
                first, second = found["certificates"]
                assert (first["kind"], first["name"], second["kind"]) == ("own", CLIENT, "ca")
                assert first["not_after"] == pytest.approx(own.not_after, abs=1)
                assert 0 < first["expires_in"] < first["not_after"] - first["not_before"] + 1
                (entry,) = parsed(ask("/certs"))["certificates"]
                (leaf,) = entry["cert_chain"]
                assert leaf["subject_alt_names"] == [{"uri": CLIENT}]
                assert leaf["expiration_time"].endswith("Z")
                assert len(entry["ca_cert"]) == 1
                configs = parsed(ask("/config_dump"))["configs"]
                kind = "static_secrets" if from_files else "dynamic_active_secrets"
                secrets = {each["secret"]["name"]: each["secret"] for each in configs[-1][kind]}
                assert secrets["default"]["tls_certificate"]["private_key"] == {"inline_string": "[redacted]"}
                assert (
                    "BEGIN CERTIFICATE"
                    in secrets["default"]["tls_certificate"]["certificate_chain"]["inline_string"]
                )
                key = own.key.decode().splitlines()[1]
                for path in PATHS:
                    answer = text(ask(path, include_eds="1"))
                    assert "PRIVATE KEY" not in answer, path
                    assert key not in answer, path

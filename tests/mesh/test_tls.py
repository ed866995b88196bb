"""Identities of a whole Mesh: where certificates come from, when calls wait for them, forks and the end."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import meshlib
from meshlib.testing import messages, serve, service
from tests.identity.ca import Issued
from tests.mesh.conftest import Call
from tests.mesh.forking import fork, reap
from tests.transport.http.secure import CLIENT, SERVER, Source, World, again_until

TLS = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3"
ADS = {"ads": {}, "resource_api_version": "V3"}
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def world() -> World:
    return World()


def secured(port: int, common: dict[str, Any]) -> dict[str, Any]:
    """A service on that port whose cluster has this CommonTlsContext."""
    config = service("reviews", f"127.0.0.1:{port}")
    config["resources"][2]["transport_socket"] = {
        "name": "tls",
        "typed_config": {"@type": f"{TLS}.UpstreamTlsContext", "common_tls_context": common},
    }
    return config


def by_secrets() -> dict[str, Any]:
    """What an Envoy beside a SPIRE agent is told."""
    return {
        "tls_certificate_sds_secret_configs": [{"name": "default", "sds_config": ADS}],
        "combined_validation_context": {
            "default_validation_context": {
                "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"exact": SERVER}}]
            },
            "validation_context_sds_secret_config": {"name": "ROOTCA", "sds_config": ADS},
        },
    }


def secrets(world: World, own: Issued) -> list[dict[str, Any]]:
    return [
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


@pytest.mark.usefixtures("exchanged_at_once")
def test_the_workloads_own_identity(caller: Call, world: World) -> None:
    """The first call waits for it; a renewal is in force for the next one."""
    source = Source()
    with world.serve() as server:
        with meshlib.Mesh(secured(server.port, by_secrets()), identity=source) as mesh:
            client = caller(mesh)
            mesh.start()
            assert source.tell is not None
            timer = threading.Timer(0.05, source.give, (world.client, world.ca))
            timer.start()
            assert client.get("http://reviews/").status_code == 200
            timer.join()
            second = world.ca.issue(CLIENT)
            source.give(second, world.ca)
            again_until(
                lambda: client.get("http://reviews/").raise_for_status(), lambda: len(world.seen.peers) == 2
            )
        assert source.closed
    assert world.seen.peers == [world.client.der, second.der]


def test_ready_means_that_certificates_are_there(world: World) -> None:
    source = Source()
    with meshlib.Mesh(secured(1, by_secrets()), identity=source) as mesh:
        with pytest.raises(meshlib.ConfigTimeout, match="what TLS to cluster 'reviews' needs"):
            mesh.wait_ready(timeout=0.01)
        timer = threading.Timer(0.02, source.give, (world.client, world.ca))
        timer.start()
        mesh.wait_ready(timeout=10.0)
        timer.join()
        assert mesh.engine.program.clusters["reviews"].secure_by is None


@pytest.mark.usefixtures("exchanged_at_once")
def test_secrets_over_the_control_planes_stream(caller: Call, world: World) -> None:
    with world.serve() as server:
        config = secured(server.port, by_secrets())
        with serve(config) as control_plane, meshlib.Mesh(bootstrap=control_plane.bootstrap()) as mesh:
            client = caller(mesh)

            def bring(own: Issued) -> None:
                resources = [*config["resources"], *secrets(world, own)]
                control_plane.store.replace(messages({"resources": resources}))

            timer = threading.Timer(0.1, bring, (world.client,))
            timer.start()
            assert client.get("http://reviews/").status_code == 200
            timer.join()
            second = world.ca.issue(CLIENT)
            rotated = threading.Event()
            mesh.identity.subscribe(rotated.set)
            bring(second)
            assert rotated.wait(20)
            again_until(
                lambda: client.get("http://reviews/").raise_for_status(), lambda: len(world.seen.peers) == 2
            )
    assert world.seen.peers == [world.client.der, second.der]


def test_secrets_that_do_not_exist_fail_as_in_envoy(caller: Call, world: World) -> None:
    """The control plane says so at once, or `initial_fetch_timeout` passes; nothing goes out in plaintext meanwhile."""
    with world.serve() as server, meshlib.Mesh(secured(server.port, by_secrets())) as mesh:
        for cluster in mesh.engine.program.clusters.values():
            object.__setattr__(cluster, "secure_by", 0.0)  # fifteen seconds later
        with pytest.raises(meshlib.IdentityError) as caught:
            caller(mesh).get("http://reviews/")
        assert caught.value.details == (
            "upstream_reset_before_response_started{remote_connection_failure|TLS_error:_Secret_is_not_supplied_by_SDS}"
        )
        assert caught.value.flags == "UF"
    assert server.accepted == 0


def test_a_certificate_provider_of_the_bootstrap(caller: Call, world: World, tmp_path: Path) -> None:
    for name, content in (("cert", world.client.chain), ("key", world.client.key), ("ca", world.ca.pem)):
        (tmp_path / name).write_bytes(content)
    (tmp_path / "key").chmod(0o600)
    provider = {"instance_name": "files"}
    common = {
        "tls_certificate_provider_instance": provider,
        "validation_context": {"ca_certificate_provider_instance": provider},
    }
    files = {
        "plugin_name": "file_watcher",
        "config": {
            "certificate_file": str(tmp_path / "cert"),
            "private_key_file": str(tmp_path / "key"),
            "ca_certificate_file": str(tmp_path / "ca"),
            "refresh_interval": "600s",
        },
    }
    with world.serve() as server, serve(secured(server.port, common)) as control_plane:
        bootstrap = {**control_plane.bootstrap(), "certificate_providers": {"files": files}}
        with meshlib.Mesh(bootstrap=bootstrap) as mesh:
            client = caller(mesh)
            assert client.get("http://reviews/").status_code == 200
    assert world.seen.peers == [world.client.der]


def test_a_wrong_identity_is_refused_when_the_mesh_is_made() -> None:
    with pytest.raises(meshlib.ConfigError, match="identity"):
        meshlib.Mesh(service("reviews", "127.0.0.1:1"), identity="neither/a/folder/nor/an/address")
    providers = {"certificate_providers": {"x": {"plugin_name": "own"}}}
    bootstrap = {"xds_servers": [{"server_uri": "127.0.0.1:1", "channel_creds": [{"type": "insecure"}]}]}
    with pytest.raises(meshlib.ConfigError, match="plugin_name"):
        meshlib.Mesh(bootstrap=bootstrap | providers)


def test_from_plaintext_to_tls_over_the_control_plane(caller: Call, world: World) -> None:
    """Nothing of the plaintext connection is used once the new version is acknowledged."""
    with world.serve() as server:
        plain = service("reviews", f"127.0.0.1:{server.port}")
        resources = secrets(world, world.client)
        with (
            serve({"resources": [*plain["resources"], *resources]}) as control_plane,
            meshlib.Mesh(bootstrap=control_plane.bootstrap()) as mesh,
        ):
            client = caller(mesh)
            with pytest.raises(meshlib.UpstreamError):
                client.get("http://reviews/")  # in plaintext to a server that wants TLS
            seen, woken = mesh.engine.program, threading.Event()
            mesh.engine.await_program(woken.set, seen)
            new = secured(server.port, by_secrets())["resources"]
            control_plane.store.replace(messages({"resources": [*new, *resources]}))
            assert woken.wait(20)
            assert client.get("http://reviews/").status_code == 200
    assert [request.split(b" ", 1)[0] for request in world.seen.data] == [b"GET"]


def test_a_child_leaves_the_parents_connections_alone(world: World) -> None:
    """It has its own, and does not say goodbye on theirs."""
    import httpx

    from meshlib.httpx import MeshTransport

    source = Source()
    with world.serve() as server:
        with meshlib.Mesh(secured(server.port, by_secrets()), identity=source) as mesh:
            with httpx.Client(transport=MeshTransport(mesh)) as client:
                mesh.start()
                source.give(world.client, world.ca)
                assert client.get("http://reviews/").status_code == 200

                def work() -> None:
                    for _ in range(2):
                        assert client.get("http://reviews/").status_code == 200
                    client.close()

                reap(fork(work))
                assert client.get("http://reviews/").status_code == 200
        assert server.accepted == 2


PLAIN = """
import sys, meshlib, meshlib.httpx
meshlib.Mesh({config!r})
loaded = {{"cryptography", "grpc", "spiffe", "meshlib.identity.store"}} & set(sys.modules)
assert not loaded, loaded
"""


def test_plaintext_needs_no_cryptography() -> None:
    code = PLAIN.format(config=service("reviews", "127.0.0.1:1"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=60)

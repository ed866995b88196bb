"""What must never take effect: plaintext where TLS was asked for, and patterns that hang."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest

import meshlib
from meshlib import proto
from meshlib.testing import Upstream, messages, serve, service
from tests.mesh.conftest import Call

TLS = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext"
HANDSHAKER = {"custom_handshaker": {"name": "h"}}


def secured(common: dict[str, Any]) -> dict[str, Any]:
    """A transport socket with this CommonTlsContext."""
    return {"name": "tls", "typed_config": {"@type": TLS, "common_tls_context": common}}


SOCKETS: list[dict[str, Any]] = [
    {"transport_socket": secured(HANDSHAKER)},
    {"transport_socket": {"name": "somebody-elses"}},
    {"transport_socket_matches": [{"name": "m", "transport_socket": secured(HANDSHAKER)}]},
]


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    """A port that nobody accepts from: whoever connects is seen in its backlog."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield server


def address_of(server: socket.socket) -> str:
    return f"127.0.0.1:{server.getsockname()[1]}"


def nobody_came(server: socket.socket) -> bool:
    try:
        connection, _ = server.accept()
    except BlockingIOError:
        return True
    connection.close()
    return False


@pytest.mark.parametrize("tls", SOCKETS)
def test_tls_that_is_not_understood_is_refused_and_nothing_goes_out_in_plaintext(
    caller: Call, listening: socket.socket, tls: dict[str, Any]
) -> None:
    config = service("reviews", address_of(listening))
    config["resources"][2] |= tls
    with (
        serve(config) as control_plane,
        meshlib.Mesh(bootstrap=control_plane.bootstrap(), config_timeout=1.0) as mesh,
    ):
        client = caller(mesh)
        with pytest.raises(meshlib.MeshError) as caught:
            client.get("http://reviews/")
        answer = control_plane.wait_for_answer(proto.CLUSTER)
        assert next(iter(tls)) in (answer.error or "")
        assert "reviews" not in mesh.snapshot.clusters
    assert caught.value.attempts == ()
    assert nobody_came(listening)


def test_a_cluster_that_turns_to_tls_keeps_its_last_good_version(
    caller: Call, listening: socket.socket
) -> None:
    """Not the new endpoints in plaintext: the cluster as it was, until the control plane is right again."""
    with Upstream() as upstream:
        config = service("reviews", upstream.address)
        with serve(config) as control_plane, meshlib.Mesh(bootstrap=control_plane.bootstrap()) as mesh:
            client = caller(mesh)
            assert client.get("http://reviews/").status_code == 200
            cluster = config["resources"][2] | SOCKETS[0]
            cluster["eds_cluster_config"] = cluster["eds_cluster_config"] | {"service_name": "secure"}
            endpoints = service("secure", address_of(listening))["resources"][3]
            control_plane.store.replace(
                messages({"resources": [*config["resources"][:2], cluster, endpoints]})
            )
            assert "transport_socket" in (control_plane.wait_for_answer(proto.CLUSTER).error or "")
            assert client.get("http://reviews/").status_code == 200
            assert [request.target for request in upstream.requests] == ["/", "/"]
    assert nobody_came(listening)


def test_tls_in_files_is_refused_when_the_mesh_is_made() -> None:
    config = service("reviews", "127.0.0.1:1")
    config["resources"][2] |= SOCKETS[0]
    with pytest.raises(meshlib.ConfigError, match="transport_socket"):
        meshlib.Mesh(config)


def test_an_https_url_is_refused(caller: Call, listening: socket.socket) -> None:
    config = service("reviews", address_of(listening), listener="reviews:443")
    with meshlib.Mesh(config) as mesh, pytest.raises(Exception, match="https"):
        caller(mesh).get("https://reviews/")
    assert nobody_came(listening)


def hostile(pattern: str) -> dict[str, Any]:
    config = service("reviews", "127.0.0.1:1")
    config["resources"][1]["virtual_hosts"][0]["routes"] = [
        {"match": {"safe_regex": {"regex": pattern}}, "direct_response": {"status": 201}},
        {"match": {"prefix": "/"}, "direct_response": {"status": 202}},
    ]
    return config


@pytest.mark.timeout(20)
@pytest.mark.parametrize("pattern", ["/(a+)+b", "/(a|aa)+b", "/(.*)*b", "/(x+x+)+y"])
def test_a_hostile_pattern_does_not_hang(caller: Call, pattern: str) -> None:
    """With google-re2 it is matched in linear time; without, the configuration is refused."""
    path = "/" + ("x" if "x" in pattern else "a") * 5000
    try:
        mesh = meshlib.Mesh(hostile(pattern))
    except meshlib.ConfigError as error:
        assert "safe_regex" in str(error)  # noqa: PT017 - either outcome is right
        return
    with mesh:
        client = caller(mesh)
        assert client.get("http://reviews" + path).status_code == 202
